"""Nodes that requests for many GPUs will need, kept free of small ones as long as others take them.

A full cluster of a mix holds a number of each big request, and they need that many nodes. It is a preference: no pod is
refused because of it.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

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


@dataclass(frozen=True, slots=True, kw_only=True)
class Nodes:
    """What a cluster has, whatever of it is free."""

    names: Sequence[identifiers.NodeName]
    """`[columns]`."""
    class_of: Ints
    """`[rows, columns]`: the number of each GPU's class, from 1; 0 for none."""
    empty: Ints
    """`[columns]`: the empty GPUs of each node."""
    capacity_milli: float
    """Thousandths of a GPU of the whole cluster."""
    cpu_milli: Ints
    """`[columns]`: allocatable CPU."""
    memory_mib: Ints
    """`[columns]`: allocatable memory."""


class NodeReserve:
    """The nodes that are kept.

    Attributes:
        names: Their names.
    """

    def __init__(self) -> None:
        self.names: frozenset[identifiers.NodeName] = frozenset()
        self._sized_for = 0.0

    def choose(self, prices: Prices, nodes: Nodes) -> None:
        """Choose them anew where the need of this mix has changed."""
        class_of, names, empty = nodes.class_of, nodes.names, nodes.empty
        needs = _needs(prices, nodes)
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

    def value(self, gpus: int, counts: Ints, column_of: Mapping[identifiers.NodeName, int]) -> Floats:
        """`[columns]`: what a request for so many GPUs gains on each node, in thousandths of a GPU."""
        kept: Bools = np.zeros(len(counts), np.bool_)
        kept[[column for name in self.names if (column := column_of.get(name, -1)) in range(len(counts))]] = True
        is_small = (gpus <= 1) | (2 * gpus < counts)
        return np.where(kept, np.where(is_small, -_SMALL_COST, _BIG_GAIN), 0.0)


def _needs(prices: Prices, nodes: Nodes) -> dict[tuple[bytes, int], float]:
    """How many of each big request a full cluster of the mix holds, by the nodes that can serve it and its GPUs."""
    wanting = {shape: share for shape, share in prices.shares.items() if shape.gpus}
    demand = MILLI * sum(share * shape.gpus * prices.typical_share(shape) for shape, share in wanting.items())
    needs: dict[tuple[bytes, int], float] = {}
    for shape, share in wanting.items():
        able = _able(shape, prices, nodes)
        if shape.gpus >= BIG_GPUS and able.any():
            key = able.tobytes(), shape.gpus
            needs[key] = needs.get(key, 0.0) + share * nodes.capacity_milli / demand
    return needs


def _able(shape: Shape, prices: Prices, nodes: Nodes) -> Bools:
    """`[columns]`: which nodes serve a request when they are empty."""
    serves = np.array([False, *(one.serves(shape) for one in prices.classes)])
    able: Bools = serves[nodes.class_of].sum(0) >= shape.gpus
    able &= (nodes.cpu_milli >= shape.host_cpu_milli) & (nodes.memory_mib >= shape.host_memory_mib)
    return able
