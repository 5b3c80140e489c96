"""`python -m gpu_sharing.workload memory-fraction`: what to write after vLLM's `--gpu-memory-utilization` in a slice.

vLLM multiplies that number with the memory that the driver reports as the GPU's. What that is depends on the isolation:

| isolation | the driver reports | fraction |
| --- | --- | --- |
| `hami-core` | the slice, as its limit | part |
| `mig` | to CUDA the instance, which is the slice; to NVML the instance by its own UUID, the GPU by the GPU's | part |
| `mps`, `none` | the whole GPU | part x slice / GPU |

With another program in the same slice, such as a second server, give each its part with `--part`.

Sources: vLLM `EngineArgs.gpu_memory_utilization`; HAMi-core's hooks of `cuMemGetInfo` and `nvmlDeviceGetMemoryInfo`;
NVML's `nvmlDeviceGetMemoryInfo` and its note on MIG.
"""

from __future__ import annotations

import argparse
import math
import sys

from gpu_sharing.core import error_codes
from gpu_sharing.workload.errors import WorkloadError

KNOWN, UNKNOWN, USAGE = 0, 1, 2
DEFAULT_PART = 0.9
"""vLLM's own default; the rest is for the CUDA context, which it does not count."""
_REPORTS_SLICE = frozenset({"hami-core", "mig"})
_REPORTS_GPU = frozenset({"mps", "none"})


def fraction(
    slice_mib: int | None, reported_mib: int | None, isolation: str | None, part: float = DEFAULT_PART
) -> float:
    """Return the part of the memory that the driver reports which a program may use, rounded down to 0.001.

    Args:
        slice_mib: Memory of the slice.
        reported_mib: What NVML reports as the GPU's memory, in this container.
        isolation: The backend's name; None where it is not known.
        part: Of the slice, above 0 up to 1.

    Raises:
        WorkloadError: A size that the isolation needs is not known, or there is no such part.
    """
    if not 0 < part <= 1:
        raise WorkloadError(error_codes.WORKLOAD_BAD_SETTING, f"--part is {part}; write a number above 0, up to 1")
    if isolation in _REPORTS_SLICE:
        return _rounded(part)
    if slice_mib is None or slice_mib <= 0:
        sentence = "the memory of the slice is not known; set --memory-mib to nvidia.com/gpumem"
        raise WorkloadError(error_codes.WORKLOAD_NO_SLICE, sentence)
    if reported_mib is None or reported_mib <= 0:
        sentence = "the memory that the driver reports is not known; install nvidia-ml-py, or set --total-mib"
        raise WorkloadError(error_codes.WORKLOAD_NO_NVML, sentence)
    # A slice of at least what is reported: a whole GPU, or a backend of another name that reports the slice.
    return _rounded(part * min(slice_mib / reported_mib, 1.0))


def _rounded(value: float) -> float:
    """Round down, so that no slice is exceeded by rounding; below 0.001 up, as 0 is refused."""
    return max(math.floor(value * 1000 + 1e-9) / 1000, 0.001)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of `memory-fraction`."""
    parser.add_argument("--gpu", type=int, default=0, metavar="N", help="index of the GPU in this container; default 0")
    parser.add_argument(
        "--part", type=float, default=DEFAULT_PART, metavar="N", help=f"of the slice; default {DEFAULT_PART}"
    )
    parser.add_argument("--memory-mib", type=int, metavar="N", help="memory of the slice; default: of this container")
    parser.add_argument("--total-mib", type=int, metavar="N", help="memory of the GPU; default: what NVML reports here")
    parser.add_argument(
        "--isolation", choices=sorted(_REPORTS_SLICE | _REPORTS_GPU), help="default: that of this container"
    )


def run(arguments: argparse.Namespace) -> int:
    """Print the fraction, and return the exit status: 1 if a size is not known, 2 for an argument out of range."""
    try:
        value = _of_container(arguments)
    except WorkloadError as refused:
        sys.stderr.write(f"{refused}\n")
        return USAGE if refused.code == error_codes.WORKLOAD_BAD_SETTING else UNKNOWN
    sys.stdout.write(f"{value:.3f}\n")
    return KNOWN


def _of_container(arguments: argparse.Namespace) -> float:
    from gpu_sharing.workload import slices

    described = slices.my_slice()
    gpu = next((one for one in described.gpus if one.index == arguments.gpu), None)
    if gpu is None and described.gpus:
        sentence = f"--gpu is {arguments.gpu}; this container has GPUs 0 to {len(described.gpus) - 1}"
        raise WorkloadError(error_codes.WORKLOAD_BAD_SETTING, sentence)
    memory_mib = arguments.memory_mib if arguments.memory_mib is not None else gpu.memory_mib if gpu else None
    isolation = arguments.isolation or described.isolation
    total_mib = arguments.total_mib
    if total_mib is None and gpu is not None and isolation not in _REPORTS_SLICE:
        total_mib = _reported_mib(gpu.uuid)
    return fraction(memory_mib, total_mib, isolation, arguments.part)


def _reported_mib(uuid: str) -> int | None:
    from gpu_sharing.workload import nvml_reader

    try:
        reading = nvml_reader.Driver().read([uuid]).get(uuid)
    except nvml_reader.NoDriver:
        return None
    total = reading.memory_total_bytes if reading else None
    return total >> 20 if total else None
