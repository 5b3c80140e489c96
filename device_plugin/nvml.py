"""GPUs through NVML. The only module that imports NVIDIA's bindings, and late, because most tests have no driver.

What the driver refuses about one GPU becomes a reading of that GPU or leaves it out; its neighbours go on. Nothing
here has a deadline of its own, since a hung driver does not return: `watchdog` calls it.

Source: NVIDIA's NVML API reference; scores of links as HAMi v2.10 has them.
"""

import contextlib
import ctypes
import pathlib
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any, TypeVar

import pynvml
import structlog

from device_plugin import gpu_source
from gpu_sharing.core import health, identifiers, mig

T = TypeVar("T")

_SYSFS = pathlib.Path("/sys/bus/pci/devices")
_LINK_SCORES = {0: 60, 10: 50, 20: 40, 30: 30, 40: 20, 50: 10}
"""`nvmlGpuTopologyLevel_t` from the same board to across CPUs."""
_NVLINK_SCORE = 100
_POWER_BRAKE = 0x80
_COMPUTE_PROFILES = {1: 0, 2: 1, 3: 2, 4: 3, 7: 4, 8: 5, 6: 6}
"""`NVML_COMPUTE_INSTANCE_PROFILE_*` by number of slices."""
_RECOVERY_ACTION = 230

log = structlog.get_logger("nvml")


@contextlib.contextmanager
def _translated() -> Iterator[None]:
    """NVML's errors as ours."""
    try:
        yield
    except pynvml.NVMLError as cause:
        code = getattr(cause, "value", None)
        if code in (pynvml.NVML_ERROR_LIB_RM_VERSION_MISMATCH, pynvml.NVML_ERROR_ARGUMENT_VERSION_MISMATCH):
            raise gpu_source.DriverChanged(f"the driver was replaced under this process: {cause}") from cause
        if code in (
            pynvml.NVML_ERROR_LIBRARY_NOT_FOUND,
            pynvml.NVML_ERROR_DRIVER_NOT_LOADED,
            pynvml.NVML_ERROR_UNINITIALIZED,
        ):
            raise gpu_source.DriverMissing(str(cause)) from cause
        lost = code in (pynvml.NVML_ERROR_GPU_IS_LOST, pynvml.NVML_ERROR_RESET_REQUIRED)
        raise gpu_source.GpuFailed(str(cause), lost=lost) from cause


def connect() -> "Nvml":
    """Load the library and greet the driver.

    Raises:
        DriverMissing: There is none.
        DriverChanged: Library and kernel module do not match.
    """
    with _translated():
        pynvml.nvmlInit()
    return Nvml()


