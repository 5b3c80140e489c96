"""Checks running containers for the mark of their allocation, which a runtime that ignores CDI does not apply.

The mark is a mount (see `marks`), because any process may read `/proc/<pid>/mountinfo`. The environment of a process
can be read only with the right to trace it, which the chart does not give; where it can be read, the variable counts
too, for containers of an older plugin, which did not mount the mark. A container whose processes cannot be found or
read is not judged, and after some checks that is reported.

Source: proc(5); the container's id is a part of its cgroup's path with every runtime and cgroup driver.
"""

import asyncio
import contextlib
import pathlib
from collections.abc import Callable, Iterator

from device_plugin.allocation import marks
from device_plugin.node.api_objects import Pod
from device_plugin.node.local_node import LocalNode
from device_plugin.node.node_events import NodeEvents
from device_plugin.node.pods import Pods
from device_plugin.node.problems import Problems
from gpu_sharing.core import error_codes, identifiers

_MARK = f"{marks.NAME_VARIABLE}=".encode()
_MOUNT = f" {marks.MOUNT_FOLDER}/"
_INTERVAL_SECONDS = 2.0
_MOST_CHECKS_UNSEEN = 15
"""After so many checks the processes of a running container should have been found."""
_MOST_BYTES = 1 << 20


class CdiCheck:
    """Checks each container once, some seconds after it was started."""

    def __init__(
        self,
        *,
        proc: pathlib.Path,
        pods: Pods,
        is_by_cdi: Callable[[identifiers.PodUid, str], bool],
        unmarked: Callable[[Pod, str], None],
        unseen: Callable[[str], None],
    ) -> None:
        """Set what it reads and calls.

        Args:
            proc: The host's `/proc`.
            pods: The pods of this node.
            is_by_cdi: Whether a container was confirmed by this process and bound by CDI.
            unmarked: Called for a container that runs without its mark.
            unseen: Called with the reason why containers cannot be judged, and with an empty text once one was.
        """
        self._proc = proc
        self._pods = pods
        self._is_by_cdi = is_by_cdi
        self._unmarked = unmarked
        self._unseen = unseen
        self._judged: set[str] = set()
        self._checks_unseen: dict[str, int] = {}

    async def run(self) -> None:
        """Check until cancelled."""
        while True:
            await asyncio.sleep(_INTERVAL_SECONDS)
            await self.check()

    async def check(self) -> None:
        """Check the running containers that were not judged yet."""
        unchecked = list(self._unchecked())
        running = {container_id for _, _, container_id in self._running()}
        self._judged &= running
        self._checks_unseen = {key: count for key, count in self._checks_unseen.items() if key in running}
        if not unchecked:
            return
        marked_by_id = await asyncio.to_thread(
            find_marks, self._proc, {container_id for _, _, container_id in unchecked}
        )
        for pod, name, container_id in unchecked:
            marked = marked_by_id.get(container_id)
            if marked is None:
                self._count(pod, name, container_id, has_process=container_id in marked_by_id)
                continue
            self._judged.add(container_id)
            self._unseen("")
            if not marked:
                self._unmarked(pod, name)

    def _count(self, pod: Pod, name: str, container_id: str, *, has_process: bool) -> None:
        self._checks_unseen[container_id] = self._checks_unseen.get(container_id, 0) + 1
        if self._checks_unseen[container_id] == _MOST_CHECKS_UNSEEN:
            what = "may not be read" if has_process else "are not found"
            self._unseen(f"the processes of container {name} of {pod.key} {what} in {self._proc}")

    def _unchecked(self) -> Iterator[tuple[Pod, str, str]]:
        for pod, name, container_id in self._running():
            if container_id not in self._judged and self._is_by_cdi(pod.uid, name):
                yield pod, name, container_id

    def _running(self) -> Iterator[tuple[Pod, str, str]]:
        for pod in list(self._pods.by_uid.values()):
            for status in pod.running_containers:
                yield pod, status.name, status.container_id.rpartition("/")[2]


def find_marks(proc: pathlib.Path, container_ids: set[str]) -> dict[str, bool | None]:
    """Return whether a process of each container has the mark.

    One process is enough, because a process can change its own mounts. None stands for containers whose processes may
    not be read; containers without a process in `proc` are left out.
    """
    marked_by_id: dict[str, bool | None] = {}
    for process in (path for path in proc.iterdir() if path.name.isdecimal()):
        with contextlib.suppress(OSError):
            cgroup = (process / "cgroup").read_text(errors="replace")  # A container names cgroups below its own.
            container_id = next((key for key in container_ids if key in cgroup), None)
            if container_id is not None and not marked_by_id.get(container_id):
                marked = _is_marked(process)
                marked_by_id[container_id] = marked_by_id.get(container_id) if marked is None else marked
    return marked_by_id


def _is_marked(process: pathlib.Path) -> bool | None:
    """Return whether a process runs in a container with the mark; None where it cannot be read."""
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


class CdiFallback:
    """Reacts to a container that runs without its mark: its devices are missing, and those of the next ones would be.

    Args:
        node: Where the identity `auto` has chosen CDI, new containers are matched from then on.
        events: Of pods.
        problems: Of the node.
        count_refusal: Counts a container by its error code.
        is_auto: Whether the identity is chosen by the plugin.
    """

    def __init__(
        self,
        *,
        node: LocalNode,
        events: NodeEvents,
        problems: Problems,
        count_refusal: Callable[[error_codes.Code], None],
        is_auto: bool,
    ) -> None:
        self._node = node
        self._events = events
        self._problems = problems
        self._count_refusal = count_refusal
        self._is_auto = is_auto

    def unmarked(self, pod: Pod, container: str) -> None:
        """Report a container without its mark, and have the next ones get their devices in the answer itself."""
        code, cause = error_codes.ALLOC_CDI_IGNORED, f"container {container} of {pod.key} runs without its mark"
        self._count_refusal(code)
        self._events.refused(pod, code, cause)
        if self._is_auto and self._node.by_cdi:
            self._node.by_cdi = False
            self._problems.report(error_codes.PLUGIN_CDI_IGNORED, f"{self._node.runtime}: {cause}")

    def unseen(self, cause: str) -> None:
        """Report why containers cannot be checked; an empty text ends that."""
        self._problems.report_or_clear(error_codes.PLUGIN_STARTS_UNSEEN, cause)
