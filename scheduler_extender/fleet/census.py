"""How much of each model of GPU is promised, and how much of what is free is of use: a few passes over the arrays.

Fragmentation is the measure that FGD minimises, here of memory: of the free memory, the part that lies where a share
like those asked for lately does not fit, averaged over those shares.

Source: Weng et al., "Beware of Fragmentation: Scheduling GPU-Sharing Workloads with Fragmentation Gradient Descent",
USENIX ATC 2023.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import NamedTuple

from scheduler_extender.fleet import arrays


class Shape(NamedTuple):
    """A share of one GPU, as somebody asked for it."""

    memory_mib: int
    cores_percent: int


@dataclass(frozen=True, slots=True)
class ModelCount:
    """The GPUs of one model."""

    model: str
    gpus: int
    usable: int
    """Healthy, not cordoned, known, on a node that may be chosen."""
    memory_mib: int
    memory_promised_mib: int
    slots: int
    slots_promised: int
    largest_free_mib: int
    """The largest share of one GPU that would still fit."""
    fragmentation: float | None
    """0 to 1; None while nothing was asked for, or nothing is free."""


def count(
    fleet: arrays.Arrays, lately: Mapping[Shape, int], out_of_reach: arrays.Bools | None = None
) -> list[ModelCount]:
    """Every model of the cluster.

    Args:
        fleet: Settled.
        lately: The shares that were asked for, and how often each.
        out_of_reach: `[columns]`: nodes of which nothing is free, such as one that is not ready.
    """
    used = slice(0, fleet.columns)
    exists, usable = fleet.exists[:, used], fleet.usable[:, used]
    if out_of_reach is not None:
        usable = usable & ~out_of_reach
    type_id, free, cores_free = fleet.type_id[:, used], fleet.memory_free[:, used], fleet.cores_free[:, used]
    shareable = fleet.shareable[:, used]
    found = []
    for model, number in sorted(fleet.type_ids.items()):
        mine = exists & (type_id == number)
        if not mine.any():
            continue
        open_memory = free[mine & usable].clip(min=0)
        open_cores = cores_free[mine & usable]
        takes = shareable[mine & usable]
        all_free = int(open_memory.sum())
        wasted = sum(
            times
            * int(open_memory[~(takes & (open_memory >= shape.memory_mib) & (open_cores >= shape.cores_percent))].sum())
            for shape, times in lately.items()
        )
        asked = sum(lately.values())
        found.append(
            ModelCount(
                model, int(mine.sum()), len(open_memory),
                int(fleet.memory_total[:, used][mine].sum()), int(fleet.memory_used[:, used][mine].sum()),
                int(fleet.slots_total[:, used][mine].sum()), int(fleet.slots_used[:, used][mine].sum()),
                int(open_memory[takes].max(initial=0)),
                wasted / (asked * all_free) if asked and all_free else None,
            )
        )  # fmt: skip
    return found
