"""Acts on faulty GPUs and nodes as the rules say: cordon, evict, request a reset or reboot, and release on recovery.

The leader plans at each step from what the nodes report and what is written on them, and does what the plan permits,
one act at a time. An act and its entry in the node's history are one write with the node's version as a precondition,
so that neither a crash nor a second leader repeats one. An eviction is recorded before it is tried, so that a process
that is killed over and over stays within the budget. No plan is made before the watch has shown the writes of the last
one, because the budget counts what the nodes say.
"""

import collections
import time
from collections.abc import Callable, Iterable

import structlog

from gpu_sharing.core import errors, identifiers, remediation
from gpu_sharing.core.remediation import Act
from gpu_sharing.core.remediation_history import History
from gpu_sharing.core.remediation_rules import Action
from scheduler_extender import set_aside
from scheduler_extender.act import leadership, node_changes
from scheduler_extender.act.migrations import Migrations
from scheduler_extender.act.node_writer import NodeWriter
from scheduler_extender.act.pod_writer import PodWriter
from scheduler_extender.decide.core import DecisionCore
from scheduler_extender.fleet import facts
from scheduler_extender.report.remediation_events import RemediationEvents

_EVERY_SECONDS = 1.0
_SEEN_WITHIN_SECONDS = 30.0
_LONGEST_REST_SECONDS = 60.0
_Key = tuple[identifiers.NodeName, Action, identifiers.GpuUuid]
_Gpus = dict[identifiers.NodeName, set[identifiers.GpuUuid]]

log = structlog.get_logger("remediation")


