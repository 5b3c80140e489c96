"""GPUs through NVML. Only this module imports NVIDIA's bindings, and it is imported late: most tests have no driver.

A refused call about one GPU becomes its reading or is left out; the other GPUs go on. The identity of a GPU is read
once and remembered: drivers refuse such calls while a GPU is being reset. The calls have no deadlines here, since a
hung driver does not return: `driver_threads` makes them.

Source: NVIDIA's NVML API reference; scores of links as HAMi v2.10 has them.
"""

import contextlib
import ctypes
import pathlib
import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any, TypeVar

import pynvml
import structlog

from device_plugin.driver import gpu_source
from gpu_sharing.core import health, identifiers, mig, nvidia

T = TypeVar("T")

_SYSFS = pathlib.Path("/sys/bus/pci/devices")
_LINK_SCORES = {0: 60, 10: 50, 20: 40, 30: 30, 40: 20, 50: 10}
"""`nvmlGpuTopologyLevel_t` from the same board to across CPUs."""
_NVLINK_SCORE = 100
_DEAF_SECONDS = 30.0
"""How long a GPU for whose events the driver cannot wait is left out of the set before it is tried again."""

_MOST_INSTANCES = 8
"""Of one profile, on one GPU."""

# Larger values are errors of the driver, such as 4294967291 °C. They count for one value, not for the GPU.
_MOST_CELSIUS = 150
_MOST_WATTS = 5000
_MOST_ECC_ERRORS = 1 << 48
_MOST_RECOVERY_ACTION = 255
_MOST_CLOCK_REASONS = 1 << 32

_DRIVER_CHANGED = pynvml.NVML_ERROR_LIB_RM_VERSION_MISMATCH
_DRIVER_MISSING = frozenset(
    {pynvml.NVML_ERROR_LIBRARY_NOT_FOUND, pynvml.NVML_ERROR_DRIVER_NOT_LOADED, pynvml.NVML_ERROR_UNINITIALIZED}
)
_LASTING = frozenset(
    {
        pynvml.NVML_ERROR_NOT_SUPPORTED,
        pynvml.NVML_ERROR_NO_PERMISSION,
        pynvml.NVML_ERROR_FUNCTION_NOT_FOUND,
        pynvml.NVML_ERROR_ARGUMENT_VERSION_MISMATCH,
        pynvml.NVML_ERROR_DEPRECATED,
    }
)
"""Errors of a driver that is too old, of a GPU that lacks the feature, or of missing rights."""

log = structlog.get_logger("nvml")


class _NvmlError(gpu_source.GpuFailed):
    """A refused call, with NVML's number of the error."""

    def __init__(self, call: str, cause: Exception) -> None:
        # The bindings have an error of their own where the library lacks the function.
        self.code = getattr(cause, "value", pynvml.NVML_ERROR_FUNCTION_NOT_FOUND)
        super().__init__(
            f"{call}: {cause}",
            lost=self.code == pynvml.NVML_ERROR_GPU_IS_LOST,
            reset_required=self.code == pynvml.NVML_ERROR_RESET_REQUIRED,
            lasting=self.code in _LASTING,
        )


def _call(function: Callable[..., T], *arguments: Any) -> T:
    """Return what NVML answers.

    Raises:
        DriverMissing: There is no driver any more.
        DriverChanged: It was replaced under this process.
        GpuFailed: Any other error, with the name of the call.
    """
    try:
        return function(*arguments)
    except (pynvml.NVMLError, pynvml.NVMLLibraryMismatchError) as cause:
        refused = _NvmlError(function.__name__, cause)
        if refused.code == _DRIVER_CHANGED:
            raise gpu_source.DriverChanged(f"the driver was replaced under this process: {cause}") from cause
        if refused.code in _DRIVER_MISSING:
            raise gpu_source.DriverMissing(str(cause)) from cause
        raise refused from cause


def _optional(function: Callable[..., T], *arguments: Any) -> T | None:
    """Return what NVML answers, or None where it refuses.

    Raises:
        GpuFailed: The refusal concerns the whole GPU: it is lost, or has to be reset.
    """
    try:
        return _call(function, *arguments)
    except gpu_source.GpuFailed as refused:
        if refused.lost or refused.reset_required:
            raise
        return None


