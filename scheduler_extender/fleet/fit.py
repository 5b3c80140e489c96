"""Where a pod fits, for all nodes at once: `core.placement.fit` on arrays.

The scalar `fit` is the specification; a property test holds both equal in who fits, why not, and how good each node is.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np

from gpu_sharing.core import allocations, placement, policies, requests, topology
from gpu_sharing.core.rejections import Reason
from scheduler_extender.fleet.arrays import Arrays, Bools, Codes, Floats, Ints


@dataclass(frozen=True, slots=True)
class Fitting:
    """The answer for every column."""

    fits: Bools
    """`[columns]`."""
    reasons: Codes
    """`[columns]`: a `Reason`, NONE where it fits."""
    memory_mib: Ints | int
    """`[columns]` or one for all: memory that the staying containers would hold."""


@dataclass(slots=True)
class _Used:
    """What is free while one container is placed; replaced, not changed, where a pod has several containers."""

    memory_free: Ints
    cores_free: Ints
    shareable: Bools
    empty: Bools
    fullness: Floats
    """With slots, cores and memory counted alike."""
    slots_allocated: Ints


def fit_all(arrays: Arrays, request: requests.PodRequest, policy: policies.GpuPolicy) -> Fitting:
    """Return whether the pod fits on each node, and if not, the first stage that leaves too few GPUs.

    Args:
        arrays: The cluster.
        request: What the pod requests.
        policy: Which of several fitting GPUs to prefer.
    """
    count = arrays.columns
    accepted = _accepted(arrays, request.selectors)
    order = placement.steps(request)
    if len(order) == 1:
        return _single(arrays, request, policy, accepted)
    fits = arrays.standing[:count] == Reason.NONE
    reasons = arrays.standing[:count].copy()
    chosen: dict[int, Bools] = {}
    memory = np.zeros(count, np.int64)
    sums = _Sums(arrays, request, chosen)
    for position in order:
        ask = request.containers[position]
        assert ask is not None
        used = sums.used_beside(placement.running_beside(request, position))
        idle = ask.exclusive or policy.only_idle
        fitting = _fitting_gpus(arrays, ask, used, accepted, idle=idle, numa_bind=request.numa_bind)
        enough = _count(fitting) >= ask.gpus
        failing = fits & ~enough
        if failing.any():
            reasons[failing] = _reasons(arrays, ask, request.selectors, used, idle=idle)[failing]
        fits &= enough
        is_init = request.kinds[position] is allocations.Kind.INIT
        at_home = _any_of([chosen[other] for other in placement.other_phases(request, position) if other in chosen])
        preference = _preference(arrays, used, policy)
        chosen[position] = _chosen(arrays, request, fitting, preference, ask.gpus, at_home)
        if policy.by_links and not is_init:
            columns = np.flatnonzero(enough)
            _choose_by_links(arrays, request, ask.gpus, chosen[position], columns, fitting, preference, at_home)
        if not is_init:
            memory += (chosen[position] * _memory(arrays, ask)).sum(0)
    return _finish(arrays, request, fits, reasons, memory)


def scores(arrays: Arrays, request: requests.PodRequest, fitting: Fitting, policy: policies.NodePolicy) -> Floats:
    """`[columns]`: `placement.node_score` of each node; meaningless where it does not fit."""
    count = arrays.columns
    staying = [ask for position in allocations.lasting(request.kinds) if (ask := request.containers[position])]
    slots = sum(ask.gpus for ask in staying)
    cores = sum(ask.gpus * ask.cores_percent for ask in staying)
    used, total = arrays.sums_used[:, :count], arrays.sums_total[:, :count]
    of_cores, of_memory = (used[1] + cores) / total[1], (used[2] + fitting.memory_mib) / total[2]
    fraction = ((used[0] + slots) / total[0] + of_cores + of_memory) / 3
    np.minimum(fraction, 1.0, out=fraction)
    free_gpus = _count(arrays.exists[:, :count]) * np.maximum(1.0 - np.maximum(of_cores, of_memory), 0.0)
    result: Floats = policy.score(fraction, free_gpus)
    return result


def best(arrays: Arrays, values: Floats, columns: Ints) -> int:
    """The best of some columns by value, the first by name where several are."""
    among = values[columns]
    top = columns[among == among.max()]
    return int(top[arrays.name_rank()[top].argmin()]) if len(top) > 1 else int(top[0])


def _single(
    arrays: Arrays, request: requests.PodRequest, policy: policies.GpuPolicy, accepted: Bools | None
) -> Fitting:
    """`fit_all` for a pod with one container, as most have: no state passes from container to container."""
    (position,) = placement.steps(request)
    ask = request.containers[position]
    assert ask is not None
    count = arrays.columns
    used = _now(arrays)
    idle = ask.exclusive or policy.only_idle
    fitting = _fitting_gpus(arrays, ask, used, accepted, idle=idle, numa_bind=request.numa_bind)
    fits: Bools = np.logical_or.reduce(fitting, axis=0) if ask.gpus == 1 else _count(fitting) >= ask.gpus
    reasons = np.zeros(count, np.int8)
    if not fits.all():
        failing = ~fits
        reasons[failing] = _reasons(arrays, ask, request.selectors, used, idle=idle)[failing]
        np.copyto(reasons, arrays.standing[:count], where=arrays.standing[:count] != 0)
    memory: Ints | int = ask.gpus * ask.memory_mib
    if request.kinds[position] is allocations.Kind.INIT:
        memory = 0
    elif not ask.memory_mib:
        preference = _preference(arrays, used, policy)
        picked = _chosen(arrays, request, fitting, preference, ask.gpus, None)
        if policy.by_links:  # It matters only where GPUs differ in size.
            columns = np.flatnonzero(fits & arrays.mixed())
            _choose_by_links(arrays, request, ask.gpus, picked, columns, fitting, preference)
        memory = (picked * _memory(arrays, ask)).sum(0)
    return _finish(arrays, request, fits, reasons, memory)


def _finish(arrays: Arrays, request: requests.PodRequest, fits: Bools, reasons: Codes, memory: Ints | int) -> Fitting:
    short = fits & (arrays.free_tokens[: arrays.columns] < request.slots)
    if short.any():
        reasons[short] = Reason.SLOTS
        fits = fits & ~short
    return Fitting(fits, reasons, memory)


def _accepted(arrays: Arrays, selectors: requests.Selectors) -> Bools | None:
    """The GPUs that the pod's selectors accept; None for all that are usable."""
    if selectors == requests.Selectors():
        return None
    count = arrays.columns
    accepted = np.ones((arrays.exists.shape[0], count), np.bool_)
    if selectors.mode:
        accepted &= arrays.modes.matching(selectors.accept_mode)[arrays.mode_id[:, :count]]
    if selectors.use_types or selectors.nouse_types:
        accepted &= arrays.types.matching(selectors.accept_type)[arrays.type_id[:, :count]]
    if selectors.use_uuids or selectors.nouse_uuids:
        accepted &= arrays.accepts_uuids(selectors)
    return accepted


