"""The links between GPUs of a node, and the set of GPUs for one container.

A node may publish a link score for each pair of its GPUs; larger is faster. A container of several GPUs gets the set
with the highest total score; a container of one gets the GPU with the lowest score to the others, so that well-linked
GPUs stay free together for later requests.

Source: HAMi v2.10, the policy `topology-aware` and the annotation `hami.io/node-nvidia-score`.
"""

import itertools
import math
from collections.abc import Sequence

Links = tuple[tuple[int, ...], ...]
"""`[gpus, gpus]` in row order, symmetric, 0 on the diagonal and where no score is known; empty if all are 0."""

_MOST_SETS = 5_000
"""Up to this many sets are compared; beyond it a good set is grown, on nodes of more than 14 GPUs only."""


def best_set(rows: Sequence[int], links: Links, count: int) -> tuple[int, ...]:
    """Choose `count` of some GPUs by their links.

    Args:
        rows: The GPUs to choose from, at least `count`, the preferred first: between equal sets they decide.
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
    """Return the sum of the scores of all pairs of a set."""
    return sum(links[one][other] for one, other in itertools.combinations(rows, 2))


def _grown(rows: Sequence[int], links: Links, count: int, seed: int) -> tuple[int, ...]:
    """Return a set that begins with one GPU and repeatedly adds the GPU with the best links to it."""
    chosen = [seed]
    while len(chosen) < count:
        left = [row for row in rows if row not in chosen]
        chosen.append(max(left, key=lambda row: sum(links[row][one] for one in chosen)))
    return tuple(chosen)
