"""Which container has which device ids, by the kubelet's checkpoint and its podresources API."""

from collections.abc import Callable, Sequence

from device_plugin.allocation import checks
from device_plugin.delivery import cdi_store
from device_plugin.kubelet import podresources
from device_plugin.kubelet.checkpoint import CheckpointFile, Entry
from device_plugin.kubelet.podresources import PodResources
from device_plugin.kubelet.refusals import StartRefused
from device_plugin.node.api_objects import Pod
from device_plugin.node.pods import Pods
from gpu_sharing.core import error_codes, errors


class Owners:
    """The owners of device ids.

    Args:
        checkpoint_file: The kubelet's checkpoint.
        resources: The kubelet's podresources API.
        pods: The pods of this node.
        pods_are_current: Returns whether `pods` follows the API server now.
    """

    def __init__(
        self,
        checkpoint_file: CheckpointFile,
        resources: PodResources,
        pods: Pods,
        pods_are_current: Callable[[], bool],
    ) -> None:
        self.checkpoint_file = checkpoint_file
        self._resources = resources
        self._pods = pods
        self._pods_are_current = pods_are_current
        self._confirmed: dict[bytes, Entry] = {}

    def entries(self) -> tuple[Entry, ...]:
        """Return what the kubelet has allocated.

        Raises:
            StartRefused: Its checkpoint cannot be read.
        """
        try:
            return self.checkpoint_file.entries()
        except (OSError, errors.CorruptRecord) as cause:
            raise StartRefused(error_codes.PLUGIN_CHECKPOINT_UNREADABLE, str(cause), retryable=True) from cause

    def entries_or_none(self) -> tuple[Entry, ...]:
        """Return what the kubelet has allocated; nothing where its checkpoint cannot be read."""
        try:
            return self.entries()
        except StartRefused:
            return ()

    def pod_of(self, entry: Entry) -> Pod | None:
        """Return the pod of an entry; None where it is not known."""
        return self._pods.by_uid.get(entry.pod_uid)

    def is_leftover(self, entry: Entry) -> bool:
        """Return whether the pod of an entry has ended. The kubelet frees its ids only when it allocates or lists."""
        return self.pod_of(entry) is None and self._pods_are_current()

    def pod_or_refusal(self, entry: Entry) -> Pod | None:
        """Return the pod of an entry; None where the API server cannot be asked.

        Raises:
            StartRefused: The API server has no such pod on this node.
        """
        pod = self.pod_of(entry)
        if self.is_leftover(entry):
            raise StartRefused(
                error_codes.ALLOC_OWNER_UNKNOWN,
                f"the API server shows no pod with UID {entry.pod_uid} on this node",
                retryable=True,
            )
        return pod

    def pod_with(self, device_ids: frozenset[str]) -> Pod | None:
        """Return the pod that has exactly these device ids; None where the checkpoint does not name one pod."""
        uids = {entry.pod_uid for entry in self.entries_or_none() if entry.device_ids == device_ids}
        return self._pods.by_uid.get(uids.pop()) if len(uids) == 1 else None

    async def confirm(self, pod: Pod, entries: Sequence[Entry]) -> None:
        """Compare entries that have the same device ids with podresources.

        An answer that carries a CDI name is unique and never gets another owner, so it is compared once.

        Raises:
            StartRefused: podresources names another owner, or does not answer.
        """
        if all(self._confirmed.get(entry.answer) == entry for entry in entries):
            return
        try:
            listed = await self._resources.listed()
        except podresources.Unanswered as cause:
            raise StartRefused(error_codes.ALLOC_OWNER_UNKNOWN, str(cause), retryable=True) from cause
        checks.compare_with_podresources(pod, entries, entries[0].device_ids, listed)
        self._confirmed |= {entry.answer: entry for entry in entries if cdi_store.own_device(entry.cdi_names)}

    def keep(self, entries: Sequence[Entry]) -> None:
        """Delete what is remembered of entries that the kubelet has deleted."""
        answers = {entry.answer for entry in entries}
        self._confirmed = {answer: entry for answer, entry in self._confirmed.items() if answer in answers}
