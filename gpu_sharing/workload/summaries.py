"""Mean, maximum and percentiles of numbers."""

import math
from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class Summary:
    """Some numbers in short; percentiles are by nearest rank."""

    count: int
    mean: float
    max: float
    p50: float
    p95: float
    p99: float


def summarize(values: Sequence[float]) -> Summary | None:
    """Return mean, maximum and percentiles; None without values."""
    if not values:
        return None
    ordered = sorted(values)

    def rank(percent: int) -> float:
        return ordered[math.ceil(len(ordered) * percent / 100) - 1]

    mean = math.fsum(ordered) / len(ordered)
    return Summary(count=len(ordered), mean=mean, max=ordered[-1], p50=rank(50), p95=rank(95), p99=rank(99))
