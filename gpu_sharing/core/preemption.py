"""Which pods of lower priority to evict so that a pending pod's GPUs fit on a node.

kube-scheduler counts device ids only, so its own choice may free a little on many GPUs and nothing that helps. Here the
rules that place a pod say whether an eviction helps. The best set has the lowest priority at its top, then the fewest
pods, then the least memory.
"""

import itertools
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from gpu_sharing.core import allocations, identifiers, placement, policies, requests

_MOST_TRIES = 600
"""Placements tried for one node before a good set is taken for the best one."""


@dataclass(frozen=True, slots=True)
class Victim:
    """A pod that may be evicted."""

    uid: identifiers.PodUid
    priority: int
    allocated: Mapping[identifiers.GpuUuid, allocations.Allocation]
    foreign_slots: int = 0
    """Device ids of a pod that has no record."""

    @property
    def memory_mib(self) -> int:
        """What it holds over all GPUs."""
        return sum(allocation.memory_mib for allocation in self.allocated.values())

    @property
    def weight(self) -> tuple[int, tuple[tuple[str, allocations.Allocation], ...]]:
        """Alike for pods of which it does not matter which one goes."""
        return self.foreign_slots, tuple(sorted(self.allocated.items()))


def effective_request(
    kinds: Sequence[allocations.Kind], containers: Sequence[int], pod_level: int | None, overhead: int
) -> int:
    """What kube-scheduler counts for a pod of CPU or memory, and so what its eviction frees.

    Args:
        kinds: One per container.
        containers: What each container requests, in any one unit, in the same order.
        pod_level: What `spec.resources.requests` says, which then counts in place of the containers; None: nothing.
        overhead: What `spec.overhead` adds.

    Source: k8s.io/component-helpers `resource.PodRequests`, Kubernetes 1.36.
    """
    if allocations.Kind.INIT in kinds:
        most = max(sum(containers[position] for position in phase) for phase in allocations.phases(kinds))
    else:
        most = sum(containers)  # All run together, as in most pods.
    return (most if pod_level is None else pod_level) + overhead


class _Spent(Exception):
    """No more placements may be tried."""


def choose(
    request: requests.PodRequest, node: placement.NodeState, victims: Iterable[Victim], policy: policies.GpuPolicy
) -> tuple[Victim, ...] | None:
    """The best set of pods to evict, nobody if the pod fits as it is, None if no set helps.

    Args:
        request: What the pending pod requests.
        node: The node, with everything counted that the pending pod must not take, `victims` included.
        victims: The pods on it that may be evicted.
        policy: Which GPUs the pending pod prefers.
    """
    tries = 0

    def fits(gone: Iterable[Victim]) -> bool:
        nonlocal tries
        tries += 1
        return isinstance(placement.fit(request, without(node, gone), policy), placement.Placement)

    if fits(()):
        return ()
    pool = _lowest(sorted(victims, key=lambda one: (one.priority, one.uid)), fits)
    if pool is None:
        return None

    def affordable(gone: Iterable[Victim]) -> bool:
        if tries > _MOST_TRIES:
            raise _Spent
        return fits(gone)

    grounds, size = _grounds(request, pool, fits), 0
    try:
        while True:  # All of them together are enough, so that it ends.
            size += 1
            helping = [gone for ground in grounds for gone in _sets(ground, size) if affordable(gone)]
            if helping:
                return min(helping, key=_cost)
    except _Spent:
        return min((_spared(ground, fits) for ground in grounds), key=_cost)


def cost(victims: Sequence[Victim]) -> tuple[int, int, int]:
    """By what sets on several nodes compare: the highest priority among the victims, how many, and their memory."""
    return (max((victim.priority for victim in victims), default=-(2**31)), *_cost(victims))


def without(node: placement.NodeState, gone: Iterable[Victim]) -> placement.NodeState:
    """The node once some pods have left it."""
    change: dict[identifiers.GpuUuid, allocations.Allocation] = {}
    foreign = 0
    for victim in gone:
        foreign -= victim.foreign_slots
        for uuid, allocation in victim.allocated.items():
            change[uuid] = change.get(uuid, allocations.NOTHING).minus(allocation)
    return node.plus(change, foreign)


def _cost(victims: Sequence[Victim]) -> tuple[int, int]:
    return len(victims), sum(victim.memory_mib for victim in victims)


def _lowest(victims: Sequence[Victim], fits: Callable[[Iterable[Victim]], bool]) -> list[Victim] | None:
    """All pods up to the lowest priority that is enough, if all of them go."""
    for priority in sorted({victim.priority for victim in victims}):
        pool = [victim for victim in victims if victim.priority <= priority]
        if fits(pool):
            return pool
    return None


def _grounds(
    request: requests.PodRequest, pool: Sequence[Victim], fits: Callable[[Iterable[Victim]], bool]
) -> list[list[Victim]]:
    """Groups of pods, one of which holds the best set; like pods stand together.

    A pod that needs one GPU is served by evictions from one GPU, so each GPU is looked at by itself. Pods without a
    record may give the device ids everywhere.
    """
    ordered = sorted(pool, key=lambda victim: (victim.weight, victim.uid))
    if sum(ask.gpus for ask in request.containers if ask) == 1:
        uuids = sorted({uuid for victim in pool for uuid in victim.allocated})
        single = [[one for one in ordered if uuid in one.allocated or not one.allocated] for uuid in uuids]
        helping = [ground for ground in single if fits(ground)]
        if helping:
            return helping
    return [ordered]


def _sets(pool: Sequence[Victim], size: int) -> Iterator[tuple[Victim, ...]]:
    """The sets of that size; of those that differ only in which of two like pods goes, one."""
    if size == 0:
        yield ()
        return
    for _, alike in itertools.groupby(enumerate(pool), key=lambda item: item[1].weight):
        first, victim = next(alike)
        for rest in _sets(pool[first + 1 :], size - 1):
            yield (victim, *rest)


def _spared(pool: Sequence[Victim], fits: Callable[[Iterable[Victim]], bool]) -> tuple[Victim, ...]:
    """All of them but those that need not go: the highest priority is spared first, then the smallest."""
    gone = list(pool)
    for victim in sorted(pool, key=lambda one: (-one.priority, one.memory_mib, one.uid)):
        rest = [one for one in gone if one is not victim]
        if fits(rest):
            gone = rest
    return tuple(gone)
