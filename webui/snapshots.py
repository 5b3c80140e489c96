"""What is read for the pages: the cluster as the extender has it, and what is really used of it."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import msgspec

from webui import models


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


def mib(amount_bytes: float | None) -> int | None:
    """Whole MiB; None for what is not known, or is no amount."""
    return None if amount_bytes is None or not math.isfinite(amount_bytes) else int(amount_bytes) >> 20


class Amount(msgspec.Struct, frozen=True, gc=False):
    """How much there is of something, and how much of it is promised."""

    total: int
    promised: int


class Gpu(msgspec.Struct, frozen=True, gc=False):
    """A GPU, in the words of the read API, as far as the pages show it."""

    uuid: str
    index: int
    type: str
    mode: str
    healthy: bool
    ailment: str
    cordoned: bool
    allocation_unknown: bool
    memory_mib: Amount
    cores_percent: Amount
    slots: Amount


class Node(msgspec.Struct, frozen=True, gc=False):
    """A node, likewise."""

    name: str
    standing: str
    labels: dict[str, str]
    gpus: list[Gpu]
    problems: dict[str, str] = {}  # msgspec copies it


class Share(msgspec.Struct, frozen=True, gc=False):
    """What a pod holds of a GPU."""

    uuid: str
    memory_mib: int
    cores_percent: int


class Pod(msgspec.Struct, frozen=True, gc=False):
    """A pod, likewise."""

    namespace: str
    name: str
    node: str | None
    phase: str
    starting: bool
    corrupt: bool
    foreign_slots: int
    gpus: list[Share]
    error_code: str
    created_at: int
    bound_at: int
    asks: tuple[models.Ask, ...]
    trouble: str = ""


@dataclass(frozen=True, slots=True)
class Snapshot:
    """The cluster, as the extender had it at one moment."""

    nodes: Sequence[Node]
    pods: Sequence[Pod]
    taken_at: float
    """Unix seconds."""
    used: Used | None = None
    """What is really used; None where nobody measures it."""
