"""The rows and texts of `nodes`, `pods`, `top` and `explain`, from the read API's answers. Pure."""

import collections
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from gpu_sharing.adapters import read_api_types
from gpu_sharing.core import error_codes, rejections
from hamictl import output

Row = dict[str, str]
Nodes = Sequence[read_api_types.Node]
Pods = Sequence[read_api_types.Pod]


def node_rows(nodes: Nodes) -> list[Row]:
    """Return one row a node for a table."""
    rows = []
    for node in nodes:
        gpus = node.gpus
        types = sorted({one.type for one in gpus})
        allocated, total = _sum(one.memory_mib for one in gpus)
        counts = collections.Counter(_state(one) for one in gpus)
        unusable = ", ".join(f"{counts[state]} {state}" for state in ("unhealthy", "cordoned") if counts[state])
        rows.append(
            {
                "NODE": node.name,
                "GPUS": str(len(gpus)),
                "MODEL": ", ".join(types) or "-",
                "ALLOCATED": output.mib(allocated),
                "OF": output.mib(total),
                "SHARE": output.percent(allocated, total),
                "CONTAINERS": str(_sum(one.slots for one in gpus)[0]),
                "ISOLATION": ", ".join(sorted({_isolation(one) for one in gpus})) or "-",
                "STATE": node.standing if node.standing != "none" else unusable or "ok",
                "CORES": output.percent(*_sum(one.cores_percent for one in gpus)),
                "LARGEST FREE": output.mib(max((_free(one) for one in gpus if node.standing == "none"), default=0)),
                "PROBLEMS": ", ".join(sorted(node.problems)) or "-",
            }
        )
    return rows


NODES_WIDE_ONLY = ("CORES", "LARGEST FREE", "PROBLEMS")


def pod_rows(pods: Pods, now: float) -> list[Row]:
    """Return one row a pod for a table.

    Args:
        pods: The read API's pods.
        now: Unix seconds.
    """
    return [
        {
            "NAMESPACE": pod.namespace,
            "POD": pod.name,
            "STATE": _pod_state(pod),
            "AGE": output.age(now - pod.created_at) if pod.created_at else "?",
            "NODE": pod.node or "-",
            "GPUS": str(len(pod.gpus)),
            "ALLOCATED": output.mib(sum(one.memory_mib for one in pod.gpus)) if pod.phase == "bound" else "-",
            "REQUEST": _requested(pod.requests) or "-",
            "CORES": f"{sum(one.cores_percent for one in pod.gpus)}%",
            "DEVICES": ",".join(one.uuid for one in pod.gpus) or "-",
            "CODE": pod.error_code or "-",
            "WHY": _reason(pod) or "-",
        }
        for pod in pods
    ]


PODS_WIDE_ONLY = ("CORES", "DEVICES", "CODE")


def _requested(requested: Iterable[read_api_types.ContainerRequest]) -> str:
    """Return the requests of a pod's containers, such as `2 x 4,000 MiB 30% cores + 1 x 50%`."""
    parts = []
    for request in requested:
        memory = output.mib(request.memory_mib) if request.memory_mib else f"{request.memory_percent or 100}%"
        cores = f" {request.cores_percent}% cores" if request.cores_percent else ""
        parts.append(f"{request.gpus} x {memory}{cores}")
    return " + ".join(parts)


def _reason(pod: read_api_types.Pod) -> str:
    """Return why a pod is pending, in one line; by an older extender, the words of its rejection's code."""
    if pod.phase == "pending" and not pod.reason and not pod.error_code:
        return "not tried yet"
    return pod.reason or _PHRASES.get(pod.error_code, pod.error_code)


_PHRASES: Mapping[str, str] = {info.code: info.phrase for info in rejections.REASONS.values()}


def _pod_state(pod: read_api_types.Pod) -> str:
    """Return the state by the pod's whole status: a pod that the plugin refused, or that crashes, is not running."""
    if pod.phase == "pending":
        return "pending"
    return pod.not_running or ("starting" if pod.starting else "running")


def _state(gpu: read_api_types.Gpu) -> str:
    return "unhealthy" if not gpu.healthy else "cordoned" if gpu.cordoned else "ok"


def gpus(nodes: Nodes, pods: Pods, used: Mapping[str, Mapping[str, float]]) -> list[dict[str, Any]]:
    """Return every GPU as facts with their units, the most allocated first; None is a value that is not known.

    Args:
        nodes: The read API's nodes.
        pods: The read API's pods.
        used: `memory_bytes` and `utilization_percent` by GPU, where they are known.
    """
    holders: dict[str, list[str]] = collections.defaultdict(list)
    for pod in pods:
        for share in pod.gpus:
            holders[share.uuid].append(f"{pod.namespace}/{pod.name}")
    standing = {node.name: node.standing for node in nodes if node.standing != "none"}
    pairs = [(node.name, gpu) for node in nodes for gpu in node.gpus]
    pairs.sort(key=lambda pair: -pair[1].memory_mib.allocated / max(pair[1].memory_mib.total, 1))
    facts = []
    for name, gpu in pairs:
        measured = used.get(gpu.uuid, {})
        memory_bytes = measured.get("memory_bytes")
        facts.append(
            {
                "node": name,
                "index": gpu.index,
                "uuid": gpu.uuid,
                "model": gpu.type,
                "memory_mib": gpu.memory_mib.total,
                "memory_allocated_mib": gpu.memory_mib.allocated,
                "memory_used_mib": None if memory_bytes is None else int(memory_bytes) >> 20,
                "cores_percent": gpu.cores_percent.total,
                "cores_allocated_percent": gpu.cores_percent.allocated,
                "utilization_percent": measured.get("utilization_percent"),
                "health": standing.get(name, "ok") if _state(gpu) == "ok" else _state(gpu),
                "pods": holders[gpu.uuid],
                "isolation": _isolation(gpu),
            }
        )
    return facts


