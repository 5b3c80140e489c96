"""The kubelet's two questions: what does a container get, and may it start now.

The kubelet does not say which container asks. Two roads lead to a start, and both take the same steps in the same order
(`preparation`): confirm the owner, resolve the assignment, prepare the node, put the edits in place.

```
                with CDI                                        without CDI
Allocate        answer a CDI name that was never used before    answer the edits of the likeliest container (`matching`)
in background   the steps, once the checkpoint names the owner  -
                edits in place: a specification is written
PreStart-       the steps again: the barrier                    the steps: the barrier
Container       edits in place: the specification is as it is   edits in place: the answer is the container's own
```

PreStartContainer fails with a text that the kubelet shows, and the kubelet retries; a refusal of Allocate is final.
"""

import asyncio
import contextlib
import hashlib
import secrets
import time
from collections.abc import Sequence
from dataclasses import dataclass

import structlog

from device_plugin.allocation import checks
from device_plugin.allocation.matching import Matcher
from device_plugin.allocation.owners import Owners
from device_plugin.allocation.preparation import Preparation, Prepared
from device_plugin.delivery import cdi_store, edits
from device_plugin.kubelet.checkpoint import Entry
from device_plugin.kubelet.refusals import StartRefused
from device_plugin.node.api_objects import Pod
from device_plugin.node.local_node import LocalNode
from gpu_sharing.adapters import pauses
from gpu_sharing.adapters.progress import Progress
from gpu_sharing.core import error_codes, identifiers

_BARRIER_SECONDS = 10.0
"""How long PreStartContainer waits for watches and the kubelet to catch up; the kubelet's own limit is 30 s."""
_EARLY_SECONDS = 20.0
_POLL_SECONDS = 0.02
_IDENTITY_SECONDS = 20.0
"""How long Allocate waits for the node to be read."""

log = structlog.get_logger("allocation")

ContainerKey = tuple[identifiers.PodUid, str]


@dataclass(frozen=True, slots=True)
class Confirmed:
    """Containers of a pod that may start now."""

    pod: Pod
    new: tuple[Prepared, ...] = ()
    """Containers that this process confirms for the first time."""
    is_known: bool = True
    """Whether the pod is known; else an earlier confirmation counts, while the API server cannot be asked."""


