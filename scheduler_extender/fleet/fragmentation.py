"""How much a placement takes from what other requests could still use: the values of `fragmentation-aware`.

The value of a placement is, in thousandths of a GPU,

    Σ_k w_k [U_k after - U_k before]   what each kind k of request can still use, weighted by how scarce it has become;
  + 4000 v [h(after) - h(before)]      what the part of the GPU that stays free is worth to the mix;
  - v^2 [stranded after - before]       free GPU that the node's free CPU and memory cannot feed any more;
  ± the reserve                        nodes that big requests will need, see `node_reserve`;
  - a little of what stays free        so that equal nodes are filled one after another.

U_k of a node is the free part of its GPUs that serve k: 0 where its CPU does not suffice, or too few GPUs do. A GPU's
free part is the smaller of its free memory and, where the request limits cores, of its free cores, as a share of the
whole (the dominant share). v is the weight of the requests that a model serves: 1 where all accept any model.

Source: Weng et al., "Beware of Fragmentation", USENIX ATC 2023, for U; the rest is this project's.
"""

from dataclasses import dataclass

import numpy as np

from gpu_sharing.core.request_mix import Shape
from scheduler_extender.fleet import gpu_states, node_reserve
from scheduler_extender.fleet.arrays import Arrays, Bools, Floats, Ints
from scheduler_extender.fleet.gpu_states import GpuStates, Singles
from scheduler_extender.fleet.ledger import Ledger
from scheduler_extender.fleet.node_reserve import NodeReserve
from scheduler_extender.fleet.prices import MILLI, GpuClass, Prices

_HOLE_WORTH = 4000.0
_TIE_CPU_MILLI, _TIE_GPU_MILLI = 128_000.0, 8000.0
_MOST_STATES = 20_000
_COLUMNS_AT_ONCE = 512


@dataclass(frozen=True, slots=True)
class Values:
    """How good the placements of one request are."""

    nodes: Floats
    """`[columns]`: of the best placement on each node, in thousandths of a GPU; minus infinity where none fits."""
    gpus: Floats
    """`[rows, columns]`: of the choice of one GPU, without what is the same for all GPUs of the node."""


@dataclass(frozen=True, slots=True)
class _Now:
    """What the placements of one request on some nodes have in common; `[columns]` are those nodes."""

    columns: Ints
    """The nodes."""
    state_of: Ints
    """`[rows, columns]`: the state of each GPU."""
    weights: Floats
    """`[kinds]`: w."""
    levels: Ints
    """The different amounts of CPU that kinds need."""
    cpu_after: Ints
    """`[columns]`: the node's free CPU after the placement."""
    level_after: Ints
    """`[columns]`: for how many levels that suffices."""
    worth: Floats
    """`[classes + 1]`: v, with 0 for no class."""
    several_after: Floats
    """`[columns]`: Σ w U over the kinds for several GPUs, with the CPU after the placement and the GPUs before."""


