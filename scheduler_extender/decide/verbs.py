"""filter, prioritize and preempt: read, decide, tell. `binding` is the fourth verb, the only one that writes.

Filter and prioritize change nothing in the cluster. Their one effect is a nomination in memory: the place that
kube-scheduler will probably take is kept for the pod for a few seconds, so that the next pod is not sent there too.
"""

import collections
import secrets
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np
import structlog

from gpu_sharing.adapters import logs, objects, pauses
from gpu_sharing.core import identifiers, placement, rejections, requests
from gpu_sharing.core.rejections import Reason
from scheduler_extender import (
    worker,
)
from scheduler_extender.act import waking
from scheduler_extender.cluster import from_objects, measured_usage
from scheduler_extender.cluster.mirror import Mirror
from scheduler_extender.decide import victims
from scheduler_extender.decide.placer import Placer
from scheduler_extender.fleet import fit
from scheduler_extender.metrics import Metrics
from scheduler_extender.report.decision_events import DecisionEvents
from scheduler_extender.serve import wire
from scheduler_extender.settings import Settings

_BEST_SCORE = 10
_SOFT_SCORE = 1
_REMEMBERED = 10_000
_PHRASES = {int(reason): explained.phrase for reason, explained in rejections.REASONS.items()}

log = structlog.get_logger("verbs")


@dataclass(slots=True)
class Decision:
    """What filter found for a pod, kept for prioritize and bind."""

    id: identifiers.DecisionId
    pod: from_objects.PendingPod
    names: list[str] = field(default_factory=list)
    """The nodes that fit, as answered; prioritize is asked about the same list."""
    names_json: bytes = b""
    node: identifiers.NodeName | None = None
    """The node ranked first."""
    score: float = 0.0