def _now(arrays: Arrays) -> _Used:
    count = arrays.columns
    return _Used(
        arrays.memory_free[:, :count],
        arrays.cores_free[:, :count],
        arrays.shareable[:, :count],
        arrays.empty[:, :count],
        arrays.fullness[:, :count],
        arrays.slots_used[:, :count],
    )


class _Sums:
    """Allocations with some containers of the pod on top; the sums of one set are reused for the next, larger one."""

    def __init__(self, arrays: Arrays, request: requests.PodRequest, chosen: Mapping[int, Bools]) -> None:
        self._arrays = arrays
        self._request = request
        self._chosen = chosen
        self._begin()

    def _begin(self) -> None:
        arrays, count = self._arrays, self._arrays.columns
        self._counted: tuple[int, ...] = ()
        self._slots = arrays.slots_used[:, :count].copy()
        self._cores = arrays.cores_used[:, :count].copy()
        self._memory = arrays.memory_used[:, :count].copy()
        self._exclusive = arrays.exclusive_used[:, :count].copy()

    def used_beside(self, beside: tuple[int, ...]) -> _Used:
        """Return what is free when the containers `beside` run already."""
        arrays = self._arrays
        if not beside:
            return _now(arrays)
        if self._counted != beside[: len(self._counted)]:
            self._begin()
        for position in beside[len(self._counted) :]:
            self._add(position)
        self._counted = beside
        count = arrays.columns
        total = arrays.memory_total[:, :count], arrays.cores_total[:, :count], arrays.slots_total[:, :count]
        open_slot = arrays.usable[:, :count] & (self._slots < total[2])
        fullness = (
            self._memory / np.maximum(total[0], 1)
            + self._cores / np.maximum(total[1], 1)
            + self._slots / np.maximum(total[2], 1)
        )
        return _Used(
            total[0] - self._memory,
            total[1] - self._cores,
            open_slot & (self._exclusive == 0),
            open_slot & (self._slots == 0),
            fullness,
            self._slots.copy(),
        )

    def _add(self, position: int) -> None:
        ask, picked = self._request.containers[position], self._chosen[position]
        assert ask is not None
        self._slots += picked
        self._cores += picked * ask.cores_percent
        self._memory += picked * _memory(self._arrays, ask)
        if ask.exclusive:
            self._exclusive += picked


