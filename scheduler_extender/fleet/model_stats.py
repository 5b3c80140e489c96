"""How much of each GPU model is allocated, and how much of the free memory is usable: a few passes over the arrays.

Fragmentation is the measure that FGD minimises, here of memory: of the free memory, the part that lies where a share
like those requested lately does not fit, averaged over those shares.

Source: Weng et al., "Beware of Fragmentation: Scheduling GPU-Sharing Workloads with Fragmentation Gradient Descent",
USENIX ATC 2023.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import NamedTuple

from gpu_sharing.core.rejections import Reason
from scheduler_extender.fleet import arrays


class ShareSize(NamedTuple):
    """The requested size of a share of one GPU."""

    memory_mib: int
    cores_percent: int


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelCount:
    """The GPUs of one model."""

    model: str
    gpus: int
    usable: int
    """Healthy, not cordoned, known, on a node that may be chosen and is available."""
    memory_mib: int
    """On available nodes, as all that follows."""
    memory_allocated_mib: int
    slots: int
    slots_allocated: int
    largest_free_mib: int
    """The largest share of one GPU that would still fit."""
    fragmentation: float | None
    """0 to 1; None while nothing was requested, or nothing is free."""


def by_model(fleet: arrays.Arrays, lately: Mapping[ShareSize, int]) -> list[ModelCount]:
    """Return the statistics of every model of the cluster.

    Args:
        fleet: Settled.
        lately: The requested shares, and how often each was requested.
    """
    used = slice(0, fleet.columns)
    available = fleet.unavailable[used] == Reason.NONE
    exists, usable = fleet.exists[:, used], fleet.usable[:, used] & available
    type_id, free, cores_free = fleet.type_id[:, used], fleet.memory_free[:, used], fleet.cores_free[:, used]
    shareable = fleet.shareable[:, used]
    counts = []
    for model, number in sorted((word, number) for number, word in enumerate(fleet.types.words)):
        mine = exists & (type_id == number)
        if not mine.any():
            continue
        there = mine & available  # What is on a node that is not ready or cordoned can be allocated to no pod.
        open_memory = free[mine & usable].clip(min=0)
        takes = shareable[mine & usable]
        counts.append(
            ModelCount(
                model=model,
                gpus=int(mine.sum()),
                usable=len(open_memory),
                memory_mib=int(fleet.memory_total[:, used][there].sum()),
                memory_allocated_mib=int(fleet.memory_used[:, used][there].sum()),
                slots=int(fleet.slots_total[:, used][there].sum()),
                slots_allocated=int(fleet.slots_used[:, used][there].sum()),
                largest_free_mib=int(open_memory[takes].max(initial=0)),
                fragmentation=_fragmentation(open_memory, cores_free[mine & usable], takes, lately),
            )
        )
    return counts


def _fragmentation(
    memory_mib: arrays.Ints, cores_percent: arrays.Ints, takes: arrays.Bools, lately: Mapping[ShareSize, int]
) -> float | None:
    """Return the part of the free memory that the requested shares cannot use, 0 to 1; None where there is none.

    Args:
        memory_mib: Free memory of each GPU.
        cores_percent: Free cores of each GPU.
        takes: Whether each GPU takes one more share.
        lately: The requested shares, and how often each was requested.
    """
    free, requested = int(memory_mib.sum()), sum(lately.values())
    if not free or not requested:
        return None
    wasted = sum(
        times
        * int(memory_mib[~(takes & (memory_mib >= share.memory_mib) & (cores_percent >= share.cores_percent))].sum())
        for share, times in lately.items()
    )
    return wasted / (requested * free)
