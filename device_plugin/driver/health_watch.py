"""Reads the GPUs, the health of each, and XIDs, and keeps the state that `core.health` computes from them."""

import asyncio
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace

import structlog

from device_plugin.driver import gpu_source
from device_plugin.driver.driver_threads import DriverThreads
from device_plugin.metrics import Metrics
from gpu_sharing.core import error_codes, health, identifiers, xids

_XID_WAIT_SECONDS = 5.0
_XID_RETRY_SECONDS = 1.0

log = structlog.get_logger("health")

Change = Callable[[gpu_source.Device, health.Health, health.Health], None]
"""A GPU, its health before and after."""


class HealthWatch:
    """The health of this node's GPUs.

    Attributes:
        devices: The GPUs in the driver's order. One that was listed in this boot stays in the list.
        states: The health of each.
        read_at: When all GPUs were last read, monotonic seconds; 0 before that.
        driver_problem: Why there is no driver; empty while there is one.
    """

    def __init__(
        self, *, driver: DriverThreads, rules: health.Rules, boot_id: str, metrics: Metrics, changed: Change
    ) -> None:
        self._driver = driver
        self._rules = rules
        self._boot_id = boot_id
        self._metrics = metrics
        self._changed = changed
        self._earlier: tuple[gpu_source.Device, ...] = ()
        self.driver_problem = ""
        self.devices: tuple[gpu_source.Device, ...] = ()
        self.states: dict[identifiers.GpuUuid, health.Health] = {}
        self.read_at = 0.0

    def remember(
        self, states: Mapping[identifiers.GpuUuid, health.Health], devices: Iterable[gpu_source.Device]
    ) -> None:
        """Set what an earlier process of this boot knew: unhealthy GPUs stay so, even if the driver hides them now."""
        self.states = dict(states)
        self._earlier = tuple(devices)
        self.devices = tuple(device for device in self._earlier if device.uuid in states)

    async def read_all(self) -> bool:
        """Read every GPU and its health once.

        Returns:
            Whether the GPUs differ from those of the last time.

        Raises:
            DriverChanged: The process has to start again.
        """
        before = self.devices
        try:
            listed = {device.uuid: device for device in await self._driver.devices()}
            self.driver_problem = ""
        except gpu_source.DriverMissing as missing:
            if not self.driver_problem:
                log.warning("no driver", error_code=error_codes.PLUGIN_NO_DRIVER, cause=str(missing))
            self.driver_problem = str(missing)
            listed = {}
            # The node's annotation still offers what an earlier process offered; it must be withdrawn.
            before = before or self._earlier
        except gpu_source.DriverChanged:
            raise
        except gpu_source.GpuSourceError as refused:
            log.warning("the GPUs cannot be listed; those known before stay", cause=str(refused))
            listed = {device.uuid: device for device in before}
        hidden = [device for device in before if device.uuid not in listed]
        self.devices = tuple(sorted([*listed.values(), *hidden], key=lambda device: (device.index, device.uuid)))
        asked = [device for device in self.devices if device.uuid not in self._driver.released]
        readings = await asyncio.gather(*(self._reading(device, listed) for device in asked))
        now = time.monotonic()
        for device, reading in zip(asked, readings, strict=True):
            if device.uuid in self._driver.released:
                continue  # It was released during the call.
            state = self.states.get(device.uuid, health.Health())
            self._set(device, health.after_reading(state, reading, now, self._boot_id, self._rules))
        self.read_at = now
        return self.devices != before

    async def _reading(
        self, device: gpu_source.Device, listed: Mapping[identifiers.GpuUuid, gpu_source.Device]
    ) -> health.Reading:
        if self.driver_problem:
            return health.Reading(answered=False, problem="the driver is gone")
        reading = await self._driver.reading(device.uuid)
        if device.uuid not in listed and reading.answered:
            return health.Reading(answered=False, problem="the driver does not list it")
        return reading

    async def follow_xids(self) -> None:
        """Receive XIDs until cancelled."""
        while True:
            if not self.devices:
                await asyncio.sleep(_XID_RETRY_SECONDS)
                continue
            try:
                faults = await self._driver.next_faults(_XID_WAIT_SECONDS)
            except gpu_source.GpuSourceError as refused:
                # The next reading of the GPUs shows whether one is lost.
                log.debug("XIDs not received", cause=str(refused))
                await asyncio.sleep(_XID_RETRY_SECONDS)
                continue
            for fault in faults:
                await self._apply(fault)

    async def _apply(self, fault: gpu_source.Fault) -> None:
        line = self._rules.overrides.of(fault.xid)
        device = next((device for device in self.devices if device.uuid == fault.uuid), None)
        if device is None:
            log.error("XID of an unknown GPU", error_code=error_codes.HEALTH_XID, xid=fault.xid)
            return
        self._metrics.xids.labels(device=device.uuid, xid=str(fault.xid)).inc()
        log.warning(
            "XID",
            error_code=error_codes.HEALTH_XID,
            device=device.uuid,
            xid=fault.xid,
            name=line.name,
            verdict=line.verdict.value,
        )
        now = time.monotonic()
        state = self.states.get(device.uuid, health.Health())
        state = health.after_xid(state, fault.xid, now, self._boot_id, self._rules)
        if line.verdict is xids.Verdict.ASK_DRIVER:
            reading = await self._driver.reading(device.uuid)
            state = health.after_reading(state, reading, now, self._boot_id, self._rules)
        self._set(device, state)

    def _set(self, device: gpu_source.Device, after: health.Health) -> None:
        before = self.states.get(device.uuid, health.Health())
        self.states[device.uuid] = after
        if replace(before, uncorrected_errors=None) != replace(after, uncorrected_errors=None):
            self._changed(device, before, after)
