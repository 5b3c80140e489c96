"""filter, prioritize and preempt as functions of values: a pod and the nodes it may go to, in; a decision, out.

They change nothing in the cluster. Their one effect is on what is known in memory: the decision is kept for the next
verb, and the place that kube-scheduler will probably choose is reserved for the pod for a few seconds (a *nomination*),
so that the next pod is not sent there too. `act.binding` is the fourth verb, the only one that writes.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import structlog

from gpu_sharing.adapters import pauses
from gpu_sharing.core import identifiers, placement, rejections, requests
from gpu_sharing.core.rejections import Reason
from scheduler_extender import worker
from scheduler_extender.cluster import pending
from scheduler_extender.decide.core import DecisionCore
from scheduler_extender.fleet import fit

_BEST_SCORE = 10
_SOFT_SCORE = 1
_HALF_WAY_MILLI = 4000.0
_CLIPPED = (-60_000.0, 60_000.0)
"""What a placement gains, in thousandths of a GPU, becomes a score from 0 to 1 such that none of two is lost."""
_PHRASES = {int(reason): info.phrase for reason, info in rejections.REASONS.items()}

log = structlog.get_logger("verbs")


@dataclass(frozen=True, slots=True)
class FilterDecision:
    """Which of the offered nodes take a pod."""

    pod: pending.AnyPod
    decision: pending.Decision
    refused: Mapping[str, str] = field(default_factory=dict)
    """The offered nodes that do not, each with a phrase."""
    rejection: pending.PodRejection | None = None
    """Why no node does; None where some do."""


@dataclass(frozen=True, slots=True)
class Ranking:
    """The best node for a pod, and what it scores; all other nodes score 0."""

    decision: pending.Decision | None = None
    best: identifiers.NodeName | None = None
    score: int = 0


class Verbs:
    """Decides for kube-scheduler."""

    def __init__(self, core: DecisionCore) -> None:
        self._core = core
        self._ledger = core.ledger
        self._pending = core.pending
        self._placer = core.placer

    def filter(self, pod: pending.AnyPod, names: list[str]) -> FilterDecision | None:
        """Return which of the offered nodes take the pod; None if it needs no GPU, so that all do."""
        if isinstance(pod, pending.UnreadablePod):
            phrase = f"invalid GPU request: {pod.invalid.sentence}"
            decision = self._decide(pod, [])
            return FilterDecision(pod, decision, dict.fromkeys(names, phrase), self._reject(pod, names))
        if not pod.request.wants_gpu:
            return None
        entry = self._pending.entry_of(pod)
        if entry.decision is None:
            self._placer.packing.arrived(pod)
        refused = self._refused(pod, names)
        fitting = [name for name in names if name not in refused] if refused else names
        decision = self._decide(pod, fitting)
        phrases = {name: _PHRASES[code] for name, code in refused.items()}
        if not fitting:
            return FilterDecision(pod, decision, phrases, self._reject(pod, names))
        self._pending.accept(pod)
        if len(fitting) == 1:  # kube-scheduler skips prioritize then.
            self._nominate(pod, decision, identifiers.NodeName(fitting[0]))
        return FilterDecision(pod, decision, phrases)

    def fitting_nodes(self, request: requests.PodRequest) -> int:
        """Return on how many nodes a request fits, without effect on any pod."""
        return int(np.count_nonzero(self._placer.everywhere(request).fitting.fits))

    def prioritize(self, pod: pending.AnyPod, names: list[str]) -> Ranking:
        """Return the best of the nodes: it scores 10 and all others 0, so that it wins over other plugins.

        A pod with soft preferences of its own gets a 1 instead of the 10, so that those count.
        """
        entry = self._pending.entry(pod.uid)
        decision = entry.decision if entry and entry.decision else self._decide(pod, [])
        if isinstance(pod, pending.UnreadablePod) or not pod.request.wants_gpu or not names:
            return Ranking(decision)
        best = self._best(pod, decision, names)
        if best is None:
            return Ranking(decision)
        self._nominate(pod, decision, best)
        return Ranking(decision, best, _SOFT_SCORE if pod.has_soft_preferences else _BEST_SCORE)

    async def preempt(
        self, pod: pending.AnyPod, chosen: Mapping[str, Sequence[identifiers.PodUid]]
    ) -> dict[str, list[identifiers.PodUid]] | None:
        """Return the victims that kube-scheduler chose on each node, changed such that the pod's GPUs fit.

        Nodes where no eviction helps are left out. None for a pod that needs no GPU, so that nothing is to be changed.

        Raises:
            Busy: Too many computations are queued.
        """
        if isinstance(pod, pending.UnreadablePod) or not pod.request.wants_gpu:
            return None
        corrections, pause = {}, pauses.Pause()
        for name, uids in chosen.items():
            await pause()
            corrections[name] = self._core.victims.correction(pod, identifiers.NodeName(name), uids)
        solved = await self._core.worker.run(
            lambda: {name: one.solve() for name, one in worker.each(corrections.items())}
        )
        helping = {name: victims for name, victims in solved.items() if victims}
        log.info("victims", pod=pod.key, asked=len(chosen), helping=len(helping))
        return helping

    def _decide(self, pod: pending.AnyPod, names: list[str]) -> pending.Decision:
        decision = pending.Decision(self._pending.decision_id(pod.uid), names)
        self._pending.entry_of(pod).decision = decision
        return decision

    def _reject(self, pod: pending.AnyPod, offered: Sequence[str]) -> pending.PodRejection:
        may_preempt = pod.preempts and self._ledger.holds_below(pod.priority)
        self._pending.refuse(pod, self._ledger.generation, tuple(offered) if may_preempt else ())
        return self._core.reject(pod, map(identifiers.NodeName, offered))

    def _refused(self, pod: pending.PendingPod, names: list[str]) -> dict[str, int]:
        """The offered nodes that do not take the pod, each with its reason."""
        ledger, uid = self._ledger, pod.uid
        ledger.expire(self._core.clock())
        ledger.drop_nomination(uid)
        arrays = ledger.settle()
        known = self._placer.everywhere(pod.request).refused
        refused = {name: known[name] for name in names if name in known} if known else {}
        if not all(map(arrays.column_of.__contains__, names)):
            unknown = int(Reason.NODE_UNKNOWN)
            refused.update((name, unknown) for name in names if name not in arrays.column_of)
        hold = ledger.hold_of(uid)
        again = {hold.node} if hold else set()
        none_fits = len(refused) == len(names)
        if none_fits:
            again |= ledger.reserved_nodes()  # Nothing is free, so only holds of its priority stand in its way.
        for name in again.intersection(names):
            answer = self._placer.place_on(pod, name, nominations=not none_fits)
            if isinstance(answer, placement.Placement):
                refused.pop(name, None)
            else:
                refused[name] = int(answer.reason)
        if self._placer.may_forbid(pod):
            forbidden = self._placer.forbidden(pod, [name for name in names if name not in refused])
            refused.update((name, int(rejection.reason)) for name, rejection in forbidden.items())
        return refused

    def _best(
        self, pod: pending.PendingPod, decision: pending.Decision, names: list[str]
    ) -> identifiers.NodeName | None:
        hold = self._ledger.hold_of(pod.uid)
        if hold is not None and hold.node in names:
            return hold.node  # It was planned there.
        arrays = self._ledger.settle()
        fitting = self._placer.everywhere(pod.request).fitting
        policy = self._placer.node_policy(pod.request)
        values = fit.scores(arrays, pod.request, fitting, policy)
        gained = self._placer.packing.node_values(pod) if policy.by_fragmentation else None
        if gained is not None:
            values = 1.0 / (1.0 + np.exp(-np.clip(gained, *_CLIPPED) / _HALF_WAY_MILLI))
        if self._core.usage.counts:
            values = self._core.usage.weighed(values, arrays)
        candidates = np.flatnonzero(fitting.fits)
        column = fit.best(arrays, values, candidates) if len(candidates) == len(names) else -1
        if column < 0 or arrays.names[column] not in names:  # Those that fit are not just those that are offered.
            columns = arrays.columns_of(map(identifiers.NodeName, names))
            columns = columns[columns >= 0]
            candidates = columns[fitting.fits[columns]]
            if not len(candidates):
                # Filter let the pod in where only reservations of others stand; the first by name is as good as any.
                return identifiers.NodeName(min(names)) if names and names == decision.names else None
            column = fit.best(arrays, values, candidates)
        decision.score = float(values[column])
        return arrays.names[column]

    def _nominate(self, pod: pending.PendingPod, decision: pending.Decision, name: identifiers.NodeName) -> None:
        decision.node = name
        answer = self._placer.place_on(pod, name, nominations=True)
        if isinstance(answer, placement.Placement):
            expires_at = self._core.clock() + self._core.settings.nomination_seconds
            self._ledger.nominate(self._placer.reservation(pod, name, answer, expires_at))