class Remediator:
    """Plans and acts, on the leader alone.

    Attributes:
        migrations: The evicted pods whose successors do not run yet.
    """

    def __init__(
        self,
        core: DecisionCore,
        pods: PodWriter,
        nodes: NodeWriter,
        reports: RemediationEvents,
        wall_clock: Callable[[], float] = time.time,
    ) -> None:
        self._core = core
        self._rules = core.settings.remediation_rules
        self._pods = pods
        self._nodes = nodes
        self._reports = reports
        self._wall_clock = wall_clock
        self._since: remediation.Since = {}
        """In seconds of `core.clock`, which no step of the wall clock changes."""
        self._opened_at: float | None = None
        self._unseen: dict[identifiers.NodeName, tuple[History, float]] = {}
        """Histories that were written and that the watch has not shown, each with the time until which that counts."""
        self._rests_until: dict[_Key, float] = {}
        """When an act is tried again that the API server refused or did not answer."""
        self.migrations = Migrations(core.ledger, core.pending)

    async def run(self, leads: Callable[[], bool]) -> None:
        """Act for ever while leading; ends only by cancellation."""

        async def step() -> None:
            if leads():
                await self.step(leads)
            else:
                health = self._core.mirror.node_health
                health.latest, health.migrations = None, ()

        await leadership.while_leading(lambda: True, _EVERY_SECONDS, step)

    async def step(self, leads: Callable[[], bool] = lambda: True) -> None:
        """Plan once, and do what the plan permits as long as this replica leads."""
        if self._waits_for_watch():
            return
        plan = self._plan()
        asked = {_key(act) for act in plan.acts}
        self._rests_until = {key: until for key, until in self._rests_until.items() if key in asked}
        self._core.mirror.node_health.latest = plan
        self._reports.planned(plan)
        for act in plan.acts:
            if act.refusal is None and leads() and self._rests_until.get(_key(act), 0.0) <= self._core.clock():
                with set_aside.guard("remediation", act.node, self._core.metrics):
                    await self._do(act)
        for ended in self.migrations.step(self._core.clock()):
            self._reports.migrated(ended.pod, ended.successor, ended.node)
        under_way = self.migrations.under_way()
        self._core.mirror.node_health.migrations = tuple((one.pod, one.reason) for one in under_way)
        self._core.metrics.migrations_under_way.set(len(under_way))

    def _waits_for_watch(self) -> bool:
        """Return whether a write of ours is not in the mirror yet; after a while, it is taken as overwritten."""
        now, health = self._core.clock(), self._core.mirror.node_health
        for name, (history, until) in list(self._unseen.items()):
            node = health.node(name)
            if node is None or set(node.history) == set(history) or now > until:
                del self._unseen[name]
        return bool(self._unseen)

    def _plan(self) -> remediation.Plan:
        now, clock = self._wall_clock(), self._core.clock()
        nodes = self._core.mirror.node_health.nodes()
        self._since = remediation.observe(self._since, nodes, self._rules, clock)
        holders, evictable = self._holders(node.name for node in nodes)
        opened_at = None if self._opened_at is None else now - (clock - self._opened_at)
        situation = remediation.Situation(
            nodes=nodes,
            holders=holders,
            evictable=evictable,
            since={match: now - (clock - at) for match, at in self._since.items()},
            breaker_opened_at=opened_at,
            dry_run=self._core.settings.remediation != "on",
        )
        plan = remediation.plan(situation, self._rules, now)
        if plan.breaker_opened_at is None:
            self._opened_at = None
        elif self._opened_at is None:
            self._opened_at = clock
        return plan

    def _holders(self, names: Iterable[identifiers.NodeName]) -> tuple[_Gpus, _Gpus]:
        """Return the GPUs that pods hold, and those that pods hold which may be evicted, of the nodes with a fault."""
        faulty = {match.node for match in self._since} & set(names)
        holders: _Gpus = collections.defaultdict(set)
        evictable: _Gpus = collections.defaultdict(set)
        for name in faulty:
            for pod in self._core.ledger.pods_on(name):
                holders[name].update(pod.allocated)
                if _may_be_evicted(pod):
                    evictable[name].update(pod.allocated)
        return holders, evictable

    async def _do(self, act: Act) -> None:
        known = self._core.mirror.node_health.node(act.node)
        if known is None:
            return
        try:
            done = await self._written(act, known.history)
        except errors.KubernetesError as cause:
            self._rests_until[_key(act)] = self._core.clock() + min(act.rule.cool_down_seconds, _LONGEST_REST_SECONDS)
            self._reports.failed(act, cause)
            return
        if done:
            self._reports.done(act)
            if act.action is Action.EVICT_PODS:
                await self._evict(act)
            if act.action is Action.RESTART_MPS:
                await self._restart_mps(act)

    async def _written(self, act: Act, known: History) -> bool:
        """Write an act. Returns False if another process was first, and nothing is left to do.

        What is outside of the node's one write comes before it and may be repeated: conditions, and NVSentinel's
        objects, whose names repeat as long as the act is not written.
        """
        if act.action is Action.RELEASE:
            for one in act.releases:
                if one.action in node_changes.CONDITIONS:
                    await self._nodes.set_condition(act, one.action, is_needed=False)
        elif act.action in node_changes.CONDITIONS:
            await self._nodes.set_condition(act, act.action, is_needed=True)
            if self._rules.uses_nvsentinel and not self._is_in_use(act):
                await self._nodes.request_maintenance(act, known)
        written = await self._nodes.write(act, known, self._wall_clock())
        if written is not None:
            self._unseen[act.node] = written, self._core.clock() + _SEEN_WITHIN_SECONDS
        return written is not None

    def _is_in_use(self, act: Act) -> bool:
        """Return whether pods hold the GPU that would be reset, or any GPU of the node that would be rebooted."""
        pods = self._core.ledger.pods_on(act.node)
        return any(not act.gpu or act.gpu in pod.allocated for pod in pods)

    async def _evict(self, act: Act) -> None:
        """Evict the pods of one GPU; what a disruption budget protects is tried again after the rule's cool-down."""
        pods = [
            pod for pod in self._core.ledger.pods_on(act.node) if act.gpu in pod.allocated and not pod.traits.ending
        ]
        self._reports.unowned(act, [pod for pod in pods if not _may_be_evicted(pod)])
        for pod in filter(_may_be_evicted, pods):
            is_gone = await self._pods.evict(pod)
            self._reports.evicted(act, pod, is_gone=is_gone)
            if is_gone:
                self.migrations.begin(pod, self._core.clock())

    async def _restart_mps(self, act: Act) -> None:
        """Evict the pod of the node's MPS daemon; its DaemonSet starts another."""
        namespace = self._core.settings.leader_lease.partition("/")[0]
        try:
            for pod in await self._nodes.mps_pods(act.node, namespace):
                uid, key = identifiers.PodUid(pod.metadata.uid), identifiers.PodKey(pod.key)
                bound = facts.BoundPod(uid, key, act.node)
                self._reports.evicted(act, bound, is_gone=await self._pods.evict(bound))
        except errors.KubernetesError as cause:
            self._reports.failed(act, cause)


def _key(act: Act) -> _Key:
    return act.node, act.action, act.gpu


def _may_be_evicted(pod: facts.BoundPod) -> bool:
    """Return whether a pod is not ending, and has a controller that starts another, as `kubectl drain` demands."""
    return bool(pod.traits.owner) and not pod.traits.ending
