"""What is on each page, as plain values: of the extender's answers, for templates and for the JSON API. Pure."""

import collections
import hashlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from webui import snapshots

NODES_A_PAGE, PODS_A_PAGE = 50, 100
_MOST_LISTED = 10
_HUES, _SHADES = 7, 3
_WHOLE = 1000.0
"""The width of a bar, in its own units."""


@dataclass(frozen=True, slots=True)
class Slice:
    """What one pod was promised of a GPU."""

    pod: str
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


@dataclass(frozen=True, slots=True)
class Gpu:
    """One GPU as a bar."""

    uuid: str
    index: int
    model: str
    state: str
    """`ok`, `sick`, `cordoned`, `unknown`."""
    total_mib: int
    promised_mib: int
    cores_percent: int
    slots: int
    slots_promised: int
    slices: tuple[Slice, ...]
    used_mib: int | None = None
    """By whomever; None where it is not known."""

    @property
    def used_width(self) -> float:
        """How much of the bar is used."""
        return round(_WHOLE * min((self.used_mib or 0) / max(self.total_mib, 1), 1.0), 2)

    @property
    def free_mib(self) -> int:
        """What could still be promised of it."""
        return self.total_mib - self.promised_mib if self.state == "ok" and self.slots_promised < self.slots else 0


@dataclass(frozen=True, slots=True)
class Node:
    """One node."""

    name: str
    standing: str
    gpus: tuple[Gpu, ...]
    models: tuple[str, ...]
    """The models of its GPUs."""
    total_mib: int
    """Memory of all its GPUs."""
    promised_mib: int
    """What of it is promised."""
    largest_free_mib: int
    """The largest share of one GPU that would still fit."""


@dataclass(frozen=True, slots=True)
class Pod:
    """One pod with GPUs."""

    namespace: str
    name: str
    state: str
    """`running`, `starting`, `waiting`, `unreadable`, `foreign`."""
    node: str
    gpus: int
    promised_mib: int
    cores_percent: int
    code: str
    """Why it waits."""
    used_mib: int | None = None
    """None where it is not known."""

    @property
    def key(self) -> str:
        """`<namespace>/<name>`."""
        return f"{self.namespace}/{self.name}"


@dataclass(frozen=True, slots=True)
class Model:
    """All GPUs of one model."""

    name: str
    gpus: int
    total_mib: int
    promised_mib: int
    largest_free_mib: int
    sick: int


@dataclass(frozen=True, slots=True)
class Overview:
    """The first page."""

    nodes: int
    gpus: int
    gpus_in_use: int
    sick: int
    total_mib: int
    promised_mib: int
    used_mib: int | None
    """None where it is not known of every GPU."""
    holding: int
    waiting: int
    models: tuple[Model, ...]
    namespaces: tuple[tuple[str, int], ...]
    """The namespaces that hold most, and how many MiB."""
    longest_waiting: tuple[Pod, ...]
    reasons: tuple[tuple[str, int], ...]
    """Why pods wait: codes and how many."""


@dataclass(frozen=True, slots=True)
class Page:
    """A part of a list."""

    items: Sequence[Any]
    total: int
    number: int
    pages: int


@dataclass(frozen=True, slots=True)
class Filters:
    """What a list is narrowed to."""

    text: str = ""
    model: str = ""
    state: str = ""
    namespace: str = ""
    free_mib: int = 0
    sort: str = ""
    page: int = 1


@dataclass(frozen=True, slots=True)
class View:
    """A snapshot, worked out once for all viewers."""

    nodes: tuple[Node, ...] = ()
    pods: tuple[Pod, ...] = ()
    taken_at: float = 0.0
    nodes_by_name: Mapping[str, Node] = field(default_factory=dict)
    pods_by_key: Mapping[str, Pod] = field(default_factory=dict)
    model_names: tuple[str, ...] = ()
    namespaces: tuple[str, ...] = ()
    overview: Overview | None = None
    """None before the first snapshot."""


