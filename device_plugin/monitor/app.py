"""Joins the monitor's parts: it looks at GPUs, follows the pods of its node, and answers Prometheus and probes.

It only reads. It shares no state with the device plugin, so that either may be restarted alone.
"""

import asyncio
import contextlib
import time
from collections.abc import Callable, Mapping

import structlog

from device_plugin.driver import driver_threads, gpu_source, pid_namespace
from device_plugin.kubelet import podresources
from device_plugin.monitor import collector, sampler, settings, share_usage
from device_plugin.node import api_objects, node_watch, pods, release
from gpu_sharing.adapters import health_endpoint, kubernetes, stdlib_http
from gpu_sharing.core import error_codes, errors, gpus, identifiers, records

_AGAIN_SECONDS = 30.0
"""After so long a release that the driver did not carry out is tried again."""
_FIRST_NODE_SECONDS = 10.0
"""How long the first look at the GPUs waits for the node, which says what GPUs must not be touched."""

log = structlog.get_logger("monitor")


class Monitor:
    """One running monitor."""

    def __init__(
        self, options: settings.Settings, client: kubernetes.Client, connect: Callable[[], gpu_source.GpuSource]
    ) -> None:
        """Join the parts.

        Args:
            options: How it runs.
            client: The API server.
            connect: Finds the driver; raises `DriverMissing` while there is none.
        """
        self._options = options
        self._client = client
        self._started_at = time.monotonic()
        self._pods = pods.Pods(options.resource_names, self._pods_changed)
        self._pods_version = 0
        self._pod_watch = pods.watch(client, options.node_name, self._pods)
        self._driver = driver_threads.DriverThreads(connect, options.nvml_timeout_seconds)
        self._metrics = collector.Metrics(lambda: self._view, compatible=options.compatible)
        self._sampler = sampler.Sampler(
            self._driver, options.proc_dir, options.hook_path, self._pods,
            self._metrics.look_seconds.observe, self._metrics.failures.inc,
        )  # fmt: skip
        client.observe = self._metrics.api_call
        self._resources = podresources.PodResources(options.kubelet_dir, options.resource_names.count)
        self._namespace_trouble = pid_namespace.problem(options.proc_dir)
        self._node_watch = node_watch.NodeWatch(client, options.node_name, self._node_changed)
        self._metrics.follow({"pods": self._pod_watch, "node": self._node_watch.reflector})
        self._holds_released = False
        self._offered: dict[identifiers.GpuUuid, gpus.Gpu] = {}
        self._without_record: int | None = None
        self._kubelet_trouble = "not asked yet"
        self._view = collector.MonitorView(options.node_name, started_at=self._started_at)
        self._shown: tuple[object, ...] = ()
        self._text: tuple[bytes, str] = (b"", "")
        self._endpoint = health_endpoint.HealthEndpoint(options.health, self._components, self._exposition, self._facts)

    async def run(self, stop: asyncio.Event) -> None:
        """Serve until told to stop.

        Raises:
            DriverChanged: The driver was replaced; the process has to start anew.
        """
        if self._namespace_trouble:
            log.error(
                "what containers use is not known", error_code=error_codes.MONITOR_PID_NAMESPACE,
                cause=self._namespace_trouble,
            )  # fmt: skip
        try:
            async with (
                stdlib_http.serving("health", self._options.bind, self._endpoint.answer),
                asyncio.TaskGroup() as tasks,
            ):
                work = [
                    tasks.create_task(one)
                    for one in (
                        self._pod_watch.run(),
                        self._sample(),
                        self._ask_kubelet(),
                        self._node_watch.run(_AGAIN_SECONDS),
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
            await asyncio.wait_for(self._node_watch.handed_on.wait(), _FIRST_NODE_SECONDS)
        await self._sampler.run(self._options.interval_seconds)

    async def _node_changed(self, node: api_objects.Node) -> None:
        """What of each GPU may be promised, and which must not be touched, as the node's annotations say."""
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
        """Whether the kubelet gave GPUs to containers that no record knows."""
        while True:
            try:
                listed = await self._resources.listed()
            except podresources.Unanswered as trouble:
                self._without_record, self._kubelet_trouble = None, str(trouble)
            else:
                self._kubelet_trouble = ""
                recorded = {pod.key for pod in self._pods.by_uid.values() if pod.annotations.get(records.ALLOCATED)}
                self._without_record = sum(f"{one.namespace}/{one.pod}" not in recorded for one in listed)
            self._pods_changed()
            await asyncio.sleep(self._options.interval_seconds)

    def _pods_changed(self) -> None:
        self._pods_version += 1

    def _stale(self, now: float) -> frozenset[identifiers.GpuUuid]:
        oldest = now - self._options.stale_seconds
        samples = self._sampler.samples
        return frozenset(
            device.uuid
            for device in self._sampler.devices
            if (samples[device.uuid].taken_at if device.uuid in samples else self._started_at) < oldest
        )

    def _exposition(self, accept: str) -> tuple[bytes, str]:
        """The series; printed once for as long as nothing has changed, however many scrape."""
        looks = self._sampler
        stale = self._stale(time.monotonic())
        shown = (looks.version, self._pods_version, stale, accept)
        if shown != self._shown:
            instances = {(device.uuid, one.start): one.uuid for device in looks.devices for one in device.migs}
            fresh = {uuid: sample for uuid, sample in looks.samples.items() if uuid not in stale}
            joined = share_usage.usage_of_shares(
                self._pods.by_uid.values(),
                self._options.resource_names,
                fresh,
                instances,
                lambda pod, container: looks.regions.get((pod.uid, container), {}),
                sees_processes=not self._namespace_trouble,
            )
            self._view = collector.MonitorView(
                self._options.node_name, looks.devices, self._offered, looks.samples, stale, joined,
                looks.region_states, self._without_record, self._started_at,
            )  # fmt: skip
            self._text = self._metrics.exposition(accept)
            self._shown = shown
        return self._text

    def _components(self) -> Mapping[str, health_endpoint.Component]:
        now = time.monotonic()
        looks, watch = self._sampler, self._pod_watch
        stale = self._stale(now)
        return {
            "gpus": health_endpoint.Component(
                bool(looks.devices) and not stale,
                f"{len(stale)} of {len(looks.devices)} stale" if looks.devices else "no driver, or no GPU",
                now - (looks.looked_at or self._started_at),
                required=not looks.looked_at,  # Not ready before the first look; without a GPU thereafter.
            ),
            "pods": health_endpoint.Component(
                watch.synced,
                watch.trouble or ("watching" if watch.synced else "not listed yet"),
                now - (watch.last_heard or self._started_at),
            ),
            "processes": health_endpoint.Component(
                not self._namespace_trouble, self._namespace_trouble or "in the host's PID namespace", required=False
            ),
            "kubelet": health_endpoint.Component(
                not self._kubelet_trouble, self._kubelet_trouble or "answers", required=False
            ),
        }

    def _facts(self) -> Mapping[str, object]:
        return {"node": self._options.node_name, "looks": self._sampler.version}
