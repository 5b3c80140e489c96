"""Nodes that requests for many GPUs will need, kept free of small ones as long as others take them.

A full cluster of a mix holds a number of each big request, and they need that many nodes. It is a preference: no pod is
refused because of it.
"""

from collections.abc import Mapping, Sequence

import numpy as np

from gpu_sharing.core import identifiers
from gpu_sharing.core.request_mix import Shape
from scheduler_extender.fleet.arrays import Bools, Floats, Ints
from scheduler_extender.fleet.prices import MILLI, Prices

BIG_GPUS = 4
"""A request for so many GPUs is big."""
_ROOM = 1.25
"""How many more nodes are kept than a full cluster of the mix needs."""
_BAND = 0.25
"""The reserve moves only where the need has changed by more than this part: it must stand still, or no node drains."""
_SMALL_COST, _BIG_GAIN = 5000.0, 1000.0
"""What a kept node costs a small request, and gains a big one, in thousandths of a GPU."""


class NodeReserve:
    """The nodes that are kept.

    Attributes:
        names: Their names.
    """

    def __init__(self) -> None:
        self.names: frozenset[identifiers.NodeName] = frozenset()
        self._sized_for = 0.0

    def choose(
        self, prices: Prices, capacity_milli: float, class_of: Ints, empty: Ints, names: Sequence[identifiers.NodeName]
    ) -> None:
        """Choose them anew where the need has changed.

        Args:
            prices: The mix.
            capacity_milli: Thousandths of a GPU that the cluster has.
            class_of: `[rows, columns]`: the number of each GPU's class, from 1; 0 for none.
            empty: `[columns]`: the empty GPUs of each node.
            names: Of the columns.
        """
        needs = _needs(prices, capacity_milli, class_of)
        size = sum(gpus * pods for (_, gpus), pods in needs.items())
        if abs(size - self._sized_for) <= _BAND * self._sized_for:
            return
        self._sized_for = size
        counts, model = (class_of > 0).sum(0), class_of.max(0)
        chosen: set[identifiers.NodeName] = set()
        rarest_first = sorted(needs.items(), key=lambda item: (sum(item[0][0]), -item[0][1]))
        for (mask, gpus), pods in rarest_first:
            able = np.frombuffer(mask, np.bool_)
            most = np.bincount(model[able], weights=counts[able]).argmax()
            there = np.flatnonzero(able & (model == most))
            was = np.array([names[column] in self.names for column in there.tolist()])
            todo = _ROOM * pods * gpus
            for column in there[np.lexsort((there, empty[there], was))[::-1]].tolist():
                if todo <= gpus / 2:
                    break
                if names[column] not in chosen:
                    chosen.add(names[column])
                    todo -= int(counts[column]) // gpus * gpus
        self.names = frozenset(chosen)

    def value(self, gpus: int, counts: Ints, column_of: Mapping[identifiers.NodeName, int]) -> Floats | float:
        """`[columns]`, or one for all: what a request for so many GPUs gains on each node, in thousandths of a GPU."""
        if not self.names:
            return 0.0
        kept: Bools = np.zeros(len(counts), np.bool_)
        kept[[column for name in self.names if (column := column_of.get(name, -1)) in range(len(counts))]] = True
        is_small = (gpus <= 1) | (2 * gpus < counts)
        return np.where(kept, np.where(is_small, -_SMALL_COST, _BIG_GAIN), 0.0)


def _needs(prices: Prices, capacity_milli: float, class_of: Ints) -> dict[tuple[bytes, int], float]:
    """How many of each big request a full cluster of the mix holds, by the nodes that can serve it and its GPUs."""
    wanting = {shape: share for shape, share in prices.shares.items() if shape.gpus}
    demand = MILLI * sum(share * shape.gpus * prices.typical_share(shape) for shape, share in wanting.items())
    needs: dict[tuple[bytes, int], float] = {}
    for shape, share in wanting.items():
        able = _able(shape, prices, class_of)
        if shape.gpus >= BIG_GPUS and able.any():
            key = able.tobytes(), shape.gpus
            needs[key] = needs.get(key, 0.0) + share * capacity_milli / demand
    return needs


def _able(shape: Shape, prices: Prices, class_of: Ints) -> Bools:
    serves = np.array([False, *(one.serves(shape) for one in prices.classes)])
    able: Bools = serves[class_of].sum(0) >= shape.gpus
    return able
