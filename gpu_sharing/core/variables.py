"""Environment variables that set a container's GPUs and limits.

Without CDI the pod's own `env` overrides the device plugin's answer, so that a pod which sets one of them gets other
GPUs or more than its limits. With CDI the specification overrides both.

Source: kubelet `GenerateRunContainerOptions`: variables of device plugins first, then those of the container.
"""

import re
from collections.abc import Iterable

_GIVEN = re.compile(
    r"NVIDIA_VISIBLE_DEVICES|CUDA_DEVICE_MEMORY_LIMIT(_\d{1,3})?|CUDA_DEVICE_SM_LIMIT"
    r"|CUDA_DEVICE_MEMORY_SHARED_CACHE|CUDA_OVERSUBSCRIBE|CUDA_MPS_[A-Z_]{1,40}|HAMI_ALLOCATION|HAMI_GPUS"
)


def given(names: Iterable[str]) -> list[str]:
    """Return those of some variables that a pod must leave to the device plugin."""
    return [name for name in names if _GIVEN.fullmatch(name)]
