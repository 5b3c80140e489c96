"""From a snapshot to what the pages show, and the part that a viewer may see. Pure."""

import collections
import dataclasses
import hashlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from gpu_sharing.adapters import read_api_types
from webui import models, snapshots

_MOST_LISTED = 10
_HUES, _SHADES = 7, 3


def view(snapshot: snapshots.Snapshot) -> models.View:
    """Return everything that the pages show of a snapshot."""
    shares: dict[str, list[tuple[str, int, int]]] = collections.defaultdict(list)
    for pod in snapshot.pods:
        key = f"{pod.namespace}/{pod.name}"
        for share in pod.gpus:
            shares[share.uuid].append((key, share.memory_mib, share.cores_percent))
    used = snapshot.used or snapshots.Used()
    nodes = tuple(_node(one, shares, used) for one in snapshot.nodes)
    pods = tuple(_pod(one, used) for one in snapshot.pods)
    by_namespace: dict[str, list[models.Pod]] = collections.defaultdict(list)
    for shown_pod in pods:
        by_namespace[shown_pod.namespace].append(shown_pod)
    return models.View(
        nodes=nodes,
        pods=pods,
        taken_at=snapshot.taken_at,
        measured_at=used.oldest_at,
        nodes_by_name={node.name: node for node in nodes},
        pods_by_key={pod.key: pod for pod in pods},
        pods_by_namespace={name: tuple(mine) for name, mine in by_namespace.items()},
        model_names=tuple(sorted({model for node in nodes for model in node.models})),
        overview=_overview(nodes, pods),
    )


def seen_by(whole: models.View, namespaces: frozenset[str] | None) -> models.View:
    """Return what a viewer sees who may see the pods of some namespaces only: all GPUs, and the names of those pods.

    Names in nodes are hidden when a node is shown (`shown`), because most nodes never are.
    """
    if namespaces is None or whole.overview is None:
        return whole
    mine = {name: pods for name, pods in whole.pods_by_namespace.items() if name in namespaces}
    pods = tuple(sorted((pod for some in mine.values() for pod in some), key=lambda pod: (pod.namespace, pod.name)))
    return dataclasses.replace(
        whole,
        pods=pods,
        pods_by_key={pod.key: pod for pod in pods},
        pods_by_namespace=mine,
        overview=dataclasses.replace(whole.overview, **_of_pods(pods)),
        only=namespaces,
    )


def shown(whole: models.View, node: models.Node) -> models.Node:
    """A node as the viewer may see it."""
    if whole.only is None:
        return node
    gpus = tuple(
        dataclasses.replace(gpu, slices=tuple(_hidden(part, whole.only) for part in gpu.slices)) for gpu in node.gpus
    )
    return dataclasses.replace(node, gpus=gpus)


def _hidden(part: models.Slice, visible: frozenset[str]) -> models.Slice:
    if namespace_of(part.pod) in visible:
        return part
    return dataclasses.replace(part, pod="", hue=_HUES, shade=0, used_mib=None)


def measured(node: models.Node, used: snapshots.Used) -> models.Node:
    """Return a node with a new measurement."""

    def slice_now(gpu: models.Gpu, part: models.Slice) -> models.Slice:
        return dataclasses.replace(part, used_mib=snapshots.mib(used.shares.get((part.pod, gpu.uuid))))

    gpus = tuple(
        dataclasses.replace(
            gpu,
            used_mib=snapshots.mib(used.gpus.get(gpu.uuid)),
            utilization_percent=_whole(used.busy.get(gpu.uuid)),
            slices=tuple(slice_now(gpu, part) for part in gpu.slices),
        )
        for gpu in node.gpus
    )
    return dataclasses.replace(node, gpus=gpus)


def _node(
    node: read_api_types.Node, shares: Mapping[str, Sequence[tuple[str, int, int]]], used: snapshots.Used
) -> models.Node:
    available = node.standing == "none"
    gpus = tuple(_gpu(one, shares.get(one.uuid, ()), used, available=available) for one in node.gpus)
    return models.Node(
        name=node.name,
        standing=node.standing,
        gpus=gpus,
        models=tuple(sorted({gpu.model for gpu in gpus})),
        labels=node.labels,
        total_mib=sum(gpu.total_mib for gpu in gpus),
        allocated_mib=sum(gpu.allocated_mib for gpu in gpus),
        largest_free_mib=max((gpu.free_mib for gpu in gpus), default=0),
        problems=node.problems,
    )


def _gpu(
    gpu: read_api_types.Gpu, shares: Iterable[tuple[str, int, int]], used: snapshots.Used, *, available: bool
) -> models.Gpu:
    total, uuid = gpu.memory_mib.total, gpu.uuid
    return models.Gpu(
        uuid=uuid,
        index=gpu.index,
        model=gpu.type,
        state=_gpu_state(gpu, available=available),
        unhealthy_reason=gpu.unhealthy_reason,
        total_mib=total,
        allocated_mib=gpu.memory_mib.allocated,
        cores_percent=gpu.cores_percent.allocated,
        slots=gpu.slots.total,
        slots_allocated=gpu.slots.allocated,
        slices=tuple(_slices(gpu, shares, used)),
        isolation=gpu.mode,
        used_mib=snapshots.mib(used.gpus.get(uuid)),
        utilization_percent=_whole(used.busy.get(uuid)),
    )


