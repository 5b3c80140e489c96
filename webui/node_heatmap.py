"""All nodes at a glance: one cell a node, grouped by model and ordered by how full they are. Pure.

Nodes that are alike lie beside each other, so that five thousand of them are a few rectangles and not five thousand.
"""

import collections
from collections.abc import Sequence
from dataclasses import dataclass

from webui import models

COLUMNS, CELL = 100, 10
UNHEALTHY = "unhealthy"


@dataclass(frozen=True, slots=True)
class Area:
    """The nodes of one model that are equally full."""

    level: str
    """One of `models.LEVELS`, or `unhealthy`."""
    step: int
    """Which shade, 0 to 5; 6 for unhealthy."""
    nodes: int
    blocks: tuple[tuple[int, int, int, int], ...]
    """Rectangles: x, y, width and height."""


@dataclass(frozen=True, slots=True)
class Group:
    """The nodes of one model."""

    model: str
    nodes: int
    height: int
    areas: tuple[Area, ...]


def groups(nodes: Sequence[models.Node]) -> tuple[Group, ...]:
    """The groups, the largest first; nodes with GPUs of several models stand under the first."""
    by_model: dict[str, collections.Counter[int]] = collections.defaultdict(collections.Counter)
    for node in nodes:
        if node.models:
            by_model[node.models[0]][_step(node)] += 1
    by_count = [_group(model, counts) for model, counts in by_model.items()]
    return tuple(sorted(by_count, key=lambda group: (-group.nodes, group.model)))


def _step(node: models.Node) -> int:
    return len(models.LEVELS) if node.is_unhealthy else models.LEVELS.index(node.level)


def _group(model: str, counts: collections.Counter[int]) -> Group:
    names = (*models.LEVELS, UNHEALTHY)
    areas, start = [], 0
    for step in sorted(counts, reverse=True):
        areas.append(Area(names[step], step, counts[step], _blocks(start, start + counts[step])))
        start += counts[step]
    return Group(model, start, -(-start // COLUMNS) * CELL, tuple(areas))


def _blocks(start: int, end: int) -> tuple[tuple[int, int, int, int], ...]:
    """The cells from `start` up to `end`, row by row, as at most three rectangles."""
    blocks = []
    while start < end:
        row, column = divmod(start, COLUMNS)
        rows = (end - start) // COLUMNS if column == 0 else 0
        cells = rows * COLUMNS or min(end - start, COLUMNS - column)
        blocks.append((column * CELL, row * CELL, (COLUMNS if rows else cells) * CELL, max(rows, 1) * CELL))
        start += cells
    return tuple(blocks)
