"""Isolation by CUDA MPS: one server runs the kernels of all clients, each with a limit of memory and threads.

Limits are per process, so a container with two processes may use twice as much; a fault of one client can end its
neighbours; and one user at a time is served. So `auto` never chooses it. The daemon runs apart, as
`device_plugin.mps_daemon` in its own pod: a restart of the plugin ends no client.

Source: docs.nvidia.com/deploy/mps (variables of clients, number of clients, one server a user).
"""

import contextlib
import fcntl
import os
import pathlib
from collections.abc import Callable, Iterable
from dataclasses import dataclass

from device_plugin.delivery import edits
from device_plugin.driver import gpu_source
from device_plugin.isolation import none
from device_plugin.isolation.assignment import Assignment
from device_plugin.isolation.backend import CannotIsolate
from gpu_sharing.core import error_codes, nvidia

NAME = "mps"
START = "start_mps"
"""The start of the daemon, as work whose progress is shown."""
PIPE, LOG, SHARED_MEMORY = "pipe", "log", "shm"
LOCK, READY, PROGRESS = "daemon.lock", "ready", "progress"


def is_ready(root: pathlib.Path) -> bool:
    """Return whether a daemon runs and has set its limits.

    The daemon holds a lock until it ends, so that a file of one that was killed does not count.
    """
    try:
        descriptor = os.open(root / LOCK, os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return False
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return (root / READY).exists()
    finally:
        os.close(descriptor)
    return False


def write_progress(root: pathlib.Path, ratio: float) -> None:
    """Write how far the start of the daemon is, for `start_ratio`. What cannot be written is not shown."""
    part = root / f"{PROGRESS}.part"
    with contextlib.suppress(OSError):
        part.write_text(f"{ratio:.3f}")
        part.rename(root / PROGRESS)


def start_ratio(root: pathlib.Path) -> float:
    """Return how far the start of the daemon is, 0 to 1: 1 once it serves."""
    if is_ready(root):
        return 1.0
    try:
        return min(max(float((root / PROGRESS).read_text()[:16]), 0.0), 0.99)
    except (OSError, ValueError):
        return 0.0


@dataclass(frozen=True, slots=True)
class DaemonStart:
    """The start of the daemon as work whose progress is shown."""

    root: pathlib.Path
    is_wanted: Callable[[], bool]
    """Whether a GPU of the node is set to MPS."""
    work: str = START

    @property
    def ratio(self) -> float:
        """Part that is done, 0 to 1; 1 where MPS is not wanted."""
        return start_ratio(self.root) if self.is_wanted() else 1.0


class Mps(none.TimeSlicing):
    """The backend of CUDA MPS."""

    unavailable_code = error_codes.PLUGIN_MPS
    conflict_code = error_codes.PLUGIN_MPS_USERS

    def problem(self) -> str:
        """Return that the daemon does not run; empty while it does."""
        if is_ready(self._settings.mps_root):
            return ""
        return f"the MPS daemon of {self._settings.mps_root} does not run; see the pod hami-mps of this node"

    def conflict(self, holders: Iterable[Assignment]) -> str:
        """Return which users share a GPU; the user of an image is known once its container runs."""
        return "" if self._settings.mps_multi_user else mixed_users(holders)

    def most_containers(self, device: gpu_source.Device) -> int | None:
        """Return what the compute capability allows."""
        for major, minor, clients in nvidia.MPS_MOST_CLIENTS:
            if device.compute_capability >= (major, minor):
                return clients
        return 1

    def isolation_in_effect(self, assignment: Assignment) -> str:
        """Return `mps`: the server isolates."""
        return NAME

    def edits(self, assignment: Assignment, neighbours: Iterable[Assignment]) -> edits.Edits:
        """Return the daemon's folders, and limits by the index of each GPU in the container."""
        problem = self.problem()
        if problem:
            raise CannotIsolate(problem)
        self._refuse_other_user(assignment, neighbours)
        root = self._settings.mps_root
        shares = [assignment.shares[position] for position in assignment.cuda_order()]
        limits = ",".join(f"{index}={share.memory_mib}M" for index, share in enumerate(shares))
        environment = {"CUDA_MPS_PIPE_DIRECTORY": str(root / PIPE), "CUDA_MPS_PINNED_DEVICE_MEM_LIMIT": limits}
        if len({share.memory_mib for share in shares}) > 1:
            environment["CUDA_DEVICE_ORDER"] = "PCI_BUS_ID"
        cores = [share.cores_percent for share in shares if share.cores_percent]
        if cores:
            environment["CUDA_MPS_ACTIVE_THREAD_PERCENTAGE"] = str(min(cores))
        mounts = (
            edits.Mount(str(root / PIPE), str(root / PIPE), read_only=False),
            edits.Mount(str(root / SHARED_MEMORY), "/dev/shm", read_only=False),  # noqa: S108  # where clients look
        )
        return edits.Edits(environment, mounts)

    def _refuse_other_user(self, assignment: Assignment, neighbours: Iterable[Assignment]) -> None:
        """Refuse a user that would wait for the others; None is the user of an image, which is known once it runs."""
        if self._settings.mps_multi_user or assignment.user is None:
            return
        others = {other.user for other in neighbours if other.user is not None} - {assignment.user}
        if others:
            raise CannotIsolate(
                f"MPS serves one user at a time: this container runs as {assignment.user}, others on the GPU as "
                f"{min(others)}; run them as one user, or set --mps-multi-user where the driver allows it"
            )


def mixed_users(holders: Iterable[Assignment]) -> str:
    """Return which users share a GPU; empty where there is one, as MPS requires."""
    users = sorted({holder.user for holder in holders if holder.user is not None})
    return f"containers run as {', '.join(map(str, users))}" if len(users) > 1 else ""