class Fragmentation:
    """The values of placements by one set of prices, on the ledger as it is; follows its journal.

    It is made from a snapshot of the ledger's arrays, so that it can be made beside the event loop.
    """

    def __init__(self, ledger: Ledger, prices: Prices, reserve: NodeReserve, arrays: Arrays, seen: int) -> None:
        self._ledger = ledger
        self._prices = prices
        self._reserve = reserve
        self._priced = gpu_states.PricedStates(prices)
        self._one, self._several = np.flatnonzero(prices.gpus == 1), np.flatnonzero(prices.gpus > 1)
        self._seen = seen
        self._rebuild(arrays)
        count = len(self._counts)
        reserve.choose(
            prices,
            node_reserve.Nodes(
                names=arrays.names,
                class_of=self._class_of,
                empty=self._states.empty[self._state_of].sum(0),
                capacity_milli=self._capacity_milli,
                cpu_milli=arrays.host_cpu_total[:count],
                memory_mib=arrays.host_memory_total[:count],
            ),
        )

    def values(self, shape: Shape, column: int | None = None) -> Values:
        """Return how good each placement of a request is; where it does not fit, the value means nothing.

        Args:
            shape: The request.
            column: The only node to look at, which is quicker; None for all.
        """
        arrays = self._follow()
        now = self._now(arrays, shape, np.arange(len(self._counts)) if column is None else np.array([column]))
        before = self._supply[now.columns] @ now.weights.astype(np.float32)
        by_state = self._by_state(self._offers, now)
        unchanged = by_state[now.state_of, now.level_after].sum(0) + now.several_after - before
        if not shape.gpus:
            nothing = np.zeros(len(unchanged))
            return Values(unchanged - self._rest(arrays, shape, nothing, now), np.zeros((0, len(unchanged))))
        gains, fits = self._gains(shape, now)
        best = -np.sort(-np.where(fits, gains, -np.inf), axis=0)[: shape.gpus].sum(0)
        shares = MILLI * np.array([0.0, *(one.share_of(shape) for one in self._prices.classes)])
        taken = shape.gpus * np.where(fits, shares[self._class_of[:, now.columns]], 0.0).max(0)
        reserved = self._reserve.value(shape.gpus, self._counts, arrays.column_of)[now.columns]
        return Values(unchanged + best - self._rest(arrays, shape, taken, now) + reserved, gains)

    # The state of every GPU.

    def _follow(self) -> Arrays:
        arrays = self._ledger.settle()
        changed = self._ledger.changed_since(self._seen)
        has_more_rows = len(self._state_of) != len(arrays.exists)
        if changed is None or has_more_rows or len(self._states) > _MOST_STATES:
            self._rebuild(arrays)
        elif changed:
            self._grow(arrays.columns - len(self._counts))
            self._update(arrays, np.array(sorted(changed), np.int64))
        self._seen = self._ledger.changes
        return arrays

    def _grow(self, more: int) -> None:
        """Make place for new nodes; what they are is computed as for changed ones."""
        if more > 0:
            for name in ("_class_of", "_state_of"):
                setattr(self, name, np.pad(getattr(self, name), ((0, 0), (0, more))))
            for name in ("_supply", "_use", "_able"):
                setattr(self, name, np.pad(getattr(self, name), ((0, more), (0, 0))))
            for name in ("_counts", "_free_milli"):
                setattr(self, name, np.pad(getattr(self, name), (0, more)))

    def _rebuild(self, arrays: Arrays) -> None:
        count, kinds = arrays.columns, len(self._prices.popularity)
        self._class_of: Ints = gpu_states.numbered_classes(arrays, self._prices.classes, np.arange(count))
        self._counts: Ints = (self._class_of > 0).sum(0)
        keys = gpu_states.keys_of(arrays, self._class_of, np.arange(count))
        self._index = {int(key): number for number, key in enumerate(np.unique(keys))}
        self._set_states(gpu_states.states_of(np.array(list(self._index), np.int64)))
        self._state_of: Ints = np.searchsorted(np.array(list(self._index), np.int64), keys)
        self._supply = np.zeros((count, kinds), np.float32)
        self._use, self._able = (np.zeros((count, len(self._several)), np.float32) for _ in range(2))
        self._free_milli = np.zeros(count)
        self._sum_supply = np.zeros(kinds)
        self._fill(arrays, np.arange(count))

    def _set_states(self, states: GpuStates) -> None:
        self._states = states
        self._offers = self._priced.offers(states)
        self._state_free = self._priced.free_milli(states)

    def _update(self, arrays: Arrays, columns: Ints) -> None:
        self._class_of[:, columns] = gpu_states.numbered_classes(arrays, self._prices.classes, columns)
        self._counts[columns] = (self._class_of[:, columns] > 0).sum(0)
        keys = gpu_states.keys_of(arrays, self._class_of, columns)
        new = [key for key in np.unique(keys).tolist() if key not in self._index]
        if new:
            self._index.update((key, number) for number, key in enumerate(new, start=len(self._index)))
            self._set_states(self._states.and_those(gpu_states.states_of(np.array(new, np.int64))))
        self._state_of[:, columns] = [[self._index[key] for key in row] for row in keys.tolist()]
        self._fill(arrays, columns)

    def _fill(self, arrays: Arrays, columns: Ints) -> None:
        """Compute again what some nodes offer."""
        prices = self._prices
        self._capacity_milli: float = MILLI * float(arrays.usable[:, : arrays.columns].sum())
        for start in range(0, len(columns), _COLUMNS_AT_ONCE):
            some = columns[start : start + _COLUMNS_AT_ONCE]
            offered = self._offers[self._state_of[:, some]]
            amounts, able = offered.sum(0), (offered > 0).sum(0)
            is_fed = arrays.host_cpu_free[some][:, None] >= prices.cpu_milli
            supply = np.where((able >= prices.gpus) & is_fed, amounts, 0.0)
            self._sum_supply += supply.sum(0, dtype=np.float64) - self._supply[some].sum(0, dtype=np.float64)
            self._supply[some] = supply
            self._use[some], self._able[some] = amounts[:, self._several], able[:, self._several]
            self._free_milli[some] = self._state_free[self._state_of[:, some]].sum(0)

    # Values.

    def _now(self, arrays: Arrays, shape: Shape, columns: Ints) -> _Now:
        prices = self._prices
        scarcity = self._capacity_milli / (np.maximum(self._sum_supply, 0.0) + MILLI * prices.gpus)
        weights = prices.popularity * scarcity
        total = weights.sum()
        weights = weights / total if total > 0 else prices.popularity
        levels = np.unique(prices.cpu_milli)
        cpu_after = arrays.host_cpu_free[columns] - shape.host_cpu_milli
        return _Now(
            columns,
            self._state_of[:, columns],
            weights,
            levels,
            cpu_after,
            np.searchsorted(levels, cpu_after, side="right"),
            np.concatenate([[0.0], prices.served @ weights]),
            self._for_several(weights, cpu_after, self._use[columns], self._able[columns]),
        )

    def _by_state(self, offers: Singles, now: _Now) -> Singles:
        """`[states, levels + 1]`: what such a GPU offers to requests for one GPU, weighted, by the node's CPU."""
        needed = np.searchsorted(now.levels, self._prices.cpu_milli[self._one], side="right")
        is_fed = needed[:, None] <= np.arange(len(now.levels) + 1)
        weights = np.where(is_fed, now.weights[self._one][:, None], 0.0).astype(np.float32)
        result: Singles = offers[:, self._one] @ weights
        return result

    def _for_several(self, weights: Floats, cpu: Ints, use: Singles, able: Singles) -> Floats:
        """Σ w U over the kinds for several GPUs."""
        several = self._several
        serves = (able >= self._prices.gpus[several]) & (cpu[:, None] >= self._prices.cpu_milli[several])
        result: Floats = np.where(serves, use, 0.0) @ weights[several]
        return result

    def _gains(self, shape: Shape, now: _Now) -> tuple[Floats, Bools]:
        """`[rows, columns]` each: the value of choosing a GPU, and whether the request fits on it."""
        states = self._states
        after, fits = self._after(shape)
        change = self._priced.offers(after) - self._offers
        hole = (self._priced.hole(after) - self._priced.hole(states)) * now.worth[states.gpu_class]
        is_shared = np.array([False, *(one.share_of(shape) < 1.0 for one in self._prices.classes)])
        value = self._by_state(change, now) + (_HOLE_WORTH * hole * is_shared[states.gpu_class])[:, None]
        gains = value[now.state_of, now.level_after].astype(np.float64)
        use = change[:, self._several]
        able = ((change + self._offers > 0).astype(np.float32) - (self._offers > 0))[:, self._several]
        touches = fits & ((use != 0) | (able != 0)).any(1)
        for row, row_states in enumerate(now.state_of):
            touched = np.flatnonzero(touches[row_states])
            if len(touched):
                chosen, columns = row_states[touched], now.columns[touched]
                there = self._use[columns] + use[chosen], self._able[columns] + able[chosen]
                several = self._for_several(now.weights, now.cpu_after[touched], *there)
                gains[row, touched] += several - now.several_after[touched]
        return gains, fits[now.state_of]

    def _after(self, shape: Shape) -> tuple[GpuStates, Bools]:
        """The states after a request has taken a GPU of each, and `[states]` whether it can."""
        states, classes = self._states, (GpuClass("", 1, 1), *self._prices.classes)
        serves = np.array([number > 0 and one.serves(shape) for number, one in enumerate(classes)])
        memory = np.array([one.memory_of(shape) for one in classes])[states.gpu_class]
        is_exclusive = shape.cores_percent >= 100
        fits = serves[states.gpu_class] & (states.empty if is_exclusive else states.shareable)
        fits &= (states.memory_free >= memory) & (states.cores_free >= max(shape.cores_percent, 1))
        after = GpuStates(
            states.gpu_class,
            np.where(fits, states.memory_free - memory, 0),
            np.where(fits, states.cores_free - shape.cores_percent, 0),
            fits & (not is_exclusive),
            np.zeros(len(states), np.bool_),
        )
        return after, fits

    def _rest(self, arrays: Arrays, shape: Shape, taken_milli: Floats, now: _Now) -> Floats:
        """`[columns]`: the stranded part, and the little that decides between equal nodes."""
        columns, free = now.columns, self._free_milli[now.columns]
        stranded = np.zeros(len(columns))
        for per_gpu, host_free, asked in (
            (self._prices.cpu_per_gpu, arrays.host_cpu_free[columns], shape.host_cpu_milli),
            (self._prices.host_memory_per_gpu, arrays.host_memory_free[columns], shape.host_memory_mib),
        ):
            if per_gpu > 0:
                stranded += np.maximum(0.0, free - taken_milli - (host_free - asked) / per_gpu)
                stranded -= np.maximum(0.0, free - host_free / per_gpu)
        worth = now.worth[self._class_of[:, columns].max(0)] if len(self._class_of) else 0.0
        stays = now.cpu_after / _TIE_CPU_MILLI + (free - taken_milli) / _TIE_GPU_MILLI
        rest: Floats = stranded * worth**2 + stays
        return rest
