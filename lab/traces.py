"""Public traces of GPU-sharing clusters, as nodes and pods that can be created.

A pod's share of a GPU becomes `gpumem-percentage` and `gpucores`, as the trace knows one number per GPU; whole GPUs
become a count. The node list lies beside the pod list.

Source: the openb trace, see `lab/traces/README.md`.
"""

import csv
import pathlib
from dataclasses import dataclass
from typing import Any

from lab import gpus

SMALL = pathlib.Path(__file__).parent / "traces" / "openb-small-pods.csv"
_NODE_LISTS = ("openb_node_list_gpu_node.csv", "openb-small-nodes.csv")
# The trace does not disclose these; shares are relative, so their size decides nothing.
_UNDISCLOSED_MIB = 32_768
_MEMORY_MIB = {"P100": 16_384, "T4": 15_360, "V100M16": 16_384, "V100M32": 32_768, "A10": 23_028}


class BadTrace(Exception):
    """A file that is not a trace; the text names it and what is wrong."""


@dataclass(frozen=True, slots=True)
class Trace:
    """Nodes and the pods that arrive on them, in order."""

    nodes: list[dict[str, Any]]
    pods: list[dict[str, Any]]


def read(pod_file: pathlib.Path) -> Trace:
    """Read a pod list and the node list beside it.

    Raises:
        BadTrace: A file is missing or has no such columns.
    """
    node_file = next((found for name in _NODE_LISTS if (found := pod_file.parent / name).exists()), None)
    if node_file is None:
        raise BadTrace(f"no node list beside {pod_file}: one of {', '.join(_NODE_LISTS)} is needed")
    return Trace([_node(row) for row in _rows(node_file)], [_pod(row) for row in _rows(pod_file)])


def _rows(path: pathlib.Path) -> list[dict[str, str]]:
    try:
        with path.open(newline="") as lines:
            return list(csv.DictReader(lines))
    except (OSError, UnicodeDecodeError, csv.Error) as cause:
        raise BadTrace(f"{path} cannot be read: {cause}") from cause


def _node(row: dict[str, str]) -> dict[str, Any]:
    try:
        model = gpus.Model(row["model"], _MEMORY_MIB.get(row["model"], _UNDISCLOSED_MIB))
        node = gpus.gpu_node(row["sn"], model, int(row["gpu"]), cpus=int(row["cpu_milli"]) // 1000)
    except (KeyError, ValueError) as cause:
        raise BadTrace(f"the node list has a row without {cause}: {row}") from cause
    return node


def _pod(row: dict[str, str]) -> dict[str, Any]:
    try:
        count, milli = int(row["num_gpu"]), int(row["gpu_milli"] or 0)
        limits = {"cpu": f"{int(row['cpu_milli'])}m"}
        name = row["name"]
    except (KeyError, ValueError) as cause:
        raise BadTrace(f"the pod list has a row without {cause}: {row}") from cause
    annotations = {}
    if count:
        limits["nvidia.com/gpu"] = str(count)
        if milli < 1000:
            percent = str(-(-milli // 10))
            limits |= {"nvidia.com/gpumem-percentage": percent, "nvidia.com/gpucores": percent}
        models = (row.get("gpu_spec") or "").replace("|", ",")
        annotations = {"nvidia.com/use-gputype": models} if models else {}
    container = {"name": "main", "image": "trace", "resources": {"limits": limits}}
    spec = {"schedulerName": "hami-scheduler", "containers": [container]}
    return {"metadata": {"name": name, "annotations": annotations}, "spec": spec}
