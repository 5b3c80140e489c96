"""Decide on which GPUs of a node a pod fits: the specification.

`scheduler_extender.fleet.fit` does the same for all nodes at once on arrays, and a property test compares the two;
this one also computes the numbers of a rejection, and bind uses it for its one node.
"""

import collections
import dataclasses
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

from gpu_sharing.core import allocations, gpus, identifiers, mig, policies, rejections, requests, topology
from gpu_sharing.core.rejections import Reason

_Stages = Sequence[tuple[Reason, Callable[[gpus.GpuState], bool]]]
"""The checks of a GPU, in this order, and the reason if one fails."""


@dataclass(frozen=True, slots=True)
class NodeState:
    """A node and the current state of its GPUs."""

    name: identifiers.NodeName
    states: tuple[gpus.GpuState, ...] = ()
    """In row order: by index, then UUID. It decides between equal GPUs, so every replica gives the same answer."""
    foreign_slots: int = 0
    """Device ids that pods without a record of ours hold on the node."""
    standing: Reason = Reason.NONE
    """The reason why no pod may be placed on the node, or NONE."""
    links: topology.Links = ()
    """Link scores between its GPUs, in the order of `states`."""

    def plus(
        self, allocated: Mapping[identifiers.GpuUuid, allocations.Allocation], foreign_slots: int = 0
    ) -> "NodeState":
        """Return the node with more allocated, or less where an allocation is negative."""
        if not allocated and not foreign_slots:
            return self
        states = tuple(
            one.with_allocation(allocated[one.gpu.uuid]) if one.gpu.uuid in allocated else one for one in self.states
        )
        return NodeState(self.name, states, self.foreign_slots + foreign_slots, self.standing, self.links)

    @property
    def slots_total(self) -> int:
        """Device ids of the whole node."""
        return sum(state.gpu.slots for state in self.states)

    @property
    def slots_used(self) -> int:
        """Device ids in use on the whole node."""
        return sum(state.allocated.slots for state in self.states) + self.foreign_slots


@dataclass(frozen=True, slots=True)
class Placement:
    """The GPUs of each container."""

    shares: allocations.Shares
    """One entry per container, in the order of the request."""

    @property
    def gpu_count(self) -> int:
        """The number of distinct GPUs of the pod."""
        return len({share.uuid for shares in self.shares for share in shares})


def fit(request: requests.PodRequest, node: NodeState, policy: policies.GpuPolicy) -> Placement | rejections.Rejection:
    """Choose GPUs for every container of a pod, or return why that is impossible.

    Containers are placed one after another, each on the policy's preferred GPUs, with those that run at the same time
    counted: sidecars and apps first, then the init containers, or in the pod's own order where an init container
    requests more than all lasting containers (`steps`). The second phase prefers GPUs that the pod holds for the first:
    there it needs no further allocation, because a pod holds the maximum of its phases for its life.

    Args:
        request: What the pod requests.
        node: The node, with everything counted that this pod must not take.
        policy: Which of several fitting GPUs to prefer.
    """
    if node.standing is not Reason.NONE:
        return rejections.Rejection(node.standing)
    if request.selectors.mode == gpus.MIG_MODE:
        return _fit_instances(request, node, policy)
    eligible = _eligible(request, node)
    chosen: list[tuple[int, ...]] = [()] * len(request.kinds)
    for position in _order(request):
        ask = request.containers[position]
        assert ask is not None
        beside = _running_beside(request.kinds, position)
        states = _with_shares(node.states, request, chosen, beside)
        idle = ask.exclusive or policy.only_idle
        rows = [row for row, state in enumerate(states) if eligible[row] and _fits(ask, state, idle=idle)]
        at_home = {row for other in other_phases(request, position) for row in chosen[other]}
        rows.sort(key=lambda row: (row not in at_home, policy.key(states[row]), row))
        if request.numa_bind:
            rows = _on_one_numa_node(rows, states, ask.gpus)
        if len(rows) < ask.gpus:
            return _why_not(ask, request.selectors, states, _stages(ask, idle=idle), Reason.NUMA)
        by_links = policy.by_links and request.kinds[position] is not allocations.Kind.INIT
        chosen[position] = topology.best_set(rows, node.links, ask.gpus) if by_links else tuple(rows[: ask.gpus])
    return _too_few_slots(request, node) or Placement(
        tuple(
            tuple(_share(ask, node.states[row].gpu) for row in rows) if ask else ()
            for ask, rows in zip(request.containers, chosen, strict=True)
        )
    )


