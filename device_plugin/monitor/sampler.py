"""Looks at every GPU again and again, each with a deadline, and keeps the last look of each.

A scrape only reads what is kept, so that a driver that hangs never hangs a scrape: the look grows old, and once it is
too old its numbers are left out and the GPU is marked stale.
"""

import asyncio
import collections
import os
import pathlib
import stat
import time
from collections.abc import Callable, Mapping

import structlog

from device_plugin.driver import driver_threads, gpu_source
from device_plugin.monitor import cgroups, share_usage, shared_region
from device_plugin.node import api_objects, pods
from gpu_sharing.core import error_codes, identifiers

_MOST_FILES = 16
"""Of a directory that the tenant can write, as many entries are looked at."""

_MOST_MIB = 1 << 30
"""What a library may count on a GPU whose driver does not say how much memory there is."""

log = structlog.get_logger("monitor")


class Sampler:
    """The looks.

    Attributes:
        devices: The GPUs, as they were enumerated last.
        samples: The last look at each that answered.
        regions: What the HAMi-core library of each container counts, by pod and container.
        region_states: How many files of that library are `ok`, of another `version`, `corrupt` or `unreadable`.
        version: Grows with each look.
    """

    def __init__(
        self,
        driver: driver_threads.DriverThreads,
        proc: pathlib.Path,
        hook_path: pathlib.Path,
        here: pods.Pods,
        took: Callable[[float], None],
        failed: Callable[[], None],
    ) -> None:
        """Join what it needs.

        Args:
            driver: Asked with deadlines.
            proc: The host's `/proc`.
            hook_path: Holds `vgpu/containers`.
            here: The pods of this node.
            took: Told how many seconds a look at all GPUs took.
            failed: Told of each GPU that did not answer.
        """
        self._driver = driver
        self._proc = proc
        self._containers = hook_path / "vgpu" / "containers"
        self._pods = here
        self._took = took
        self._tell_failure = failed
        self._told: dict[str, str] = {}
        self.devices: tuple[gpu_source.Device, ...] = ()
        self.samples: dict[identifiers.GpuUuid, share_usage.Sample] = {}
        self.regions: Mapping[tuple[identifiers.PodUid, str], share_usage.Region] = {}
        self.region_states: Mapping[str, int] = {}
        self.version = 0
        self.looked_at = 0.0

    async def run(self, interval_seconds: float) -> None:
        """Look for ever; ends only by cancellation.

        Raises:
            DriverChanged: The driver was replaced; the process has to start anew.
        """
        while True:
            await self.look()
            await asyncio.sleep(interval_seconds)

    async def look(self) -> None:
        """Look at every GPU once, at all of them at the same time."""
        started = time.monotonic()
        try:
            self.devices = tuple(await self._driver.devices())
        except gpu_source.DriverChanged:
            raise
        except gpu_source.GpuSourceError as refused:
            if isinstance(refused, gpu_source.DriverMissing):
                self.devices = ()
            self._failed("all", str(refused))
        else:
            self._told.pop("all", None)
        asked = [device.uuid for device in self.devices if device.uuid not in self._driver.released]
        await asyncio.gather(*(self._look_at(uuid) for uuid in asked))
        known = {device.uuid for device in self.devices}
        self.samples = {uuid: sample for uuid, sample in self.samples.items() if uuid in known}
        totals = {one.uuid: (one.memory_mib or _MOST_MIB) << 20 for one in self.devices}
        self.regions, self.region_states = await asyncio.to_thread(
            self._read_regions, list(self._pods.by_uid.values()), totals
        )
        self.looked_at = time.monotonic()
        self.version += 1
        self._took(self.looked_at - started)

    async def _look_at(self, uuid: identifiers.GpuUuid) -> None:
        try:
            usage = await self._driver.usage(uuid)
        except gpu_source.DriverChanged:
            raise
        except gpu_source.GpuSourceError as refused:
            self._failed(uuid, str(refused))
            return
        self._told.pop(uuid, None)
        taken_at = time.monotonic()
        owners = await asyncio.to_thread(self._owners, usage)
        self.samples[uuid] = share_usage.Sample(usage, taken_at, owners)

    def _owners(self, usage: gpu_source.Usage) -> Mapping[int, cgroups.ContainerOfProcess]:
        # Read anew each time: a number is soon another process's.
        found = ((one.pid, cgroups.container_of(self._proc, one.pid)) for one in usage.processes)
        return {pid: owner for pid, owner in found if owner is not None}

    def _failed(self, what: str, why: str) -> None:
        self._tell_failure()
        if self._told.get(what) != why:
            log.error("a GPU is not measured", error_code=error_codes.MONITOR_NOT_MEASURED, device=what, cause=why)
        self._told[what] = why

    def _read_regions(
        self, here: list[api_objects.Pod], totals: Mapping[identifiers.GpuUuid, int]
    ) -> tuple[Mapping[tuple[identifiers.PodUid, str], share_usage.Region], Mapping[str, int]]:
        found = {}
        states: collections.Counter[str] = collections.Counter(ok=0, version=0, corrupt=0, unreadable=0)
        for pod in here:
            for container in pod.all_containers:
                path = self._region_file(self._containers / f"{pod.uid}_{container.name}")
                if path is None:
                    continue
                mine = f"{pod.key}/{container.name}"
                try:
                    found[pod.uid, container.name] = shared_region.read(path, totals)
                except (shared_region.Unbelievable, OSError) as refused:
                    kind = refused.kind if isinstance(refused, shared_region.Unbelievable) else "unreadable"
                    states[kind] += 1
                    if self._told.get(mine) != kind:
                        log.warning(
                            "a shared region is not believed", error_code=error_codes.MONITOR_SHARED_REGION,
                            container=mine, state=kind, cause=str(refused),
                        )  # fmt: skip
                    self._told[mine] = kind
                else:
                    states["ok"] += 1
                    self._told.pop(mine, None)
        return found, states

    @staticmethod
    def _region_file(folder: pathlib.Path) -> pathlib.Path | None:
        """The newest of a container's regions: a container that starts again may leave an older one."""
        newest, written_at = None, 0
        try:
            with os.scandir(folder) as entries:
                for _, entry in zip(range(_MOST_FILES), entries, strict=False):
                    if entry.name.endswith(".cache"):
                        status = entry.stat(follow_symlinks=False)
                        if newest is None or (stat.S_ISREG(status.st_mode) and status.st_mtime_ns > written_at):
                            newest, written_at = folder / entry.name, status.st_mtime_ns
        except OSError:
            return None
        return newest