def _memory(arrays: Arrays, ask: requests.GpuRequest) -> Ints | int:
    return ask.memory_mib or arrays.memory_of_percent(ask.memory_percent)[:, : arrays.columns]


def _fitting_gpus(
    arrays: Arrays, ask: requests.GpuRequest, used: _Used, accepted: Bools | None, *, idle: bool, numa_bind: bool
) -> Bools:
    fitting = used.memory_free >= _memory(arrays, ask)
    fitting &= used.cores_free >= max(ask.cores_percent, 1)
    fitting &= used.empty if idle else used.shareable
    if accepted is not None:
        fitting &= accepted
    return _numa_nodes_with_enough(arrays, fitting, ask.gpus) if numa_bind else fitting


def _numa_nodes_with_enough(arrays: Arrays, fitting: Bools, gpus: int) -> Bools:
    """The fitting GPUs on NUMA nodes that have as many fitting GPUs as requested."""
    numa = arrays.numa[:, : arrays.columns]
    enough = np.zeros_like(fitting)
    for numa_node in np.unique(numa):
        there = fitting & (numa == numa_node)
        enough |= there & (_count(there) >= gpus)
    return enough


def _preference(arrays: Arrays, used: _Used, policy: policies.GpuPolicy) -> Floats:
    """`[rows, columns]`: how much the policy prefers each GPU, in any unit; between equals the first row is better."""
    values = [ORDERS[name](arrays, used, policy.weights) for name in policy.orders]
    if len(values) == 1:
        return -values[0]
    ranks = np.lexsort(values[::-1], axis=0).argsort(axis=0)
    return -ranks.astype(np.float64)


def _fullness(arrays: Arrays, used: _Used, weights: policies.Weights) -> Floats:
    """`policies.fullness` on arrays."""
    if weights == policies.Weights():
        return used.fullness
    count = arrays.columns
    memory, cores = arrays.memory_total[:, :count], arrays.cores_total[:, :count]
    fullness: Floats = (
        weights.memory * ((memory - used.memory_free) / np.maximum(memory, 1))
        + weights.core * ((cores - used.cores_free) / np.maximum(cores, 1))
        + weights.slot * (used.slots_allocated / np.maximum(arrays.slots_total[:, :count], 1))
    )
    return fullness


def _by_numa(arrays: Arrays, used: _Used, weights: policies.Weights) -> Floats:
    return arrays.numa[:, : arrays.columns].astype(np.float64)


ORDERS: dict[str, Callable[[Arrays, _Used, policies.Weights], Floats]] = {
    "binpack": lambda arrays, used, weights: -_fullness(arrays, used, weights),
    "spread": _fullness,
    "numa": _by_numa,
}
"""`policies.ORDERS` on arrays, `[rows, columns]`: the lowest value comes first."""


def _chosen(
    arrays: Arrays, request: requests.PodRequest, fitting: Bools, preference: Floats, gpus: int, at_home: Bools | None
) -> Bools:
    """The GPUs that a container gets in each column."""
    if request.numa_bind:
        numa = arrays.numa[:, : arrays.columns]
        first = _best(fitting, preference, 1, at_home)
        fitting = fitting & (numa == (numa * first).sum(0))
    return _best(fitting, preference, gpus, at_home)