class Allocator:
    """Answers the kubelet.

    Args:
        node: This node.
        owners: Which container has which device ids.
        preparation: The steps before a start.
        matcher: Answers where the container runtime does not know CDI.
    """

    def __init__(self, node: LocalNode, owners: Owners, preparation: Preparation, matcher: Matcher) -> None:
        self._node = node
        self._owners = owners
        self._preparation = preparation
        self._matcher = matcher
        self._confirmed: dict[ContainerKey, bool] = {}
        """Containers that this process confirmed, and whether they were bound by CDI."""
        self._background: set[asyncio.Task[None]] = set()

    async def allocate(self, device_ids: frozenset[str]) -> edits.Edits | str:
        """Return what the container with these device ids gets: a CDI name, or edits where it is matched.

        Raises:
            StartRefused: Nothing shows whether the runtime knows CDI. The kubelet then fails the pod for good.
        """
        digest = hashlib.sha256(" ".join(sorted(device_ids)).encode()).hexdigest()
        allocation = f"{digest[:12]}-{secrets.token_hex(8)}"
        if not await self._by_cdi():
            return await self._matcher.answer(allocation, len(device_ids))
        name = f"{cdi_store.KIND}={allocation}"
        task = asyncio.create_task(self._prepare_early(name))
        self._background.add(task)
        task.add_done_callback(self._background.discard)
        return name

    async def _by_cdi(self) -> bool:
        """Return whether a container that asks now names its allocation by CDI.

        Until the node has been read, the kubelet's memory of earlier answers decides if they are all of one kind.
        """
        if self._node.identity_known.is_set():
            return self._node.by_cdi
        earlier = {_is_by_cdi(entry) for entry in self._owners.entries_or_none()}
        if len(earlier) == 1:
            return earlier.pop()
        try:
            await asyncio.wait_for(self._node.identity_known.wait(), _IDENTITY_SECONDS)
        except TimeoutError as cause:
            raise StartRefused(
                error_codes.PLUGIN_NODE_UNREAD, f"{self._node.name} was not read within {_IDENTITY_SECONDS:g} s"
            ) from cause
        return self._node.by_cdi

    async def _prepare_early(self, cdi_name: str) -> None:
        """Prepare a container as soon as the kubelet's checkpoint names it, so that its start need not wait."""
        deadline = time.monotonic() + _EARLY_SECONDS
        while time.monotonic() < deadline:
            await asyncio.sleep(_POLL_SECONDS)
            with contextlib.suppress(StartRefused):
                for entry in self._owners.entries():
                    pod = self._owners.pod_of(entry)
                    if cdi_name in entry.cdi_names and pod is not None:
                        await self._preparation.prepare(pod, (entry,))
                        return

    async def confirm(self, device_ids: frozenset[str]) -> Confirmed:
        """Make sure that the container with these device ids gets its own record's edits if it starts now.

        Raises:
            StartRefused: It must not start.
        """
        deadline = time.monotonic() + _BARRIER_SECONDS
        while True:
            try:
                return await self._confirm(device_ids)
            except StartRefused as refused:
                if not refused.retryable or time.monotonic() > deadline:
                    raise
            await asyncio.sleep(_POLL_SECONDS)

    async def _confirm(self, device_ids: frozenset[str]) -> Confirmed:
        entries = checks.entries_with(self._owners.entries(), device_ids)
        pod = self._owners.pod_or_refusal(entries[0])
        if pod is None:
            return self._trust_earlier(entries)
        prepared = await self._preparation.prepare(pod, entries)
        wait_seconds = max(one.wait_seconds for one in prepared)
        if wait_seconds:
            await asyncio.sleep(wait_seconds)
        new = tuple(one for one in prepared if (pod.uid, one.assignment.container) not in self._confirmed)
        self._confirmed |= {(pod.uid, one.assignment.container): one.assignment.by_cdi for one in prepared}
        return Confirmed(pod, new)

    def _trust_earlier(self, entries: Sequence[Entry]) -> Confirmed:
        """Accept what an earlier confirmation wrote, while the API server cannot be asked about the pod."""
        if not all(self._preparation.was_prepared(entry) for entry in entries):
            raise StartRefused(
                error_codes.ALLOC_OWNER_UNKNOWN,
                "the API server does not answer, and no specification was written before",
                retryable=True,
            )
        pod = Pod()
        pod.metadata.uid = entries[0].pod_uid
        return Confirmed(pod, is_known=False)

    def is_by_cdi(self, uid: identifiers.PodUid, container: str) -> bool:
        """Return whether this process confirmed a container that was bound by CDI."""
        return self._confirmed.get((uid, container), False)

    async def restore(self, restoring: Progress) -> int:
        """Write the specifications of all that the kubelet has allocated, such as after a restart of the node.

        Returns:
            How many there are.
        """
        restored, pause = 0, pauses.Pause()
        entries = list(self._owners.entries_or_none())
        restoring.begin(len(entries))
        for entry in entries:
            restoring.step()
            await pause()
            pod = self._owners.pod_of(entry)
            if pod is None or not _is_by_cdi(entry):
                continue
            try:
                self._preparation.restore(pod, entry)
                restored += 1
            except StartRefused as refused:
                log.warning(
                    "specification not restored",
                    error_code=refused.code,
                    pod=pod.key,
                    container=entry.container,
                    cause=str(refused),
                )
        restoring.end()
        return restored

    def keep(self, entries: Sequence[Entry]) -> None:
        """Delete what is remembered of containers that the kubelet has deleted."""
        alive = {(entry.pod_uid, entry.container) for entry in entries}
        self._confirmed = {key: by_cdi for key, by_cdi in self._confirmed.items() if key in alive}
        self._owners.keep(entries)


def _is_by_cdi(entry: Entry) -> bool:
    return cdi_store.own_device(entry.cdi_names) is not None