def _gpu_state(gpu: read_api_types.Gpu, *, available: bool) -> str:
    if not gpu.healthy:
        return "unhealthy"
    if gpu.allocation_unknown:
        return "unknown"
    if gpu.cordoned:
        return "cordoned"
    return "ok" if available else "unavailable"


def _slices(
    gpu: read_api_types.Gpu, shares: Iterable[tuple[str, int, int]], used: snapshots.Used
) -> Iterator[models.Slice]:
    x = 0.0
    for pod, memory, cores in shares:
        width = min(models.WHOLE * memory / max(gpu.memory_mib.total, 1), max(models.WHOLE - x, 0.0))
        yield models.Slice(
            pod=pod,
            memory_mib=memory,
            cores_percent=cores,
            x=round(x, 2),
            width=round(width, 2),
            hue=hue(namespace_of(pod)),
            shade=_digest(pod) % _SHADES,
            used_mib=snapshots.mib(used.shares.get((pod, gpu.uuid))),
        )
        x += width


def _whole(percent: float | None) -> int | None:
    return None if percent is None else round(percent)


def hue(namespace: str) -> int:
    """The colour of a namespace: the same on every page and every day."""
    return _digest(namespace) % _HUES


def _digest(text: str) -> int:
    return hashlib.sha256(text.encode(errors="replace")).digest()[0]


def _pod_state(pod: read_api_types.Pod) -> str:
    if pod.phase == "pending":
        return "pending"
    if pod.corrupt:
        return "unreadable"
    if pod.foreign_slots:
        return "foreign"
    if pod.not_running:
        return "failing"
    return "starting" if pod.starting else "running"


def _pod(pod: read_api_types.Pod, used: snapshots.Used) -> models.Pod:
    return models.Pod(
        namespace=pod.namespace,
        name=pod.name,
        state=_pod_state(pod),
        node=pod.node or "",
        gpus=len(pod.gpus),
        allocated_mib=sum(one.memory_mib for one in pod.gpus),
        cores_percent=sum(one.cores_percent for one in pod.gpus),
        code=pod.reason_code or pod.error_code,
        created_at=pod.created_at,
        bound_at=pod.bound_at,
        requests=tuple(_request(one) for one in pod.requests),
        reason=pod.reason,
        not_running=pod.not_running,
        used_mib=snapshots.mib(used.pods.get(f"{pod.namespace}/{pod.name}")),
    )


def _request(container: read_api_types.ContainerRequest) -> models.Request:
    return models.Request(container.gpus, container.memory_mib, container.memory_percent, container.cores_percent)


def _overview(nodes: Sequence[models.Node], pods: Sequence[models.Pod]) -> models.Overview:
    """The totals of the overview."""
    gpus = [gpu for node in nodes for gpu in node.gpus]
    by_model: dict[str, list[models.Gpu]] = collections.defaultdict(list)
    for gpu in gpus:
        by_model[gpu.model].append(gpu)
    busy = models.sum_known(gpu.utilization_percent for gpu in gpus)
    return models.Overview(
        nodes=len(nodes),
        gpus=len(gpus),
        gpus_in_use=sum(gpu.slots_allocated > 0 for gpu in gpus),
        unhealthy=sum(gpu.state == "unhealthy" for gpu in gpus),
        total_mib=sum(gpu.total_mib for gpu in gpus),
        allocated_mib=sum(gpu.allocated_mib for gpu in gpus),
        free_mib=sum(gpu.free_mib for gpu in gpus),
        used_mib=models.sum_known(gpu.used_mib for gpu in gpus),
        cores_percent=round(sum(gpu.cores_percent for gpu in gpus) / max(len(gpus), 1)),
        utilization_percent=None if busy is None else round(busy / len(gpus)),
        models=tuple(_model(name, mine) for name, mine in sorted(by_model.items())),
        **_of_pods(pods),
    )


def _of_pods(pods: Sequence[models.Pod]) -> dict[str, Any]:
    """Those fields of the overview that depend on whose pods one may see."""
    held: collections.Counter[str] = collections.Counter()
    for pod in pods:
        held[pod.namespace] += pod.allocated_mib
    pending = sorted((pod for pod in pods if pod.state == "pending"), key=lambda pod: pod.created_at or float("inf"))
    reasons = collections.Counter(pod.code or "UNDECIDED" for pod in pending)
    return {
        "bound": len(pods) - len(pending),
        "pending": len(pending),
        "namespaces": tuple((name, amount) for name, amount in held.most_common(_MOST_LISTED) if amount),
        "longest_pending": tuple(pending[:_MOST_LISTED]),
        "reasons": tuple(reasons.most_common(_MOST_LISTED)),
    }


def _model(name: str, gpus: Sequence[models.Gpu]) -> models.Model:
    return models.Model(
        name=name,
        gpus=len(gpus),
        total_mib=sum(gpu.total_mib for gpu in gpus),
        allocated_mib=sum(gpu.allocated_mib for gpu in gpus),
        used_mib=models.sum_known(gpu.used_mib for gpu in gpus),
        largest_free_mib=max(gpu.free_mib for gpu in gpus),
        whole_gpus=sum(gpu.is_whole for gpu in gpus),
        unhealthy=sum(gpu.state == "unhealthy" for gpu in gpus),
    )


def namespace_of(pod: str) -> str:
    """Of `<namespace>/<name>`."""
    return pod.partition("/")[0]
