"""The steps before a container may start, in the one order that every road takes (see `allocator`)."""

from collections.abc import Sequence
from dataclasses import dataclass

from device_plugin.allocation import container_edits, marks
from device_plugin.allocation.assignments import Assignments
from device_plugin.allocation.container_edits import ContainerEdits
from device_plugin.allocation.owners import Owners
from device_plugin.delivery import cdi_store, edits
from device_plugin.delivery.cdi_store import CdiStore
from device_plugin.isolation.assignment import Assignment
from device_plugin.isolation.backend import CannotIsolate
from device_plugin.kubelet.checkpoint import Entry
from device_plugin.kubelet.refusals import StartRefused
from device_plugin.node.api_objects import Pod
from device_plugin.node.local_node import LocalNode
from gpu_sharing.core import error_codes

_CACHE_SECONDS = 0.1
"""A runtime follows its directory by events and does not read it again for an unknown name: a specification that is
younger may not be known to it."""


@dataclass(frozen=True, slots=True)
class Prepared:
    """A container whose edits are in place."""

    assignment: Assignment
    isolation: str
    """What isolates it in effect."""
    wait_seconds: float
    """How long the runtime needs to notice its specification."""


class Preparation:
    """Prepares containers that the kubelet has allocated device ids to."""

    def __init__(
        self,
        *,
        node: LocalNode,
        owners: Owners,
        assignments: Assignments,
        container_edits: ContainerEdits,
        store: CdiStore,
    ) -> None:
        self._node = node
        self._owners = owners
        self._assignments = assignments
        self._edits = container_edits
        self._store = store

    async def prepare(self, pod: Pod, entries: Sequence[Entry]) -> tuple[Prepared, ...]:
        """Take every step for containers that have the same device ids: an init and an app container, or one.

        Raises:
            StartRefused: They must not start.
        """
        await self._owners.confirm(pod, entries)
        return tuple([await self._prepare(pod, entry) for entry in entries])

    async def _prepare(self, pod: Pod, entry: Entry) -> Prepared:
        assignment = self._resolve(pod, entry)
        backend = self._node.backends[assignment.mode]
        try:
            await backend.prepare(assignment)
        except CannotIsolate as cause:
            raise StartRefused(error_codes.ALLOC_ISOLATION, f"{pod.key}: {cause}") from cause
        assignment = self._assignments.with_current_devices(pod, assignment)
        wait_seconds = self._put_in_place(pod, entry, assignment)
        return Prepared(assignment, backend.isolation_in_effect(assignment), wait_seconds)

    def restore(self, pod: Pod, entry: Entry) -> None:
        """Put the edits of a container in place that was prepared before, such as after a restart of the node.

        Raises:
            StartRefused: See `ContainerEdits.edits_for`.
        """
        self._put_in_place(pod, entry, self._resolve(pod, entry))

    def was_prepared(self, entry: Entry) -> bool:
        """Return whether an earlier preparation wrote the specification of this allocation and pod."""
        device = cdi_store.own_device(entry.cdi_names)
        return device is not None and self._store.exists(device, entry.pod_uid)

    def _resolve(self, pod: Pod, entry: Entry) -> Assignment:
        device = cdi_store.own_device(entry.cdi_names)
        return self._assignments.resolve(
            pod,
            entry.container,
            device_id_count=len(entry.device_ids),
            allocation=device or entry.environment.get(marks.NAME_VARIABLE, ""),
            by_cdi=device is not None,
        )

    def _put_in_place(self, pod: Pod, entry: Entry, assignment: Assignment) -> float:
        """Write the specification, or verify the answer. Returns the seconds that the runtime needs to notice it."""
        wanted = self._edits.edits_for(pod, assignment)
        if assignment.by_cdi:
            return self._write(assignment, wanted)
        container_edits.verify_answer(assignment, entry.environment, wanted)
        self._node.backends[assignment.mode].link_owner(assignment.folder, assignment.owner)
        return 0.0

    def _write(self, assignment: Assignment, wanted: edits.Edits) -> float:
        device, uid = assignment.allocation, assignment.pod_uid
        try:
            if self._store.write(device, uid, wanted, self._node.host.specs.version):
                return _CACHE_SECONDS
        except cdi_store.NotWritten as cause:
            raise StartRefused(error_codes.ALLOC_SPEC_NOT_WRITTEN, str(cause)) from cause
        # A file can come from the future: the wall clock may have been set back since.
        return min(max(_CACHE_SECONDS - self._store.age_seconds(device, uid), 0.0), _CACHE_SECONDS)
