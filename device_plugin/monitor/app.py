"""Joins the monitor's parts: it samples GPUs, follows the pods of its node, and answers Prometheus and probes.

It only reads, and shares no state with the device plugin, so that either may be restarted alone.
"""

import asyncio
import contextlib
import time
from collections.abc import Callable, Mapping

import structlog

from device_plugin.driver import gpu_source, pid_namespace
from device_plugin.driver.driver_threads import DriverThreads
from device_plugin.kubelet import podresources
from device_plugin.monitor import collector, share_usage
from device_plugin.monitor.sampler import Sampler
from device_plugin.monitor.settings import Settings
from device_plugin.node import api_objects, node_watch, pods, release
from gpu_sharing.adapters import health_endpoint, kubernetes, stdlib_http
from gpu_sharing.core import error_codes, errors, gpus, identifiers, records

_RELEASE_RETRY_SECONDS = 30.0
"""How long after a failed release of GPUs it is tried again."""
_FIRST_NODE_SECONDS = 10.0
"""How long the first sample waits for the node, whose annotation lists GPUs that must stay closed."""

log = structlog.get_logger("monitor")


class Monitor:
    """One running monitor."""

    def __init__(
        self, settings: Settings, client: kubernetes.Client, connect: Callable[[], gpu_source.GpuSource]
    ) -> None:
        """Join the parts.

        Args:
            settings: How it runs.
            client: The API server.
            connect: Connects to the driver; raises `DriverMissing` while there is none.
        """
        self._settings = settings
        self._started_at = time.monotonic()
        self._pods = pods.Pods(settings.resource_names, self._pods_changed)
        self._pods_version = 0
        self._pod_watch = pods.watch(client, settings.node_name, self._pods)
        self._driver = DriverThreads(connect, settings.nvml_timeout_seconds)
        self._metrics = collector.Metrics(lambda: self._view, compatible=settings.compatible)
        self._sampler = Sampler(
            driver=self._driver,
            proc=settings.proc_dir,
            hook_path=settings.hook_path,
            pods=self._pods,
            metrics=self._metrics,
        )
        client.observe = self._metrics.api_call
        self._resources = podresources.PodResources(settings.kubelet_dir, settings.resource_names.count)
        self._namespace_problem = pid_namespace.problem(settings.proc_dir)
        self._node_watch = node_watch.NodeWatch(client, settings.node_name, self._node_changed)
        self._metrics.follow({"pods": self._pod_watch, "node": self._node_watch.reflector})
        self._holds_released = False
        self._offered: dict[identifiers.GpuUuid, gpus.Gpu] = {}
        self._without_record: int | None = None
        self._kubelet_problem = "not called yet"
        self._view = collector.MonitorView(node=settings.node_name, started_at=self._started_at)
        self._shown: tuple[object, ...] = ()
        self._text: tuple[bytes, str] = (b"", "")
        self._address = ""
        self._scraped_at = float("-inf")
        self._canary = health_endpoint.Canary(self._scrape_itself, settings.health, lambda: self._scraped_at)
        self._metrics.watch_canary(self._canary)
        self._endpoint = health_endpoint.HealthEndpoint(
            settings.health, self._components, self._exposition, self._facts
        )

    async def run(self, stop: asyncio.Event) -> None:
        """Serve until stopped.

        Raises:
            DriverChanged: The driver was replaced; the process has to start again.
        """
        if self._namespace_problem:
            log.error(
                "the use of containers cannot be measured",
                error_code=error_codes.MONITOR_PID_NAMESPACE,
                cause=self._namespace_problem,
            )
        try:
            async with (
                stdlib_http.serving("health", self._settings.bind, self._endpoint.answer) as self._address,
                asyncio.TaskGroup() as tasks,
            ):
                work = [
                    tasks.create_task(one)
                    for one in (
                        self._pod_watch.run(),
                        self._sample(),
                        self._ask_kubelet(),
                        self._node_watch.run(_RELEASE_RETRY_SECONDS),
                        self._canary.run(),
                    )
                ]
                await stop.wait()
                log.info("stopping")
                for task in work:
                    task.cancel()
        except BaseExceptionGroup as group:
            changed = group.subgroup(gpu_source.DriverChanged)
            if changed is None:
                raise
            raise gpu_source.DriverChanged("the driver was replaced under this process") from group
        finally:
            await self._resources.close()
            self._driver.close()

    async def _sample(self) -> None:
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self._node_watch.passed_on.wait(), _FIRST_NODE_SECONDS)
        await self._sampler.run(self._settings.interval_seconds)

    async def _node_changed(self, node: api_objects.Node) -> None:
        """Set which GPUs are offered and which must stay closed, by the node's annotations."""
        annotations = node.metadata.annotations or {}
        with contextlib.suppress(errors.CorruptRecord):
            self._offered = {
                gpu.uuid: gpu for gpu in records.decode_inventory(annotations.get(records.INVENTORY, "[]"))
            }
        self._pods_changed()
        indices = {uuid: gpu.index for uuid, gpu in self._offered.items()}
        indices |= {device.uuid: device.index for device in self._sampler.devices}
        released = release.positions(release.released_gpus(annotations), indices)
        if released.keys() == self._driver.released and not self._holds_released:
            return
        self._holds_released = True
        refusal = await release.release_gpus(self._driver, released)
        if refusal:
            log.error("GPUs are not released", error_code=error_codes.PLUGIN_GPU_NOT_RELEASED, cause=refusal)
            return
        self._holds_released = False
        log.info("GPUs are released", devices=sorted(released))

    async def _ask_kubelet(self) -> None:
        """Count the containers that hold GPUs by the kubelet and have no record, until cancelled."""
        while True:
            try:
                listed = await self._resources.listed()
            except podresources.Unanswered as problem:
                self._without_record, self._kubelet_problem = None, str(problem)
            else:
                self._kubelet_problem = ""
                recorded = {pod.key for pod in self._pods.by_uid.values() if pod.annotations.get(records.ALLOCATED)}
                self._without_record = sum(f"{one.namespace}/{one.pod}" not in recorded for one in listed)
            self._pods_changed()
            await asyncio.sleep(self._settings.interval_seconds)

    def _pods_changed(self) -> None:
        self._pods_version += 1

    def _stale(self, now: float) -> frozenset[identifiers.GpuUuid]:
        oldest = now - self._settings.stale_seconds
        samples = self._sampler.samples
        return frozenset(
            device.uuid
            for device in self._sampler.devices
            if (samples[device.uuid].taken_at if device.uuid in samples else self._started_at) < oldest
        )

    async def _scrape_itself(self) -> None:
        scraped_at = self._scraped_at
        await health_endpoint.get_own(self._address, "/metrics")
        self._scraped_at = scraped_at  # Only scrapes by others count.

    def _exposition(self, accept: str) -> tuple[bytes, str]:
        """Return the series, encoded again only after a change, however many scrape."""
        sampler, now = self._sampler, time.monotonic()
        self._scraped_at = now
        stale = self._stale(now)
        shown = (sampler.version, self._pods_version, stale, accept, self._canary.success)
        if shown != self._shown:
            instances = {(device.uuid, one.start): one.uuid for device in sampler.devices for one in device.migs}
            fresh = {uuid: sample for uuid, sample in sampler.samples.items() if uuid not in stale}
            usage = share_usage.usage_of_shares(
                list(self._pods.by_uid.values()),
                self._settings.resource_names,
                fresh,
                instances,
                region_of=lambda pod, container: sampler.regions.get((pod.uid, container), {}),
                sees_processes=not self._namespace_problem,
            )
            self._view = collector.MonitorView(
                node=self._settings.node_name,
                devices=sampler.devices,
                offered=self._offered,
                samples=sampler.samples,
                stale=stale,
                usage=usage,
                region_states=sampler.region_states,
                without_record=self._without_record,
                started_at=self._started_at,
            )
            self._text = self._metrics.exposition(accept)
            self._shown = shown
        return self._text

    def _components(self) -> Mapping[str, health_endpoint.Component]:
        now = time.monotonic()
        sampler, watch = self._sampler, self._pod_watch
        stale = self._stale(now)
        return {
            "gpus": health_endpoint.Component(
                bool(sampler.devices) and not stale,
                f"{len(stale)} of {len(sampler.devices)} stale" if sampler.devices else "no driver, or no GPU",
                now - (sampler.sampled_at or self._started_at),
                required=not sampler.sampled_at,  # Not ready before the first sample; without a GPU thereafter.
            ),
            "pods": health_endpoint.Component(
                watch.synced,
                watch.problem or ("watching" if watch.synced else "not listed yet"),
                now - (watch.last_heard or self._started_at),
            ),
            "processes": health_endpoint.Component(
                not self._namespace_problem, self._namespace_problem or "in the host's PID namespace", required=False
            ),
            "kubelet": health_endpoint.Component(
                not self._kubelet_problem, self._kubelet_problem or "answers", required=False
            ),
            "scrape": self._canary.component(),
        }

    def _facts(self) -> Mapping[str, object]:
        return {"node": self._settings.node_name, "samples": self._sampler.version}
