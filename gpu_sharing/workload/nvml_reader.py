"""The driver as this container sees it, through NVML. NVIDIA's bindings are imported at the first read.

A call that the driver refuses leaves one value unknown. The driver translates process ids into the container's PID
namespace since 535.113, and leaves out processes of other containers; the list of an older driver has ids of the host
and is not used. After a fork the child connects anew.

Source: NVIDIA's NVML API reference; `os_find_ns_pid` in NVIDIA's open-gpu-kernel-modules.
"""

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

_TRANSLATES_SINCE = (535, 113)
_MOST_GPUS = 64
_MOST_BYTES = 1 << 48
_MOST_CELSIUS = 150
_MOST_WATTS = 5000


class NoDriver(Exception):
    """The driver cannot be read; the text has why."""


@dataclass(frozen=True, slots=True, kw_only=True)
class GpuReading:
    """Values of one GPU now; None where the driver does not report one."""

    uuid: str
    utilization_percent: float | None = None
    memory_controller_percent: float | None = None
    memory_used_bytes: int | None = None
    memory_total_bytes: int | None = None
    temperature_celsius: float | None = None
    power_watts: float | None = None
    process_bytes: Mapping[int, int] | None = None
    """Memory of each process of this container by its id; None where the driver does not list them reliably."""


class Driver:
    """A connection to the driver, made at the first read and again after a failure or a fork."""

    def __init__(self) -> None:
        self._bindings: Any = None
        self._pid = 0

    def read(self, uuids: Sequence[str]) -> dict[str, GpuReading]:
        """Return the values of these GPUs; GPUs that the driver does not list are left out.

        Raises:
            NoDriver: There is none, or it does not answer.
        """
        nvml = self._connected()
        try:
            handles = self._handles(nvml, uuids)
        except nvml.NVMLError as cause:
            self._bindings = None
            raise NoDriver(f"the driver refuses to list GPUs: {cause}") from cause
        translates = self._translates(nvml)
        return {uuid: _reading(nvml, uuid, handle, translates) for uuid, handle in handles.items()}

    def _connected(self) -> Any:
        if self._bindings is not None and self._pid == os.getpid():
            return self._bindings
        try:
            import pynvml
        except ImportError as cause:
            raise NoDriver("the package nvidia-ml-py is not installed") from cause
        try:
            pynvml.nvmlInit()
        except pynvml.NVMLError as cause:
            raise NoDriver(f"NVML does not start: {cause}") from cause
        self._bindings, self._pid = pynvml, os.getpid()
        return pynvml

    def _handles(self, nvml: Any, uuids: Sequence[str]) -> dict[str, Any]:
        listed = {}
        for index in range(min(nvml.nvmlDeviceGetCount(), _MOST_GPUS)):
            try:
                handle = nvml.nvmlDeviceGetHandleByIndex(index)
                listed[_text(nvml.nvmlDeviceGetUUID(handle))] = handle
            except nvml.NVMLError:
                continue
        for uuid in uuids:
            if uuid not in listed:  # A MIG instance.
                handle = _optional(nvml, nvml.nvmlDeviceGetHandleByUUID, uuid)
                if handle is not None:
                    listed[uuid] = handle
        return {uuid: listed[uuid] for uuid in uuids if uuid in listed}

    def _translates(self, nvml: Any) -> bool:
        version = _text(_optional(nvml, nvml.nvmlSystemGetDriverVersion) or "").split(".")[:2]
        return len(version) == 2 and all(map(str.isdigit, version)) and (*map(int, version),) >= _TRANSLATES_SINCE


def _reading(nvml: Any, uuid: str, handle: Any, translates: bool) -> GpuReading:
    rates = _optional(nvml, nvml.nvmlDeviceGetUtilizationRates, handle)
    memory = _optional(nvml, nvml.nvmlDeviceGetMemoryInfo, handle)
    milliwatts = _optional(nvml, nvml.nvmlDeviceGetPowerUsage, handle)
    celsius = _optional(nvml, nvml.nvmlDeviceGetTemperature, handle, nvml.NVML_TEMPERATURE_GPU)
    return GpuReading(
        uuid=uuid,
        utilization_percent=None if rates is None else _plausible(rates.gpu, 100),
        memory_controller_percent=None if rates is None else _plausible(rates.memory, 100),
        memory_used_bytes=None if memory is None else _plausible(memory.used, _MOST_BYTES),
        memory_total_bytes=None if memory is None else _plausible(memory.total, _MOST_BYTES),
        temperature_celsius=_plausible(celsius, _MOST_CELSIUS),
        power_watts=None if milliwatts is None else _plausible(milliwatts / 1000, _MOST_WATTS),
        process_bytes=_process_bytes(nvml, handle) if translates else None,
    )


def _process_bytes(nvml: Any, handle: Any) -> dict[int, int] | None:
    """Return the memory of each listed process; None where one is not reported."""
    lists = [
        _optional(nvml, nvml.nvmlDeviceGetComputeRunningProcesses, handle),
        _optional(nvml, nvml.nvmlDeviceGetMPSComputeRunningProcesses, handle),
    ]
    if lists[0] is None:
        return None
    sizes = {one.pid: _plausible(one.usedGpuMemory, _MOST_BYTES) for listed in lists for one in listed or ()}
    known = {pid: size for pid, size in sizes.items() if size is not None}
    return known if len(known) == len(sizes) else None


def _optional(nvml: Any, function: Any, *arguments: Any) -> Any:
    try:
        return function(*arguments)
    except nvml.NVMLError:
        return None


def _plausible(value: Any, most: float) -> Any:
    """Return a value of the driver, or None where it is larger than any real one."""
    return value if value is not None and 0 <= value <= most else None


def _text(value: str | bytes) -> str:
    return value.decode(errors="replace") if isinstance(value, bytes) else value
