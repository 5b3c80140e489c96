"""Deletes what was made for allocations that the kubelet has deleted: specifications and folders of containers."""

from collections.abc import Callable

from device_plugin import metrics
from device_plugin.allocation import marks
from device_plugin.allocation.allocator import Allocator
from device_plugin.allocation.owners import Owners
from device_plugin.delivery.cdi_store import CdiStore
from device_plugin.node.local_node import LocalNode


class Leftovers:
    """What ended containers leave behind.

    Args:
        node: Has the backends, which have folders.
        owners: What the kubelet has allocated.
        allocator: Remembers containers.
        store: Has the specifications.
        forget_seconds: What is younger is kept: the kubelet may not have written its checkpoint yet.
        count: Called with the kind of each that is deleted.
    """

    def __init__(
        self,
        *,
        node: LocalNode,
        owners: Owners,
        allocator: Allocator,
        store: CdiStore,
        forget_seconds: float,
        count: Callable[[str], None] = lambda kind: None,
    ) -> None:
        self._count = count
        self._node = node
        self._owners = owners
        self._allocator = allocator
        self._store = store
        self._forget_seconds = forget_seconds

    def delete(self) -> int:
        """Delete them. Returns how many files and folders were deleted.

        Raises:
            StartRefused: The checkpoint cannot be read, so nothing is deleted.
        """
        if not self._owners.checkpoint_file.exists:
            return 0  # The kubelet has allocated nothing yet, or its directory is not visible here.
        entries = self._owners.entries()
        names = {name for entry in entries for name in entry.cdi_names}
        folders = {f"{entry.pod_uid}_{entry.container}" for entry in entries}
        folders |= {entry.environment.get(marks.NAME_VARIABLE, "") for entry in entries}
        deleted = self._delete_specifications(names) + self._delete_folders(folders)
        self._allocator.keep(entries)
        return deleted

    def _delete_specifications(self, names: set[str]) -> int:
        deleted = 0
        for written in self._store.all():
            is_old = self._store.age_seconds(written.device, written.pod_uid) > self._forget_seconds
            if written.name not in names and is_old:
                self._store.delete(written)
                self._count(metrics.CDI)
                deleted += 1
        return deleted

    def _delete_folders(self, kept: set[str]) -> int:
        deleted = 0
        for backend in self._node.backends.values():
            for folder in backend.folders(self._forget_seconds):
                if folder not in kept:
                    backend.delete_folder(folder)
                    self._count(metrics.FOLDER)
                    deleted += 1
        return deleted