def gpu_rows(facts: Iterable[Mapping[str, Any]]) -> list[Row]:
    """Return one row a GPU for a table, from the facts of `gpus`; a question mark, never zero, where one is unknown."""
    return [
        {
            "NODE": gpu["node"],
            "GPU": str(gpu["index"]),
            "MODEL": gpu["model"],
            "ALLOCATED": output.percent(gpu["memory_allocated_mib"], gpu["memory_mib"]),
            "USED": "?" if gpu["memory_used_mib"] is None else output.mib(gpu["memory_used_mib"]),
            "UTIL": "?" if gpu["utilization_percent"] is None else f"{gpu['utilization_percent']:.0f}%",
            "HEALTH": gpu["health"],
            "PODS": ", ".join(gpu["pods"]) or "-",
            "ISOLATION": gpu["isolation"],
        }
        for gpu in facts
    ]


GPUS_WIDE_ONLY = ("ISOLATION",)


def _isolation(gpu: read_api_types.Gpu) -> str:
    """Return the isolation of a GPU; `none` limits nothing, `unknown` is what its plugin does not report."""
    return gpu.mode or "unknown"


MOST_NODES_LISTED = 5
"""Of an explanation; more nodes are counted by what is in the way there."""


def most_nodes_read(form: str, *, every_node: bool) -> int | None:
    """Return how many nodes an explanation needs: what a program reads has all, None."""
    return None if every_node or form != "table" else MOST_NODES_LISTED + 1


def explanation(explained: read_api_types.Explanation, *, every_node: bool = False) -> str:
    """Return why a pod is pending, as text: the true cause in the first line, then the nearest nodes."""
    key = explained.pod
    if explained.phase == "bound":
        return f"{key} is on node {explained.node}"
    if not explained.causes:  # By an extender that does not send them.
        return f"{key} is pending: {explained.summary.partition(chr(10))[0]}\n  what to do: {explained.remedy}"
    first, *others = explained.causes
    lines = [f"{key} is pending: {first.message} [{first.code}]", f"  what to do: {first.advice}"]
    lines += [f"  also: {cause.message} [{cause.code}]" for cause in others]
    listed = explained.nodes if every_node else _nearest(explained)
    if listed:
        whole = len(listed) == explained.node_count
        lines.append("nodes:" if whole else f"the nearest of {explained.node_count:,} nodes:")
    lines += [line for node in listed for line in _node_lines(node)]
    if len(listed) < explained.node_count:
        lines.append("all nodes by reason (hamictl explain --all lists each):")
        lines += [_group_line(group) for group in explained.groups]
    return "\n".join(lines)


def _group_line(group: read_api_types.NodeGroup) -> str:
    count = group.nearest if group.nodes == 1 else f"{group.nodes:,} nodes, the nearest {group.nearest}"
    return f"  {count}: {group.message}" + (f" [{group.code}]" if group.code else "")


def _nearest(explained: read_api_types.Explanation) -> list[read_api_types.NodeExplanation]:
    """Return the first nodes, or all of a few; nodes without GPUs are only counted."""
    if explained.node_count <= MOST_NODES_LISTED:
        return explained.nodes
    with_gpus = [node for node in explained.nodes if node.code != error_codes.NODE_NOT_REGISTERED]
    return with_gpus[:MOST_NODES_LISTED]


def _node_lines(node: read_api_types.NodeExplanation) -> list[str]:
    lines = [f"  {node.node}: {node.message}" + (f" [{node.code}]" if node.code else "")]
    if node.advice:
        lines.append(f"      {node.advice}")
    if node.waits_for:
        lines.append(f"      it fits once these have ended: {', '.join(node.waits_for)}")
    if node.evictable:
        lines.append(f"      preemption would evict {', '.join(node.evictable)}")
    if not node.examined:
        lines.append("      not examined: the pods that would have to end were not computed for this node")
    return lines


def explanation_rows(explained: read_api_types.Explanation) -> list[Row]:
    """Return the explanation as one row a node."""
    return [
        {
            "NODE": node.node,
            "FITS": "yes" if node.fits else "no",
            "CODE": node.code or "-",
            "WHY": node.message,
        }
        for node in explained.nodes
    ]


def _sum(amounts: Iterable[read_api_types.Amount]) -> tuple[int, int]:
    """Return the sums of allocated and total amounts."""
    allocated = total = 0
    for amount in amounts:
        allocated, total = allocated + amount.allocated, total + amount.total
    return allocated, total


def _free(gpu: read_api_types.Gpu) -> int:
    usable = gpu.healthy and not gpu.cordoned and not gpu.allocation_unknown and not gpu.exclusive
    free: int = gpu.memory_mib.total - gpu.memory_mib.allocated
    return free if usable and gpu.slots.allocated < gpu.slots.total else 0
