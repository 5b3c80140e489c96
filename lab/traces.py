"""Public traces of GPU-sharing clusters, as nodes and pods that can be created.

A pod's share of a GPU becomes `gpumem-percentage` and `gpucores`, as the trace has one number per GPU; whole GPUs
become a count. The node list is beside the pod list. Pods come in the order of their creation, where the list has it.

Source: the openb trace, see `lab/traces/README.md`.
"""

import csv
import gzip
import itertools
import pathlib
from dataclasses import dataclass
from typing import Any

from gpu_sharing.core.gpus import MOST_GPUS
from lab import gpus

SMALL = pathlib.Path(__file__).parent / "traces" / "openb-small-pods.csv"
_NODE_LISTS = ("openb_node_list_gpu_node.csv", "openb_node_list_gpu_node.csv.gz", "openb-small-nodes.csv")
_POD_LISTS = ("openb_pod_list_default.csv", SMALL.name)
# The trace does not contain these sizes; shares are relative, so they do not matter.
_UNDISCLOSED_MIB = 32_768
_UNDISCLOSED_HOST_MIB = 1_048_576
_MEMORY_MIB = {"P100": 16_384, "T4": 15_360, "V100M16": 16_384, "V100M32": 32_768, "A10": 23_028}


class BadTrace(Exception):
    """A file that is not a trace; the text names it and the error."""


@dataclass(frozen=True, slots=True)
class Arrival:
    """A pod, and the size of its request."""

    pod: dict[str, Any]
    gpu_milli: int
    """Thousandths of a GPU, of all its GPUs together; 0 requests none."""


@dataclass(frozen=True, slots=True)
class Trace:
    """Nodes and the pods that arrive on them, in order."""

    nodes: list[dict[str, Any]]
    gpus: int
    """The number of GPUs of all nodes."""
    arrivals: list[Arrival]
    gpu_counts: list[int]
    """The number of GPUs of each node."""
    models: list[str]
    """The model of each node's GPUs."""

    @property
    def pods(self) -> list[dict[str, Any]]:
        """Return all pods, in the order of their arrival."""
        return [one.pod for one in self.arrivals]

    def until(self, percent: float) -> list[dict[str, Any]]:
        """Return the first pods with GPUs that together request at most this percentage of the cluster's GPUs."""
        wanting = [one for one in self.arrivals if one.gpu_milli]
        asked = itertools.accumulate(one.gpu_milli for one in wanting)
        return [one.pod for one, sum_milli in zip(wanting, asked, strict=True) if sum_milli <= 10 * percent * self.gpus]


def read(path: pathlib.Path) -> Trace:
    """Read a pod list and the node list beside it, or the two of a folder.

    Raises:
        BadTrace: The path or a file beside it does not exist, or a file lacks a column.
    """
    if not path.exists():
        raise BadTrace(f"no such file or folder: {path}")
    folder, pod_file = (path, _beside(path, _POD_LISTS, "pod list")) if path.is_dir() else (path.parent, path)
    rows = _rows(_beside(folder, _NODE_LISTS, "node list"))
    nodes = [_node(row) for row in rows]
    arrivals = [_arrival(row) for row in sorted(_rows(pod_file), key=_created_at)]
    counts = [int(row["gpu"]) for row in rows]
    return Trace(nodes, sum(counts), arrivals, counts, [row["model"] for row in rows])


def _beside(folder: pathlib.Path, names: tuple[str, ...], what: str) -> pathlib.Path:
    found = next((folder / name for name in names if (folder / name).exists()), None)
    if found is None:
        raise BadTrace(f"no {what} in {folder}: one of {', '.join(names)} is needed")
    return found


def _rows(path: pathlib.Path) -> list[dict[str, str]]:
    try:
        with gzip.open(path, "rt") if path.suffix == ".gz" else path.open(newline="") as lines:
            return list(csv.DictReader(lines))
    except (OSError, UnicodeDecodeError, csv.Error) as cause:
        raise BadTrace(f"{path} cannot be read: {cause}") from cause


def _node(row: dict[str, str]) -> dict[str, Any]:
    try:
        model = gpus.Model(row["model"], _MEMORY_MIB.get(row["model"], _UNDISCLOSED_MIB))
        count = int(row["gpu"])
        if not 0 <= count <= MOST_GPUS:
            raise ValueError(f"0 to {MOST_GPUS} GPUs")
        memory_mib = int(row.get("memory_mib") or _UNDISCLOSED_HOST_MIB)
        node = gpus.gpu_node(row["sn"], model, count, cpus=int(row["cpu_milli"]) // 1000, memory_mib=memory_mib)
    except (KeyError, ValueError, TypeError) as cause:  # A short row has None.
        raise BadTrace(f"the node list has a row without {cause}: {row}") from cause
    return node


def _created_at(row: dict[str, str]) -> int:
    """Return the sort key of a pod; lists without the column keep their order."""
    text = row.get("creation_time") or "0"
    return int(text) if text.isdecimal() else 0


def _arrival(row: dict[str, str]) -> Arrival:
    try:
        count, milli = int(row["num_gpu"]), int(row["gpu_milli"] or 0)
        host = {"cpu": f"{int(row['cpu_milli'])}m", "memory": f"{int(row.get('memory_mib') or 0)}Mi"}
        name = row["name"]
    except (KeyError, ValueError, TypeError) as cause:
        raise BadTrace(f"the pod list has a row without {cause}: {row}") from cause
    annotations = {}
    limits = dict(host)
    if count:
        limits["nvidia.com/gpu"] = str(count)
        if milli < 1000:
            percent = str(-(-milli // 10))
            limits |= {"nvidia.com/gpumem-percentage": percent, "nvidia.com/gpucores": percent}
        models = (row.get("gpu_spec") or "").replace("|", ",")
        annotations = {"nvidia.com/use-gputype": models} if models else {}
    container = {"name": "main", "image": "trace", "resources": {"limits": limits, "requests": dict(host)}}
    spec = {"schedulerName": "hami-scheduler", "containers": [container]}
    return Arrival({"metadata": {"name": name, "annotations": annotations}, "spec": spec}, count * milli)
