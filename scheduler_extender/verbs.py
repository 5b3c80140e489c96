"""filter, prioritize and preempt: read, decide, tell. `binding` is the fourth verb, the only one that writes.

Filter and prioritize change nothing in the cluster. Their one effect is a nomination in memory: the place that
kube-scheduler will probably take is kept for the pod for a few seconds, so that the next pod is not sent there too.
"""

import collections
import itertools
import secrets
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import structlog

from gpu_sharing.core import identifiers, placement, rejections, requests, reservations
from gpu_sharing.core.rejections import Reason
from scheduler_extender import facts, metrics, mirror, requeue, settings, telling, wire
from scheduler_extender.fleet import arrays as fleet_arrays
from scheduler_extender.fleet import fit, ledger

_BEST_SCORE = 10
_SOFT_SCORE = 1
_REMEMBERED = 10_000
_PHRASES = {int(reason): explained.phrase for reason, explained in rejections.EXPLANATIONS.items()}

log = structlog.get_logger("verbs")


@dataclass(slots=True)
class Decision:
    """What filter found for a pod, kept for prioritize and bind."""

    id: identifiers.DecisionId
    pod: facts.Waiting
    fitting: fit.Fitting | None = None
    names: Sequence[str] = ()
    """The nodes that fit, as answered; prioritize is asked about the same list."""
    columns: fleet_arrays.Ints | None = None
    node: identifiers.NodeName | None = None
    """The node ranked first."""
    score: float = 0.0


