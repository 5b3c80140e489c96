"""The interface of an isolation backend, and the settings that backends have.

A backend checks what the node must run, and returns the edits by which a container stays within its record. A new one
derives from `none.TimeSlicing`, which needs nothing, and has an entry in `table.BACKENDS`.
"""

import pathlib
from collections.abc import Awaitable, Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Protocol

from device_plugin.delivery import edits
from device_plugin.driver import gpu_source
from device_plugin.isolation.assignment import Assignment
from gpu_sharing.core import error_codes, mig, nvidia, records

CreateInstance = Callable[[records.MigShare], Awaitable[None]]
"""Makes one MIG instance. Raises `GpuSourceError`."""


class CannotIsolate(Exception):
    """The node cannot isolate this container; the text names what is missing."""


@dataclass(frozen=True, slots=True, kw_only=True)
class BackendSettings:
    """How the backends work."""

    hook_path: pathlib.Path = pathlib.Path("/usr/local")
    """The host's folder that holds HAMi-core's `vgpu/`; containers have it under the same path."""
    disable_core_limit: bool = False
    """Whether HAMi-core leaves compute unlimited."""
    library_log_level: str = "1"
    """`LIBCUDA_LOG_LEVEL` of HAMi-core in containers."""
    mps_root: pathlib.Path = pathlib.Path(nvidia.MPS_ROOT)
    """Folder of the MPS daemon's pipes, logs and shared memory, on the host and here under the same path."""
    mps_multi_user: bool = False
    """Whether the driver lets clients of several users share one MPS server."""
    create_instance: CreateInstance | None = None
    """Makes MIG instances as records need them; None where only those that exist are used."""


class Backend(Protocol):
    """One way to keep containers apart."""

    @property
    def unavailable_code(self) -> error_codes.Code | None:
        """Code of the node's problem while GPUs are set to this backend and `problem` has a text; None: no problem."""

    @property
    def conflict_code(self) -> error_codes.Code | None:
        """Code of the problem of a GPU whose containers have a `conflict`; None: they never have one."""

    def problem(self) -> str:
        """Return why no container can be isolated on this node now; empty where it can."""

    def conflict(self, holders: Iterable[Assignment]) -> str:
        """Return what is wrong between the containers that hold one GPU; empty where nothing is."""

    def most_containers(self, device: gpu_source.Device) -> int | None:
        """Return how many containers may share a GPU at most; None is no limit of its own."""

    def mig_profiles(self, device: gpu_source.Device) -> tuple[mig.Profile, ...]:
        """Return the kinds of MIG instances that the scheduler may allocate on a GPU."""

    async def prepare(self, assignment: Assignment) -> None:
        """Make on the node what the container needs and is not there.

        Raises:
            CannotIsolate: It cannot be made.
        """

    def isolation_in_effect(self, assignment: Assignment) -> str:
        """Return what isolates the container in effect, in one word for its event."""

    def visible_devices(self, assignment: Assignment) -> tuple[str, ...]:
        """Return the UUIDs under which the driver shows the container its GPUs or MIG instances."""

    def edits(self, assignment: Assignment, neighbours: Iterable[Assignment]) -> edits.Edits:
        """Return what the container gets, beside the containers that share its GPUs.

        Raises:
            CannotIsolate: It cannot be isolated here.
        """

    def link_owner(self, folder: str, owner: str) -> None:
        """Link a container's name to a folder that was made before its owner was known.

        Args:
            folder: Of the allocation.
            owner: See `Assignment.owner`.
        """

    def folders(self, older_than_seconds: float) -> Sequence[str]:
        """Return the folders of containers that were made at least so long ago."""

    def delete_folder(self, folder: str) -> None:
        """Delete the folder of a container that has ended."""

    def truncate_folders(self) -> None:
        """Cut what containers have written into their folders beyond what isolation needs."""