def _any_of(masks: list[Bools]) -> Bools | None:
    return np.logical_or.reduce(masks) if masks else None


def _choose_by_links(
    arrays: Arrays,
    request: requests.PodRequest,
    gpus: int,
    chosen: Bools,
    columns: Ints,
    fitting: Bools,
    preference: Floats,
    at_home: Bools | None = None,
) -> None:
    """Choose anew in those of the columns whose GPUs have links, one by one: such nodes and requests are few."""
    for column in columns.tolist():
        matrix = arrays.links.get(column)
        if not matrix:
            continue
        elsewhere = np.zeros(len(fitting)) if at_home is None else ~at_home[:, column]
        rows = [row for row in np.lexsort((-preference[:, column], elsewhere)).tolist() if fitting[row, column]]
        if request.numa_bind:
            numa = arrays.numa[chosen[:, column].argmax(), column]
            rows = [row for row in rows if arrays.numa[row, column] == numa]
        chosen[:, column] = False
        chosen[list(topology.best_set(rows, matrix, gpus)), column] = True


def _count(mask: Bools) -> Ints:
    counts: Ints = np.add.reduce(mask, axis=0, dtype=np.int64)
    return counts


def _best(fitting: Bools, preference: Floats, gpus: int, at_home: Bools | None) -> Bools:
    """The `gpus` most preferred fitting GPUs of each column, those `at_home` before all others."""
    keyed = np.where(fitting, preference, -np.inf)
    if gpus == 1 and at_home is None:
        picked = np.zeros_like(fitting)
        np.put_along_axis(picked, keyed.argmax(0)[None, :], True, axis=0)
        return picked & fitting
    order = np.argsort(-keyed, axis=0, kind="stable")
    if at_home is not None:
        elsewhere = np.take_along_axis(~(at_home & fitting), order, axis=0)
        order = np.take_along_axis(order, np.argsort(elsewhere, axis=0, kind="stable"), axis=0)
    picked = np.zeros_like(fitting)
    np.put_along_axis(picked, order[:gpus], True, axis=0)
    return picked & fitting


def _reasons(
    arrays: Arrays, ask: requests.GpuRequest, selectors: requests.Selectors, used: _Used, *, idle: bool
) -> Codes:
    """`[columns]`: the first stage that leaves fewer GPUs than requested; meaningless where the container fits."""
    count = arrays.columns
    left = arrays.exists[:, :count].copy()
    reasons = np.where(_count(left) < ask.gpus, np.int8(Reason.TOO_FEW_GPUS), np.int8(0))
    modes = arrays.modes.matching(selectors.accept_mode)[arrays.mode_id[:, :count]]
    stages: list[tuple[Reason, Bools]] = [(Reason.MODE, modes)]
    if selectors.use_uuids or selectors.nouse_uuids:
        stages.append((Reason.UUID, arrays.accepts_uuids(selectors)))
    if selectors.use_types or selectors.nouse_types:
        stages.append((Reason.TYPE, arrays.types.matching(selectors.accept_type)[arrays.type_id[:, :count]]))
    stages += [
        (Reason.UNHEALTHY, arrays.healthy[:, :count]),
        (Reason.CORDONED, ~arrays.cordoned[:, :count]),
        (Reason.UNKNOWN_USAGE, ~arrays.unknown[:, :count]),
        (Reason.SLOTS, used.slots_allocated < arrays.slots_total[:, :count]),
        (placement.open_reason(idle=idle), used.empty if idle else used.shareable),
        (Reason.MEMORY, used.memory_free >= _memory(arrays, ask)),
        (Reason.CORES, used.cores_free >= max(ask.cores_percent, 1)),
    ]
    for reason, passes in stages:
        left &= passes
        reasons[(reasons == 0) & (_count(left) < ask.gpus)] = reason
    reasons[reasons == 0] = Reason.NUMA  # Enough GPUs fit one by one; only their NUMA nodes can still be the reason.
    return reasons
