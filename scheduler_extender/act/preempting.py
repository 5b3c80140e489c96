"""Evicts pods of lower priority for a pod whose GPUs fit nowhere.

kube-scheduler never calls for this: what is short is GPU memory or cores, which it does not count. The leader picks the
best set of victims on one of the nodes that kube-scheduler offered, writes on the pending pod which GPUs are reserved
for it (`hami.io/vgpu-hold`), and evicts through the eviction API, which honours disruption budgets and grace periods.
Once the GPUs are free it nominates the node. That annotation is its only state, so a successor goes on where it
stopped.
"""

import time
from collections.abc import Callable, Sequence

import structlog

from gpu_sharing.adapters import pauses
from gpu_sharing.core import error_codes, identifiers, placement, preemption, records
from scheduler_extender import set_aside, worker
from scheduler_extender.act import leadership, pod_writer
from scheduler_extender.cluster import pending
from scheduler_extender.cluster.pending import PendingPod
from scheduler_extender.decide.core import DecisionCore
from scheduler_extender.fleet import facts
from scheduler_extender.report.decision_events import DecisionEvents

_EVERY_SECONDS = 0.5
_REFUSED_FOR_SECONDS = 1.0
"""A pod must have been refused for so long: what frees by itself comes first."""
_SPARED_SECONDS = 30.0
"""How long the eviction of a pod that a disruption budget protects is not tried again."""
_BACKOFF_SECONDS = 10.0
_MOST_HELPING_NODES = 100
_NODES_AT_A_TIME = 16

log = structlog.get_logger("preemption")