def _fit_instances(
    request: requests.PodRequest, node: NodeState, policy: policies.GpuPolicy
) -> Placement | rejections.Rejection:
    """Place on GPUs in MIG mode: an instance for each requested GPU, several of them possibly on one GPU.

    All containers count as running together, because an instance serves only one container. A GPU with an instance of
    exactly the size precedes one that only has a larger one.
    """
    states = list(node.states)
    eligible = _eligible(request, node)
    shares: list[tuple[allocations.Share, ...]] = [()] * len(request.kinds)
    idle = policy.only_idle
    room: _Stages = ((Reason.SLOTS, _has_slot),)
    if idle:
        room = (*room, (Reason.EXCLUSIVE, lambda state: _is_open(state, idle=True)))
    for position in _order(request):
        ask = request.containers[position]
        assert ask is not None
        rows = [row for row, may in enumerate(eligible) if may]
        for _ in range(ask.gpus):
            free = {
                row: fitted
                for row in rows
                if _has_slot(states[row])
                and (not idle or _is_open(node.states[row], idle=True))
                and (fitted := _instance(ask, states[row]))
            }
            if not free:
                single = dataclasses.replace(ask, gpus=1)
                return _why_not(single, request.selectors, states, room, Reason.MIG_INSTANCE)
            row = min(free, key=lambda row: (free[row][1].size, policy.key(states[row]), row))
            profile, place = free[row]
            instance = mig.Instance(profile.name, *place)
            share = allocations.Share(states[row].gpu.uuid, profile.memory_mib, profile.cores_percent, instance)
            shares[position] = (*shares[position], share)
            states[row] = states[row].with_allocation(allocations.allocation_of(share))
            if request.numa_bind:
                rows = [other for other in rows if states[other].gpu.numa == states[row].gpu.numa]
    return _too_few_slots(request, node) or Placement(tuple(shares))


def _instance(ask: requests.GpuRequest, state: gpus.GpuState) -> tuple[mig.Profile, mig.Slices] | None:
    return mig.choose(
        state.gpu.mig_profiles, state.allocated.slices, ask.memory_mib, ask.memory_percent, ask.cores_percent
    )


def _eligible(request: requests.PodRequest, node: NodeState) -> list[bool]:
    """Return the GPUs that the pod accepts, regardless of what is free."""
    return [
        state.gpu.healthy
        and not state.cordoned
        and not state.allocation_unknown
        and request.selectors.accept_mode(state.gpu.mode)
        and request.selectors.accept_uuid(state.gpu.uuid)
        and request.selectors.accept_type(state.gpu.type)
        for state in node.states
    ]


def _too_few_slots(request: requests.PodRequest, node: NodeState) -> rejections.Rejection | None:
    free = node.slots_total - node.slots_used
    return rejections.Rejection(Reason.SLOTS, str(request.slots), str(max(free, 0))) if free < request.slots else None


def allocated_after(request: requests.PodRequest, node: NodeState, placed: Placement) -> tuple[float, float, float]:
    """Return the fractions of the node's slots, cores and memory that are allocated after the placement.

    They count the lasting containers (sidecars and apps).
    """
    staying = [
        allocations.allocation_of(share)
        for position in allocations.lasting(request.kinds)
        for share in placed.shares[position]
    ]
    slots = node.slots_used + sum(allocation.slots for allocation in staying)
    cores = sum(state.allocated.cores_percent for state in node.states) + sum(
        allocation.cores_percent for allocation in staying
    )
    memory = sum(state.allocated.memory_mib for state in node.states) + sum(
        allocation.memory_mib for allocation in staying
    )
    return (
        slots / max(node.slots_total, 1),
        cores / max(sum(state.gpu.cores_percent for state in node.states), 1),
        memory / max(sum(state.gpu.memory_mib for state in node.states), 1),
    )


def room_for_more(node: NodeState, placed: Placement) -> int | None:
    """Return how many more shares of the same size its GPU takes; None for several shares, or a GPU that is gone.

    Args:
        node: The node with the placement counted.
        placed: Where the pod is.
    """
    shares = [share for container in placed.shares for share in container]
    states = [state for state in node.states if len(shares) == 1 and state.gpu.uuid == shares[0].uuid]
    if not states:
        return None
    (share,), (state,) = shares, states
    by_cores = state.free_cores_percent // max(share.cores_percent, 1)
    by_memory = state.free_memory_mib // max(share.memory_mib, 1)
    return max(min(state.gpu.slots - state.allocated.slots, by_cores, by_memory), 0)


def free_gpus_after(node: NodeState, after: tuple[float, float, float]) -> float:
    """Return how many GPUs stay free: by cores or memory, of whichever more is allocated.

    Args:
        node: The node.
        after: `allocated_after`.
    """
    _, cores, memory = after
    return len(node.states) * max(1.0 - max(cores, memory), 0.0)


def node_score(request: requests.PodRequest, node: NodeState, placed: Placement, policy: policies.NodePolicy) -> float:
    """Return the node's score for the pod, from 0 to 1: the policy's, of `allocated_after` and `free_gpus_after`."""
    after = allocated_after(request, node, placed)
    score: float = policy.score(min(sum(after) / 3, 1.0), free_gpus_after(node, after))
    return score


