"""What the container uses of its slice now: by its HAMi-core library, else by the driver's list of its processes."""

import os
import pathlib
import stat
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from gpu_sharing.core import error_codes, hami_core_region, identifiers
from gpu_sharing.workload import nvml_reader
from gpu_sharing.workload.errors import Problem
from gpu_sharing.workload.slices import GpuSlice, Slice

HAMI_CORE, NVML, UNKNOWN = "hami-core", "nvml", "unknown"
REGION_VARIABLE = "CUDA_DEVICE_MEMORY_SHARED_CACHE"
_MOST_BYTES = 1 << 48
_PROC = pathlib.Path("/proc")
_driver = nvml_reader.Driver()
Counts = Mapping[str, hami_core_region.Counted]


@dataclass(frozen=True, slots=True, kw_only=True)
class GpuUsage:
    """Used and allocated memory of one GPU, in MiB; None where it is not known."""

    index: int
    uuid: str
    limit_mib: int | None
    used_mib: int | None
    headroom_mib: int | None
    source: str
    """Which count `used_mib` is: `hami-core`, `nvml` or `unknown`."""
    cores_percent: int | None
    own_utilization_percent: float | None
    """Utilization of the GPU by this container, as its HAMi-core library counts it; elsewhere not known."""
    utilization_percent: float | None
    """Utilization of the GPU by all containers."""
    temperature_celsius: float | None


@dataclass(frozen=True, slots=True)
class Usage:
    """Usage of all GPUs of the slice."""

    gpus: tuple[GpuUsage, ...]
    problems: tuple[Problem, ...]
    """Of the slice, and of what could not be read."""

    def as_json(self) -> dict[str, Any]:
        """Return values that `json.dumps` accepts."""
        return {"gpus": [asdict(gpu) for gpu in self.gpus], "problems": [one._asdict() for one in self.problems]}


def read(my: Slice, driver: nvml_reader.Driver | None = None, environment: Mapping[str, str] | None = None) -> Usage:
    """Return what the container uses now.

    Args:
        my: Its slice.
        driver: The driver; without it the one of this process.
        environment: Variables of the container; without it those of this process.
    """
    if not my.gpus:
        return Usage((), my.problems)
    problems = list(my.problems)
    readings: Mapping[str, nvml_reader.GpuReading] = {}
    has_driver = True
    try:
        readings = (driver or _driver).read([gpu.uuid for gpu in my.gpus])
    except nvml_reader.NoDriver as cause:
        has_driver = False
        problems.append(Problem(error_codes.WORKLOAD_NO_NVML, str(cause)))
    counted, reason = _by_library(my, os.environ if environment is None else environment)
    rows = []
    for gpu in my.gpus:
        reading = readings.get(gpu.uuid)
        if has_driver:
            problems += _contradictions(gpu, reading)
        used, source = _used_bytes(gpu, counted, reading)
        if used is None:
            sentence = f"GPU {gpu.index}: {reason}; {_no_processes(reading)}"
            problems.append(Problem(error_codes.WORKLOAD_USAGE_UNKNOWN, sentence))
        own = None if counted is None or gpu.uuid not in counted else counted[gpu.uuid].utilization_percent
        rows.append(_row(gpu, used, source, reading, own))
    return Usage(tuple(rows), tuple(problems))


def _row(
    gpu: GpuSlice, used: int | None, source: str, reading: nvml_reader.GpuReading | None, own: float | None
) -> GpuUsage:
    return GpuUsage(
        index=gpu.index,
        uuid=gpu.uuid,
        limit_mib=gpu.memory_mib,
        used_mib=None if used is None else -(-used >> 20),
        headroom_mib=_headroom_mib(gpu.memory_mib, used, reading),
        source=source,
        cores_percent=gpu.cores_percent,
        own_utilization_percent=own,
        utilization_percent=None if reading is None else reading.utilization_percent,
        temperature_celsius=None if reading is None else reading.temperature_celsius,
    )


def _headroom_mib(limit_mib: int | None, used: int | None, reading: nvml_reader.GpuReading | None) -> int | None:
    """Return what is left of the limit, and not more than the driver has free: memory may be oversubscribed."""
    if limit_mib is None or used is None:
        return None
    left = (limit_mib << 20) - used
    if reading is not None and reading.memory_total_bytes is not None and reading.memory_used_bytes is not None:
        left = min(left, reading.memory_total_bytes - reading.memory_used_bytes)
    return max(left, 0) >> 20


def _used_bytes(
    gpu: GpuSlice, counted: Counts | None, reading: nvml_reader.GpuReading | None
) -> tuple[int | None, str]:
    if counted is not None:
        return counted[gpu.uuid].memory_bytes if gpu.uuid in counted else 0, HAMI_CORE
    if reading is not None and reading.process_bytes is not None:
        return sum(size for pid, size in reading.process_bytes.items() if _is_own(pid)), NVML
    return None, UNKNOWN


def _is_own(pid: int) -> bool:
    """Return whether a process is of this container: with `hostPID` the driver lists those of others, too."""
    return bool(_cgroup("self")) and _cgroup(str(pid)) == _cgroup("self")


def _cgroup(process: str) -> str:
    try:
        return (_PROC / process / "cgroup").read_text(errors="replace")
    except OSError:
        return ""


def _by_library(my: Slice, environment: Mapping[str, str]) -> tuple[Counts | None, str]:
    """Return what the library counts on each GPU; None and the reason where it does not count."""
    path = environment.get(REGION_VARIABLE, "")
    if my.isolation != HAMI_CORE or not path:
        return None, f"no HAMi-core library counts here (isolation {my.isolation or 'unknown'})"
    try:
        counts = _region(path, {identifiers.GpuUuid(gpu.uuid): _MOST_BYTES for gpu in my.gpus})
    except hami_core_region.InvalidRegion as cause:
        return None, f"the usage file of HAMi-core is invalid: {cause}"
    except OSError as cause:
        return None, f"the usage file of HAMi-core cannot be read ({cause.strerror or cause})"
    return {str(uuid): count for uuid, count in counts.items()}, ""


def _region(
    path: str, memory_bytes: Mapping[identifiers.GpuUuid, int]
) -> dict[identifiers.GpuUuid, hami_core_region.Counted]:
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    try:
        status = os.fstat(descriptor)
        if not stat.S_ISREG(status.st_mode):
            raise hami_core_region.InvalidRegion("corrupt", "it is no regular file")
        return hami_core_region.counted(
            status.st_size, lambda size, offset: os.pread(descriptor, size, offset), memory_bytes
        )
    finally:
        os.close(descriptor)


def _no_processes(reading: nvml_reader.GpuReading | None) -> str:
    if reading is None:
        return "the driver does not show the GPU"
    return "the driver does not list the processes of this container (535.113 or newer does)"


def _contradictions(gpu: GpuSlice, reading: nvml_reader.GpuReading | None) -> list[Problem]:
    if reading is None:
        return [Problem(error_codes.WORKLOAD_LIMIT_MISMATCH, f"the driver does not list {gpu.uuid} of the slice")]
    total = reading.memory_total_bytes
    if gpu.memory_mib is not None and total is not None and gpu.memory_mib << 20 > total:
        sentence = f"GPU {gpu.index}: {gpu.memory_mib} MiB are allocated, and the driver reports {total >> 20} MiB"
        return [Problem(error_codes.WORKLOAD_LIMIT_MISMATCH, sentence)]
    return []
