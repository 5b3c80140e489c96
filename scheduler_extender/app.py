"""The composition root: the only place that makes adapters and joins them to what decides.

Starting: listen (so that probes get answers), wait the start delay, list the cluster, be ready. Stopping: SIGTERM
lets calls that are under way finish, hands over to another replica, writes the last events, then ends. A task that ends
although it never should is a defect that nothing here can repair: the process ends too, so that it is started again.
"""

import asyncio
import functools
import gc
import signal
import socket
import time
from collections.abc import Mapping
from typing import Any

import structlog

from gpu_sharing.adapters import (
    certificates,
    discovery,
    events,
    flags,
    health_endpoint,
    kubernetes,
    listeners,
    objects,
    progress,
    watching,
)
from gpu_sharing.core import error_codes
from scheduler_extender.act import (
    binding,
    certificate_keeper,
    gang_planner,
    leadership,
    mix_keeper,
    node_writer,
    pod_writer,
    preempting,
    waking,
)
from scheduler_extender.act.remediating import Remediator
from scheduler_extender.cluster import auditing
from scheduler_extender.cluster.mirror import Mirror
from scheduler_extender.decide.core import DecisionCore
from scheduler_extender.forever import forever
from scheduler_extender.metrics import Metrics
from scheduler_extender.report import cluster_gauges, pod_events, remediation_events
from scheduler_extender.report.decision_events import DecisionEvents
from scheduler_extender.serve import read_access, read_api, server, webhook
from scheduler_extender.settings import Settings

_COMPONENT = "hami-scheduler"
_VERB_CONNECTIONS, _WEBHOOK_CONNECTIONS = 512, 256
"""Only kube-scheduler reaches the verbs; the webhook is open to every pod of the cluster."""
_EVENTS_DRAIN_SECONDS = 3.0
_NODES_AT_A_TIME = 32
"""To count between two turns of others, while starting."""
_BUSY_SECONDS = 0.1
"""After a call from kube-scheduler: while it works through a queue, the next one comes sooner."""

log = structlog.get_logger("extender")


