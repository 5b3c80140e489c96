"""Looks after the GPUs: enumerates them, asks each how it is, hears XIDs, and keeps what `core.health` makes of it."""

import asyncio
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace

import structlog

from device_plugin import metrics
from device_plugin.driver import driver_threads, gpu_source
from gpu_sharing.core import error_codes, health, identifiers, xids

_XID_WAIT_SECONDS = 5.0
_XID_RETRY_SECONDS = 1.0

log = structlog.get_logger("health")

Change = Callable[[gpu_source.Device, health.Health, health.Health], None]
"""A GPU, its health before and after."""


class HealthWatch:
    """The health of this node's GPUs.

    Attributes:
        devices: The GPUs in the driver's order; one that was seen in this boot stays, though the driver hides it.
        states: The health of each.
        looked_at: When they were last looked at, monotonic seconds.
        driver_trouble: Why there is no driver; empty while there is one.
    """

    def __init__(
        self,
        driver: driver_threads.DriverThreads,
        rules: health.Rules,
        boot: str,
        counters: metrics.Metrics,
        changed: Change,
    ) -> None:
        self._driver = driver
        self._rules = rules
        self._boot = boot
        self._metrics = counters
        self._changed = changed
        self._earlier: tuple[gpu_source.Device, ...] = ()
        self.driver_trouble = ""
        self.devices: tuple[gpu_source.Device, ...] = ()
        self.states: dict[identifiers.GpuUuid, health.Health] = {}
        self.looked_at = 0.0

    def remember(
        self, states: Mapping[identifiers.GpuUuid, health.Health], devices: Iterable[gpu_source.Device]
    ) -> None:
        """What an earlier process of the same boot knew: its sick GPUs stay sick, even if the driver hides them."""
        self.states = dict(states)
        self._earlier = tuple(devices)
        self.devices = tuple(device for device in self._earlier if device.uuid in states)

    async def look(self) -> bool:
        """Look at every GPU once.

        Returns:
            Whether the set of GPUs is another one than before.

        Raises:
            DriverChanged: The process has to start anew.
        """
        before = self.devices
        try:
            found = {device.uuid: device for device in await self._driver.devices()}
            self.driver_trouble = ""
        except gpu_source.DriverMissing as missing:
            if not self.driver_trouble:
                log.warning("no driver", error_code=error_codes.PLUGIN_NO_DRIVER, cause=str(missing))
            self.driver_trouble = str(missing)
            found = {}
            # What an earlier process offered is still offered by the node's record, and must be taken back.
            before = before or self._earlier
        except gpu_source.DriverChanged:
            raise
        except gpu_source.GpuSourceError as refused:
            log.warning("the GPUs cannot be enumerated; what is known of them holds", cause=str(refused))
            found = {device.uuid: device for device in before}
        hidden = [device for device in before if device.uuid not in found]
        self.devices = tuple(sorted([*found.values(), *hidden], key=lambda device: (device.index, device.uuid)))
        asked = [device for device in self.devices if device.uuid not in self._driver.released]
        readings = await asyncio.gather(*(self._reading(device, found) for device in asked))
        now = time.monotonic()
        for device, reading in zip(asked, readings, strict=True):
            if device.uuid in self._driver.released:
                continue  # Since it was asked.
            state = self.states.get(device.uuid, health.Health())
            self._set(device, health.after_reading(state, reading, now, self._boot, self._rules))
        self.looked_at = now
        return self.devices != before

    async def _reading(
        self, device: gpu_source.Device, found: Mapping[identifiers.GpuUuid, gpu_source.Device]
    ) -> health.Reading:
        if self.driver_trouble:
            return health.Reading(answered=False, trouble="the driver is gone")
        reading = await self._driver.reading(device.uuid)
        if device.uuid not in found and reading.answered:
            return health.Reading(answered=False, trouble="the driver does not enumerate it")
        return reading

    async def follow_xids(self) -> None:
        """Hear XIDs for ever; ends only by cancellation."""
        while True:
            if not self.devices:
                await asyncio.sleep(_XID_RETRY_SECONDS)
                continue
            try:
                faults = await self._driver.next_faults(_XID_WAIT_SECONDS)
            except gpu_source.GpuSourceError as refused:
                # The next look at the GPUs says what that means.
                log.debug("XIDs are not heard", cause=str(refused))
                await asyncio.sleep(_XID_RETRY_SECONDS)
                continue
            for fault in faults:
                await self._hear(fault)

    async def _hear(self, fault: gpu_source.Fault) -> None:
        line = self._rules.overrides.of(fault.xid)
        device = next((device for device in self.devices if device.uuid == fault.uuid), None)
        if device is None:
            log.error("an XID of a GPU that is not known", error_code=error_codes.HEALTH_XID, xid=fault.xid)
            return
        self._metrics.xids.labels(device=device.uuid, xid=str(fault.xid)).inc()
        log.warning(
            "XID", error_code=error_codes.HEALTH_XID, device=device.uuid, xid=fault.xid, name=line.name,
            verdict=line.verdict.value,
        )  # fmt: skip
        now = time.monotonic()
        state = self.states.get(device.uuid, health.Health())
        state = health.after_xid(state, fault.xid, now, self._boot, self._rules)
        if line.verdict is xids.Verdict.ASK_DRIVER:
            reading = await self._driver.reading(device.uuid)
            state = health.after_reading(state, reading, now, self._boot, self._rules)
        self._set(device, state)

    def _set(self, device: gpu_source.Device, after: health.Health) -> None:
        before = self.states.get(device.uuid, health.Health())
        self.states[device.uuid] = after
        if replace(before, uncorrected_errors=None) != replace(after, uncorrected_errors=None):
            self._changed(device, before, after)
