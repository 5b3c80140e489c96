"""The limits of a namespace for GPUs, their memory and their cores.

A namespace's `ResourceQuota` may limit GPUs, their memory and their cores. What counts is the allocation of its pods,
with percentages and whole GPUs converted to MiB, which only the scheduler knows; the API server's own quota, on
`requests.…`, counts the values as written.

Source: HAMi v2.10, `pkg/device/quota.go`: it reads the `limits.` keys and ignores scopes.
"""

import functools
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from gpu_sharing.core import allocations, errors, near_misses, quantities, rejections, requests
from gpu_sharing.core.rejections import Reason


class Amounts(NamedTuple):
    """The allocation of pods, over all GPUs."""

    gpus: int = 0
    """Device ids: a GPU shared by two containers counts twice."""
    memory_mib: int = 0
    cores_percent: int = 0
    """A container without a limit of its cores counts as 0."""

    def plus(self, other: "Amounts") -> "Amounts":
        """Return the sum of two amounts."""
        return Amounts(
            self.gpus + other.gpus, self.memory_mib + other.memory_mib, self.cores_percent + other.cores_percent
        )

    def minus(self, other: "Amounts") -> "Amounts":
        """Return the amounts without a part of them."""
        return Amounts(
            self.gpus - other.gpus, self.memory_mib - other.memory_mib, self.cores_percent - other.cores_percent
        )


NOTHING = Amounts()
_UNITS = (("GPUs", ""), ("GPU memory", "MB"), ("GPU cores", "%"))


@dataclass(frozen=True, slots=True)
class Quota:
    """One `ResourceQuota` with its limits for GPUs."""

    name: str
    limits: tuple[int | None, int | None, int | None]
    """Of `Amounts`, in its order; None where there is no limit."""
    unreadable: str = ""
    """Why it cannot be read: its namespace then gets no GPUs, because the limit is unknown."""


def read(name: str, hard: Mapping[str, quantities.Raw], names: requests.ResourceNames) -> Quota | None:
    """Return a `ResourceQuota` by its `spec.hard`, or None if it does not limit GPUs.

    Args:
        name: The quota's own name, for messages.
        hard: The limits, as quantities.
        names: The resource names by which containers request GPUs.
    """
    keys = [f"limits.{resource}" for resource in (names.count, names.memory, names.cores)]
    readers = (quantities.count, quantities.memory_mib, quantities.count)
    if not any(key in hard for key in keys):
        return None
    try:
        gpus, memory, cores = (
            reader(f"ResourceQuota {name}: {key}", hard[key]) if key in hard else None
            for key, reader in zip(keys, readers, strict=True)
        )
    except errors.BadQuantity as refused:
        return Quota(name, (None, None, None), refused.sentence)
    return Quota(name, (gpus, memory, cores))


def uncounted(hard: Mapping[str, quantities.Raw], names: requests.ResourceNames) -> list[tuple[str, str]]:
    """Return limits that resemble ours and are not counted, each with the key that was likely meant.

    `limits.` is counted here, `requests.` by the API server where pods request that same resource.
    """
    counted = frozenset((names.count, names.memory, names.cores))
    unknown = []
    for key in hard:
        scope, dot, resource = key.partition(".")
        if not dot or scope not in ("limits", "requests") or "/" not in resource:
            continue
        if resource in (counted if scope == "limits" else names.known()):
            continue
        meant = names.memory if resource == names.memory_percent else near_misses.closest(resource, counted)
        if meant:
            unknown.append((key, f"limits.{meant}"))
    return unknown


def amounts(kinds: Sequence[allocations.Kind], shares: Sequence[Iterable[allocations.Share]]) -> Amounts:
    """Return the amounts of a pod for its life: the most that its containers hold at any one time, for each quantity.

    Args:
        kinds: One per container.
        shares: One entry per container, in the same order.
    """
    if allocations.Kind.INIT not in kinds:  # All run together, as in most pods.
        return _together(shares)
    phases = [_together(shares[position] for position in phase) for phase in allocations.phases(kinds)]
    return Amounts(*(max(values) for values in zip(*phases, strict=True)))


def asked(request: requests.PodRequest, gpu_memory_mib: int) -> Amounts:
    """Return the amounts of a pod's request on GPUs of that size."""
    each = [
        Amounts(ask.gpus, ask.gpus * ask.memory_on(gpu_memory_mib), ask.gpus * ask.cores_percent) if ask else NOTHING
        for ask in request.containers
    ]
    phases = [
        functools.reduce(Amounts.plus, (each[position] for position in phase), NOTHING)
        for phase in allocations.phases(request.kinds)
    ]
    return Amounts(*(max(values) for values in zip(*phases, strict=True)))


def excess(namespace: str, quotas: Iterable[Quota], held: Amounts, more: Amounts) -> rejections.Rejection | None:
    """Return why a namespace may not hold `more` in addition, or None if it may."""
    for quota in quotas:
        if quota.unreadable:
            return rejections.Rejection(Reason.QUOTA_UNREADABLE, namespace=namespace, detail=quota.unreadable)
        for (what, unit), limit, has, wants in zip(_UNITS, quota.limits, held, more, strict=True):
            if limit is not None and wants and has + wants > limit:
                left = max(limit - has, 0)
                detail = f"{what} requested {wants}{unit}, left {left}{unit} of {limit}{unit} by {quota.name}"
                return rejections.Rejection(Reason.QUOTA, f"{wants}{unit}", f"{left}{unit}", namespace, detail)
    return None


def _together(shares: Iterable[Iterable[allocations.Share]]) -> Amounts:
    count = memory = cores = 0
    for container in shares:
        for share in container:
            count += 1
            memory += share.memory_mib
            cores += share.cores_percent
    return Amounts(count, memory, cores)
