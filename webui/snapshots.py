"""What the pages are made of: the cluster as the extender knows it, and measurements."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from gpu_sharing.adapters import read_api_types


@dataclass(frozen=True, slots=True)
class Used:
    """Measured use, in bytes. What is missing is not known."""

    gpus: Mapping[str, float] = field(default_factory=dict)
    """By the GPU's UUID."""
    pods: Mapping[str, float] = field(default_factory=dict)
    """By `<namespace>/<name>`."""
    shares: Mapping[tuple[str, str], float] = field(default_factory=dict)
    """By the pod and the GPU's UUID."""
    busy: Mapping[str, float] = field(default_factory=dict)
    """By the GPU's UUID, the share of time in which it was busy, in percent."""
    oldest_at: float | None = None
    """When the oldest of these numbers was measured, in Unix seconds; None where there are none."""


def mib(amount_bytes: float | None) -> int | None:
    """Whole MiB; None for what is not known, or is no amount."""
    return None if amount_bytes is None or not math.isfinite(amount_bytes) else int(amount_bytes) >> 20


@dataclass(frozen=True, slots=True)
class Snapshot:
    """The cluster, as the extender had it at one moment."""

    nodes: Sequence[read_api_types.Node]
    pods: Sequence[read_api_types.Pod]
    taken_at: float
    """Unix seconds."""
    used: Used | None = None
    """What is used; None where it is not measured."""