class Extender:
    """One running extender."""

    def __init__(self, settings: Settings, client: kubernetes.Client, process_started_at: float) -> None:
        self._settings = settings
        self._client = client
        self._process_started_at = process_started_at
        self._settled = False
        self._metrics = Metrics()
        self._core = core = DecisionCore(settings, self._metrics)
        identity = settings.identity or socket.gethostname()
        self._leader: leadership.LeaseGuard | leadership.OnlyScheduler = leadership.OnlyScheduler()
        if settings.leader_lease:
            self._leader = leadership.LeaseGuard(client, settings.leader_lease, identity, self._list_again)
        self._recorder = events.EventRecorder(client, _COMPONENT, identity, settings.event_rate, self._is_busy)
        self._decision_events = core.mirror.listener = DecisionEvents(core, self._recorder, self._leads)
        self._watches = _watches(client, core.mirror)
        self._writer = pod_writer.PodWriter(client)
        self._gangs = gang_planner.GangPlanner(self._writer, core, self._decision_events)
        self._preemptor = preempting.Preemptor(self._writer, core, self._decision_events)
        self._remediator = None
        if settings.remediation != "off":
            reports = remediation_events.RemediationEvents(self._recorder, self._metrics)
            self._remediator = Remediator(core, self._writer, node_writer.NodeWriter(client), reports)
        self._binder = binding.Binder(client, core, self._decision_events, self._leads)
        self._keeper = certificate_keeper.of(client, settings) if settings.tls_secret else None
        if self._keeper:
            self._keeper.begin()
        self._verb_server = server.VerbServer(core, self._binder, self._decision_events, self._refusal)
        self._verbs_address = ""
        self._canary = health_endpoint.Canary(
            lambda: health_endpoint.get_own(self._verbs_address, f"/{server.CANARY}"),
            settings.health,
            lambda: self._verb_server.answered_at,
        )
        self._metrics.watch_canary(self._canary)
        self._listeners = self._made_listeners()
        self._metrics.count_events("hami_scheduler", self._recorder)
        self._metrics.follow(self._watches)
        self._counting = progress.Progress("count_nodes", is_due=True)
        self._metrics.show_progress(*(watch.progress for watch in self._watches.values()), self._counting)
        self._metrics.registry.register(cluster_gauges.ClusterGauges(core, self._leads))
        client.observe = self._metrics.api_call

    def _made_listeners(self) -> dict[str, tuple[flags.Address, listeners.Listener]]:
        """What is served where, by name."""
        settings, certificate = self._settings, (self._settings.tls_cert, self._settings.tls_key)
        health = health_endpoint.HealthEndpoint(settings.health, self._components, self._exposition, self._facts)
        servers = {
            "verbs": (
                settings.http_bind,
                listeners.listener(self._verb_server, most_connections=_VERB_CONNECTIONS),
            ),
            "api": (
                settings.api_bind,
                listeners.listener(self._read_api(read_access.OpenGate()))
                if settings.api_bind.is_loopback
                else listeners.listener(self._read_api(read_access.TokenGate(self._client)), *certificate),
            ),
            "health": (settings.health_bind, listeners.listener(health)),
        }
        if settings.secure_api_bind:
            secured = listeners.listener(self._read_api(read_access.TokenGate(self._client)), *certificate)
            servers["secure-api"] = (settings.secure_api_bind, secured)
        if settings.tls_cert:
            hook = webhook.Webhook(self._core.mirror, settings, self._ready, self._metrics)
            servers["webhook"] = (
                settings.webhook_bind,
                listeners.listener(hook, *certificate, most_connections=_WEBHOOK_CONNECTIONS),
            )
        return servers

    def _read_api(self, gate: read_access.Gate) -> read_api.ReadApi:
        return read_api.ReadApi(self._core, functools.partial(pod_events.read, self._client), gate, self._ready)

    async def run(self) -> None:
        """Serve until SIGTERM or SIGINT."""
        stop = asyncio.Event()
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, stop.set)
        async with listeners.serving(self._listeners, "verbs") as addresses, asyncio.TaskGroup() as tasks:
            self._verbs_address = addresses["verbs"]
            work = [
                tasks.create_task(forever(name, coroutine))
                for name, coroutine in (
                    ("cluster", self._follow()),
                    ("events", self._recorder.run()),
                    ("lease", self._leader.run()),
                )
            ]
            work.append(tasks.create_task(self._canary.run()))
            if self._settings.tls_cert and self._settings.tls_key:
                tls = [one for _, one in self._listeners.values()]
                work.append(tasks.create_task(listeners.renew(tls, self._settings.tls_cert, self._settings.tls_key)))
            if self._keeper:
                work.append(tasks.create_task(self._keeper.run()))
            await stop.wait()
            log.info("stopping", binds_under_way=self._binder.under_way)
            listeners.stop(self._listeners)
            seconds = self._settings.stop_seconds if self._settings.stop == "finish" else 0.0
            deadline = time.monotonic() + seconds
            while self._binder.under_way and time.monotonic() < deadline:
                await asyncio.sleep(0.05)
            if not self._binder.under_way:
                await self._leader.hand_over()
            await self._recorder.drain(min(_EVENTS_DRAIN_SECONDS, seconds))
            for task in work:
                task.cancel()

    async def _follow(self) -> None:
        """List and watch, and wake refused pods, once a predecessor's last Binding must be done."""
        await asyncio.sleep(max(self._process_started_at + self._settings.start_delay_seconds - time.monotonic(), 0))
        async with asyncio.TaskGroup() as tasks:
            for name, watch in self._watches.items():
                tasks.create_task(forever(name, watch.run()))
            for api_group, resource, kind, sink in _discovered(self._core.mirror):
                tasks.create_task(discovery.follow(self._client, api_group, resource, kind, sink, _version))
            while not self._synced():
                await asyncio.sleep(0.01)
            # What was read at start stays for long: let the collector skip it from now on.
            gc.collect()
            gc.freeze()
            gc.set_threshold(50_000, 20, 50)
            await self._count_nodes()
            self._core.ledger.take_freed()
            self._settled = True
            log.info("ready", seconds=round(time.monotonic() - self._process_started_at, 3))
            tasks.create_task(forever("doubts", self._binder.reader.run()))
            tasks.create_task(forever("waking", waking.run(self._core, self._writer, self._leads)))
            tasks.create_task(forever("gangs", self._gangs.run(self._leads)))
            if self._core.usage.counts:
                tasks.create_task(forever("usage", self._core.usage.run()))
            if self._settings.request_mix:
                packing = self._core.placer.packing
                keeper = mix_keeper.MixKeeper(self._client, self._settings.request_mix, packing, self._leads)
                tasks.create_task(forever("mix", keeper.run()))
            tasks.create_task(forever("packing", self._core.placer.packing.run(self._core.worker)))
            audit = auditing.Auditor(self._core.ledger, self._metrics, self._leads)
            tasks.create_task(forever("audit", audit.run()))
            if self._remediator:
                tasks.create_task(forever("remediation", self._remediator.run(self._leads)))
            if self._settings.preempts:
                tasks.create_task(forever("preemption", self._preemptor.run(self._leads)))

    async def _count_nodes(self) -> None:
        """Bring the ledger up to date with all that was listed, in short steps."""
        ledger, total = self._core.ledger, self._core.ledger.unsettled_count
        self._counting.begin(total)
        while not ledger.settle_some(_NODES_AT_A_TIME):
            self._counting.reach(max(total - ledger.unsettled_count, 0), total)
            await asyncio.sleep(0)
        self._counting.end()

    async def _list_again(self) -> None:
        await asyncio.gather(*(watch.list_again() for watch in self._watches.values()))

    def _synced(self) -> bool:
        return all(watch.synced for watch in self._watches.values())

    def _ready(self) -> bool:
        """Whether every list was read, and every node counted."""
        return self._settled and self._synced()

    def _leads(self) -> bool:
        return self._leader.leads()

    def _refusal(self) -> server.Refusal | None:
        """Why no call of kube-scheduler may be answered now."""
        if not self._ready():
            return server.Refusal(error_codes.NOT_READY, "the cluster has not been read yet")
        if not self._leads():
            return server.Refusal(error_codes.NOT_LEADER, "not leader")
        return None

    def _is_busy(self) -> bool:
        return time.monotonic() - self._verb_server.last_call_at < _BUSY_SECONDS

    def _components(self) -> Mapping[str, health_endpoint.Component]:
        now = time.monotonic()
        return {
            name: health_endpoint.Component(
                watch.synced,
                watch.problem or ("watching" if watch.synced else "not listed yet"),
                now - (watch.last_heard or self._process_started_at),
            )
            for name, watch in self._watches.items()
        } | {
            "events": health_endpoint.Component(
                not self._recorder.dropped, f"{self._recorder.queued} queued", required=False
            ),
            "ledger": health_endpoint.Component(
                self._settled, "counted" if self._settled else "nodes are being counted"
            ),
            "verbs": self._canary.component(),
        }

    def _facts(self) -> Mapping[str, object]:
        return {
            "leading": self._leads(),
            "leaseHolder": self._leader.holder,
            "generation": self._core.ledger.generation,
            "pods": {"pending": len(self._core.pending), "refused": self._core.pending.refused_count},
            "bindsUnderWay": self._binder.under_way,
            **self._core.mirror.agents.summary(),
        }

    def _exposition(self, accept: str) -> tuple[bytes, str]:
        metrics, certificate = self._metrics, self._settings.tls_cert
        metrics.leading.set(self._leads())
        metrics.ready.set(self._ready())
        metrics.certificate_expiry.set((certificates.expires_at(certificate) if certificate else None) or 0)
        return metrics.exposition(accept)