def _or_none(function: Callable[..., T], *arguments: Any) -> T | None:
    """Return what NVML answers, or None where it refuses, for any reason."""
    try:
        return _call(function, *arguments)
    except gpu_source.GpuFailed:
        return None


def _plausible(value: float | None, most: float, least: float = 0) -> Any:
    """Return a value within its bounds; None otherwise."""
    return value if value is not None and least <= value <= most else None


def connect(*, attach: bool = True) -> "Nvml":
    """Load the library and initialise it.

    Args:
        attach: Whether to open every GPU now; otherwise each at the first call to it.

    Raises:
        DriverMissing: There is none.
        DriverChanged: Library and kernel module do not match.
        GpuFailed: The driver refuses.
    """
    _call(pynvml.nvmlInitWithFlags, 0 if attach else pynvml.NVML_INIT_FLAG_NO_ATTACH)
    return Nvml()


class Nvml:
    """A `GpuSource` over the driver of this machine."""

    def __init__(self) -> None:
        self._handles: dict[identifiers.GpuUuid, Any] = {}
        self._known: dict[identifiers.GpuUuid, gpu_source.Device] = {}
        self._listed: frozenset[identifiers.GpuUuid] = frozenset()
        """The GPUs of the last enumeration."""
        self._count = 0
        """How many GPUs the driver counted then."""
        self._refusals: Mapping[identifiers.GpuUuid, gpu_source.GpuFailed] = {}
        """GPUs of the last enumeration that could not be identified in it."""
        self._unidentified: Mapping[int, str] = {}
        self._mig_refusals: dict[identifiers.GpuUuid, str] = {}
        self._event_set: Any = None
        self._registered: set[identifiers.GpuUuid] = set()
        self._unheard: dict[identifiers.GpuUuid, str] = {}
        self._events_refused = ""
        self._deaf_until: dict[identifiers.GpuUuid, float] = {}
        """GPUs that make each wait for events fail, and when they are tried again (monotonic seconds)."""
        self._released: Mapping[identifiers.GpuUuid, int] = {}
        """GPUs that must stay closed, with the position of each as the caller knows it."""
        self._sampled_until: dict[identifiers.GpuUuid, int] = {}
        """Time of the last read of use by processes, in the driver's microseconds."""

    def devices(self) -> Sequence[gpu_source.Device]:
        """Implement `GpuSource.devices`."""
        self._refusals = {}  # Refusals of an earlier enumeration do not count if this one fails.
        count = _call(pynvml.nvmlDeviceGetCount)
        if self._released and self._count not in (0, count):
            # Positions have moved: a call by position may open the GPU that is being reset.
            raise gpu_source.GpuFailed(f"the driver counts {count} GPUs instead of {self._count} while one is released")
        devices_by_uuid = {uuid: self._known[uuid] for uuid in self._released if uuid in self._known}
        kept_off = {
            devices_by_uuid[uuid].index if uuid in devices_by_uuid else index for uuid, index in self._released.items()
        }
        refused: dict[int, gpu_source.GpuFailed] = {}
        for index in set(range(count)) - kept_off:
            try:
                device = self._identified(index)
                devices_by_uuid[device.uuid] = device
            except gpu_source.GpuFailed as cause:
                refused[index] = cause
        refusals = {}
        for device in self._same_position(count):
            if device.index in refused and device.uuid not in devices_by_uuid:
                devices_by_uuid[device.uuid] = device
                refusals[device.uuid] = refused.pop(device.index)
        self._known |= devices_by_uuid
        self._listed, self._refusals, self._count = frozenset(devices_by_uuid), refusals, count
        self._unidentified = {index: str(cause) for index, cause in refused.items()}
        return sorted(devices_by_uuid.values(), key=lambda device: device.index)

    def _same_position(self, count: int) -> Sequence[gpu_source.Device]:
        """Return the GPUs that keep their positions: they move only when the number of GPUs changes."""
        return [self._known[uuid] for uuid in self._listed] if count == self._count else ()

    def _identified(self, index: int) -> gpu_source.Device:
        """Return the GPU at a position, with values that were known before in place of those that it refuses now."""
        handle = _call(pynvml.nvmlDeviceGetHandleByIndex, index)
        uuid = identifiers.GpuUuid(_text(_call(pynvml.nvmlDeviceGetUUID, handle)))
        if not uuid:  # A node whose inventory had such a GPU could not be read, its other GPUs included.
            raise gpu_source.GpuFailed("the driver returns an empty UUID")
        known = self._known.get(uuid)
        if known is None:
            known = gpu_source.Device(
                uuid=uuid, index=index, name=_text(_call(pynvml.nvmlDeviceGetName, handle)), memory_mib=None, minor=None
            )
        if not known.bus_id:  # A SoC's GPU is on no bus.
            place = _optional(pynvml.nvmlDeviceGetPciInfo, handle)
            bus_id = _text(place.busId) if place else ""
            known = replace(known, bus_id=bus_id, numa=_numa(bus_id))
        self._handles[uuid] = handle
        memory = _optional(pynvml.nvmlDeviceGetMemoryInfo, handle)
        minor = _optional(pynvml.nvmlDeviceGetMinorNumber, handle) if known.minor is None else None
        capability = known.compute_capability
        if capability == (0, 0):
            capability = _optional(pynvml.nvmlDeviceGetCudaComputeCapability, handle) or capability
        return self._divided(
            handle,
            replace(
                known,
                index=index,
                memory_mib=memory.total >> 20 if memory and memory.total else known.memory_mib,
                minor=known.minor if minor is None else minor,
                compute_capability=capability,
            ),
        )

    def _divided(self, handle: Any, device: gpu_source.Device) -> gpu_source.Device:
        """Return the GPU with its MIG instances; with those known before where the driver refuses to list them."""
        try:
            if not _call(pynvml.nvmlDeviceGetMigMode, handle)[0]:
                self._mig_refusals.pop(device.uuid, None)
                return replace(device, mig_enabled=False, migs=(), bare_instances=(), mig_profiles=(), most_migs=0)
            device = replace(device, mig_enabled=True)
            migs = tuple(_migs(handle))
            device = replace(
                device,
                migs=migs,
                bare_instances=tuple(_bare(handle, {one.instance_id for one in migs})),
                mig_profiles=tuple(_profiles(handle)),
                most_migs=_call(pynvml.nvmlDeviceGetMaxMigDeviceCount, handle),
            )
        except gpu_source.GpuFailed as refused:
            if refused.lost or refused.reset_required:
                raise
            if device.mig_enabled:  # Else it is a GPU that cannot be divided.
                self._mig_refusals[device.uuid] = str(refused)
            return device
        self._mig_refusals.pop(device.uuid, None)
        return device

    def gaps(self) -> gpu_source.Gaps:
        """Implement `GpuSource.gaps`."""
        listed = self._listed
        return gpu_source.Gaps(
            self._unidentified,
            {uuid: why for uuid, why in list(self._unheard.items()) if uuid in listed},
            self._events_refused,
            {uuid: why for uuid, why in list(self._mig_refusals.items()) if uuid in listed},
        )

    def reading(self, uuid: identifiers.GpuUuid) -> health.Reading:
        """Implement `GpuSource.reading`."""
        try:
            reading = self._reading(uuid, self._handle(uuid))
        except gpu_source.GpuFailed as refused:
            self._forget_handle(uuid)
            return self._unanswered(uuid, refused)
        refusal = self._refusals.get(uuid)
        return reading if refusal is None else self._unanswered(uuid, refusal)

    def _unanswered(self, uuid: identifiers.GpuUuid, refused: gpu_source.GpuFailed) -> health.Reading:
        # The driver neither lists nor finds it: it is not on the bus.
        code = refused.code if isinstance(refused, _NvmlError) else None
        gone = code == pynvml.NVML_ERROR_NOT_FOUND and uuid not in self._listed
        return health.Reading(
            answered=False,
            lost=refused.lost or gone,
            reset_required=refused.reset_required,
            problem=str(refused),
        )

    def _reading(self, uuid: identifiers.GpuUuid, handle: Any) -> health.Reading:
        self._round_trip(uuid, handle)
        temperature = _optional(pynvml.nvmlDeviceGetTemperature, handle, pynvml.NVML_TEMPERATURE_GPU)
        limit = _optional(pynvml.nvmlDeviceGetTemperatureThreshold, handle, pynvml.NVML_TEMPERATURE_THRESHOLD_SHUTDOWN)
        errors = _optional(
            pynvml.nvmlDeviceGetTotalEccErrors,
            handle,
            pynvml.NVML_MEMORY_ERROR_TYPE_UNCORRECTED,
            pynvml.NVML_VOLATILE_ECC,
        )
        rows = _optional(pynvml.nvmlDeviceGetRemappedRows, handle)
        reasons = _plausible(_clock_reasons(handle), _MOST_CLOCK_REASONS)
        return health.Reading(
            recovery_action=_recovery_action(handle),
            rows_failed=rows is not None and rows[3] == 1,
            uncorrected_errors=_plausible(errors, _MOST_ECC_ERRORS),
            temperature_celsius=_plausible(temperature, _MOST_CELSIUS),
            limit_celsius=_plausible(limit, _MOST_CELSIUS, 1),
            power_brake=bool((reasons or 0) & nvidia.POWER_BRAKE),
        )

    def _round_trip(self, uuid: identifiers.GpuUuid, handle: Any) -> Any:
        """Return the answer to a call that each GPU must answer, its memory; None if it never reported any."""
        try:
            return _call(pynvml.nvmlDeviceGetMemoryInfo, handle)
        except gpu_source.GpuFailed as refused:
            known = self._known.get(uuid)
            if not refused.lasting or (known is not None and known.memory_mib is not None):
                raise
            return None

    def usage(self, uuid: identifiers.GpuUuid) -> gpu_source.Usage:
        """Implement `GpuSource.usage`."""
        try:
            return self._usage(uuid, self._handle(uuid))
        except gpu_source.GpuFailed:
            self._forget_handle(uuid)
            raise

    def _usage(self, uuid: identifiers.GpuUuid, handle: Any) -> gpu_source.Usage:
        total, used = _bytes(self._round_trip(uuid, handle))
        instances = list(_mig_handles(handle))
        migs = {
            _text(_call(pynvml.nvmlDeviceGetUUID, made)): _bytes(_optional(pynvml.nvmlDeviceGetMemoryInfo, made))[1]
            for made in instances
        }
        rates = _optional(pynvml.nvmlDeviceGetUtilizationRates, handle)
        milliwatts = _optional(pynvml.nvmlDeviceGetPowerUsage, handle)
        temperature = _optional(pynvml.nvmlDeviceGetTemperature, handle, pynvml.NVML_TEMPERATURE_GPU)
        running = _running([handle, *instances])
        return gpu_source.Usage(
            memory_total_bytes=total,
            memory_used_bytes=used,
            utilization_percent=None if rates is None else _plausible(float(rates.gpu), 100),
            temperature_celsius=_plausible(temperature, _MOST_CELSIUS),
            power_watts=None if milliwatts is None else _plausible(milliwatts / 1000, _MOST_WATTS),
            memory_controller_percent=None if rates is None else _plausible(float(rates.memory), 100),
            processes=tuple(self._processes(uuid, handle, running or {}, total)),
            mig_used_bytes={name: value for name, value in migs.items() if value is not None},
            lists_processes=running is not None,
        )

    def _processes(
        self, uuid: identifiers.GpuUuid, handle: Any, running: Mapping[int, int | None], most_bytes: int | None
    ) -> Iterator[gpu_source.Process]:
        busy = self._busy(uuid, handle)
        for pid, used in running.items():
            credible = used if most_bytes is None else _plausible(used, most_bytes)
            yield gpu_source.Process(pid, credible, None if busy is None else busy.get(pid, 0.0))

    def _busy(self, uuid: identifiers.GpuUuid, handle: Any) -> dict[int, float] | None:
        """Return the mean utilization of each process since the last call; None where it is not measured."""
        # The driver counts by the wall clock: after a jump back it would find nothing for as long.
        since = min(self._sampled_until.get(uuid, 0), time.time_ns() // 1000)
        self._sampled_until[uuid] = since
        try:
            samples = _call(pynvml.nvmlDeviceGetProcessUtilization, handle, since)
        except _NvmlError as refused:
            # So it says that nothing has run since; the bindings raise "success" where there is no sample.
            return {} if refused.code in (pynvml.NVML_ERROR_NOT_FOUND, pynvml.NVML_SUCCESS) else None
        by_pid: dict[int, list[int]] = {}
        for sample in samples:
            if sample.smUtil <= 100:
                by_pid.setdefault(sample.pid, []).append(sample.smUtil)
            self._sampled_until[uuid] = max(self._sampled_until.get(uuid, 0), sample.timeStamp)
        return {pid: sum(values) / len(values) for pid, values in by_pid.items()}

    def _handle(self, uuid: identifiers.GpuUuid) -> Any:
        """Return the handle of a GPU by its bus id: a search by UUID would open the GPUs that it passes."""
        if uuid in self._released:
            raise gpu_source.GpuFailed("it is released for a reset")
        if uuid not in self._handles:
            known = self._known.get(uuid)
            if known is None or not known.bus_id:
                self._handles[uuid] = _call(pynvml.nvmlDeviceGetHandleByUUID, uuid)
            else:
                self._handles[uuid] = _call(pynvml.nvmlDeviceGetHandleByPciBusId, known.bus_id)
        return self._handles[uuid]

    def _forget_handle(self, uuid: identifiers.GpuUuid) -> None:
        """Forget the handle, which is another one after a reset; events then have to be registered again."""
        self._handles.pop(uuid, None)
        self._registered.discard(uuid)

    def next_faults(self, timeout_seconds: float) -> Sequence[gpu_source.Fault]:
        """Implement `GpuSource.next_faults`."""
        try:
            faults = self._wait(timeout_seconds)
        except gpu_source.GpuFailed as refused:
            self._events_refused = str(refused)
            raise
        self._events_refused = ""
        return faults

    def _wait(self, timeout_seconds: float) -> Sequence[gpu_source.Fault]:
        self._register()
        faults: Sequence[gpu_source.Fault] = ()
        try:
            faults = self._faults(_call(pynvml.nvmlEventSetWait_v2, self._event_set, int(timeout_seconds * 1000)))
        except _NvmlError as refused:
            if refused.code != pynvml.NVML_ERROR_TIMEOUT:
                self._drop_event_set()
                if refused.lost:
                    return self._leave_out_lost(refused)
                raise
        for uuid in self._registered:
            self._unheard.pop(uuid, None)
            self._deaf_until.pop(uuid, None)
        return faults

    def _faults(self, event: Any) -> Sequence[gpu_source.Fault]:
        if not event.eventType & pynvml.nvmlEventTypeXidCriticalError:
            return ()
        return (gpu_source.Fault(self._uuid_of(event.device), int(event.eventData)),)

    def _register(self) -> None:
        """Register for the XIDs of each GPU that is new, was reset, or refused before."""
        if self._event_set is None:
            self._event_set = _call(pynvml.nvmlEventSetCreate)
        now = time.monotonic()
        for uuid in self._listed - self._registered - self._released.keys():
            if self._deaf_until.get(uuid, now) > now:
                continue
            try:
                _subscribe(self._handle(uuid), self._event_set)
            except gpu_source.GpuFailed as refused:
                self._unheard[uuid] = str(refused)
            else:
                self._registered.add(uuid)

    def _drop_event_set(self) -> None:
        _or_none(pynvml.nvmlEventSetFree, self._event_set)
        self._event_set = None
        self._registered.clear()

    def _leave_out_lost(self, cause: gpu_source.GpuFailed) -> Sequence[gpu_source.Fault]:
        """Find the GPUs for which a wait fails, each with its own set, and leave them out of the next set.

        Returns:
            The XIDs that came meanwhile.

        Raises:
            GpuFailed: The cause, if no GPU alone makes a wait fail.
        """
        faults: list[gpu_source.Fault] = []
        left_out = False
        for uuid in self._listed - self._released.keys():
            trial = _call(pynvml.nvmlEventSetCreate)
            try:
                _subscribe(self._handle(uuid), trial)
                faults += self._faults(_call(pynvml.nvmlEventSetWait_v2, trial, 0))
            except _NvmlError as refused:
                if refused.lost:
                    self._unheard[uuid] = str(refused)
                    self._deaf_until[uuid] = time.monotonic() + _DEAF_SECONDS
                    left_out = True
            finally:
                _or_none(pynvml.nvmlEventSetFree, trial)
        if not left_out:
            raise cause
        return faults

    def _uuid_of(self, handle: Any) -> identifiers.GpuUuid | None:
        uuid = _or_none(pynvml.nvmlDeviceGetUUID, handle)
        if uuid is not None:
            return identifiers.GpuUuid(_text(uuid))
        # It does not answer any more, but its handle is known.
        same = [known for known, kept in list(self._handles.items()) if _address(kept) == _address(handle)]
        return same[0] if len(same) == 1 else None

    def links(self) -> dict[identifiers.GpuUuid, dict[identifiers.GpuUuid, int]]:
        """Implement `GpuSource.links`."""
        handles = dict(self._handles)
        bus_ids = {uuid: device.bus_id for uuid, device in self._known.items()}
        scores: dict[identifiers.GpuUuid, dict[identifiers.GpuUuid, int]] = {}
        for uuid, handle in handles.items():
            remote = list(_nvlink_peers(handle))
            scores[uuid] = {}
            for other, other_handle in handles.items():
                if other == uuid:
                    continue
                nvlinks = sum(1 for bus_id in remote if bus_id == bus_ids.get(other))
                level = _or_none(pynvml.nvmlDeviceGetTopologyCommonAncestor, handle, other_handle)
                scores[uuid][other] = nvlinks * _NVLINK_SCORE if nvlinks else _LINK_SCORES.get(level or 0, 0)
        return scores

    def create_mig(self, uuid: identifiers.GpuUuid, profile: str, start: int, size: int) -> None:
        """Implement `GpuSource.create_mig`."""
        handle = self._handle(uuid)
        info = _profile(handle, profile)
        if info is None:
            raise gpu_source.GpuFailed(f"{uuid} has no MIG profile {profile}")
        placement = pynvml.c_nvmlGpuInstancePlacement_t(start, size)
        instance = _call(pynvml.nvmlDeviceCreateGpuInstanceWithPlacement, handle, info.id, ctypes.byref(placement))
        try:
            whole = _call(
                pynvml.nvmlGpuInstanceGetComputeInstanceProfileInfo,
                instance,
                nvidia.COMPUTE_PROFILES[info.sliceCount],
                pynvml.NVML_COMPUTE_INSTANCE_ENGINE_PROFILE_SHARED,
            )
            _call(pynvml.nvmlGpuInstanceCreateComputeInstance, instance, whole.id)
        except gpu_source.GpuSourceError:
            _or_none(pynvml.nvmlGpuInstanceDestroy, instance)
            raise

    def destroy_mig(self, uuid: identifiers.GpuUuid, mig_uuid: str) -> None:
        """Implement `GpuSource.destroy_mig`."""
        handle = self._handle(uuid)
        for mig_handle in _mig_handles(handle):
            if _text(_call(pynvml.nvmlDeviceGetUUID, mig_handle)) == mig_uuid:
                number = _call(pynvml.nvmlDeviceGetGpuInstanceId, mig_handle)
                instance = _call(pynvml.nvmlDeviceGetGpuInstanceById, handle, number)
                compute = _call(pynvml.nvmlDeviceGetComputeInstanceId, mig_handle)
                _call(
                    pynvml.nvmlComputeInstanceDestroy,
                    _call(pynvml.nvmlGpuInstanceGetComputeInstanceById, instance, compute),
                )
                _call(pynvml.nvmlGpuInstanceDestroy, instance)
                return

    def compute_mode(self, uuid: str) -> int:
        """Return the compute mode of a GPU, as NVML numbers it. Errors as `usage`."""
        return int(_call(pynvml.nvmlDeviceGetComputeMode, self._handle(identifiers.GpuUuid(uuid))))

    def set_compute_mode(self, uuid: str, mode: int) -> None:
        """Set the compute mode of a GPU; it needs the rights of root on the host. Errors as `usage`."""
        _call(pynvml.nvmlDeviceSetComputeMode, self._handle(identifiers.GpuUuid(uuid)), mode)

    def destroy_bare(self, uuid: identifiers.GpuUuid, instance_id: int) -> None:
        """Implement `GpuSource.destroy_bare`."""
        _call(
            pynvml.nvmlGpuInstanceDestroy,
            _call(pynvml.nvmlDeviceGetGpuInstanceById, self._handle(uuid), instance_id),
        )

    def release(self, released: Mapping[identifiers.GpuUuid, int]) -> None:
        """Implement `GpuSource.release`."""
        newly = released.keys() - self._released.keys()
        self._released = dict(released)
        if not newly:
            return  # The others are opened again at the next call to them.
        # NVML closes one GPU only by closing all.
        if self._event_set is not None:
            self._drop_event_set()
        self._handles.clear()
        _call(pynvml.nvmlShutdown)
        _call(pynvml.nvmlInitWithFlags, pynvml.NVML_INIT_FLAG_NO_ATTACH)

    def close(self) -> None:
        """Implement `GpuSource.close`."""
        # The set of events stays: a thread may be waiting in it.
        with contextlib.suppress(gpu_source.GpuSourceError):
            _call(pynvml.nvmlShutdown)


def _subscribe(handle: Any, event_set: Any) -> None:
    """Register the XIDs of one GPU."""
    kinds = _call(pynvml.nvmlDeviceGetSupportedEventTypes, handle) & pynvml.nvmlEventTypeXidCriticalError
    if not kinds:
        raise gpu_source.GpuFailed("nvmlDeviceGetSupportedEventTypes: XIDs are not among them", lasting=True)
    _call(pynvml.nvmlDeviceRegisterEvents, handle, kinds, event_set)


def _clock_reasons(handle: Any) -> int | None:
    reasons = _optional(pynvml.nvmlDeviceGetCurrentClocksEventReasons, handle)
    if reasons is None:
        reasons = _optional(pynvml.nvmlDeviceGetCurrentClocksThrottleReasons, handle)  # So called before driver 535.
    return reasons


def _recovery_action(handle: Any) -> int | None:
    fields = _optional(pynvml.nvmlDeviceGetFieldValues, handle, [nvidia.RECOVERY_ACTION])
    if not fields or fields[0].nvmlReturn != pynvml.NVML_SUCCESS:
        return None
    action: int | None = _plausible(int(fields[0].value.uiVal), _MOST_RECOVERY_ACTION)
    return action


def _bytes(memory: Any) -> tuple[int | None, int | None]:
    """Return total and used bytes of memory; None where the driver reports none, or a wrong value."""
    if memory is None or not memory.total:
        return None, None
    return memory.total, _plausible(memory.used, memory.total)


def _running(handles: Sequence[Any]) -> dict[int, int | None] | None:
    """Return bytes by process on a GPU and its MIG instances, with MPS clients; None where the driver has no list."""
    lists = [_compute_processes(handle) for handle in handles]
    if all(one is None for one in lists):
        return None
    lists += [_optional(pynvml.nvmlDeviceGetMPSComputeRunningProcesses, handle) for handle in handles]
    return {one.pid: one.usedGpuMemory for found in lists for one in found or ()}


def _compute_processes(handle: Any) -> Sequence[Any] | None:
    try:
        processes: Sequence[Any] = _call(pynvml.nvmlDeviceGetComputeRunningProcesses, handle)
        return processes
    except _NvmlError as refused:
        if refused.lost or refused.reset_required:
            raise
        if refused.code != pynvml.NVML_ERROR_FUNCTION_NOT_FOUND:
            return None
    return _optional(pynvml.nvmlDeviceGetComputeRunningProcesses_v2, handle)  # Drivers before 510.


def _mig_handles(handle: Any) -> Iterator[Any]:
    for number in range(_optional(pynvml.nvmlDeviceGetMaxMigDeviceCount, handle) or 0):
        instance = _optional(pynvml.nvmlDeviceGetMigDeviceHandleByIndex, handle, number)
        if instance is not None:
            yield instance


def _migs(handle: Any) -> Iterator[gpu_source.MigInstance]:
    for mig_handle in _mig_handles(handle):
        number = _call(pynvml.nvmlDeviceGetGpuInstanceId, mig_handle)
        instance = _call(pynvml.nvmlDeviceGetGpuInstanceById, handle, number)
        name = _text(_call(pynvml.nvmlDeviceGetName, mig_handle))
        start, size = _place(_call(pynvml.nvmlGpuInstanceGetInfo, instance).placement)
        yield gpu_source.MigInstance(
            uuid=_text(_call(pynvml.nvmlDeviceGetUUID, mig_handle)),
            profile=name.rpartition("MIG ")[2],
            memory_mib=_call(pynvml.nvmlDeviceGetMemoryInfo, mig_handle).total >> 20,
            start=start,
            size=size,
            instance_id=number,
            compute_id=_call(pynvml.nvmlDeviceGetComputeInstanceId, mig_handle),
        )


def _bare(handle: Any, shown: Collection[int]) -> Iterator[gpu_source.BareInstance]:
    """Yield the GPU instances that no device handle shows, because they have no compute instance."""
    for profile in _profile_infos(handle):
        count = ctypes.c_uint(_MOST_INSTANCES)
        infos = (pynvml.c_nvmlGpuInstance_t * _MOST_INSTANCES)()
        if _optional(_gpu_instances, handle, profile.id, infos, count) is None:
            continue  # The driver lists them for privileged callers only.
        for instance in infos[: count.value]:
            info = _optional(pynvml.nvmlGpuInstanceGetInfo, instance)
            if info is not None and info.id not in shown:
                name = _text(profile.name).removeprefix("MIG ")
                yield gpu_source.BareInstance(info.id, name, *_place(info.placement))


def _gpu_instances(handle: Any, profile_id: int, infos: Any, count: Any) -> bool:
    pynvml.nvmlDeviceGetGpuInstances(handle, profile_id, infos, ctypes.byref(count))
    return True


def _profiles(handle: Any) -> Iterator[mig.Profile]:
    """Yield the kinds of instances that a GPU can be divided into, without those that have extra engines."""
    known = [info for info in _profile_infos(handle) if "+" not in _text(info.name)]
    whole = max((info.sliceCount for info in known), default=1)
    for info in known:
        places = _places(handle, info.id)
        if places:
            name = _text(info.name).removeprefix("MIG ")
            yield mig.Profile(name, info.memorySizeMB, 100 * info.sliceCount // whole, places)


def _places(handle: Any, profile_id: int) -> tuple[mig.Slices, ...]:
    count = ctypes.c_uint(0)
    ask = pynvml.nvmlDeviceGetGpuInstancePossiblePlacements
    _call(ask, handle, profile_id, None, ctypes.byref(count))
    placements = (pynvml.c_nvmlGpuInstancePlacement_t * count.value)()
    _call(ask, handle, profile_id, placements, ctypes.byref(count))
    return tuple(_place(one) for one in placements[: count.value])


def _place(placement: Any) -> mig.Slices:
    return mig.Slices(placement.start, placement.size)


def _profile_infos(handle: Any) -> Iterator[Any]:
    for number in range(pynvml.NVML_GPU_INSTANCE_PROFILE_COUNT):
        info = _optional(pynvml.nvmlDeviceGetGpuInstanceProfileInfo, handle, number)
        if info is not None:
            yield info


def _profile(handle: Any, name: str) -> Any:
    """Return the driver's description of a profile; None where the GPU has no profile of that name."""
    return next((info for info in _profile_infos(handle) if _text(info.name).removeprefix("MIG ") == name), None)


def _nvlink_peers(handle: Any) -> Iterator[str]:
    """Yield the bus id at the other end of each active NVLink."""
    for link in range(pynvml.NVML_NVLINK_MAX_LINKS):
        if _or_none(pynvml.nvmlDeviceGetNvLinkState, handle, link):
            peer = _or_none(pynvml.nvmlDeviceGetNvLinkRemotePciInfo, handle, link)
            if peer is not None:
                yield _text(peer.busId)


def _address(handle: Any) -> int | None:
    try:
        return int.from_bytes(bytes(handle), "little")
    except TypeError:
        return None


def _numa(bus_id: str) -> int:
    """Return the NUMA node of a PCI device; 0 where the kernel has -1, as with a single node."""
    domain, _, rest = bus_id.partition(":")
    try:
        return max(int((_SYSFS / f"{domain[-4:]}:{rest}".lower() / "numa_node").read_text()), 0)
    except (OSError, ValueError):
        return 0


def _text(value: str | bytes) -> str:
    return value.decode(errors="replace") if isinstance(value, bytes) else value
