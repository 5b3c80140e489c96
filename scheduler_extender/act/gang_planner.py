"""Places gangs: all members at once, or none.

The leader plans a gang once all of its members exist: each member beside those placed before it. It writes the plan on
every member (`hami.io/vgpu-hold`), which reserves the GPUs. Only when all members have that does it nominate their
nodes and open their scheduling gates; until then filter refuses them, gated or not. Members that are not bound when the
hold ends lose it, and those of that attempt that are bound are evicted. Where a pod group says how many members there
must be at least, that number is "all", and more are placed as they fit. All of its state stands on the pods, so a
successor goes on where it stopped; as one process plans, two gangs never hold half of what both need.
"""

import asyncio
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np
import structlog

from gpu_sharing.adapters import pauses
from gpu_sharing.core import allocations, error_codes, gangs, identifiers, placement, quotas, records, requests
from scheduler_extender import (
    set_aside,
)
from scheduler_extender.act import leadership, pod_writer
from scheduler_extender.cluster import node_selection, pending
from scheduler_extender.cluster.pending import PendingPod
from scheduler_extender.decide.core import DecisionCore
from scheduler_extender.fleet import facts, fit, gang_members
from scheduler_extender.report.decision_events import DecisionEvents

_EVERY_SECONDS = 0.5
_SEEN_WITHIN_SECONDS = 3.0
"""How long what was written may take to come back by the watch before it is planned anew."""

log = structlog.get_logger("gangs")


@dataclass(slots=True)
class _Draft:
    """A plan in the making."""

    states: dict[identifiers.NodeName, placement.NodeState] = field(default_factory=dict)
    """The nodes that it uses, with what it has put there."""
    full: set[tuple[requests.PodRequest, identifiers.NodeName]] = field(default_factory=set)
    """Where no more pod of a shape fits: nodes only fill up while a plan is made."""