class Nvml:
    """A `GpuSource` over the driver of this machine."""

    def __init__(self) -> None:
        self._handles: dict[identifiers.GpuUuid, Any] = {}
        self._event_set: Any = None
        self._registered: set[identifiers.GpuUuid] = set()
        self._left_out: set[int] = set()
        self._sampled_until: dict[identifiers.GpuUuid, int] = {}
        """Until when, in the driver's microseconds, the use by processes was read."""

    def devices(self) -> Sequence[gpu_source.Device]:
        """See `GpuSource`."""
        with _translated():
            count = pynvml.nvmlDeviceGetCount()
        found: list[gpu_source.Device] = []
        for index in range(count):
            try:
                with _translated():
                    handle = pynvml.nvmlDeviceGetHandleByIndex(index)
                    device = self._device(handle, index)
            except gpu_source.GpuFailed as refused:
                if index not in self._left_out:
                    log.warning("a GPU does not say what it is", index=index, cause=str(refused))
                self._left_out.add(index)
                continue
            self._left_out.discard(index)
            self._handles[device.uuid] = handle
            found.append(device)
        return found

    def _device(self, handle: Any, index: int) -> gpu_source.Device:
        bus_id = _text(pynvml.nvmlDeviceGetPciInfo(handle).busId)
        divided = _or_none(lambda: pynvml.nvmlDeviceGetMigMode(handle)[0])
        return gpu_source.Device(
            uuid=identifiers.GpuUuid(_text(pynvml.nvmlDeviceGetUUID(handle))),
            index=index,
            name=_text(pynvml.nvmlDeviceGetName(handle)),
            memory_mib=pynvml.nvmlDeviceGetMemoryInfo(handle).total >> 20,
            minor=pynvml.nvmlDeviceGetMinorNumber(handle),
            numa=_numa(bus_id),
            bus_id=bus_id,
            compute_capability=tuple(pynvml.nvmlDeviceGetCudaComputeCapability(handle)),
            mig_enabled=bool(divided),
            migs=tuple(_migs(handle)) if divided else (),
            mig_profiles=tuple(_profiles(handle)) if divided else (),
            most_migs=(_or_none(lambda: pynvml.nvmlDeviceGetMaxMigDeviceCount(handle)) or 0) if divided else 0,
        )

    def reading(self, uuid: identifiers.GpuUuid) -> health.Reading:
        """See `GpuSource`."""
        try:
            with _translated():
                handle = self._handle(uuid)
                temperature = _or_none(
                    lambda: pynvml.nvmlDeviceGetTemperature(handle, pynvml.NVML_TEMPERATURE_GPU), unless_lost=True
                )
                # A round trip that every driver supports: this is what must succeed.
                pynvml.nvmlDeviceGetMemoryInfo(handle)
        except gpu_source.GpuFailed as refused:
            self._handles.pop(uuid, None)  # After a reset it is another one.
            return health.Reading(answered=False, lost=refused.lost, trouble=str(refused))
        rows = _or_none(lambda: pynvml.nvmlDeviceGetRemappedRows(handle))
        reasons = _or_none(lambda: pynvml.nvmlDeviceGetCurrentClocksEventReasons(handle))
        return health.Reading(
            recovery_action=_recovery_action(handle),
            rows_failed=bool(rows and rows[3]),
            uncorrected_errors=_or_none(
                lambda: pynvml.nvmlDeviceGetTotalEccErrors(
                    handle, pynvml.NVML_MEMORY_ERROR_TYPE_UNCORRECTED, pynvml.NVML_VOLATILE_ECC
                )
            ),
            temperature_celsius=temperature,
            limit_celsius=_or_none(
                lambda: pynvml.nvmlDeviceGetTemperatureThreshold(handle, pynvml.NVML_TEMPERATURE_THRESHOLD_SHUTDOWN)
            ),
            power_brake=bool((reasons or 0) & _POWER_BRAKE),
        )

    def usage(self, uuid: identifiers.GpuUuid) -> gpu_source.Usage:
        """See `GpuSource`."""
        try:
            with _translated():
                handle = self._handle(uuid)
                memory = pynvml.nvmlDeviceGetMemoryInfo(handle)
                instances = list(_mig_handles(handle))
                migs = {
                    _text(pynvml.nvmlDeviceGetUUID(made)): pynvml.nvmlDeviceGetMemoryInfo(made).used
                    for made in instances
                }
        except gpu_source.GpuFailed:
            self._handles.pop(uuid, None)
            raise
        if memory.used > memory.total:
            raise gpu_source.GpuFailed(f"the driver says that {memory.used} of {memory.total} bytes are used")
        rates = _or_none(lambda: pynvml.nvmlDeviceGetUtilizationRates(handle))
        milliwatts = _or_none(lambda: pynvml.nvmlDeviceGetPowerUsage(handle))
        return gpu_source.Usage(
            memory.total,
            memory.used,
            None if rates is None else float(rates.gpu),
            _or_none(lambda: pynvml.nvmlDeviceGetTemperature(handle, pynvml.NVML_TEMPERATURE_GPU)),
            None if milliwatts is None else milliwatts / 1000,
            tuple(self._processes(uuid, [handle, *instances], memory.total)),
            migs,
            _or_none(lambda: pynvml.nvmlDeviceGetComputeRunningProcesses(handle)) is not None,
        )

    def _processes(
        self, uuid: identifiers.GpuUuid, handles: Sequence[Any], most_bytes: int
    ) -> Iterator[gpu_source.Process]:
        """The processes on a GPU and on its MIG instances; those of MPS come by a call of their own."""
        memory: dict[int, int | None] = {}
        for handle in handles:
            for call in (pynvml.nvmlDeviceGetComputeRunningProcesses, pynvml.nvmlDeviceGetMPSComputeRunningProcesses):
                for one in _or_none(lambda call=call, handle=handle: call(handle)) or ():  # type: ignore[misc]
                    memory[one.pid] = one.usedGpuMemory
        busy = self._busy(uuid, handles[0])
        for pid, used in memory.items():
            # What cannot be true is not known.
            credible = used if used is not None and 0 <= used <= most_bytes else None
            yield gpu_source.Process(pid, credible, None if busy is None else min(busy.get(pid, 0.0), 100.0))

    def _busy(self, uuid: identifiers.GpuUuid, handle: Any) -> dict[int, float] | None:
        """The mean utilisation of each process since the last call; None where the driver does not measure it."""
        # The driver counts by the wall clock: after a jump back it would find nothing for as long.
        since = min(self._sampled_until.get(uuid, 0), time.time_ns() // 1000)
        self._sampled_until[uuid] = since
        try:
            samples = pynvml.nvmlDeviceGetProcessUtilization(handle, since)
        except pynvml.NVMLError as refused:
            # That is how it says that nothing has run since.
            return {} if getattr(refused, "value", None) == pynvml.NVML_ERROR_NOT_FOUND else None
        by_pid: dict[int, list[int]] = {}
        for one in samples:
            by_pid.setdefault(one.pid, []).append(one.smUtil)
            self._sampled_until[uuid] = max(self._sampled_until.get(uuid, 0), one.timeStamp)
        return {pid: sum(values) / len(values) for pid, values in by_pid.items()}

    def _handle(self, uuid: identifiers.GpuUuid) -> Any:
        if uuid not in self._handles:
            self._handles[uuid] = pynvml.nvmlDeviceGetHandleByUUID(uuid)
        return self._handles[uuid]

    def next_faults(self, timeout_seconds: float) -> Sequence[gpu_source.Fault]:
        """See `GpuSource`."""
        with _translated():
            self._register()
            try:
                event = pynvml.nvmlEventSetWait_v2(self._event_set, int(timeout_seconds * 1000))
            except pynvml.NVMLError_Timeout:
                return ()
            if not event.eventType & pynvml.nvmlEventTypeXidCriticalError:
                return ()
            return (gpu_source.Fault(self._uuid_of(event.device), int(event.eventData)),)

    def _register(self) -> None:
        """Subscribe to the XIDs of the GPUs that are new."""
        if self._event_set is None:
            self._event_set = pynvml.nvmlEventSetCreate()
        for uuid, handle in list(self._handles.items()):
            if uuid in self._registered:
                continue
            self._registered.add(uuid)
            with contextlib.suppress(pynvml.NVMLError):
                wanted = pynvml.nvmlEventTypeXidCriticalError
                pynvml.nvmlDeviceRegisterEvents(
                    handle, pynvml.nvmlDeviceGetSupportedEventTypes(handle) & wanted, self._event_set
                )

    def _uuid_of(self, handle: Any) -> identifiers.GpuUuid | None:
        try:
            return identifiers.GpuUuid(_text(pynvml.nvmlDeviceGetUUID(handle)))
        except pynvml.NVMLError:
            # It does not answer any more, but its handle is one that we know.
            same = [uuid for uuid, known in self._handles.items() if _address(known) == _address(handle)]
            return same[0] if len(same) == 1 else None

    def links(self) -> dict[identifiers.GpuUuid, dict[identifiers.GpuUuid, int]]:
        """See `GpuSource`."""
        bus_ids = {
            uuid: _or_none(lambda handle=handle: _text(pynvml.nvmlDeviceGetPciInfo(handle).busId))  # type: ignore[misc]
            for uuid, handle in self._handles.items()
        }
        scores: dict[identifiers.GpuUuid, dict[identifiers.GpuUuid, int]] = {}
        for uuid, handle in self._handles.items():
            remote = list(_nvlink_peers(handle))
            scores[uuid] = {}
            for other, other_handle in self._handles.items():
                if other == uuid:
                    continue
                nvlinks = sum(1 for bus_id in remote if bus_id == bus_ids[other])
                level = _or_none(
                    lambda one=handle, two=other_handle: pynvml.nvmlDeviceGetTopologyCommonAncestor(one, two)  # type: ignore[misc]
                )
                scores[uuid][other] = nvlinks * _NVLINK_SCORE if nvlinks else _LINK_SCORES.get(level or 0, 0)
        return scores

    def create_mig(self, uuid: identifiers.GpuUuid, profile: str, start: int, size: int) -> None:
        """See `GpuSource`."""
        with _translated():
            handle = pynvml.nvmlDeviceGetHandleByUUID(uuid)
            found = _profile(handle, profile)
            if found is None:
                raise gpu_source.GpuFailed(f"{uuid} has no MIG profile {profile}")
            placement = pynvml.c_nvmlGpuInstancePlacement_t(start, size)
            instance = pynvml.nvmlDeviceCreateGpuInstanceWithPlacement(handle, found.id, ctypes.byref(placement))
            try:
                whole = pynvml.nvmlGpuInstanceGetComputeInstanceProfileInfo(
                    instance, _COMPUTE_PROFILES[found.sliceCount], pynvml.NVML_COMPUTE_INSTANCE_ENGINE_PROFILE_SHARED
                )
                pynvml.nvmlGpuInstanceCreateComputeInstance(instance, whole.id)
            except pynvml.NVMLError:
                pynvml.nvmlGpuInstanceDestroy(instance)
                raise

    def destroy_mig(self, uuid: identifiers.GpuUuid, mig_uuid: str) -> None:
        """See `GpuSource`."""
        with _translated():
            handle = pynvml.nvmlDeviceGetHandleByUUID(uuid)
            for made in _mig_handles(handle):
                if _text(pynvml.nvmlDeviceGetUUID(made)) == mig_uuid:
                    instance = pynvml.nvmlDeviceGetGpuInstanceById(handle, pynvml.nvmlDeviceGetGpuInstanceId(made))
                    compute = pynvml.nvmlDeviceGetComputeInstanceId(made)
                    pynvml.nvmlComputeInstanceDestroy(pynvml.nvmlGpuInstanceGetComputeInstanceById(instance, compute))
                    pynvml.nvmlGpuInstanceDestroy(instance)
                    return

    def close(self) -> None:
        """See `GpuSource`."""
        # The set of events is left alone: a thread may be waiting in it.
        with contextlib.suppress(pynvml.NVMLError):
            pynvml.nvmlShutdown()


def _or_none(call: Callable[[], T], *, unless_lost: bool = False) -> T | None:
    """The answer, or None where the driver cannot give it: what is not known is no fault."""
    try:
        return call()
    except pynvml.NVMLLibraryMismatchError:
        return None  # The driver is older than the call.
    except pynvml.NVMLError as refused:
        if unless_lost and getattr(refused, "value", None) == pynvml.NVML_ERROR_GPU_IS_LOST:
            raise
        return None


def _recovery_action(handle: Any) -> int | None:
    fields = _or_none(lambda: pynvml.nvmlDeviceGetFieldValues(handle, [_RECOVERY_ACTION]))
    if not fields or fields[0].nvmlReturn != pynvml.NVML_SUCCESS:
        return None
    return int(fields[0].value.uiVal)


def _mig_handles(handle: Any) -> Iterator[Any]:
    for number in range(_or_none(lambda: pynvml.nvmlDeviceGetMaxMigDeviceCount(handle)) or 0):
        made = _or_none(lambda number=number: pynvml.nvmlDeviceGetMigDeviceHandleByIndex(handle, number))  # type: ignore[misc]
        if made is not None:
            yield made


def _migs(handle: Any) -> Iterator[gpu_source.MigInstance]:
    for made in _mig_handles(handle):
        number = pynvml.nvmlDeviceGetGpuInstanceId(made)
        instance = pynvml.nvmlDeviceGetGpuInstanceById(handle, number)
        name = _text(pynvml.nvmlDeviceGetName(made))
        yield gpu_source.MigInstance(
            _text(pynvml.nvmlDeviceGetUUID(made)),
            name.rpartition("MIG ")[2],
            pynvml.nvmlDeviceGetMemoryInfo(made).total >> 20,
            *_place(pynvml.nvmlGpuInstanceGetInfo(instance).placement),
            number,
            pynvml.nvmlDeviceGetComputeInstanceId(made),
        )


def _profiles(handle: Any) -> Iterator[mig.Profile]:
    """The kinds of instances that a GPU can be divided into, without those that have extra engines."""
    known = [info for info in _profile_infos(handle) if "+" not in _text(info.name)]
    whole = max((info.sliceCount for info in known), default=1)
    for info in known:
        count = ctypes.c_uint(0)
        places = _or_none(lambda info=info, count=count: _places(handle, info.id, count))  # type: ignore[misc]
        if places:
            name = _text(info.name).removeprefix("MIG ")
            yield mig.Profile(name, info.memorySizeMB, 100 * info.sliceCount // whole, places)


def _places(handle: Any, profile_id: int, count: ctypes.c_uint) -> tuple[mig.Slices, ...]:
    pynvml.nvmlDeviceGetGpuInstancePossiblePlacements(handle, profile_id, None, ctypes.byref(count))
    found = (pynvml.c_nvmlGpuInstancePlacement_t * count.value)()
    pynvml.nvmlDeviceGetGpuInstancePossiblePlacements(handle, profile_id, found, ctypes.byref(count))
    return tuple(_place(one) for one in found[: count.value])


def _place(placement: Any) -> mig.Slices:
    return mig.Slices(placement.start, placement.size)


def _profile_infos(handle: Any) -> Iterator[Any]:
    for number in range(pynvml.NVML_GPU_INSTANCE_PROFILE_COUNT):
        found = _or_none(lambda number=number: pynvml.nvmlDeviceGetGpuInstanceProfileInfo(handle, number))  # type: ignore[misc]
        if found is not None:
            yield found


def _profile(handle: Any, name: str) -> Any:
    """What the GPU says of a profile; None where it has none of that name."""
    return next((info for info in _profile_infos(handle) if _text(info.name).removeprefix("MIG ") == name), None)


def _nvlink_peers(handle: Any) -> Iterator[str]:
    """The bus id at the other end of each active NVLink."""
    for link in range(pynvml.NVML_NVLINK_MAX_LINKS):
        if _or_none(lambda link=link: pynvml.nvmlDeviceGetNvLinkState(handle, link)):  # type: ignore[misc]
            peer = _or_none(lambda link=link: pynvml.nvmlDeviceGetNvLinkRemotePciInfo(handle, link))  # type: ignore[misc]
            if peer is not None:
                yield _text(peer.busId)


def _address(handle: Any) -> int | None:
    try:
        return int.from_bytes(bytes(handle), "little")
    except TypeError:
        return None


def _numa(bus_id: str) -> int:
    """The NUMA node of a PCI device; the kernel says -1 where there is only one."""
    domain, _, rest = bus_id.partition(":")
    try:
        return max(int((_SYSFS / f"{domain[-4:]}:{rest}".lower() / "numa_node").read_text()), 0)
    except (OSError, ValueError):
        return 0


def _text(value: str | bytes) -> str:
    return value.decode(errors="replace") if isinstance(value, bytes) else value
