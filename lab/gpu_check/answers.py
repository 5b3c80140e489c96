"""Every NVML call that our code makes, made once on each GPU, with its answer."""

import ctypes
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import pynvml

from lab.fake_driver import calls

_RECOVERY_ACTION = 230
CONDITIONAL = frozenset(
    {
        "nvmlDeviceGetTopologyCommonAncestor", "nvmlDeviceGetNvLinkState", "nvmlDeviceGetNvLinkRemotePciInfo",
        "nvmlDeviceGetMaxMigDeviceCount",
        "nvmlDeviceGetGpuInstanceProfileInfo", "nvmlDeviceGetGpuInstancePossiblePlacements",
        "nvmlDeviceGetMigDeviceHandleByIndex", "nvmlDeviceGetGpuInstanceId", "nvmlDeviceGetComputeInstanceId",
        "nvmlDeviceGetGpuInstanceById", "nvmlGpuInstanceGetInfo", "nvmlDeviceGetGpuInstances",
        "nvmlDeviceGetComputeRunningProcesses_v2", "nvmlDeviceGetCurrentClocksThrottleReasons",
    }
)  # fmt: skip
"""Calls whose refusal depends only on the machine's wiring or MIG mode: not compared. Also older names of calls."""
NOT_CALLED = frozenset(
    {
        "nvmlDeviceCreateGpuInstanceWithPlacement", "nvmlGpuInstanceCreateComputeInstance", "nvmlGpuInstanceDestroy",
        "nvmlComputeInstanceDestroy", "nvmlGpuInstanceGetComputeInstanceById",
        "nvmlGpuInstanceGetComputeInstanceProfileInfo", "nvmlGpuInstanceGetComputeInstances", "nvmlInitWithFlags",
        "nvmlDeviceSetComputeMode",
    }
)  # fmt: skip
"""What changes a GPU, or needs an instance that was changed."""


@dataclass(frozen=True, slots=True)
class Answer:
    """The answer of one call."""

    call: str
    """Function of the bindings."""
    gpu: int | None
    """Position of the GPU; None for a call about none."""
    error: str
    """Name of NVML's error without its prefix; empty where it answered."""
    value: str
    milliseconds: float


def _name(cause: Exception) -> str:
    code = getattr(cause, "value", pynvml.NVML_ERROR_FUNCTION_NOT_FOUND)
    names = [name for name in dir(pynvml) if name.startswith("NVML_ERROR_") and getattr(pynvml, name) == code]
    return names[0].removeprefix("NVML_ERROR_") if names else f"code {code}"


def _ask(call: str, gpu: int | None, work: Callable[[], Any]) -> Answer:
    started = time.perf_counter()
    error, value = "", ""
    try:
        value = _shown(work())
    except (pynvml.NVMLError, pynvml.NVMLLibraryMismatchError) as cause:
        error = _name(cause)
    return Answer(call, gpu, error, value, 1000 * (time.perf_counter() - started))


def _shown(value: Any) -> str:
    """Return the answer of a call as one line."""
    if isinstance(value, bytes):
        return value.decode(errors="replace")
    fields = getattr(value, "_fields_", None)
    if fields:
        return ", ".join(f"{name} {_shown(getattr(value, name))}" for name, *_ in fields)
    if isinstance(value, list) and not all(isinstance(one, int) for one in value):
        return f"{len(value)} entries"
    return "" if value is None else str(value)


def _recovery(handle: Any) -> int:
    (found,) = pynvml.nvmlDeviceGetFieldValues(handle, [_RECOVERY_ACTION])
    if found.nvmlReturn != pynvml.NVML_SUCCESS:
        raise pynvml.NVMLError(found.nvmlReturn)
    return int(found.value.uiVal)


def _busy(handle: Any) -> str:
    try:
        return f"{len(pynvml.nvmlDeviceGetProcessUtilization(handle, 0))} samples"
    except pynvml.NVMLError as cause:
        if cause.value in (pynvml.NVML_SUCCESS, pynvml.NVML_ERROR_NOT_FOUND):  # This means that nothing ran.
            return "0 samples"
        raise