def staying_memory_mib(request: requests.PodRequest, placed: Placement) -> int:
    """Return the memory of the lasting containers, over all GPUs."""
    return sum(share.memory_mib for position in allocations.lasting(request.kinds) for share in placed.shares[position])


def steps(request: requests.PodRequest) -> list[int]:
    """Return the containers with GPU requests, by position, in the order of placement: the larger phase first."""
    return _order(request)


def other_phases(request: requests.PodRequest, position: int) -> tuple[int, ...]:
    """The containers whose GPUs the one at `position` prefers, because the pod holds them anyway.

    For an init container all others, for one that stays the init containers; among them only those placed before it
    have GPUs yet.
    """
    is_init = request.kinds[position] is allocations.Kind.INIT
    return tuple(
        other
        for other, kind in enumerate(request.kinds)
        if other != position and request.containers[other] and (is_init or kind is allocations.Kind.INIT)
    )


def _order(request: requests.PodRequest) -> list[int]:
    staying = allocations.lasting(request.kinds)
    passing = [position for position, kind in enumerate(request.kinds) if kind is allocations.Kind.INIT]
    asked = [ask for position in staying if (ask := request.containers[position])]
    init_leads = any((ask := request.containers[position]) and _asks_more(ask, asked) for position in passing)
    order = range(len(request.kinds)) if init_leads else (*staying, *passing)
    return [position for position in order if request.containers[position]]


def _asks_more(ask: requests.GpuRequest, others: Sequence[requests.GpuRequest]) -> bool:
    """Return whether a container requests at least as much as others together, for any size of the GPU.

    MiB and percent cannot be compared, except that 100 percent is all memory.
    """
    memory = ask.memory_percent == 100 or (
        ask.memory_mib >= sum(other.memory_mib for other in others)
        and ask.memory_percent >= sum(other.memory_percent for other in others)
    )
    cores = ask.cores_percent >= sum(other.cores_percent for other in others)
    return memory and cores and ask.gpus >= max((other.gpus for other in others), default=0)


def _running_beside(kinds: Sequence[allocations.Kind], position: int) -> tuple[int, ...]:
    """Return the containers that run at the same time as the one at `position` and are placed before it."""
    if kinds[position] is allocations.Kind.INIT:
        return tuple(p for p in range(position) if kinds[p] is allocations.Kind.SIDECAR)
    return tuple(p for p in allocations.lasting(kinds) if p < position)


def running_beside(request: requests.PodRequest, position: int) -> tuple[int, ...]:
    """Return the containers whose shares count as allocated when the one at `position` is placed."""
    return tuple(p for p in _running_beside(request.kinds, position) if request.containers[p])


def _share(ask: requests.GpuRequest, gpu: gpus.Gpu) -> allocations.Share:
    return allocations.Share(gpu.uuid, ask.memory_on(gpu.memory_mib), ask.cores_percent)


def _with_shares(
    states: Sequence[gpus.GpuState],
    request: requests.PodRequest,
    chosen: Sequence[tuple[int, ...]],
    beside: Iterable[int],
) -> list[gpus.GpuState]:
    now = list(states)
    for position in beside:
        ask = request.containers[position]
        for row in chosen[position]:
            assert ask is not None
            now[row] = now[row].with_allocation(allocations.allocation_of(_share(ask, now[row].gpu)))
    return now


def _has_slot(state: gpus.GpuState) -> bool:
    return state.allocated.slots < state.gpu.slots


def _is_open(state: gpus.GpuState, *, idle: bool) -> bool:
    """Return whether exclusivity permits a container: no exclusive holder, or no holder if it needs an `idle` GPU."""
    return state.allocated.slots == 0 if idle else state.allocated.exclusive == 0


def _has_memory(ask: requests.GpuRequest, state: gpus.GpuState) -> bool:
    return state.allocated.memory_mib + ask.memory_on(state.gpu.memory_mib) <= state.gpu.memory_mib


def _has_cores(ask: requests.GpuRequest, state: gpus.GpuState) -> bool:
    """Return whether the cores suffice; a GPU with all cores allocated is full also for a request without limit."""
    return state.allocated.cores_percent + max(ask.cores_percent, 1) <= state.gpu.cores_percent


def _fits(ask: requests.GpuRequest, state: gpus.GpuState, *, idle: bool) -> bool:
    return _has_slot(state) and _is_open(state, idle=idle) and _has_memory(ask, state) and _has_cores(ask, state)


def _on_one_numa_node(rows: Sequence[int], states: Sequence[gpus.GpuState], count: int) -> list[int]:
    """Return the GPUs of one NUMA node: that of the best GPU whose node has enough of them. The best GPU is first."""
    for row in rows:
        together = [other for other in rows if states[other].gpu.numa == states[row].gpu.numa]
        if len(together) >= count:
            return together
    return []


