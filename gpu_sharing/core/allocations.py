"""Shares of containers, and what a pod's shares allocate on each GPU.

Containers of a pod do not all run at one time: plain init containers run one after another, sidecars (restartable
init containers) from their turn on, app containers together at the end. What is allocated is the most the pod holds at
any one time, for each quantity by itself, for the pod's life: a new sandbox runs the init containers again, so their
share must still be there. Kubelet and kube-scheduler count device ids, CPU and memory in the same way.

Source: Kubernetes' rules for the effective request of a pod with sidecars (KEP-753).
"""

import enum
from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple

from gpu_sharing.core import identifiers, mig


class Kind(enum.Enum):
    """When a container runs."""

    INIT = "init"
    """Alone, before the containers after it."""
    SIDECAR = "sidecar"
    """From its start among the init containers to the pod's end."""
    APP = "app"
    """Together with the other app containers, after all init containers."""


class Share(NamedTuple):
    """The share of one container of one GPU."""

    uuid: identifiers.GpuUuid
    memory_mib: int
    cores_percent: int
    """Percent of the GPU's compute; 0 is no limit and no allocation, 100 is an exclusive GPU."""
    instance: mig.Instance | None = None
    """On a GPU in MIG mode: the instance."""


class Allocation(NamedTuple):
    """The allocation on one GPU."""

    slots: int = 0
    """Number of device ids: one for each share of a container."""
    memory_mib: int = 0
    cores_percent: int = 0
    exclusive: int = 0
    """The number of exclusive holders; more than one is a defect elsewhere."""
    slices: int = 0
    """On a GPU in MIG mode: the occupied MIG slices, as `mig.taken` encodes them."""

    def plus(self, other: "Allocation") -> "Allocation":
        """Return the sum of two allocations on one GPU."""
        return Allocation(
            self.slots + other.slots,
            self.memory_mib + other.memory_mib,
            self.cores_percent + other.cores_percent,
            self.exclusive + other.exclusive,
            self.slices + other.slices,
        )

    def minus(self, other: "Allocation") -> "Allocation":
        """Return the allocation without a part of it."""
        return Allocation(
            self.slots - other.slots,
            self.memory_mib - other.memory_mib,
            self.cores_percent - other.cores_percent,
            self.exclusive - other.exclusive,
            self.slices - other.slices,
        )

    def at_least(self, other: "Allocation") -> "Allocation":
        """Return the larger of each quantity."""
        most = Allocation(*(max(mine, theirs) for mine, theirs in zip(self, other, strict=True)))
        return most._replace(slices=mig.at_least(self.slices, other.slices))


NOTHING = Allocation()

Shares = tuple[tuple[Share, ...], ...]
"""One entry per container, init containers first, then app containers; empty for a container without GPU."""


def allocation_of(share: Share) -> Allocation:
    """Return what one share allocates: a slot, its memory, its cores, and exclusive use at 100 percent of cores."""
    slices = mig.taken(share.instance.start, share.instance.size) if share.instance else 0
    return Allocation(1, share.memory_mib, share.cores_percent, int(share.cores_percent >= 100), slices)


def phases(kinds: Sequence[Kind]) -> Iterator[tuple[int, ...]]:
    """Return the sets of containers (by position) that run together: one per init container, then the lasting one."""
    sidecars: list[int] = []
    for position, kind in enumerate(kinds):
        if kind is Kind.INIT:
            yield (*sidecars, position)
        elif kind is Kind.SIDECAR:
            sidecars.append(position)
    yield lasting(kinds)


def lasting(kinds: Sequence[Kind]) -> tuple[int, ...]:
    """Return the containers that run together until the pod ends: sidecars and apps."""
    return tuple(position for position, kind in enumerate(kinds) if kind is not Kind.INIT)


def by_gpu(kinds: Sequence[Kind], shares: Sequence[Iterable[Share]]) -> dict[identifiers.GpuUuid, Allocation]:
    """Return what a pod allocates on each GPU, from its bind to its end.

    Args:
        kinds: One per container.
        shares: One entry per container, in the same order.
    """
    if Kind.INIT not in kinds:  # All run together, as in most pods.
        return _together(shares)
    most: dict[identifiers.GpuUuid, Allocation] = {}
    for phase in phases(kinds):
        for uuid, allocation in _together(shares[position] for position in phase).items():
            most[uuid] = most.get(uuid, NOTHING).at_least(allocation)
    return most


def _together(shares: Iterable[Iterable[Share]]) -> dict[identifiers.GpuUuid, Allocation]:
    """Return what containers that run at the same time allocate on each GPU."""
    by_gpu: dict[identifiers.GpuUuid, Allocation] = {}
    for held in shares:
        for share in held:
            before = by_gpu.get(share.uuid)
            by_gpu[share.uuid] = allocation_of(share) if before is None else before.plus(allocation_of(share))
    return by_gpu