def _instances(handle: Any) -> str:
    profile = pynvml.nvmlDeviceGetGpuInstanceProfileInfo(handle, 0)
    found = (pynvml.c_nvmlGpuInstance_t * max(profile.instanceCount, 1))()
    count = ctypes.c_uint(0)
    pynvml.nvmlDeviceGetGpuInstances(handle, profile.id, found, ctypes.byref(count))
    return f"{count.value} of profile 0"


def _placements(handle: Any) -> str:
    profile = pynvml.nvmlDeviceGetGpuInstanceProfileInfo(handle, 0)
    count = ctypes.c_uint(0)
    pynvml.nvmlDeviceGetGpuInstancePossiblePlacements(handle, profile.id, None, ctypes.byref(count))
    return f"{count.value} of profile 0"


def _instance(handle: Any) -> Any:
    made = pynvml.nvmlDeviceGetMigDeviceHandleByIndex(handle, 0)
    return pynvml.nvmlDeviceGetGpuInstanceById(handle, pynvml.nvmlDeviceGetGpuInstanceId(made))


def probes(event_set: Any) -> Mapping[str, Callable[[Any], Any]]:
    """The calls for each GPU, by function of the bindings."""
    nvml = pynvml
    plain = {
        name: getattr(nvml, name)
        for name in (
            "nvmlDeviceGetUUID", "nvmlDeviceGetName", "nvmlDeviceGetPciInfo", "nvmlDeviceGetMemoryInfo",
            "nvmlDeviceGetMinorNumber", "nvmlDeviceGetCudaComputeCapability", "nvmlDeviceGetMigMode",
            "nvmlDeviceGetComputeMode", "nvmlDeviceGetMaxMigDeviceCount", "nvmlDeviceGetUtilizationRates",
            "nvmlDeviceGetPowerUsage",
            "nvmlDeviceGetRemappedRows", "nvmlDeviceGetCurrentClocksEventReasons",
            "nvmlDeviceGetCurrentClocksThrottleReasons", "nvmlDeviceGetComputeRunningProcesses",
            "nvmlDeviceGetComputeRunningProcesses_v2", "nvmlDeviceGetMPSComputeRunningProcesses",
            "nvmlDeviceGetSupportedEventTypes",
        )
    }  # fmt: skip
    return {
        **plain,
        "nvmlDeviceGetTemperature": lambda gpu: nvml.nvmlDeviceGetTemperature(gpu, nvml.NVML_TEMPERATURE_GPU),
        "nvmlDeviceGetTemperatureThreshold": lambda gpu: nvml.nvmlDeviceGetTemperatureThreshold(
            gpu, nvml.NVML_TEMPERATURE_THRESHOLD_SHUTDOWN
        ),
        "nvmlDeviceGetTotalEccErrors": lambda gpu: nvml.nvmlDeviceGetTotalEccErrors(
            gpu, nvml.NVML_MEMORY_ERROR_TYPE_UNCORRECTED, nvml.NVML_VOLATILE_ECC
        ),
        "nvmlDeviceGetFieldValues": _recovery,
        "nvmlDeviceGetProcessUtilization": _busy,
        "nvmlDeviceGetTopologyCommonAncestor": lambda gpu: nvml.nvmlDeviceGetTopologyCommonAncestor(
            gpu, nvml.nvmlDeviceGetHandleByIndex(nvml.nvmlDeviceGetCount() - 1)
        ),
        "nvmlDeviceGetNvLinkState": lambda gpu: nvml.nvmlDeviceGetNvLinkState(gpu, 0),
        "nvmlDeviceGetNvLinkRemotePciInfo": lambda gpu: nvml.nvmlDeviceGetNvLinkRemotePciInfo(gpu, 0),
        "nvmlDeviceGetHandleByUUID": lambda gpu: (
            nvml.nvmlDeviceGetHandleByUUID(nvml.nvmlDeviceGetUUID(gpu)) and "found"
        ),
        "nvmlDeviceGetHandleByPciBusId": lambda gpu: (
            nvml.nvmlDeviceGetHandleByPciBusId(nvml.nvmlDeviceGetPciInfo(gpu).busId) and "found"
        ),
        "nvmlDeviceRegisterEvents": lambda gpu: nvml.nvmlDeviceRegisterEvents(
            gpu, nvml.nvmlEventTypeXidCriticalError, event_set
        ),
        "nvmlDeviceGetGpuInstanceProfileInfo": lambda gpu: nvml.nvmlDeviceGetGpuInstanceProfileInfo(gpu, 0),
        "nvmlDeviceGetGpuInstancePossiblePlacements": _placements,
        "nvmlDeviceGetGpuInstances": _instances,
        "nvmlDeviceGetMigDeviceHandleByIndex": lambda gpu: nvml.nvmlDeviceGetMigDeviceHandleByIndex(gpu, 0) and "found",
        "nvmlDeviceGetGpuInstanceId": lambda gpu: nvml.nvmlDeviceGetGpuInstanceId(
            nvml.nvmlDeviceGetMigDeviceHandleByIndex(gpu, 0)
        ),
        "nvmlDeviceGetComputeInstanceId": lambda gpu: nvml.nvmlDeviceGetComputeInstanceId(
            nvml.nvmlDeviceGetMigDeviceHandleByIndex(gpu, 0)
        ),
        "nvmlDeviceGetGpuInstanceById": lambda gpu: _instance(gpu) and "found",
        "nvmlGpuInstanceGetInfo": lambda gpu: nvml.nvmlGpuInstanceGetInfo(_instance(gpu)).placement,
    }