class Verbs:
    """Answers kube-scheduler about one cluster.

    Attributes:
        last_decision: The decision that the last call belongs to; None where it decides nothing.
    """

    def __init__(
        self,
        mirror: Mirror,
        placer: Placer,
        decision_events: DecisionEvents,
        refusals: waking.Refusals,
        settings: Settings,
        metrics: Metrics,
        measured: measured_usage.MeasuredUsage,
        clock: Callable[[], float] = time.monotonic,
        beside: worker.Worker | None = None,
    ) -> None:
        self._worker = beside or worker.Worker()
        self._mirror = mirror
        self._ledger = mirror.ledger
        self._placer = placer
        self._victims = victims.Victims(mirror.ledger, placer)
        self._decision_events = decision_events
        self._refusals = refusals
        self._settings = settings
        self._metrics = metrics
        self._usage = measured
        self._clock = clock
        self._priorities = wire.Priorities()
        self._decisions: collections.OrderedDict[identifiers.PodUid, Decision] = collections.OrderedDict()
        self.last_decision: Decision | None = None

    def decision(self, uid: identifiers.PodUid) -> Decision | None:
        """What was found for a pod last."""
        return self._decisions.get(uid)

    def filter(self, body: bytes) -> bytes:
        """Which of the offered nodes take the pod, and why the others do not.

        Raises:
            BadRequest: The body is not what the protocol defines.
        """
        self.last_decision = None
        args = wire.decode_filter(body)
        names = wire.names_of(args)
        assert args.pod is not None
        pod = self._waiting(args.pod)
        if pod is None or (isinstance(pod.request, requests.PodRequest) and not pod.request.wants_gpu):
            return wire.filter_result(args, names, names, wire.encode_names(args, names, names), {})
        decision = self.last_decision = self._decide(pod)
        if isinstance(pod.request, requests.InvalidRequest):
            self._refuse(decision, names)
            phrase = f"invalid GPU request: {pod.request.sentence}"
            return wire.filter_result(args, names, [], b"[]", dict.fromkeys(names, phrase))
        refused = self._refused(decision, pod.request, names)
        self._log_nodes(pod, names, refused)
        decision.names = [name for name in names if name not in refused] if refused else names
        decision.names_json = wire.encode_names(args, names, decision.names)
        if not decision.names:
            self._refuse(decision, names)
        else:
            self._refusals.drop(pod.uid)
            self._decision_events.asked(pod.uid)
            if len(decision.names) == 1:  # kube-scheduler skips prioritize then.
                self._nominate(decision, identifiers.NodeName(decision.names[0]))
        phrases = {name: _PHRASES[code] for name, code in refused.items()}
        return wire.filter_result(args, names, decision.names, decision.names_json, phrases)

    def prioritize(self, body: bytes) -> bytes:
        """A score for each node: 10 for the best, 0 for all others, so that the best one wins over other plugins.

        A pod with soft preferences of its own gets a 1 instead of the 10, so that those count.

        Raises:
            BadRequest: The body is not what the protocol defines.
        """
        decision = self.last_decision = self._decisions.get(identifiers.PodUid(wire.uid_of(body)))
        if decision is not None and decision.names and wire.repeats(body, decision.names_json):
            names, pod = decision.names, decision.pod
        else:
            args = wire.decode_filter(body)
            names = wire.names_of(args)
            assert args.pod is not None
            asked = self._waiting(args.pod)
            if asked is None:
                return self._priorities.encode(names)
            decision, pod = self._decide(asked), asked
            self.last_decision = decision
        if not isinstance(pod.request, requests.PodRequest) or not pod.request.wants_gpu:
            return self._priorities.encode(names)
        best = self._best(decision, pod.request, names)
        if best is None:
            return self._priorities.encode(names)
        self._nominate(decision, best)
        return self._priorities.encode(names, best, _SOFT_SCORE if pod.has_soft_preferences else _BEST_SCORE)

    async def preempt(self, body: bytes) -> bytes:
        """The victims that kube-scheduler chose, made such that the pod's GPUs fit; nodes where none do are left out.

        Raises:
            BadRequest: The body is not what the protocol defines.
        """
        args = wire.decode_preempt(body)
        assert args.pod is not None
        chosen, pod = wire.victims_of(args), self._waiting(args.pod)
        if pod is None or not isinstance(pod.request, requests.PodRequest) or not pod.request.wants_gpu:
            return wire.preempt_result(chosen)
        corrections, pause = {}, pauses.Pause()
        for name, victims_there in chosen.items():
            await pause()
            uids = [identifiers.PodUid(one.uid) for one in victims_there.pods or () if one]
            corrections[name] = self._victims.correction(pod, identifiers.NodeName(name), uids)
        solved = await self._worker.run(lambda: {name: one.solve() for name, one in corrections.items()})
        corrected = {
            name: wire.MetaVictims([wire.MetaPod(uid) for uid in found], chosen[name].num_pdb_violations)
            for name, found in solved.items()
            if found
        }
        log.info("victims", pod=pod.key, asked=len(chosen), helping=len(corrected))
        return wire.preempt_result(corrected)

    def score(self, pod: from_objects.PendingPod, node: placement.NodeState, placed: placement.Placement) -> float:
        """How good a node is for a pod, from 0 to 1, by the policy that applies to the pod."""
        assert isinstance(pod.request, requests.PodRequest)
        return placement.node_score(pod.request, node, placed, self._placer.node_policy(pod.request))

    def new_decision_id(self, uid: identifiers.PodUid) -> identifiers.DecisionId:
        """One id for all that is decided about a pod, from its first filter to its bind."""
        known = self._decisions.get(uid)
        return known.id if known else identifiers.DecisionId(secrets.token_hex(8))

    def _decide(self, pod: from_objects.PendingPod) -> Decision:
        decision = Decision(self.new_decision_id(pod.uid), pod)
        self._decisions[pod.uid] = decision
        self._decisions.move_to_end(pod.uid)
        if len(self._decisions) > _REMEMBERED:
            self._decisions.popitem(last=False)
        return decision

    def _refuse(self, decision: Decision, offered: Sequence[str]) -> None:
        self._refusals.add(decision.pod, self._ledger.generation, offered)
        self._decision_events.refused(decision.pod, (identifiers.NodeName(name) for name in offered), decision.id)
        self._metrics.refusals.labels(error_code=self._decision_events.reason_of(decision.pod.uid) or "").inc()

    def _waiting(self, pod: objects.Pod) -> from_objects.PendingPod | None:
        """What the pod asks for, or None if it asks for no GPU. What the mirror has read already is not read again."""
        known = self._mirror.waiting.get(identifiers.PodUid(pod.metadata.uid))
        if known is not None and known.resource_version == pod.metadata.resource_version:
            return known
        if not from_objects.is_ours(pod, self._settings.resource_names):
            return None
        wire.demand_identity(pod)
        return from_objects.pending_pod(pod, self._settings.resource_names)

    def _refused(self, decision: Decision, request: requests.PodRequest, names: list[str]) -> dict[str, int]:
        """The offered nodes that do not take the pod, each with its reason."""
        ledger, uid = self._ledger, decision.pod.uid
        ledger.expire(self._clock())
        ledger.drop_nomination(uid)
        arrays = ledger.settle()
        known = self._placer.everywhere(request).refused
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
            found = self._placer.place_on(decision.pod, name, nominations=not none_fits)
            if isinstance(found, placement.Placement):
                refused.pop(name, None)
            else:
                refused[name] = int(found.reason)
        if self._placer.may_forbid(decision.pod):
            forbidden = self._placer.forbidden(decision.pod, [name for name in names if name not in refused])
            refused.update((name, int(rejection.reason)) for name, rejection in forbidden.items())
        return refused

    def _best(self, decision: Decision, request: requests.PodRequest, names: list[str]) -> identifiers.NodeName | None:
        hold = self._ledger.hold_of(decision.pod.uid)
        if hold is not None and hold.node in names:
            return hold.node  # It was planned there.
        arrays = self._ledger.settle()
        fitting = self._placer.everywhere(request).fitting
        values = fit.scores(arrays, request, fitting, self._placer.node_policy(request))
        if self._usage.counts:
            values = self._usage.weighed(values, arrays)
        candidates = np.flatnonzero(fitting.fits)
        column = fit.best(arrays, values, candidates) if len(candidates) == len(names) else -1
        if column < 0 or arrays.names[column] not in names:  # Those that fit are not just those that are offered.
            columns = arrays.columns_of(map(identifiers.NodeName, names))
            columns = columns[columns >= 0]
            candidates = columns[fitting.fits[columns]]
            if not len(candidates):
                # Filter let the pod in where only reservations of others stand; the first by name is as good as any.
                return identifiers.NodeName(min(names)) if names and names is decision.names else None
            column = fit.best(arrays, values, candidates)
        decision.score = float(values[column])
        return arrays.names[column]

    def _nominate(self, decision: Decision, name: identifiers.NodeName) -> None:
        decision.node = name
        answer = self._placer.place_on(decision.pod, name, nominations=True)
        if isinstance(answer, placement.Placement):
            expires_at = self._clock() + self._settings.nomination_seconds
            self._ledger.nominate(self._placer.reservation(decision.pod, name, answer, expires_at))

    def _log_nodes(self, pod: from_objects.PendingPod, names: list[str], refused: dict[str, int]) -> None:
        if not logs.shows(logs.NODES):
            return
        for name in names:
            why = _PHRASES[refused[name]] if name in refused else ""
            log.info("node", pod=pod.key, node=name, fits=not why, why=why)
            if logs.shows(logs.DEVICES):
                for state in self._ledger.held(identifiers.NodeName(name)).states:
                    log.info(
                        "gpu",
                        node=name,
                        gpu=state.gpu.uuid,
                        free_mib=state.free_memory_mib,
                        free_cores_percent=state.free_cores_percent,
                        free_slots=state.gpu.slots - state.allocated.slots,
                    )