def view(snapshot: snapshots.Snapshot) -> View:
    """Everything on the pages of a snapshot."""
    shares: dict[str, list[tuple[str, int, int]]] = collections.defaultdict(list)
    for pod in snapshot.pods:
        key = f"{pod['namespace']}/{pod['name']}"
        for one in pod["gpus"]:
            shares[one["uuid"]].append((key, one["memory_mib"], one["cores_percent"]))
    used = snapshot.used or snapshots.Used({}, {}, {})
    nodes = tuple(_node(one, shares, used) for one in snapshot.nodes)
    pods = tuple(_pod(one, used) for one in snapshot.pods)
    return View(
        nodes, pods, snapshot.taken_at, {node.name: node for node in nodes}, {pod.key: pod for pod in pods},
        tuple(sorted({model for node in nodes for model in node.models})),
        tuple(sorted({pod.namespace for pod in pods})), _overview(nodes, pods),
    )  # fmt: skip


def _node(node: Mapping[str, Any], shares: Mapping[str, Sequence[tuple[str, int, int]]], used: snapshots.Used) -> Node:
    gpus = tuple(_gpu(one, shares.get(one["uuid"], ()), used) for one in node["gpus"])
    return Node(
        node["name"], node["standing"], gpus, tuple(sorted({gpu.model for gpu in gpus})),
        sum(gpu.total_mib for gpu in gpus), sum(gpu.promised_mib for gpu in gpus),
        max((gpu.free_mib for gpu in gpus), default=0),
    )  # fmt: skip


def _gpu(gpu: Mapping[str, Any], shares: Iterable[tuple[str, int, int]], used: snapshots.Used) -> Gpu:
    total = gpu["memory_mib"]["total"]
    slices, x = [], 0.0
    for pod, memory, cores in shares:
        width = min(_WHOLE * memory / max(total, 1), max(_WHOLE - x, 0.0))
        slices.append(
            Slice(
                pod,
                memory,
                cores,
                round(x, 2),
                round(width, 2),
                hue(_namespace(pod)),
                _digest(pod) % _SHADES,
                _mib(used.shares.get((pod, gpu["uuid"]))),
            )
        )
        x += width
    state = (
        "sick" if not gpu["healthy"]
        else "unknown" if gpu["usage_unknown"]
        else "cordoned" if gpu["cordoned"]
        else "ok"
    )  # fmt: skip
    return Gpu(
        gpu["uuid"], gpu["index"], gpu["type"], state, total, gpu["memory_mib"]["promised"],
        gpu["cores_percent"]["promised"], gpu["slots"]["total"], gpu["slots"]["promised"], tuple(slices),
        _mib(used.gpus.get(gpu["uuid"])),
    )  # fmt: skip


def _mib(amount_bytes: float | None) -> int | None:
    return None if amount_bytes is None else int(amount_bytes) >> 20


def hue(namespace: str) -> int:
    """The colour of a namespace: the same on every page and every day."""
    return _digest(namespace) % _HUES


def _digest(text: str) -> int:
    return hashlib.sha256(text.encode(errors="replace")).digest()[0]


def _pod(pod: Mapping[str, Any], used: snapshots.Used) -> Pod:
    state = (
        "waiting" if pod["phase"] == "waiting"
        else "unreadable" if pod["corrupt"]
        else "foreign" if pod["foreign_slots"]
        else "starting" if pod["starting"]
        else "running"
    )  # fmt: skip
    return Pod(
        pod["namespace"], pod["name"], state, pod["node"] or "", len(pod["gpus"]),
        sum(one["memory_mib"] for one in pod["gpus"]), sum(one["cores_percent"] for one in pod["gpus"]),
        pod["error_code"], _mib(used.pods.get(f"{pod['namespace']}/{pod['name']}")),
    )  # fmt: skip


