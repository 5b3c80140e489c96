"""Fake GPU nodes of several models, as our device plugin would publish them."""

import uuid
from dataclasses import dataclass
from typing import Any

from gpu_sharing.core import gpus, identifiers, records

SLOTS = 10
_NAMESPACE = uuid.UUID("6ba7b810-9dad-11d1-80b4-00c04fd430c8")


@dataclass(frozen=True, slots=True)
class Model:
    """A GPU model that fake nodes have."""

    type: str
    """Product name as in inventories."""
    memory_mib: int


A100 = Model("NVIDIA A100-SXM4-80GB", 81_920)
A100_40 = Model("NVIDIA A100-PCIE-40GB", 40_960)
H100 = Model("NVIDIA H100 80GB HBM3", 81_559)
L40S = Model("NVIDIA L40S", 46_068)
T4 = Model("NVIDIA-Tesla T4", 15_360)
V100 = Model("NVIDIA-Tesla V100-SXM2-32GB", 32_768)
P100 = Model("NVIDIA-Tesla P100-PCIE-16GB", 16_384)
A10 = Model("NVIDIA A10", 23_028)
MODELS = {
    "a100": A100,
    "a100-40": A100_40,
    "h100": H100,
    "l40s": L40S,
    "t4": T4,
    "v100": V100,
    "p100": P100,
    "a10": A10,
}


def gpu_uuid(node: str, index: int) -> identifiers.GpuUuid:
    """Return the UUID of a fake GPU: the same at every start."""
    return identifiers.GpuUuid(f"GPU-{uuid.uuid5(_NAMESPACE, f'{node}/{index}')}")


def inventory(node: str, model: Model, count: int, slots: int = SLOTS) -> tuple[gpus.Gpu, ...]:
    """Return the GPUs of a fake node."""
    return tuple(
        gpus.Gpu(
            uuid=gpu_uuid(node, index),
            index=index,
            memory_mib=model.memory_mib,
            cores_percent=100,
            slots=slots,
            type=model.type,
            mode="hami-core",
        )
        for index in range(count)
    )


_STATUS = {
    "conditions": [{"type": "Ready", "status": "True", "reason": "KubeletReady", "message": "lab"}],
    "nodeInfo": {"kubeletVersion": "lab", "operatingSystem": "linux", "architecture": "amd64"},
}


def gpu_node(
    name: str,
    model: Model,
    count: int,
    *,
    slots: int = SLOTS,
    cpus: int = 128,
    memory_mib: int = 1 << 20,
    most_pods: int = 500,
    labels: dict[str, str] | None = None,
    annotations: dict[str, str] | None = None,
) -> dict[str, Any]:
    """Return a Node object with `count` GPUs, ready for pods.

    Args:
        name: The node's name.
        model: Model of all its GPUs.
        count: The number of GPUs; may be 0.
        slots: The number of containers that may share one GPU.
        cpus: Its CPUs.
        memory_mib: Its memory.
        most_pods: The limit of its pods.
        labels: More labels.
        annotations: More annotations; they override the defaults.
    """
    capacity = {"cpu": str(cpus), "memory": f"{memory_mib}Mi", "pods": str(most_pods), "ephemeral-storage": "1Ti"}
    own: dict[str, str] = {}
    if count:
        capacity["nvidia.com/gpu"] = str(count * slots)
        record = records.encode_inventory(inventory(name, model, count, slots))
        own = {records.INVENTORY: record, records.AGENT: records.OUR_AGENT}
    metadata = {
        "name": name,
        "labels": {"kubernetes.io/hostname": name, **({"gpu": "on"} if count else {}), **(labels or {})},
        "annotations": {**own, **(annotations or {})},
    }
    status = {"capacity": capacity, "allocatable": capacity, **_STATUS}
    return {"apiVersion": "v1", "kind": "Node", "metadata": metadata, "status": status}
