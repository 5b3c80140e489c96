"""Environment variables that set a container's GPUs and limits, and those that describe its slice to its program.

Without CDI the pod's own `env` overrides the device plugin's answer, so that a pod which sets one of them gets other
GPUs or more than its limits. With CDI the specification overrides both.

Source: kubelet `GenerateRunContainerOptions`: variables of device plugins first, then those of the container.
"""

import re
from collections.abc import Iterable

_GIVEN = re.compile(
    r"NVIDIA_VISIBLE_DEVICES|CUDA_DEVICE_MEMORY_LIMIT(_\d{1,3})?|CUDA_DEVICE_SM_LIMIT"
    r"|CUDA_DEVICE_MEMORY_SHARED_CACHE|CUDA_OVERSUBSCRIBE|CUDA_MPS_[A-Z_]{1,40}|HAMI_ALLOCATION|HAMI_GPUS"
    r"|HAMI_SLICE_[A-Z_]{1,40}"
)

GPUS = "HAMI_GPUS"
"""UUIDs of the container's GPUs or MIG instances, with commas between."""
ALLOCATION = "HAMI_ALLOCATION"
"""Name of the allocation: the id of the slice, which is never used again."""
SLICE_MEMORY_MIB = "HAMI_SLICE_MEMORY_MIB"
"""Memory that is allocated on each GPU, in the order of `GPUS`, with commas between."""
SLICE_CORES_PERCENT = "HAMI_SLICE_CORES_PERCENT"
"""Compute that is allocated on each GPU, in the same order; 0 is no limit."""
SLICE_ISOLATION = "HAMI_SLICE_ISOLATION"
"""What isolates the container, such as `hami-core`."""
SLICE_NODE = "HAMI_SLICE_NODE"
SLICE_NAMESPACE = "HAMI_SLICE_NAMESPACE"
SLICE_POD = "HAMI_SLICE_POD"
SLICE_CONTAINER = "HAMI_SLICE_CONTAINER"
SLICE_DECISION_ID = "HAMI_SLICE_DECISION_ID"

OF_SLICE = {
    GPUS: "GPUs of the container by UUID, or its MIG instances, with commas between.",
    ALLOCATION: "Name of the allocation, which is never used again.",
    SLICE_MEMORY_MIB: "Memory allocated on each GPU in MiB, in the order of `HAMI_GPUS`, with commas between.",
    SLICE_CORES_PERCENT: "Compute allocated on each GPU in percent, in the same order; `0` is no limit.",
    SLICE_ISOLATION: "What isolates the container: `hami-core`, `mig`, `mps` or `none`.",
    SLICE_NODE: "Name of the node.",
    SLICE_NAMESPACE: "Namespace of the pod.",
    SLICE_POD: "Name of the pod.",
    SLICE_CONTAINER: "Name of the container.",
    SLICE_DECISION_ID: "Connects the logs, events and exemplars of the pod; absent where the pod's record has none.",
}
"""Variables of our own in each container with a GPU, and what each has."""
IDENTIFYING = frozenset({SLICE_NAMESPACE, SLICE_POD, SLICE_CONTAINER, SLICE_DECISION_ID})
"""Variables that only a CDI specification has. Without CDI the kubelet may give the answer for one pod to another pod
whose record is equal: the limits are right, and a name would be wrong.
"""
DESCRIBING = frozenset({SLICE_MEMORY_MIB, SLICE_CORES_PERCENT, SLICE_ISOLATION, SLICE_NODE, *IDENTIFYING})
"""Variables that limit nothing: an answer of an older plugin lacks them and is right all the same."""


def given(names: Iterable[str]) -> list[str]:
    """Return those of some variables that a pod must leave to the device plugin."""
    return [name for name in names if _GIVEN.fullmatch(name)]
