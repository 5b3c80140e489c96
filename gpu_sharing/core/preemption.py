"""Which pods of lower priority to evict so that a pending pod's GPUs fit on a node.

kube-scheduler counts device ids only, so its own choice may free a little on many GPUs and not help. Here the rules
that place a pod decide whether an eviction helps. The best set is the one whose highest priority is lowest, then the
fewest pods, then the least memory.
"""

import itertools
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from gpu_sharing.core import allocations, identifiers, placement, policies, requests

_MOST_TRIES = 600
"""Placements tried for one node; after that the best set so far is returned."""


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
        """Its memory over all GPUs."""
        return sum(allocation.memory_mib for allocation in self.allocated.values())

    @property
    def weight(self) -> tuple[int, tuple[tuple[str, allocations.Allocation], ...]]:
        """Equal for pods that are interchangeable as victims."""
        return self.foreign_slots, tuple(sorted(self.allocated.items()))


def effective_request(
    kinds: Sequence[allocations.Kind], containers: Sequence[int], pod_level: int | None, overhead: int
) -> int:
    """Return the CPU or memory that kube-scheduler counts for a pod, which is what its eviction frees.

    Args:
        kinds: One per container.
        containers: The request of each container, in any one unit, in the same order.
        pod_level: `spec.resources.requests`, which replaces the containers' requests; None if absent.
        overhead: `spec.overhead`.

    Source: k8s.io/component-helpers `resource.PodRequests`, Kubernetes 1.36.
    """
    if allocations.Kind.INIT in kinds:
        most = max(sum(containers[position] for position in phase) for phase in allocations.phases(kinds))
    else:
        most = sum(containers)  # All run together, as in most pods.
    return (most if pod_level is None else pod_level) + overhead


class _Spent(Exception):
    """The limit of placements is reached."""


def choose(
    request: requests.PodRequest, node: placement.NodeState, victims: Iterable[Victim], policy: policies.GpuPolicy
) -> tuple[Victim, ...] | None:
    """Return the best set of pods to evict, empty if the pod fits already, None if no set helps.

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
        while True:  # All of them together are enough, so the loop ends.
            size += 1
            helping = [gone for ground in grounds for gone in _sets(ground, size) if affordable(gone)]
            if helping:
                return min(helping, key=_cost)
    except _Spent:
        return min((_spared(ground, fits) for ground in grounds), key=_cost)


def cost(victims: Sequence[Victim]) -> tuple[int, int, int]:
    """Return the sort key of sets on several nodes: the highest priority of the victims, their number, their memory."""
    return (max((victim.priority for victim in victims), default=-(2**31)), *_cost(victims))


def without(node: placement.NodeState, gone: Iterable[Victim]) -> placement.NodeState:
    """Return the node without some pods."""
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
    """Return all pods up to the lowest priority whose eviction is enough."""
    for priority in sorted({victim.priority for victim in victims}):
        pool = [victim for victim in victims if victim.priority <= priority]
        if fits(pool):
            return pool
    return None


def _grounds(
    request: requests.PodRequest, pool: Sequence[Victim], fits: Callable[[Iterable[Victim]], bool]
) -> list[list[Victim]]:
    """Return groups of pods, one of them with the best set; interchangeable pods are adjacent.

    A pod that requests one GPU needs evictions from one GPU, so each GPU is examined alone. Pods without a record may
    free device ids on every GPU.
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
    """Yield the sets of that size; of sets that differ only in interchangeable pods, one."""
    if size == 0:
        yield ()
        return
    for _, alike in itertools.groupby(enumerate(pool), key=lambda item: item[1].weight):
        first, victim = next(alike)
        for rest in _sets(pool[first + 1 :], size - 1):
            yield (victim, *rest)


def _spared(pool: Sequence[Victim], fits: Callable[[Iterable[Victim]], bool]) -> tuple[Victim, ...]:
    """Return the victims without the unnecessary ones: the highest priority is spared first, then the smallest."""
    gone = list(pool)
    for victim in sorted(pool, key=lambda one: (-one.priority, one.memory_mib, one.uid)):
        rest = [one for one in gone if one is not victim]
        if fits(rest):
            gone = rest
    return tuple(gone)