def open_reason(*, idle: bool) -> Reason:
    """Return why exclusivity excludes a container: it needs an empty GPU, or another container holds it exclusively."""
    return Reason.EXCLUSIVE if idle else Reason.HELD_EXCLUSIVELY


def _stages(ask: requests.GpuRequest, *, idle: bool) -> _Stages:
    return (
        (Reason.SLOTS, _has_slot),
        (open_reason(idle=idle), lambda state: _is_open(state, idle=idle)),
        (Reason.MEMORY, lambda state: _has_memory(ask, state)),
        (Reason.CORES, lambda state: _has_cores(ask, state)),
    )


def _why_not(
    ask: requests.GpuRequest,
    selectors: requests.Selectors,
    states: Sequence[gpus.GpuState],
    room: _Stages,
    last: Reason,
) -> rejections.Rejection:
    """Return the first stage that leaves fewer GPUs than requested, with the most that the remaining GPUs have free.

    Args:
        ask: What a container requests.
        selectors: Which GPUs it accepts.
        states: The node's GPUs.
        room: The stages that depend on what is free.
        last: The reason if all stages are passed.
    """
    left = list(states)
    if len(left) < ask.gpus:
        return rejections.Rejection(Reason.TOO_FEW_GPUS, str(ask.gpus), str(len(left)))
    stages: _Stages = (
        (Reason.MODE, lambda state: selectors.accept_mode(state.gpu.mode)),
        (Reason.UUID, lambda state: selectors.accept_uuid(state.gpu.uuid)),
        (Reason.TYPE, lambda state: selectors.accept_type(state.gpu.type)),
        (Reason.UNHEALTHY, lambda state: state.gpu.healthy),
        (Reason.CORDONED, lambda state: not state.cordoned),
        (Reason.UNKNOWN_USAGE, lambda state: not state.allocation_unknown),
        *room,
    )  # fmt: skip
    for reason, passes in stages:
        passing = [state for state in left if passes(state)]
        if len(passing) < ask.gpus:
            return _with_numbers(reason, ask, selectors, left)
        left = passing
    return _with_numbers(last, ask, selectors, left)


def _with_numbers(
    reason: Reason, ask: requests.GpuRequest, selectors: requests.Selectors, left: Sequence[gpus.GpuState]
) -> rejections.Rejection:
    def kth_most(values: Iterable[int]) -> int:
        """Return the value of the last GPU that would be needed: the k-th largest."""
        return max(sorted(values, reverse=True)[ask.gpus - 1], 0)

    match reason:
        case Reason.TYPE:
            refused = sorted({_short(state.gpu.type) for state in left if not selectors.accept_type(state.gpu.type)})
            shunned = "not " + ",".join(selectors.nouse_types).upper()
            wanted = ",".join(selectors.use_types).upper() or shunned
            return rejections.Rejection(reason, wanted, ",".join(refused))
        case Reason.MODE:
            modes = sorted({state.gpu.mode or "default" for state in left if not selectors.accept_mode(state.gpu.mode)})
            return rejections.Rejection(reason, selectors.mode or "sharing", ",".join(modes))
        case Reason.MEMORY:
            free = kth_most(state.free_memory_mib for state in left)
            if ask.memory_mib:
                return rejections.Rejection(reason, f"{ask.memory_mib}MB", f"{free}MB")
            return rejections.Rejection(
                reason,
                f"{ask.memory_percent}%",
                f"{kth_most(100 * s.free_memory_mib // max(s.gpu.memory_mib, 1) for s in left)}%",
            )
        case Reason.CORES:
            free = kth_most(state.free_cores_percent for state in left)
            return rejections.Rejection(reason, f"{max(ask.cores_percent, 1)}%", f"{free}%")
        case Reason.MIG_INSTANCE:
            most_memory, most_cores = zip(
                *(mig.largest(s.gpu.mig_profiles, s.allocated.slices) for s in left), strict=True
            )
            cores = f" with {ask.cores_percent}% of cores" if ask.cores_percent else ""
            has = f"{max(most_memory)}MB" + (f" with {max(most_cores)}% of cores" if cores else "")
            return rejections.Rejection(reason, ask.memory_words + cores, has)
        case Reason.NUMA:
            most = max(collections.Counter(state.gpu.numa for state in left).values())
            return rejections.Rejection(reason, str(ask.gpus), str(most))
        case _:
            return rejections.Rejection(reason)


def _short(gpu_type: str) -> str:
    """Return the model without its vendor."""
    words = [word for word in gpu_type.replace("NVIDIA-", "").split() if word not in ("NVIDIA", "Tesla")]
    return words[0] if words else gpu_type or "unknown"
