"""What a part of a GPU is worth, by how well the mix of requests can fill it.

It is the dual of fractional bin packing: each size of request has a price such that no filling of a GPU is worth more
than 1 and the mix as a whole is worth the most; a hole is worth its best filling by these prices.

Source: Plotkin, Shmoys, Tardos, "Fast approximation algorithms for fractional packing and covering problems", 1995,
for multiplicative weights; the oracle is an unbounded knapsack.
"""

from collections.abc import Mapping

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]

GRID = 100
"""The sizes that are distinguished, in percent of a GPU."""
_ROUNDS = 150
_STEP = 0.5
_LEAST_PRICE = 1e-4


def hole_values(weight_by_percent: Mapping[int, float]) -> Floats:
    """Return the worth of 0 to 100 percent of a GPU, 0 to 1; it takes some tenths of a second.

    Args:
        weight_by_percent: How often each size is requested, 1 to 99 percent.
    """
    if not weight_by_percent:
        return np.linspace(0.0, 1.0, GRID + 1)
    sizes = np.array(sorted(weight_by_percent))
    weights = np.array([weight_by_percent[int(size)] for size in sizes], np.float64)
    prices = sizes / GRID
    total, counted = np.zeros(GRID + 1), 0
    for number in range(_ROUNDS):
        values, filling = _best_filling(sizes, prices)
        prices, values = prices / values[GRID], values / values[GRID]
        excess = weights / (weights @ prices) - filling
        largest = np.abs(excess).max()
        if largest > 0:
            prices = np.clip(prices * np.exp(_STEP / np.sqrt(number + 1) * excess / largest), _LEAST_PRICE, 1.0)
        if number >= _ROUNDS // 4:
            total, counted = total + values, counted + 1
    result: Floats = total / counted
    return result


def _best_filling(sizes: npt.NDArray[np.int64], prices: Floats) -> tuple[Floats, Floats]:
    """The worth of each size of hole, and how often each request is in the best filling of a whole GPU."""
    values, chosen = np.zeros(GRID + 1), np.full(GRID + 1, -1)
    smallest = int(sizes[0])
    for room in range(smallest, GRID + 1):
        count = int(np.searchsorted(sizes, room, side="right"))
        candidates = prices[:count] + values[room - sizes[:count]]
        best = int(candidates.argmax())
        values[room] = values[room - 1]
        if candidates[best] > values[room] + 1e-12:
            values[room], chosen[room] = candidates[best], best
    filling, room = np.zeros(len(sizes)), GRID
    while room > 0:
        if chosen[room] < 0:
            room -= 1
        else:
            filling[chosen[room]] += 1
            room -= int(sizes[chosen[room]])
    return values, filling
