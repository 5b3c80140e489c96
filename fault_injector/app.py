"""Joins the parts: the controller with its API, or the agent of a node.

Stopping: SIGTERM ends the calls that are under way, then recovers every fault unless the settings say otherwise.
"""

import asyncio
import signal
from collections.abc import Mapping

import orjson
import structlog

from fault_injector import access, agent, consent, injector, measurements, server, tracker
from fault_injector.backends import Backend, chaos_mesh, dcgm, kmsg, network_policy, node_agent
from fault_injector.metrics import Metrics
from fault_injector.settings import Settings
from gpu_sharing.adapters import flags, health_endpoint, kubernetes, listeners
from gpu_sharing.core import errors

log = structlog.get_logger("faults")


async def run(settings: Settings) -> None:
    """Run until SIGTERM or SIGINT.

    Raises:
        SettingsError: It cannot reach a cluster by its settings.
        FaultRefused: The record of faults cannot be read.
    """
    stop = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    async with kubernetes.Client(settings.kubeconfig, "hami-fault-injector") as client:
        await (_run_agent(settings, client, stop) if settings.node_name else Controller(settings, client).run(stop))


def _config_maps(settings: Settings) -> tuple[str, str]:
    """Return the paths of the record and of the agents' results."""
    path = f"/api/v1/namespaces/{settings.namespace}/configmaps/{settings.record_name}"
    return path, f"{path}-results"


async def _run_agent(settings: Settings, client: kubernetes.Client, stop: asyncio.Event) -> None:
    backends: list[Backend] = [kmsg.KernelLog(settings.kmsg), dcgm.Dcgm(settings.dcgmi)]
    label = consent.NodeLabels(client)
    works = agent.Agent(client, settings.node_name, backends, label, _config_maps(settings))
    series = Metrics()
    client.observe = series.api_call

    def components() -> Mapping[str, health_endpoint.Component]:
        return {"record": health_endpoint.Component(not works.problem, works.problem or "read", required=False)}

    probes = health_endpoint.HealthEndpoint(settings.health, components, series.exposition, dict)
    async with listeners.serving({"health": (settings.health_bind, listeners.listener(probes))}):
        task = asyncio.create_task(works.run())
        await stop.wait()
        task.cancel()


class Controller:
    """The process that has the API and the record."""

    def __init__(self, settings: Settings, client: kubernetes.Client) -> None:
        self._settings = settings
        self._client = client
        self._series = Metrics()
        client.observe = self._series.api_call
        self._injector: injector.Injector | None = None
        self._api_address = ""
        self._canary = health_endpoint.Canary(self._call_own_api, settings.health)
        self._series.watch_canary(self._canary)

    async def _call_own_api(self) -> None:
        if self._settings.api_bind.is_loopback:  # Elsewhere it demands a token, which this process has none of.
            await health_endpoint.get_own(self._api_address, "/api/v1/faults")

    async def run(self, stop: asyncio.Event) -> None:
        """Serve until stopped.

        Raises:
            FaultRefused: The record of faults cannot be read.
        """
        self._injector = running = await self._made()
        await running.start()
        await self._delete_old_results(running)
        served = self._listeners(running)
        async with listeners.serving(served, "health") as addresses, asyncio.TaskGroup() as tasks:
            self._api_address = addresses["api"]
            work = [tasks.create_task(running.run()), tasks.create_task(self._canary.run())]
            if self._settings.tls_cert and self._settings.tls_key:
                tls = [one for _, one in served.values()]
                work.append(tasks.create_task(listeners.renew(tls, self._settings.tls_cert, self._settings.tls_key)))
            await stop.wait()
            log.info("stopping")
            for task in work:
                task.cancel()
            if self._settings.recovers_at_exit:
                await running.recover_all()

    async def _made(self) -> injector.Injector:
        settings, client = self._settings, self._client
        results = _config_maps(settings)[1]
        try:
            has_chaos = await chaos_mesh.installed(client)
        except errors.KubernetesError as cause:
            log.warning("APIs not discovered", cause=str(cause))
            has_chaos = False
        backends: list[Backend] = [
            node_agent.NodeAgents(client, results, "kmsg", kmsg.KernelLog.kinds),
            node_agent.NodeAgents(client, results, "dcgm", frozenset(dcgm.FIELDS)),
            network_policy.NetworkPolicies(client, settings.namespace),
            chaos_mesh.ChaosMesh(client, settings.namespace, is_installed=has_chaos),
        ]
        keep = tracker.ConfigMapKeep(client, settings.namespace, settings.record_name)
        return injector.Injector(keep, backends, consent.NodeLabels(client), self._series)

    async def _delete_old_results(self, running: injector.Injector) -> None:
        """Create the ConfigMap of the agents' results, or delete those of finished faults."""
        record, results = _config_maps(self._settings)
        in_effect = {fault.id for fault in running.recorded if fault.is_in_effect}
        try:
            known = (await self._client.get(results, node_agent.ConfigMap)).data or {}
            old = {name: None for name in known if name not in in_effect}
            await self._client.patch(results, orjson.dumps({"data": old}))
        except errors.NotFound:
            name = results.rpartition("/")[2]
            body = {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": name}}
            await self._client.post(record.rpartition("/")[0], orjson.dumps(body))

    def _listeners(self, running: injector.Injector) -> dict[str, tuple[flags.Address, listeners.Listener]]:
        settings, certificate = self._settings, (self._settings.tls_cert, self._settings.tls_key)
        measured = measurements.Measurements(self._client, lambda: running.recorded)
        probes = health_endpoint.HealthEndpoint(settings.health, self._components, self._series.exposition, dict)
        by_token = server.FaultApi(running, measured, access.TokenGate(self._client))
        served = {
            "api": (
                settings.api_bind,
                listeners.listener(server.FaultApi(running, measured, access.LoopbackGate()))
                if settings.api_bind.is_loopback
                else listeners.listener(by_token, *certificate),
            ),
            "health": (settings.health_bind, listeners.listener(probes)),
        }
        if settings.secure_api_bind:
            served["secure-api"] = (settings.secure_api_bind, listeners.listener(by_token, *certificate))
        return served

    def _components(self) -> Mapping[str, health_endpoint.Component]:
        running = self._injector
        is_ready = running is not None and running.is_ready
        problem = running.problem if running is not None else ""
        reason = problem or ("read" if is_ready else "not read yet")
        # A record that cannot be saved while the API server is broken on purpose must not restart the process.
        return {"record": health_endpoint.Component(is_ready, reason), "api": self._canary.component()}