class GangPlanner:
    """Brings gangs from pending to bound."""

    def __init__(
        self,
        writer: pod_writer.PodWriter,
        core: DecisionCore,
        decision_events: DecisionEvents,
        now: Callable[[], float] = time.time,
    ) -> None:
        self._writer = writer
        self._core = core
        self._ledger = core.ledger
        self._placer = core.placer
        self._decision_events = decision_events
        self._clock = core.clock
        self._now = now
        self._in_vain: dict[gang_members.Key, tuple[int, int, frozenset[identifiers.PodUid]]] = {}
        self._written: dict[gang_members.Key, tuple[frozenset[identifiers.PodUid], float]] = {}
        self._avoided_until: dict[tuple[gang_members.Key, identifiers.NodeName], float] = {}
        self._nominator = pod_writer.Nominator(writer)
        self._reported: dict[gang_members.Key, str] = {}

    async def run(self, leads: Callable[[], bool]) -> None:
        """Place gangs for ever; ends only by cancellation."""
        await leadership.while_leading(leads, _EVERY_SECONDS, self.step)

    async def step(self) -> None:
        """Bring every gang one step on."""
        now, waiting = self._clock(), self._ledger.gangs.pending()
        for place in [place for place, until in self._avoided_until.items() if until <= now]:
            del self._avoided_until[place]
            self._in_vain.pop(place[0], None)
        self._nominator.keep(self._core.pending)
        for memory in (self._in_vain, self._written, self._reported):
            for key in memory.keys() - set(waiting):
                del memory[key]
        for key in waiting:
            with set_aside.guard("gang", "/".join(key), self._core.metrics):
                await self._go_on(key)

    async def _go_on(self, key: gang_members.Key) -> None:
        gang = self._ledger.gangs.members(key)
        members = [
            member
            for uid in sorted(gang.pending)
            if uid not in gang.bound and (member := self._core.pending.get(uid)) and member.gang
        ]
        if not members:
            return
        held = [member for member in members if member.hold]
        missing = [member for member in members if not member.hold]
        if gang.defect(key[1]) or gang.present < gang.size:
            await self._release(held)
            self._report(key, members)
            return
        if held and min(map(self._core.mirror.hold_ends_at, held)) <= self._clock():
            await self._abort(key, gang, held)
            return
        if gang.placed + len(held) >= gang.size:
            await asyncio.gather(*(self._admit(member) for member in held))
        if missing and not self._is_on_its_way(key, missing):
            await self._reserve(key, gang, held, missing)

    async def _reserve(
        self,
        key: gang_members.Key,
        gang: gang_members.Members,
        held: Sequence[pending.AnyPod],
        missing: Sequence[pending.AnyPod],
    ) -> None:
        """Plan and reserve GPUs for the members that have none, for enough of them to make the gang whole."""
        question = (self._ledger.generation, gang.size, frozenset(member.uid for member in missing))
        if self._in_vain.get(key) == question:
            return
        wanted = gang.size - gang.placed - len(held)
        plan = await self._plan(key, missing, dispensable=len(missing) - max(wanted, 0))
        if not plan:
            self._in_vain[key] = question
            if wanted > 0:
                await self._release(held)
                self._report(key, [*held, *missing])
            else:
                self._report(key, missing)
            return
        for reservation in plan.values():
            # Until the holds come back by the watch, the next gang must see them too.
            self._ledger.nominate(reservation)
        ends = [member.hold.until for member in held if member.hold]
        until = min(ends, default=int(self._now() + self._core.settings.gang_deadline_seconds))
        self._written[key] = (frozenset(plan), self._clock() + _SEEN_WITHIN_SECONDS)
        self._reported.pop(key, None)
        nodes = sorted({reservation.node for reservation in plan.values()})
        log.info("gang planned", gang="/".join(key), size=gang.size, nodes=nodes)
        self._core.metrics.gangs_planned.inc()
        planned = [member for member in missing if member.uid in plan]
        holds = [records.Hold(plan[member.uid].node, frozenset(), until) for member in planned]
        await asyncio.gather(*map(self._writer.hold, planned, holds))

    def _is_on_its_way(self, key: gang_members.Key, missing: Sequence[pending.AnyPod]) -> bool:
        """Whether what was written on these members just has not come back by the watch yet."""
        uids, until = self._written.get(key, (frozenset(), 0.0))
        return self._clock() < until and uids >= {member.uid for member in missing}

    async def _admit(self, member: pending.AnyPod) -> None:
        """Let kube-scheduler have a member whose whole gang has a place."""
        assert member.hold is not None
        if member.nominated_node != member.hold.node:
            await self._nominator.nominate(member, member.hold.node)
        if any(gate.get("name") == gangs.GATE for gate in member.gates):
            others = [gate for gate in member.gates if gate.get("name") != gangs.GATE]
            await self._writer.set_gates(member, others)

    async def _release(self, held: Sequence[pending.AnyPod]) -> None:
        """Keep nothing for these members any more, here or in kube-scheduler."""
        await asyncio.gather(
            *(self._writer.hold(member, None) for member in held),
            *(self._writer.nominate(member, None) for member in held if member.nominated_node),
        )

    async def _abort(self, key: gang_members.Key, gang: gang_members.Members, held: Sequence[pending.AnyPod]) -> None:
        """Release the GPUs of members that were not bound in time, and avoid the nodes that failed for a while.

        Those that are bound stay if they are enough.
        """
        until = min(member.hold.until for member in held if member.hold)
        begun_at = until - self._core.settings.gang_deadline_seconds
        for member in held:
            if member.hold:
                self._avoided_until[key, member.hold.node] = self._clock() + self._core.settings.gang_deadline_seconds
        if gang.placed >= gang.size:
            await self._release(held)
            return
        bound = [
            one for uid in sorted(gang.bound) if (one := self._ledger.pod(uid)) and one.traits.bound_at >= begun_at
        ]
        evicts = self._core.settings.gang_evicts
        log.error(
            "gang aborted",
            error_code=error_codes.GANG_TORN,
            gang="/".join(key),
            unbound=[one.key for one in held],
            bound=[one.key for one in bound],
            evicting=evicts,
        )
        self._core.metrics.gangs_aborted.inc()
        self._decision_events.gang_aborted(key[1], held, bound, evicting=evicts)
        await self._release(held)
        if evicts:
            await asyncio.gather(*(self._writer.evict(one) for one in bound))

    def _report(self, key: gang_members.Key, members: Sequence[pending.AnyPod]) -> None:
        """Report on every member why it is pending, once for each reason."""
        gang_rejection = self._placer.gang_rejection(members[0])
        text = str(gang_rejection or "")
        if text and self._reported.get(key) != text:
            self._reported[key] = text
            for member in members:
                self._decision_events.rejected(member, self._core.reject(member))

    async def _plan(
        self, key: gang_members.Key, members: Sequence[pending.AnyPod], dispensable: int
    ) -> dict[identifiers.PodUid, facts.Reservation]:
        """A place for the members, the largest first.

        Args:
            key: Their gang.
            members: Those that need one.
            dispensable: How many may go without, for lack of GPUs or quota; if more do, none has a place.
        """
        draft = _Draft()
        plan: dict[identifiers.PodUid, facts.Reservation] = {}
        asked = quotas.NOTHING
        pause = pauses.Pause()
        for member in sorted(members, key=_largest_first):
            await pause()  # kube-scheduler's calls come first.
            if isinstance(member, PendingPod) and (place := self._place(key, member, draft)):
                name, state, placed = place
                more = asked.plus(quotas.amounts(member.request.kinds, placed.shares))
                if not self._ledger.quotas.excess(key[0], more):
                    asked = more
                    draft.states[name] = state.plus(allocations.by_gpu(member.request.kinds, placed.shares))
                    expires_at = self._clock() + _SEEN_WITHIN_SECONDS
                    plan[member.uid] = self._placer.reservation(member, name, placed, expires_at)
                    log.debug("gang plan", gang="/".join(key), pod=member.key, node=name)
                    continue
            log.debug("gang plan", gang="/".join(key), pod=member.key, node=None)
            dispensable -= 1
            if dispensable < 0:
                return {}
        return plan

    def _place(
        self, key: gang_members.Key, member: PendingPod, draft: _Draft
    ) -> tuple[identifiers.NodeName, placement.NodeState, placement.Placement] | None:
        request = member.request
        places = []
        begun = [item for item in draft.states.items() if (request, item[0]) not in draft.full]
        for name, state in [*begun, *self._unused(key, member, draft)]:
            answer = self._placer.fit(request, state)
            if not isinstance(answer, placement.Placement):
                draft.full.add((request, name))
            elif self._admits(key, member, name):
                places.append((-self._placer.score(member, state, answer), name, state, answer))
        return min(places, key=lambda place: place[:2])[1:] if places else None

    def _unused(
        self, key: gang_members.Key, member: PendingPod, draft: _Draft
    ) -> list[tuple[identifiers.NodeName, placement.NodeState]]:
        """The best node that the plan does not use yet."""
        arrays = self._ledger.settle()
        fitting = self._placer.everywhere(member.request).fitting
        values = fit.scores(arrays, member.request, fitting, self._placer.node_policy(member.request))
        columns = np.flatnonzero(fitting.fits)
        for column in columns[np.lexsort((arrays.name_rank()[columns], -values[columns]))]:
            name = arrays.names[column]
            if name not in draft.states and self._admits(key, member, name):
                return [(name, self._ledger.view_for(name, member.uid, member.priority, nominations=True))]
        return []

    def _admits(self, key: gang_members.Key, member: pending.AnyPod, name: identifiers.NodeName) -> bool:
        node = self._ledger.node_facts(name)
        return (
            node is not None
            and (key, name) not in self._avoided_until
            and node_selection.admits(member.node_requirements, name, node.labels, node.taints)
        )


def _largest_first(member: pending.AnyPod) -> tuple[int, int, str]:
    if isinstance(member, pending.UnreadablePod):
        return 0, 0, member.key
    request = member.request
    memory = sum(
        ask.gpus * (ask.memory_mib or 1_000_000 * ask.memory_percent // 100) for ask in request.containers if ask
    )
    return -request.gpus, -memory, member.key
