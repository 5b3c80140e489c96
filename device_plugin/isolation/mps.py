"""Isolation by CUDA MPS: one server runs the kernels of all clients, each with a limit of memory and threads.

To know before choosing it: limits are per process, so a container with two processes may use twice as much; a fault of
one client can end its neighbours; and one user at a time is served. So `auto` never chooses it. The daemon is a process
of its own, `device_plugin.mps_daemon`, in a pod of its own: a restart of the plugin ends no client.

Source: docs.nvidia.com/deploy/mps (variables of clients, number of clients, one server a user).
"""

import fcntl
import os
import pathlib
from collections.abc import Iterable
from dataclasses import dataclass

from device_plugin.delivery import edits
from device_plugin.driver import gpu_source
from device_plugin.isolation import none
from device_plugin.isolation.backend import Assignment, CannotIsolate

NAME = "mps"
PIPE, LOG, SHARED_MEMORY = "pipe", "log", "shm"
LOCK, READY = "daemon.lock", "ready"
_MOST_CLIENTS = ((7, 0, 48), (3, 5, 16))
"""Clients of one GPU by the lowest compute capability that takes so many."""


@dataclass(frozen=True, slots=True)
class Options:
    """How the daemon runs."""

    root: pathlib.Path
    """Folder of pipes, logs and shared memory, on the host and here under the same path."""
    multi_user: bool = False
    """Whether the driver lets clients of several users share one server."""


def is_ready(root: pathlib.Path) -> bool:
    """Return whether a daemon runs and has set its limits.

    It holds a lock for as long as it lives, however it ends, so that a file that a dead one left means nothing.
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


class Mps(none.TimeSlicing):
    """The MPS backend."""

    def __init__(self, options: Options) -> None:
        self._options = options

    def _demand_daemon(self) -> None:
        if not is_ready(self._options.root):
            raise CannotIsolate(
                f"the MPS daemon of {self._options.root} does not run (yet); see the node's pod hami-mps"
            )

    def most_clients(self, device: gpu_source.Device) -> int:
        """What the compute capability allows."""
        for major, minor, clients in _MOST_CLIENTS:
            if device.compute_capability >= (major, minor):
                return clients
        return 1

    def isolates(self, assignment: Assignment) -> str:
        """The server."""
        return NAME

    def edits(self, assignment: Assignment, neighbours: Iterable[Assignment]) -> edits.Edits:
        """Return the way to the daemon, and limits by the index that the container sees."""
        self._demand_daemon()
        self._demand_one_user(assignment, neighbours)
        root = self._options.root
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

    def _demand_one_user(self, assignment: Assignment, neighbours: Iterable[Assignment]) -> None:
        """Refuse a user that would wait for the others. The user of an image is not known before it runs."""
        if self._options.multi_user or assignment.user is None:
            return
        others = {one.user for one in neighbours if one.user is not None} - {assignment.user}
        if others:
            raise CannotIsolate(
                f"MPS serves one user at a time: this container runs as {assignment.user}, others on the GPU as "
                f"{min(others)}; run them as one user, or set --mps-multi-user where the driver allows it"
            )


def mixed_users(holders: Iterable[Assignment]) -> str:
    """Return which users share a GPU, of containers that run; empty where there is one, as MPS demands."""
    users = sorted({one.user for one in holders if one.user is not None})
    return f"containers run as {', '.join(map(str, users))}" if len(users) > 1 else ""
