"""What each page shows, as plain values: for templates, and for the JSON API, which answers them as they are. Pure."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Generic, TypeVar

T = TypeVar("T")

WHOLE = 1000.0
"""The width of a bar, in its own units."""
LEVELS = ("0", "1-24", "25-49", "50-74", "75-99", "100")
"""How full a node is, in percent of its memory."""
GPU_STATES = ("ok", "unhealthy", "cordoned", "unknown", "unavailable")
"""Unavailable: its node takes no new pods, as one that is not ready or is cordoned."""
POD_STATES = ("running", "starting", "failing", "pending", "foreign", "unreadable")


def sum_known(amounts: Iterable[int | None]) -> int | None:
    """The sum; None where one is not known, or there is none."""
    known = list(amounts)
    return sum(one for one in known if one is not None) if known and None not in known else None


@dataclass(frozen=True, slots=True, kw_only=True)
class Slice:
    """What one pod holds of a GPU."""

    pod: str
    """`<namespace>/<name>`; empty where the viewer may not see whose it is."""
    memory_mib: int
    cores_percent: int
    x: float
    width: float
    hue: int
    """Of its namespace, 0 to 6."""
    shade: int
    """Of the pod within it, 0 to 2."""
    used_mib: int | None = None
    """None where it is not known."""

    @property
    def over(self) -> bool:
        """Whether more is used than is allocated."""
        return self.used_mib is not None and self.used_mib > self.memory_mib


@dataclass(frozen=True, slots=True, kw_only=True)
class Gpu:
    """One GPU and the slices that pods hold of it."""

    uuid: str
    index: int
    model: str
    state: str
    """One of `GPU_STATES`."""
    unhealthy_reason: str
    """Why it is unhealthy, in the words of the node's device plugin; empty where no reason is known."""
    total_mib: int
    allocated_mib: int
    cores_percent: int
    """Compute that is allocated, in percent of this GPU."""
    slots: int
    slots_allocated: int
    slices: tuple[Slice, ...]
    isolation: str = ""
    """How containers that share it are kept apart; `none` limits nothing, empty is not known."""
    used_mib: int | None = None
    """By all processes; None where it is not known."""
    utilization_percent: int | None = None
    """Share of time in which a kernel ran, in percent; None where it is not known."""

    @property
    def used_width(self) -> float:
        """How much of the bar is used."""
        return round(WHOLE * min((self.used_mib or 0) / max(self.total_mib, 1), 1.0), 2)

    @property
    def free_mib(self) -> int:
        """Memory that may still be allocated."""
        return self.total_mib - self.allocated_mib if self.state == "ok" and self.slots_allocated < self.slots else 0

    @property
    def is_whole(self) -> bool:
        """Whether no pod holds any of it and it may be allocated."""
        return self.state == "ok" and self.slots_allocated == 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Node:
    """One node and its GPUs."""

    name: str
    standing: str
    """Why no pod is placed there; `none` where pods are."""
    gpus: tuple[Gpu, ...]
    models: tuple[str, ...]
    """The models of its GPUs."""
    labels: Mapping[str, str]
    total_mib: int
    """Memory of all its GPUs."""
    allocated_mib: int
    """The part of it that is allocated."""
    largest_free_mib: int
    """The largest share of one GPU that would still fit."""
    problems: Mapping[str, str] = field(default_factory=dict)
    """What is wrong with how it is set up: sentences by error code."""

    @property
    def isolations(self) -> tuple[str, ...]:
        """How containers on its GPUs are kept apart."""
        return tuple(sorted({gpu.isolation or "unknown" for gpu in self.gpus}))

    @property
    def level(self) -> str:
        """How full the node is: one of `LEVELS`."""
        percent = 100 * self.allocated_mib // self.total_mib if self.total_mib else 0
        quarter = LEVELS[1 + min(percent, 99) // 25]
        return LEVELS[0] if not self.allocated_mib else LEVELS[-1] if percent >= 100 else quarter

    @property
    def is_unhealthy(self) -> bool:
        """Whether a GPU of it is."""
        return any(gpu.state == "unhealthy" for gpu in self.gpus)


@dataclass(frozen=True, slots=True)
class Request:
    """What one container of a pending pod requests."""

    gpus: int
    memory_mib: int
    """Of each GPU; 0 where the percentage says it."""
    memory_percent: int
    cores_percent: int

    @property
    def words(self) -> str:
        """The request as a phrase."""
        memory = f"{self.memory_mib:,} MiB" if self.memory_mib else f"{self.memory_percent} % of memory"
        cores = f", {self.cores_percent} % of cores" if self.cores_percent else ""
        return f"{self.gpus} × {memory}{cores}"  # noqa: RUF001  # a multiplication sign it is


@dataclass(frozen=True, slots=True, kw_only=True)
class Pod:
    """One pod with GPUs, or a pending one."""

    namespace: str
    name: str
    state: str
    """One of `POD_STATES`."""
    node: str
    gpus: int
    allocated_mib: int
    cores_percent: int
    code: str
    """Why it is pending."""
    created_at: int
    """Unix seconds; 0 where it is not known."""
    bound_at: int
    """Unix seconds; 0 while it is pending."""
    requests: tuple[Request, ...]
    """What the containers of a pending pod request."""
    reason: str = ""
    """Why it is pending, in one line; empty where that is not known."""
    not_running: str = ""
    """Why its containers do not run, where it is failing, such as `CrashLoopBackOff`."""
    used_mib: int | None = None
    """None where it is not known."""

    @property
    def key(self) -> str:
        """`<namespace>/<name>`."""
        return f"{self.namespace}/{self.name}"

    @property
    def over(self) -> bool:
        """Whether it uses more than is allocated to it."""
        return self.used_mib is not None and self.used_mib > self.allocated_mib

    @property
    def unused_mib(self) -> int:
        """What is allocated to it and not used; 0 where that is not known."""
        return 0 if self.used_mib is None else max(self.allocated_mib - self.used_mib, 0)


@dataclass(frozen=True, slots=True, kw_only=True)
class Model:
    """All GPUs of one model."""

    name: str
    gpus: int
    total_mib: int
    allocated_mib: int
    used_mib: int | None
    """None where it is not known of every GPU."""
    largest_free_mib: int
    whole_gpus: int
    """GPUs without any allocation."""
    unhealthy: int


@dataclass(frozen=True, slots=True)
class Change:
    """What changed between two snapshots of the cluster."""

    at: float
    """Unix seconds."""
    what: str
    """`placed`, `pending`, `rejected`, `ended`, `unhealthy`, `healthy`, `node added`, `node gone`."""
    pod: str
    """`<namespace>/<name>`; empty where it is about none."""
    node: str
    detail: str
    code: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Overview:
    """The totals that the first page shows."""

    nodes: int
    gpus: int
    gpus_in_use: int
    unhealthy: int
    total_mib: int
    allocated_mib: int
    free_mib: int
    """What may still be allocated."""
    used_mib: int | None
    """None where it is not known of every GPU."""
    cores_percent: int
    """Compute that is allocated, in percent of all GPUs."""
    utilization_percent: int | None
    """Mean utilization of the GPUs; None where it is not known of every GPU."""
    bound: int
    pending: int
    models: tuple[Model, ...]
    namespaces: tuple[tuple[str, int], ...]
    """The namespaces that hold most, and how many MiB."""
    longest_pending: tuple[Pod, ...]
    reasons: tuple[tuple[str, int], ...]
    """Why pods are pending: codes and how many."""

    @property
    def largest(self) -> Model | None:
        """The model on which the largest request still fits; None where nothing fits."""
        best = max(self.models, key=lambda model: model.largest_free_mib, default=None)
        return best if best and best.largest_free_mib else None


@dataclass(frozen=True, slots=True)
class Page(Generic[T]):
    """One page of a longer list."""

    items: Sequence[T]
    total: int
    number: int
    pages: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Filters:
    """What a list is narrowed to."""

    text: str = ""
    model: str = ""
    state: str = ""
    namespace: str = ""
    label: str = ""
    """`key` or `key=value`."""
    level: str = ""
    code: str = ""
    free_mib: int = 0
    sort: str = ""
    page: int = 1


PARAMETERS = {
    "q": "text", "model": "model", "state": "state", "namespace": "namespace", "label": "label", "level": "level",
    "code": "code", "free": "free_mib", "sort": "sort", "page": "page",
}  # fmt: skip
"""The filters by their names in the URL."""


@dataclass(frozen=True, slots=True, kw_only=True)
class View:
    """A snapshot, worked out once for all viewers."""

    nodes: tuple[Node, ...] = ()
    pods: tuple[Pod, ...] = ()
    taken_at: float = 0.0
    """Unix seconds; 0 before the first."""
    measured_at: float | None = None
    """Unix seconds of the oldest number of what is used; None where nothing is known."""
    nodes_by_name: Mapping[str, Node] = field(default_factory=dict)
    pods_by_key: Mapping[str, Pod] = field(default_factory=dict)
    pods_by_namespace: Mapping[str, tuple[Pod, ...]] = field(default_factory=dict)
    model_names: tuple[str, ...] = ()
    overview: Overview | None = None
    """None before the first snapshot."""
    only: frozenset[str] | None = None
    """The namespaces whose pods the viewer may see; None: all."""

    @property
    def namespaces(self) -> tuple[str, ...]:
        """Those that have pods with GPUs."""
        return tuple(sorted(self.pods_by_namespace))