def _overview(nodes: Sequence[Node], pods: Sequence[Pod]) -> Overview:
    """The first page."""
    gpus = [gpu for node in nodes for gpu in node.gpus]
    by_model: dict[str, list[Gpu]] = collections.defaultdict(list)
    for gpu in gpus:
        by_model[gpu.model].append(gpu)
    held: collections.Counter[str] = collections.Counter()
    for pod in pods:
        held[pod.namespace] += pod.promised_mib
    waiting = [pod for pod in pods if pod.state == "waiting"]
    reasons = collections.Counter(pod.code or "UNDECIDED" for pod in waiting)
    return Overview(
        nodes=len(nodes),
        gpus=len(gpus),
        gpus_in_use=sum(gpu.slots_promised > 0 for gpu in gpus),
        sick=sum(gpu.state == "sick" for gpu in gpus),
        total_mib=sum(gpu.total_mib for gpu in gpus),
        promised_mib=sum(gpu.promised_mib for gpu in gpus),
        used_mib=_all(gpu.used_mib for gpu in gpus),
        holding=len(pods) - len(waiting),
        waiting=len(waiting),
        models=tuple(_model(name, mine) for name, mine in sorted(by_model.items())),
        namespaces=tuple((name, amount) for name, amount in held.most_common(_MOST_LISTED) if amount),
        longest_waiting=tuple(waiting[:_MOST_LISTED]),
        reasons=tuple(reasons.most_common(_MOST_LISTED)),
    )


def _all(amounts: Iterable[int | None]) -> int | None:
    """The sum; None where one is not known, or there is none."""
    known = list(amounts)
    return sum(one for one in known if one is not None) if known and None not in known else None


def _model(name: str, gpus: Sequence[Gpu]) -> Model:
    return Model(
        name, len(gpus), sum(gpu.total_mib for gpu in gpus), sum(gpu.promised_mib for gpu in gpus),
        max(gpu.free_mib for gpu in gpus), sum(gpu.state == "sick" for gpu in gpus),
    )  # fmt: skip


NODE_SORTS = ("name", "fullest", "emptiest")
POD_SORTS = ("name", "largest", "node")


def nodes(found: View, wanted: Filters) -> Page:
    """The nodes of a page."""
    chosen = [
        node
        for node in found.nodes
        if wanted.text.lower() in node.name.lower()
        and (not wanted.model or wanted.model in node.models)
        and (not wanted.state or any(gpu.state == wanted.state for gpu in node.gpus))
        and (not wanted.free_mib or node.largest_free_mib >= wanted.free_mib)
        and (
            not wanted.namespace
            or wanted.namespace in {_namespace(part.pod) for gpu in node.gpus for part in gpu.slices}
        )
    ]
    if wanted.sort in ("fullest", "emptiest"):
        chosen.sort(key=lambda node: node.promised_mib / max(node.total_mib, 1), reverse=wanted.sort == "fullest")
    return _page(chosen, wanted.page, NODES_A_PAGE)


def pods(found: View, wanted: Filters) -> Page:
    """The pods of a page."""
    chosen = [
        pod
        for pod in found.pods
        if wanted.text.lower() in pod.key.lower()
        and (not wanted.state or pod.state == wanted.state)
        and (not wanted.namespace or pod.namespace == wanted.namespace)
    ]
    if wanted.sort == "largest":
        chosen.sort(key=lambda pod: -pod.promised_mib)
    elif wanted.sort == "node":
        chosen.sort(key=lambda pod: (pod.node, pod.key))
    return _page(chosen, wanted.page, PODS_A_PAGE)


def _page(chosen: Sequence[Any], number: int, size: int) -> Page:
    pages = max((len(chosen) + size - 1) // size, 1)
    number = min(max(number, 1), pages)
    return Page(chosen[(number - 1) * size : number * size], len(chosen), number, pages)


def _namespace(pod: str) -> str:
    return pod.partition("/")[0]