def _wait(event_set: Any) -> str:
    try:
        return f"XID {pynvml.nvmlEventSetWait_v2(event_set, 10).eventData}"
    except pynvml.NVMLError as cause:
        if cause.value == pynvml.NVML_ERROR_TIMEOUT:
            return "nothing within 10 ms"
        raise


GLOBAL = (
    "nvmlInit",
    "nvmlDeviceGetCount",
    "nvmlEventSetCreate",
    "nvmlEventSetWait_v2",
    "nvmlEventSetFree",
    "nvmlShutdown",
)
"""The calls without a GPU, in order."""


def ask() -> Iterator[Answer]:
    """Return the driver's answer to every call."""
    yield _ask("nvmlInit", None, pynvml.nvmlInit)
    yield _ask("nvmlSystemGetDriverVersion", None, pynvml.nvmlSystemGetDriverVersion)
    counted = _ask("nvmlDeviceGetCount", None, pynvml.nvmlDeviceGetCount)
    yield counted
    sets: list[Any] = []
    yield _ask("nvmlEventSetCreate", None, lambda: sets.append(pynvml.nvmlEventSetCreate()))
    for index in range(int(counted.value or 0)):
        handles: list[Any] = []
        yield _ask(
            "nvmlDeviceGetHandleByIndex",
            index,
            lambda index=index, handles=handles: handles.append(pynvml.nvmlDeviceGetHandleByIndex(index)),  # type: ignore[misc]
        )
        for call, probe in probes(sets[0] if sets else None).items() if handles else ():
            yield _ask(call, index, lambda probe=probe, handles=handles: probe(handles[0]))  # type: ignore[misc]
    for event_set in sets:
        yield _ask("nvmlEventSetWait_v2", None, lambda event_set=event_set: _wait(event_set))  # type: ignore[misc]
        yield _ask("nvmlEventSetFree", None, lambda event_set=event_set: pynvml.nvmlEventSetFree(event_set))  # type: ignore[misc]
    yield _ask("nvmlShutdown", None, pynvml.nvmlShutdown)


def not_asked() -> tuple[str, ...]:
    """Return functions that our code calls and this check lacks: each needs a probe, or a line in `NOT_CALLED`."""
    known = {*probes(None), *GLOBAL, *NOT_CALLED, "nvmlDeviceGetHandleByIndex"}
    return tuple(name for name in calls.python_names() if name not in known)
