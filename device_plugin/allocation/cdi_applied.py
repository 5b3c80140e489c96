"""Looks into running containers for the mark of their allocation: a runtime that ignores CDI starts them without.

The mark is a mount, because the mounts of a process stand in `/proc/<pid>/mountinfo`, which any process may read. Its
environment may be read only with the right to trace it, which the chart does not give; where it can be, the variable
counts too, for containers of a plugin that did not mount the mark yet. What cannot be found there is not judged, and
that nothing can be judged is reported.

Source: proc(5); the container's id is a part of its cgroup's path with every runtime and cgroup driver.
"""

import asyncio
import contextlib
import pathlib
from collections.abc import Callable, Iterator

from device_plugin.allocation import allocator
from device_plugin.node import api_objects, pods
from gpu_sharing.core import identifiers

_MARK = f"{allocator.NAME_VARIABLE}=".encode()
_MOUNT = f" {allocator.MARK_FOLDER}/"
_LOOK_SECONDS = 2.0
_UNSEEN_LOOKS = 15
"""After so many looks a running container should have been found."""
_MOST_BYTES = 1 << 20


class CdiCheck:
    """Judges each container once, some time after it was started."""

    def __init__(
        self,
        proc: pathlib.Path,
        here: pods.Pods,
        is_late: Callable[[identifiers.PodUid, str], bool],
        unmarked: Callable[[api_objects.Pod, str], None],
        unseen: Callable[[str], None],
    ) -> None:
        """Join what it needs.

        Args:
            proc: The host's `/proc`.
            here: The pods of this node.
            is_late: Whether a container was confirmed by this process and bound by CDI.
            unmarked: Called for a container that runs without its mark.
            unseen: Called with the reason why containers cannot be judged, and with an empty text once one was.
        """
        self._proc = proc
        self._pods = here
        self._is_late = is_late
        self._unmarked = unmarked
        self._unseen = unseen
        self._judged: set[str] = set()
        self._looks: dict[str, int] = {}

    async def run(self) -> None:
        """Look for ever; ends only by cancellation."""
        while True:
            await asyncio.sleep(_LOOK_SECONDS)
            await self.look()

    async def look(self) -> None:
        """Judge the containers that were not judged yet."""
        waiting = list(self._waiting())
        running = {container_id for _, _, container_id in self._running()}
        self._judged &= running
        self._looks = {one: count for one, count in self._looks.items() if one in running}
        if not waiting:
            return
        marks = await asyncio.to_thread(find_marks, self._proc, {container_id for _, _, container_id in waiting})
        for pod, name, container_id in waiting:
            marked = marks.get(container_id)
            if marked is None:
                self._count(pod, name, container_id, found=container_id in marks)
                continue
            self._judged.add(container_id)
            self._unseen("")
            if not marked:
                self._unmarked(pod, name)

    def _count(self, pod: api_objects.Pod, name: str, container_id: str, *, found: bool) -> None:
        self._looks[container_id] = self._looks.get(container_id, 0) + 1
        if self._looks[container_id] == _UNSEEN_LOOKS:
            what = "may not be read" if found else "are not found"
            self._unseen(f"the processes of container {name} of {pod.key} {what} in {self._proc}")

    def _waiting(self) -> Iterator[tuple[api_objects.Pod, str, str]]:
        for pod, name, container_id in self._running():
            if container_id not in self._judged and self._is_late(pod.uid, name):
                yield pod, name, container_id

    def _running(self) -> Iterator[tuple[api_objects.Pod, str, str]]:
        for pod in list(self._pods.by_uid.values()):
            for status in pod.running_containers:
                yield pod, status.name, status.container_id.rpartition("/")[2]


def find_marks(proc: pathlib.Path, container_ids: set[str]) -> dict[str, bool | None]:
    """Return whether a process of each container has the mark.

    One is enough, because a process may have made itself other mounts. None stands for containers whose processes may
    not be read; containers without a process that is found are left out.
    """
    found: dict[str, bool | None] = {}
    for process in (path for path in proc.iterdir() if path.name.isdecimal()):
        with contextlib.suppress(OSError):
            cgroup = (process / "cgroup").read_text()
            inside = next((one for one in container_ids if one in cgroup), None)
            if inside is not None and not found.get(inside):
                marked = _is_marked(process)
                found[inside] = found.get(inside) if marked is None else marked
    return found


def _is_marked(process: pathlib.Path) -> bool | None:
    """Whether a process runs in a container with the mark; None where it cannot be read."""
    mounts = _read(process / "mountinfo")
    if mounts is not None and _MOUNT.encode() in mounts:
        return True
    environment = _read(process / "environ")
    if environment is not None:
        return _MARK in environment
    return None if mounts is None else False


def _read(path: pathlib.Path) -> bytes | None:
    try:
        with path.open("rb") as file:
            return file.read(_MOST_BYTES) or None
    except OSError:
        return None
