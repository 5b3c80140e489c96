"""What is read for the pages: the cluster as the extender has it, and what is really used of it."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True, slots=True)
class Used:
    """What is really used, in bytes. What is missing is not known."""

    gpus: Mapping[str, float] = field(default_factory=dict)
    """By the GPU's UUID."""
    pods: Mapping[str, float] = field(default_factory=dict)
    """By `<namespace>/<name>`."""
    shares: Mapping[tuple[str, str], float] = field(default_factory=dict)
    """By the pod and the GPU's UUID."""
    busy: Mapping[str, float] = field(default_factory=dict)
    """By the GPU's UUID, the share of time in which it was busy, in percent."""
    oldest_at: float | None = None
    """When the oldest of these numbers was asked for, in Unix seconds; None where there are none."""


@dataclass(frozen=True, slots=True)
class Snapshot:
    """The cluster, as the extender had it at one moment."""

    nodes: Sequence[Mapping[str, Any]]
    pods: Sequence[Mapping[str, Any]]
    taken_at: float
    """Unix seconds."""
    used: Used | None = None
    """What is really used; None where nobody measures it."""
