"""The states in which the GPUs of a cluster are: thousands of GPUs are in some hundred different ones.

A state is a class of GPUs, what is free of memory and cores, and whether a pod may share it. What depends on the state
alone is computed once for all GPUs in it.
"""

from collections.abc import Sequence
from dataclasses import dataclass, fields

import numpy as np
import numpy.typing as npt

from scheduler_extender.fleet.arrays import Arrays, Bools, Floats, Ints
from scheduler_extender.fleet.hole_values import GRID
from scheduler_extender.fleet.prices import MILLI, GpuClass, Prices

Singles = npt.NDArray[np.float32]

_MEMORY_BITS, _CORES_BITS = 26, 14
"""Of a state's key: up to 64 TiB, and 16,383 percent."""


@dataclass(slots=True)
class GpuStates:
    """Some states, as arrays with one entry for each."""

    gpu_class: Ints
    """Number of the class, from 1; 0 for a GPU that no pod may use."""
    memory_free: Ints
    """MiB."""
    cores_free: Ints
    """Percent."""
    shareable: Bools
    empty: Bools

    def __len__(self) -> int:
        return len(self.gpu_class)

    def and_those(self, others: "GpuStates") -> "GpuStates":
        """Return these, and behind them the others."""
        names = [one.name for one in fields(self)]
        return GpuStates(*(np.concatenate([getattr(self, name), getattr(others, name)]) for name in names))


def numbered_classes(arrays: Arrays, classes: Sequence[GpuClass], columns: Ints) -> Ints:
    """`[rows, len(columns)]`: the number of each GPU's class, from 1; 0 for no GPU, or one of another class."""
    numbers = {one: number for number, one in enumerate(classes, start=1)}
    words = arrays.types.words
    found: Ints = np.zeros((arrays.exists.shape[0], len(columns)), np.int64)
    there = np.nonzero(arrays.exists[:, columns])
    if len(there[0]):
        of_columns = (there[0], columns[there[1]])
        values = np.stack([one[of_columns] for one in (arrays.type_id, arrays.memory_total, arrays.cores_total)])
        unique, inverse = np.unique(values, axis=1, return_inverse=True)
        of_unique = [numbers.get(GpuClass(words[kind], *sizes), 0) for kind, *sizes in unique.T.tolist()]
        found[there] = np.array(of_unique, np.int64)[inverse.reshape(-1)]
    return found


def keys_of(arrays: Arrays, class_of: Ints, columns: Ints) -> Ints:
    """`[rows, len(columns)]`: the key of each GPU's state."""
    memory = np.clip(arrays.memory_free[:, columns], 0, (1 << _MEMORY_BITS) - 1)
    cores = np.clip(arrays.cores_free[:, columns], 0, (1 << _CORES_BITS) - 1)
    flags = arrays.shareable[:, columns].astype(np.int64) | (arrays.empty[:, columns].astype(np.int64) << 1)
    keys: Ints = ((class_of[:, columns] << _MEMORY_BITS | memory) << _CORES_BITS | cores) << 2 | flags
    keys[~arrays.shareable[:, columns] | (class_of[:, columns] == 0)] = 0
    return keys


def states_of(keys: Ints) -> GpuStates:
    """Return the states of keys."""
    amounts = keys >> 2
    return GpuStates(
        gpu_class=amounts >> (_MEMORY_BITS + _CORES_BITS),
        memory_free=(amounts >> _CORES_BITS) & ((1 << _MEMORY_BITS) - 1),
        cores_free=amounts & ((1 << _CORES_BITS) - 1),
        shareable=(keys & 1).astype(np.bool_),
        empty=(keys & 2).astype(np.bool_),
    )


class PricedStates:
    """What states offer to a mix of requests."""

    def __init__(self, prices: Prices) -> None:
        self._prices = prices
        nothing = GpuClass("", 1, 1)
        known = (nothing, *prices.classes)
        self._memory_total = np.array([max(one.memory_mib, 1) for one in known], np.int64)
        self._cores_total = np.array([max(one.cores_percent, 1) for one in known], np.int64)
        kinds = len(prices.popularity)
        self._needs = np.concatenate([np.zeros((1, kinds), np.int64), prices.memory_mib])
        self._served = np.concatenate([np.zeros((1, kinds), np.bool_), prices.served])
        self._hole_memory = np.concatenate([np.zeros((1, GRID + 1)), prices.hole_memory])

    def offers(self, states: GpuStates) -> Singles:
        """`[states, kinds]`: the thousandths of such a GPU that a kind of request can use; 0 where it does not fit."""
        prices, number = self._prices, states.gpu_class
        by_memory = (MILLI * states.memory_free / self._memory_total[number])[:, None]
        by_cores = (MILLI * states.cores_free / self._cores_total[number])[:, None]
        amount = np.where(prices.limits_cores, np.minimum(by_memory, by_cores), by_memory)
        fits = (states.memory_free[:, None] >= self._needs[number]) & self._served[number]
        fits &= (states.cores_free[:, None] >= prices.cores_percent) & states.shareable[:, None]
        fits &= states.empty[:, None] | (prices.cores_percent < 100)
        offered: Singles = np.where(fits, amount, 0.0).astype(np.float32)
        return offered

    def free_milli(self, states: GpuStates) -> Floats:
        """`[states]`: the dominant share that is free, in thousandths."""
        number = states.gpu_class
        by_memory = states.memory_free / self._memory_total[number]
        by_cores = states.cores_free / self._cores_total[number]
        usable = states.shareable & (number > 0)
        free: Floats = np.where(usable, MILLI * np.minimum(by_memory, by_cores), 0.0)
        return free

    def hole(self, states: GpuStates) -> Floats:
        """`[states]`: what the free part is worth to the mix, 0 to 1."""
        number = states.gpu_class
        memory = np.clip(GRID * states.memory_free // self._memory_total[number], 0, GRID)
        worth: Floats = self._hole_memory[number, memory]
        if self._prices.hole_cores is not None:
            cores = np.clip(GRID * states.cores_free // self._cores_total[number], 0, GRID)
            worth = np.minimum(worth, self._prices.hole_cores[cores])
        return np.where(states.shareable, worth, 0.0)