class Verbs:
    """Answers kube-scheduler about one cluster."""

    def __init__(
        self,
        cluster: mirror.Mirror,
        teller: telling.Teller,
        refusals: requeue.Refusals,
        options: settings.Settings,
        counters: metrics.Metrics,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._mirror = cluster
        self._books = cluster.ledger
        self._teller = teller
        self._refusals = refusals
        self._options = options
        self._metrics = counters
        self._clock = clock
        self._decisions: collections.OrderedDict[identifiers.PodUid, Decision] = collections.OrderedDict()

    def decision(self, uid: identifiers.PodUid) -> Decision | None:
        """What was found for a pod last."""
        return self._decisions.get(uid)

    def filter(self, body: bytes) -> bytes:
        """Which of the offered nodes take the pod, and why the others do not.

        Raises:
            BadRequest: The body is not what the protocol defines.
        """
        args = wire.decode_filter(body)
        names = wire.names_of(args)
        assert args.pod is not None
        if not facts.is_ours(args.pod, self._options.resource_names):
            return wire.filter_result(args, None, names, {})
        pod = facts.waiting(args.pod, self._options.resource_names)
        decision = self._decide(pod)
        if isinstance(pod.request, requests.InvalidRequest):
            self._refuse(decision, names)
            return wire.filter_result(
                args, [False] * len(names), names, dict.fromkeys(names, f"invalid GPU request: {pod.request.sentence}")
            )
        if not pod.request.wants_gpu:
            return wire.filter_result(args, None, names, {})
        fits, reasons = self._fits(decision, pod.request, names)
        self._log_nodes(pod, names, fits, reasons)
        if fits.all() and names:
            decision.names = names
            self._teller.asked(pod.uid)
            if len(names) == 1:
                self._nominate(decision, identifiers.NodeName(names[0]))
            return wire.filter_result(args, None, names, {})
        mask = fits.tolist()
        decision.names = list(itertools.compress(names, mask))
        assert decision.columns is not None
        decision.columns = decision.columns[fits]
        refused = {
            name: _PHRASES[code] for name, code, taken in zip(names, reasons.tolist(), mask, strict=True) if not taken
        }
        if not decision.names:
            self._refuse(decision, names)
        else:
            self._teller.asked(pod.uid)
            if len(decision.names) == 1:  # kube-scheduler skips prioritize then.
                self._nominate(decision, identifiers.NodeName(decision.names[0]))
        return wire.filter_result(args, mask, names, refused)

    def prioritize(self, body: bytes) -> bytes:
        """A score for each node: 10 for the best, 0 for all others, so that the best one wins over other plugins.

        A pod with soft preferences of its own gets a 1 instead of the 10, so that those count.

        Raises:
            BadRequest: The body is not what the protocol defines.
        """
        args = wire.decode_filter(body)
        names = wire.names_of(args)
        assert args.pod is not None
        decision = self._decisions.get(identifiers.PodUid(args.pod.metadata.uid))
        pod = decision.pod if decision else facts.waiting(args.pod, self._options.resource_names)
        if not isinstance(pod.request, requests.PodRequest) or not pod.request.wants_gpu or not names:
            return wire.priorities(names, {})
        decision = decision or self._decide(pod)
        best = self._best(decision, pod.request, names)
        if best is None:
            return wire.priorities(names, {})
        self._nominate(decision, best)
        return wire.priorities(names, {best: _SOFT_SCORE if pod.has_soft_preferences else _BEST_SCORE})

    def preempt(self, body: bytes) -> bytes:
        """The victims that kube-scheduler chose, unchanged.

        Raises:
            BadRequest: The body is not what the protocol defines.
        """
        return wire.preempt_result(wire.decode_preempt(body))

    def score(self, pod: facts.Waiting, node: placement.NodeState, placed: placement.Placement) -> float:
        """How good a node is for a pod, from 0 to 1, by the policy that applies to the pod."""
        assert isinstance(pod.request, requests.PodRequest)
        return placement.node_score(pod.request, node, placed, pod.request.node_policy or self._options.node_policy)

    def new_decision_id(self, uid: identifiers.PodUid) -> identifiers.DecisionId:
        """One id for all that is decided about a pod, from its first filter to its bind."""
        known = self._decisions.get(uid)
        return known.id if known else identifiers.DecisionId(secrets.token_hex(8))

    def _decide(self, pod: facts.Waiting) -> Decision:
        decision = Decision(self.new_decision_id(pod.uid), pod)
        self._decisions[pod.uid] = decision
        self._decisions.move_to_end(pod.uid)
        if len(self._decisions) > _REMEMBERED:
            self._decisions.popitem(last=False)
        return decision

    def _refuse(self, decision: Decision, offered: Sequence[str]) -> None:
        self._metrics.refusals.inc()
        self._refusals.add(decision.pod, self._books.generation)
        self._teller.refused(decision.pod, (identifiers.NodeName(name) for name in offered), decision.id)

    def _fits(
        self, decision: Decision, request: requests.PodRequest, names: Sequence[str]
    ) -> tuple[fleet_arrays.Bools, fleet_arrays.Codes]:
        """`[names]`: which nodes fit, and the reason of each, NONE where it does."""
        books, uid = self._books, decision.pod.uid
        books.expire(self._clock())
        books.drop_nomination(uid)
        arrays = books.settle()
        decision.fitting = fit.fit_all(arrays, request, request.gpu_policy or self._options.gpu_policy)
        decision.columns = columns = arrays.columns_of(map(identifiers.NodeName, names))
        if not arrays.columns:
            return np.zeros(len(names), np.bool_), np.full(len(names), Reason.NODE_UNKNOWN, np.int8)
        known = columns >= 0
        fits = decision.fitting.fits[columns] & known
        reasons = np.where(known, decision.fitting.reasons[columns], np.int8(Reason.NODE_UNKNOWN))
        hold = books.hold_of(uid)
        again = {hold.node} if hold else set()
        if not fits.any():
            again |= books.claimed_nodes()  # Nothing is free, so only holds of its priority stand in its way.
        if again:
            self._look_again(decision, request, names, again, fits, reasons)
        return fits, reasons

    def _look_again(
        self,
        decision: Decision,
        request: requests.PodRequest,
        names: Sequence[str],
        again: set[identifiers.NodeName],
        fits: fleet_arrays.Bools,
        reasons: fleet_arrays.Codes,
    ) -> None:
        """Ask about a few nodes by the scalar rules, as this very pod must see them."""
        others_count = bool(fits.any())
        for position, name in enumerate(names):
            if name in again:
                answer = self._place(decision.pod, request, identifiers.NodeName(name), nominations=others_count)
                fits[position] = isinstance(answer, placement.Placement)
                reasons[position] = Reason.NONE if isinstance(answer, placement.Placement) else answer.reason

    def _place(
        self, pod: facts.Waiting, request: requests.PodRequest, name: identifiers.NodeName, *, nominations: bool
    ) -> placement.Placement | rejections.Rejection:
        state = self._books.view_for(name, pod.uid, pod.priority, nominations=nominations)
        return placement.fit(request, state, request.gpu_policy or self._options.gpu_policy)

    def _best(
        self, decision: Decision, request: requests.PodRequest, names: Sequence[str]
    ) -> identifiers.NodeName | None:
        arrays = self._books.settle()
        fitting = decision.fitting
        if fitting is None or len(fitting.fits) != arrays.columns:
            fitting = fit.fit_all(arrays, request, request.gpu_policy or self._options.gpu_policy)
        same = decision.columns is not None and decision.names == names
        columns = decision.columns if same else arrays.columns_of(map(identifiers.NodeName, names))
        assert columns is not None
        candidates = columns[(columns >= 0) & fitting.fits[columns]] if arrays.columns else columns[:0]
        if not len(candidates):
            return identifiers.NodeName(names[0]) if same else None
        values = fit.scores(arrays, request, fitting, request.node_policy or self._options.node_policy)
        column = fit.best(arrays, values, candidates)
        decision.score = float(values[column])
        return arrays.names[column]

    def _nominate(self, decision: Decision, name: identifiers.NodeName) -> None:
        request, pod = decision.pod.request, decision.pod
        assert isinstance(request, requests.PodRequest)
        decision.node = name
        answer = self._place(pod, request, name, nominations=True)
        if isinstance(answer, placement.Placement):
            bookings = reservations.booked(request.kinds, answer.shares)
            expires_at = self._clock() + self._options.nomination_seconds
            self._books.nominate(ledger.Claim(pod.uid, name, bookings, pod.priority, expires_at=expires_at))

    def _log_nodes(
        self, pod: facts.Waiting, names: Sequence[str], fits: fleet_arrays.Bools, reasons: fleet_arrays.Codes
    ) -> None:
        if self._options.verbosity < 4:
            return
        for name, taken, code in zip(names, fits.tolist(), reasons.tolist(), strict=True):
            log.info("node", pod=pod.key, node=name, fits=taken, why="" if taken else _PHRASES[code])
            if self._options.verbosity >= 5:
                for state in self._books.held(identifiers.NodeName(name)).states:
                    log.info(
                        "gpu",
                        node=name,
                        gpu=state.gpu.uuid,
                        free_mib=state.gpu.memory_mib - state.used.memory_mib,
                        free_cores_percent=state.gpu.cores_percent - state.used.cores_percent,
                        free_slots=state.gpu.slots - state.used.slots,
                    )