class Preemptor:
    """Preempts for one pod at a time."""

    def __init__(self, writer: pod_writer.PodWriter, core: DecisionCore, decision_events: DecisionEvents) -> None:
        self._writer = writer
        self._core = core
        self._ledger = core.ledger
        self._decision_events = decision_events
        self._clock = core.clock
        self._spared_until: dict[identifiers.PodUid, float] = {}
        self._rests_until: dict[identifiers.PodUid, float] = {}
        self._nominator = pod_writer.Nominator(writer)

    async def run(self, leads: Callable[[], bool]) -> None:
        """Preempt for ever while leading; ends only by cancellation."""
        await leadership.while_leading(leads, _EVERY_SECONDS, self.step)

    async def step(self) -> None:
        """Go on with what was begun, then begin at most one more."""
        now = self._clock()
        for times in (self._spared_until, self._rests_until):
            for uid in [uid for uid, until in times.items() if until <= now]:
                del times[uid]
        for begun in [pod for pod in self._core.pending if pod.hold and not pod.gang]:
            with set_aside.guard("preemption", begun.key, self._core.metrics):
                await self._go_on(begun)
        self._nominator.keep(self._core.pending)
        pause = pauses.Pause()
        for pod, offered in self._core.pending.rejected_for(_REFUSED_FOR_SECONDS):
            await pause()
            with set_aside.guard("preemption", pod.key, self._core.metrics):
                if self._may_preempt(pod) and await self._begin(pod, offered):
                    return

    def _may_preempt(self, pod: PendingPod) -> bool:
        return (
            pod.preempts
            and not (pod.hold or pod.nominated_node or pod.is_deleting or pod.gang)
            and pod.scheduler_name == self._core.settings.scheduler_name
            and pod.uid not in self._rests_until
            and self._ledger.holds_below(pod.priority)
        )

    async def _begin(self, pod: PendingPod, offered: tuple[str, ...]) -> bool:
        """Find victims for a pod and evict them. Returns whether any pod is evicted."""
        plan = await self._plan(pod, offered)
        if plan is None:
            self._rests_until[pod.uid] = self._clock() + _BACKOFF_SECONDS
            return False
        name, chosen = plan
        if not chosen:
            return False  # Pods that end anyway are enough; their end wakes the pod.
        held = [one for victim in chosen if (one := self._ledger.pod(victim.uid)) is not None]
        if not await self._all_may_go(held):
            return False  # A pod that a budget protects is spared next time.
        gpus = self._core.victims.gpus_for(pod, name, chosen)
        hold = records.Hold(name, gpus, int(time.time()) + records.LONGEST_HOLD_SECONDS)
        if not gpus or not await self._writer.hold(pod, hold):
            return False
        self._core.metrics.preemptions.inc()
        self._decision_events.preempting(pod, name, held)
        for victim_pod in held:
            await self._evict(victim_pod, pod)
        return True

    async def _plan(
        self, pod: PendingPod, offered: tuple[str, ...]
    ) -> tuple[identifiers.NodeName, tuple[preemption.Victim, ...]] | None:
        """The node where eviction costs least, and the victims there."""
        best: tuple[tuple[int, int, int], identifiers.NodeName, tuple[preemption.Victim, ...]] | None = None
        helping = 0
        over_quota = {name for name, why in self._core.placer.over_quota(pod, offered).items() if why.namespace}
        names = [identifiers.NodeName(name) for name in sorted(offered) if name not in over_quota]
        for number in range(0, len(names), _NODES_AT_A_TIME):
            some = names[number : number + _NODES_AT_A_TIME]
            for name, chosen in zip(some, await self._choose(pod, some), strict=True):
                if chosen is None:
                    continue
                cost = preemption.cost(chosen)
                log.debug("preemption plan", pod=pod.key, node=name, victims=len(chosen), cost=cost)
                if best is None or cost < best[0]:
                    best = (cost, name, chosen)
                helping += 1
                if helping >= _MOST_HELPING_NODES or not chosen:
                    return best[1:]
        return best and best[1:]

    async def _choose(
        self, pod: PendingPod, names: Sequence[identifiers.NodeName]
    ) -> list[tuple[preemption.Victim, ...] | None]:
        """The best victims on each of some nodes, computed beside the loop that answers kube-scheduler."""
        questions, pause = [], pauses.Pause()
        for name in names:
            questions.append(self._core.victims.question(pod, name, self._spared_until))
            await pause()
        return await self._core.worker.run(lambda: [one.choose() for one in worker.each(questions)])

    async def _go_on(self, pod: pending.AnyPod) -> None:
        hold = pod.hold
        assert hold is not None
        if pod.nominated_node or isinstance(pod, pending.UnreadablePod):
            await self._writer.hold(pod, None)
            return
        if isinstance(self._core.placer.place_on(pod, hold.node, nominations=False), placement.Placement):
            if not await self._nominator.nominate(pod, hold.node):
                await self._writer.hold(pod, None)  # That wakes it too.
            return
        (chosen,) = await self._choose(pod, [hold.node])
        if chosen is None or self._clock() > self._core.mirror.hold_ends_at(pod):
            log.warning("preemption aborted", error_code=error_codes.PREEMPTION_FAILED, pod=pod.key, node=hold.node)
            self._rests_until[pod.uid] = self._clock() + _BACKOFF_SECONDS
            await self._writer.hold(pod, None)
            return
        # The process that wrote the hold may have been stopped before the evictions.
        for victim in chosen:
            held = self._ledger.pod(victim.uid)
            if held is not None:
                await self._evict(held, pod)

    async def _all_may_go(self, held: list[facts.BoundPod]) -> bool:
        """Return whether the API server would let all of them be evicted."""
        return all([await self._ask(one, dry_run=True) for one in held])

    async def _evict(self, held: facts.BoundPod, pod: PendingPod) -> None:
        if await self._ask(held, dry_run=False):
            self._core.metrics.evictions.inc()
            self._decision_events.preempted(held, pod)
            log.info("evicted", pod=held.key, node=held.node, preemptor=pod.key)

    async def _ask(self, held: facts.BoundPod, *, dry_run: bool) -> bool:
        """Evict, or try that with a dry run; a pod that may not be evicted is spared for a while."""
        goes = await self._writer.evict(held, dry_run=dry_run)
        if not goes:
            self._spared_until[held.uid] = self._clock() + _SPARED_SECONDS
        return goes
