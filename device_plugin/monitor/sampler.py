"""Samples every GPU periodically, each with a deadline, and keeps the latest sample of each.

A scrape reads the samples only, so that a hung driver never hangs a scrape: a sample that is too old is left out, and
its GPU is marked stale.
"""

import asyncio
import collections
import os
import pathlib
import stat
import time
from collections.abc import Mapping

import structlog

from device_plugin.driver import gpu_source
from device_plugin.driver.driver_threads import DriverThreads
from device_plugin.monitor import cgroups, share_usage, shared_region
from device_plugin.monitor.collector import Metrics
from device_plugin.node.api_objects import Pod
from device_plugin.node.pods import Pods
from gpu_sharing.core import error_codes, identifiers

_MOST_FILES = 16
"""Entries that are read of a directory that the tenant can write."""

_MOST_MIB = 1 << 30
"""Upper bound for a library's count on a GPU whose driver reports no memory."""

log = structlog.get_logger("monitor")


class Sampler:
    """Samples the node's GPUs.

    Attributes:
        devices: The GPUs, as the driver listed them last.
        samples: The latest sample of each.
        regions: Counts of the HAMi-core library of each container, by pod and container.
        region_states: How many files of that library are `ok`, of another `version`, `corrupt` or `unreadable`.
        version: Grows with each round of samples.
        sampled_at: When the last round ended, monotonic seconds; 0 before that.
    """

    def __init__(
        self,
        *,
        driver: DriverThreads,
        proc: pathlib.Path,
        hook_path: pathlib.Path,
        pods: Pods,
        metrics: Metrics,
    ) -> None:
        """Set what it reads and calls.

        Args:
            driver: Its calls have deadlines.
            proc: The host's `/proc`.
            hook_path: Holds `vgpu/containers`.
            pods: The pods of this node.
            metrics: Count rounds and failures.
        """
        self._driver = driver
        self._proc = proc
        self._containers = hook_path / "vgpu" / "containers"
        self._pods = pods
        self._metrics = metrics
        self._logged: dict[str, str] = {}
        self.devices: tuple[gpu_source.Device, ...] = ()
        self.samples: dict[identifiers.GpuUuid, share_usage.Sample] = {}
        self.regions: Mapping[tuple[identifiers.PodUid, str], share_usage.Region] = {}
        self.region_states: Mapping[str, int] = {}
        self.version = 0
        self.sampled_at = 0.0

    async def run(self, interval_seconds: float) -> None:
        """Sample until cancelled.

        Raises:
            DriverChanged: The driver was replaced; the process has to start again.
        """
        while True:
            await self.sample_all()
            await asyncio.sleep(interval_seconds)

    async def sample_all(self) -> None:
        """Sample every GPU once, all at the same time."""
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
            self._logged.pop("all", None)
        asked = [device.uuid for device in self.devices if device.uuid not in self._driver.released]
        await asyncio.gather(*(self._sample(uuid) for uuid in asked))
        known = {device.uuid for device in self.devices}
        self.samples = {uuid: sample for uuid, sample in self.samples.items() if uuid in known}
        totals = {one.uuid: (one.memory_mib or _MOST_MIB) << 20 for one in self.devices}
        self.regions, self.region_states = await asyncio.to_thread(
            self._read_regions, list(self._pods.by_uid.values()), totals
        )
        self.sampled_at = time.monotonic()
        self.version += 1
        self._metrics.sample_seconds.observe(self.sampled_at - started)

    async def _sample(self, uuid: identifiers.GpuUuid) -> None:
        try:
            usage = await self._driver.usage(uuid)
        except gpu_source.DriverChanged:
            raise
        except gpu_source.GpuSourceError as refused:
            self._failed(uuid, str(refused))
            return
        self._logged.pop(uuid, None)
        taken_at = time.monotonic()
        containers = await asyncio.to_thread(self._containers_of, usage)
        self.samples[uuid] = share_usage.Sample(usage, taken_at, containers)

    def _containers_of(self, usage: gpu_source.Usage) -> Mapping[int, cgroups.ContainerOfProcess]:
        # Read each time: a process id is reused soon.
        containers = ((process.pid, cgroups.container_of(self._proc, process.pid)) for process in usage.processes)
        return {pid: container for pid, container in containers if container is not None}

    def _failed(self, subject: str, cause: str) -> None:
        self._metrics.failures.inc()
        if self._logged.get(subject) != cause:
            log.error("GPU not sampled", error_code=error_codes.MONITOR_NOT_MEASURED, device=subject, cause=cause)
        self._logged[subject] = cause

    def _read_regions(
        self, pods: list[Pod], totals: Mapping[identifiers.GpuUuid, int]
    ) -> tuple[Mapping[tuple[identifiers.PodUid, str], share_usage.Region], Mapping[str, int]]:
        counts = {}
        states: collections.Counter[str] = collections.Counter(ok=0, version=0, corrupt=0, unreadable=0)
        for pod in pods:
            for container in pod.all_containers:
                path = self._region_file(self._containers / f"{pod.uid}_{container.name}")
                if path is None:
                    continue
                mine = f"{pod.key}/{container.name}"
                try:
                    counts[pod.uid, container.name] = shared_region.read(path, totals)
                except (shared_region.InvalidRegion, OSError) as refused:
                    kind = refused.kind if isinstance(refused, shared_region.InvalidRegion) else "unreadable"
                    states[kind] += 1
                    if self._logged.get(mine) != kind:
                        log.warning(
                            "usage file not accepted", error_code=error_codes.MONITOR_SHARED_REGION,
                            container=mine, state=kind, cause=str(refused),
                        )  # fmt: skip
                    self._logged[mine] = kind
                else:
                    states["ok"] += 1
                    self._logged.pop(mine, None)
        return counts, states

    @staticmethod
    def _region_file(folder: pathlib.Path) -> pathlib.Path | None:
        """Return the newest of a container's files: a container that starts again may leave an older one."""
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
