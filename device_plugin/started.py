"""Looks into running containers for the mark of their allocation: a runtime that ignores CDI starts them without.

Plain reads of the host's `/proc`, which the plugin has mounted; what cannot be found there is not judged.

Source: proc(5); the container's id is a part of its cgroup's path with every runtime and cgroup driver.
"""

import asyncio
import contextlib
import pathlib
from collections.abc import Callable, Iterator

from device_plugin import allocation, pods
from gpu_sharing.core import identifiers

_MARK = f"{allocation.NAME_VARIABLE}=".encode()
_LOOK_SECONDS = 2.0


class Starts:
    """Judges each container once, some time after it was started."""

    def __init__(
        self,
        proc: pathlib.Path,
        here: pods.Pods,
        is_late: Callable[[identifiers.PodUid, str], bool],
        unmarked: Callable[[pods.Pod, str], None],
    ) -> None:
        """Join what it needs.

        Args:
            proc: The host's `/proc`.
            here: The pods of this node.
            is_late: Whether a container was confirmed by this process and bound by CDI.
            unmarked: Called for a container that runs without its mark.
        """
        self._proc = proc
        self._pods = here
        self._is_late = is_late
        self._unmarked = unmarked
        self._judged: set[str] = set()

    async def run(self) -> None:
        """Look for ever; ends only by cancellation."""
        while True:
            await asyncio.sleep(_LOOK_SECONDS)
            waiting = list(self._waiting())
            self._judged &= {container_id for _, _, container_id in self._running()}
            if not waiting:
                continue
            marks = await asyncio.to_thread(marks_of, self._proc, {container_id for _, _, container_id in waiting})
            for pod, name, container_id in waiting:
                if container_id in marks:
                    self._judged.add(container_id)
                    if not marks[container_id]:
                        self._unmarked(pod, name)

    def _waiting(self) -> Iterator[tuple[pods.Pod, str, str]]:
        for pod, name, container_id in self._running():
            if container_id not in self._judged and self._is_late(pod.uid, name):
                yield pod, name, container_id

    def _running(self) -> Iterator[tuple[pods.Pod, str, str]]:
        for pod in list(self._pods.by_uid.values()):
            for status in pod.running_containers:
                yield pod, status.name, status.container_id.rpartition("/")[2]


def marks_of(proc: pathlib.Path, container_ids: set[str]) -> dict[str, bool]:
    """Whether the first process of each container has the mark; containers that are not found are left out."""
    found: dict[str, bool] = {}
    for process in sorted((path for path in proc.iterdir() if path.name.isdecimal()), key=lambda path: int(path.name)):
        with contextlib.suppress(OSError):
            cgroup = (process / "cgroup").read_text()
            inside = next((one for one in container_ids if one in cgroup), None)
            if inside is not None and inside not in found:
                found[inside] = _MARK in (process / "environ").read_bytes()
    return found