def _watches(client: kubernetes.Client, mirror: Mirror) -> dict[str, watching.Reflector[Any]]:
    """What is listed and watched from the start, by name."""
    return {
        "nodes": watching.Reflector(client, "/api/v1/nodes", objects.Node, mirror.nodes, _version),
        "pods": watching.Reflector(client, "/api/v1/pods", objects.Pod, mirror.pods, _version),
        "quotas": watching.Reflector(client, "/api/v1/resourcequotas", objects.ResourceQuota, mirror.quotas, _version),
    }


def _discovered(mirror: Mirror) -> list[tuple[str, str, type[Any], watching.Sink[Any]]]:
    """What is followed where the cluster has it: API group, resource, kind, and what it feeds."""
    groups = [(api_group, "podgroups", objects.PodGroup, sink) for api_group, sink in mirror.groups.items()]
    return [
        ("resource.k8s.io", "resourceslices", objects.ResourceSlice, mirror.slices),
        ("resource.k8s.io", "deviceclasses", objects.DeviceClass, mirror.classes),
        *groups,
    ]


def _version(
    item: objects.Node
    | objects.Pod
    | objects.ResourceQuota
    | objects.ResourceSlice
    | objects.DeviceClass
    | objects.PodGroup,
) -> str:
    return item.metadata.resource_version


async def run(settings: Settings, process_started_at: float) -> None:
    """Run one extender until SIGTERM or SIGINT.

    Raises:
        SettingsError: It cannot reach a cluster by its settings.
    """
    async with kubernetes.Client(settings.kubeconfig, "hami-scheduler-extender") as client:
        await Extender(settings, client, process_started_at).run()
