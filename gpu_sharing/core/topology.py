"""Which GPUs of a node reach each other best, and which set of them to give to one container.

A node may publish how well each pair of its GPUs is linked: a score, larger is nearer. A container of several GPUs gets
the set whose pairs score most together; a container of one gets the GPU that the others miss least, so that well-linked
ones stay together for whoever needs several.

Source: HAMi v2.10, the policy `topology-aware` and the annotation `hami.io/node-nvidia-score`.
"""

import itertools
import math
from collections.abc import Sequence

Links = tuple[tuple[int, ...], ...]
"""`[gpus, gpus]` in row order, symmetric, 0 on the diagonal and where nothing is known; empty if all are."""

_MOST_SETS = 5_000
"""Beyond so many sets a good one is built up instead of comparing all: only a node of more than 14 GPUs comes there."""


def best_set(rows: Sequence[int], links: Links, count: int) -> tuple[int, ...]:
    """Choose `count` of some GPUs by their links.

    Args:
        rows: The GPUs to choose from, at least `count`, the best-liked first: between equals those win.
        links: Of the whole node.
        count: How many GPUs, at least 1.
    """
    if not links:
        return tuple(rows[:count])
    if count == 1:
        return (min(rows, key=lambda row: sum(links[row][other] for other in rows)),)
    if math.comb(len(rows), count) > _MOST_SETS:
        return max((_grown(rows, links, count, seed) for seed in rows), key=lambda chosen: total(chosen, links))
    return max(itertools.combinations(rows, count), key=lambda chosen: total(chosen, links))


def total(rows: Sequence[int], links: Links) -> int:
    """The scores of all pairs of a set, added up."""
    return sum(links[one][other] for one, other in itertools.combinations(rows, 2))


def _grown(rows: Sequence[int], links: Links, count: int, seed: int) -> tuple[int, ...]:
    """A set that begins with one GPU and takes in the one that it is linked best with, again and again."""
    chosen = [seed]
    while len(chosen) < count:
        left = [row for row in rows if row not in chosen]
        chosen.append(max(left, key=lambda row: sum(links[row][one] for one in chosen)))
    return tuple(chosen)
