"""How containers that share a GPU are kept apart: a table of backends behind one small interface.

A backend says what the node must run, and what edits a container gets so that it stays within its record.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from device_plugin.delivery import edits
from device_plugin.driver import gpu_source
from gpu_sharing.core import allocations, records


class CannotIsolate(Exception):
    """The node cannot isolate this container; the text says what is missing."""


@dataclass(frozen=True, slots=True)
class Assignment:
    """What one container is to get."""

    allocation: str
    """The name of the allocation, unique for ever."""
    folder: str
    """The name of a folder of the container's own."""
    shares: tuple[allocations.Share, ...]
    devices: tuple[gpu_source.Device, ...]
    """As long as `shares`."""
    environment: Mapping[str, str]
    """What the pod's own specification sets."""
    user: int | None = 0
    """The user that the container runs as; None where that is not known yet."""
    migs: tuple[records.MigShare, ...] = ()
    """The MIG instances of the pod's record; empty where it has none."""

    def cuda_order(self) -> tuple[int, ...]:
        """Return the positions of the shares in the order of the PCI bus, by which limits of single GPUs are numbered.

        CUDA numbers GPUs so with `CUDA_DEVICE_ORDER=PCI_BUS_ID`, and else the fastest first: it matters where the
        limits of one container's GPUs differ.
        """
        keys = [(device.bus_id, device.index) for device in self.devices]
        return tuple(sorted(range(len(self.shares)), key=lambda position: keys[position]))


class Backend(Protocol):
    """One way to keep containers apart."""

    def most_clients(self, device: gpu_source.Device) -> int:
        """How many containers may share a GPU at most; 0 is no limit of its own."""

    async def prepare(self, assignment: Assignment) -> None:
        """Make on the node what the container needs, if it is not there.

        Raises:
            CannotIsolate: It cannot be made.
        """

    def isolates(self, assignment: Assignment) -> str:
        """Return what really isolates the container, in a word for its owner."""

    def visible(self, assignment: Assignment) -> tuple[str, ...]:
        """The names under which the driver shows the container its GPUs."""

    def edits(self, assignment: Assignment, neighbours: Iterable[Assignment]) -> edits.Edits:
        """What the container gets, beside containers that share its GPUs.

        Raises:
            CannotIsolate: It cannot be isolated here.
        """

    def claim(self, folder: str, owner: str) -> None:
        """Say whose a folder is that was made before that was known.

        Args:
            folder: Of the allocation.
            owner: `<pod UID>_<container>`, by which the monitor finds it.
        """

    def folders(self, older_than_seconds: float) -> Sequence[str]:
        """The folders of containers that were made so long ago."""

    def forget(self, folder: str) -> None:
        """The container is gone: delete its folder."""

    def bound(self) -> None:
        """Cut what containers have written into their folders beyond what isolation needs."""
