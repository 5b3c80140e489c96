"""Joins the node's side and the kubelet's side, starts them in order, and ends them.

Start: answer probes, read the node and its pods, read the GPUs, publish them, write what containers may need, then
register with the kubelet. End: SIGTERM ends the calls and writes the last events; containers go on.
"""

import asyncio
import time
from collections.abc import Callable

import structlog

from device_plugin.driver import gpu_source, pid_namespace
from device_plugin.driver.driver_threads import DriverThreads
from device_plugin.kubelet_side import KubeletSide
from device_plugin.metrics import Metrics
from device_plugin.node_side import RELEASE_RETRY_SECONDS, NodeSide
from device_plugin.settings import Settings
from device_plugin.status import Status
from gpu_sharing.adapters import health_endpoint, kubernetes, metrics_registry, stdlib_http
from gpu_sharing.core import error_codes

_START_SECONDS = 10.0
"""How long the start waits for the node, and as long again for its pods: the kubelet fails pods for good that it admits
while no plugin is registered, so the wait must end."""
_EVENTS_DRAIN_SECONDS = 3.0

log = structlog.get_logger("plugin")


class Plugin:
    """One running device plugin.

    Args:
        settings: How it runs.
        client: The API server.
        connect: Connects to the driver; raises `DriverMissing` while there is none.
    """

    def __init__(
        self, settings: Settings, client: kubernetes.Client, connect: Callable[[], gpu_source.GpuSource]
    ) -> None:
        self._settings = settings
        self._started_at = time.monotonic()
        metrics = Metrics()
        client.observe = metrics.api_call
        self._driver = DriverThreads(connect, settings.nvml_timeout_seconds)
        self._node_side = NodeSide(settings, client, self._driver, metrics)
        self._kubelet_side = KubeletSide(settings, client, self._node_side, metrics)
        self._node_side.offer_changed = self._kubelet_side.ids.refresh
        metrics.count_events("hami_device_plugin", self._node_side.recorder)
        metrics.follow({"pods": self._node_side.pod_watch, "node": self._node_side.node_watch.reflector})
        metrics.show_progress(*self._works())
        registration = self._kubelet_side.registration
        self._canary = health_endpoint.Canary(
            registration.call_own_socket, settings.health, lambda: self._kubelet_side.answered_at
        )
        metrics.watch_canary(self._canary)
        status = Status(self._node_side, self._kubelet_side, metrics, self._canary)
        self._endpoint = health_endpoint.HealthEndpoint(
            settings.health, status.components, status.exposition, status.facts
        )

    def _works(self) -> tuple[metrics_registry.Work, ...]:
        """Long work whose progress is shown."""
        side = self._node_side
        return side.pod_watch.progress, self._kubelet_side.restoring, side.migs.progress, side.mps_start

    async def run(self, stop: asyncio.Event) -> None:
        """Serve until stopped.

        Raises:
            DriverChanged: The driver was replaced; the process has to start again.
            SettingsError: There are more slots than a kubelet accepts.
        """
        self._warn()
        side = self._node_side
        try:
            async with (
                stdlib_http.serving("health", self._settings.health_bind, self._endpoint.answer),
                asyncio.TaskGroup() as tasks,
            ):
                work = [
                    tasks.create_task(part)
                    for part in (side.recorder.run(), side.pod_watch.run(), self._canary.run(), self._serve())
                ]
                await stop.wait()
                log.info("stopping")
                await side.recorder.drain(_EVENTS_DRAIN_SECONDS)
                for task in work:
                    task.cancel()
        except BaseExceptionGroup as group:
            raise _first(group) from group
        finally:
            await self._kubelet_side.resources.close()
            self._driver.close()

    def _warn(self) -> None:
        """Report settings and surroundings that take something away."""
        nested = pid_namespace.problem(self._settings.proc_dir)
        if nested:  # The monitor runs in the same namespace.
            self._node_side.problems.report(error_codes.MONITOR_PID_NAMESPACE, nested)
        for word in self._settings.unknown_xids:
            log.warning("not an XID", variable="DP_DISABLE_HEALTHCHECKS or DP_ENABLE_HEALTHCHECKS", word=word)

    async def _serve(self) -> None:
        node_side, kubelet_side = self._node_side, self._kubelet_side
        await node_side.read_node(self._started_at + _START_SECONDS)
        async with asyncio.TaskGroup() as tasks:
            for part in (
                node_side.publish(),
                node_side.node_watch.run(RELEASE_RETRY_SECONDS),
                node_side.health.follow_xids(),
                kubelet_side.ids.run(),
                kubelet_side.truncate_folders(),
                kubelet_side.delete_leftovers(),
                kubelet_side.check_cdi(),
            ):
                tasks.create_task(part)
            is_registering = False
            while True:
                await node_side.read_gpus()
                if not is_registering and node_side.delivery.can_deliver:
                    tasks.create_task(kubelet_side.register(self._started_at + 2 * _START_SECONDS))
                    is_registering = True
                await asyncio.sleep(self._settings.health_interval_seconds)


def _first(group: BaseExceptionGroup[BaseException]) -> BaseException:
    inner = group.exceptions[0]
    return _first(inner) if isinstance(inner, BaseExceptionGroup) else inner
