"""The rows and texts of `nodes`, `pods`, `top` and `explain`, from the read API's answers. Pure."""

import collections
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from gpu_sharing.adapters import read_api_types
from gpu_sharing.core import error_codes
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


def pod_rows(pods: Pods) -> list[Row]:
    """Return one row a pod for a table."""
    return [
        {
            "NAMESPACE": pod.namespace,
            "POD": pod.name,
            "STATE": _pod_state(pod),
            "NODE": pod.node or "-",
            "GPUS": str(len(pod.gpus)),
            "ALLOCATED": output.mib(sum(one.memory_mib for one in pod.gpus)),
            "CORES": f"{sum(one.cores_percent for one in pod.gpus)}%",
            "DEVICES": ",".join(one.uuid for one in pod.gpus) or "-",
            "WHY": pod.error_code or "-",
        }
        for pod in pods
    ]


PODS_WIDE_ONLY = ("CORES", "DEVICES", "WHY")


def _pod_state(pod: read_api_types.Pod) -> str:
    """Return the state by the pod's whole status: a pod that the plugin refused, or that crashes, is not running."""
    if pod.phase == "pending":
        return "pending"
    return pod.not_running or ("starting" if pod.starting else "running")


def _state(gpu: read_api_types.Gpu) -> str:
    return "unhealthy" if not gpu.healthy else "cordoned" if gpu.cordoned else "ok"


def gpu_rows(nodes: Nodes, pods: Pods, used: Mapping[str, Mapping[str, float]]) -> list[Row]:
    """Return one row a GPU, the most allocated first.

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
    rows = []
    for name, gpu in pairs:
        memory = gpu.memory_mib
        measured = used.get(gpu.uuid, {})
        rows.append(
            {
                "NODE": name,
                "GPU": str(gpu.index),
                "MODEL": gpu.type,
                "ALLOCATED": output.percent(memory.allocated, memory.total),
                "USED": _measured(measured, "memory_bytes", lambda value: output.mib(int(value) >> 20)),
                "UTIL": _measured(measured, "utilization_percent", lambda value: f"{value:.0f}%"),
                "HEALTH": standing.get(name, "ok") if _state(gpu) == "ok" else _state(gpu),
                "PODS": ", ".join(holders[gpu.uuid]) or "-",
                "ISOLATION": _isolation(gpu),
            }
        )
    return rows


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


def _measured(measured: Mapping[str, float], name: str, shown: Any) -> str:
    """Return the value as text; a question mark, never zero, where it is unknown."""
    text: str = shown(measured[name]) if name in measured else "?"
    return text
