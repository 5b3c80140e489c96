"""Tells people what was decided: one log line and one pod event per decision, with the same numbers.

Events are handed to a recorder and never waited for. A pod that is refused again with the same counts within a few
seconds is not told again.
"""

import asyncio
import collections
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import NamedTuple, Protocol

import numpy as np
import structlog

from gpu_sharing.adapters import events, logs
from gpu_sharing.core import error_codes, event_reasons, identifiers, placement, rejections, requests
from gpu_sharing.core.rejections import Reason
from scheduler_extender.cluster import from_objects
from scheduler_extender.cluster.mirror import Mirror
from scheduler_extender.decide.placer import Placer
from scheduler_extender.fleet import facts
from scheduler_extender.report import event_notes
from scheduler_extender.settings import Settings

_SAME_REFUSAL_SECONDS = 5.0
_STOPPED_GRACE_SECONDS = 1.0
_REMEMBERED = 10_000
_SCHEDULING, _BINDING = "GPUScheduling", "GPUBinding"

log = structlog.get_logger("decisions")


class Recorder(Protocol):
    """Where events go."""

    def tell(self, event: events.Event) -> None:
        """Take an event without waiting."""


@dataclass(frozen=True, slots=True)
class Summary:
    """Why a pod waits."""

    note: str
    """The note of its `FailedScheduling` event."""
    code: error_codes.Code
    """Of the reason that most nodes give."""
    nearest: tuple[identifiers.NodeName, rejections.Rejection] | None = None
    """A node that gives it, where they can be told apart the one that came nearest."""

    def facts(self) -> dict[str, str]:
        """The nearest node and its numbers, as fields of a log line."""
        if self.nearest is None:
            return {}
        node, rejection = self.nearest
        numbers = {"requested": rejection.requested, "available": rejection.available}
        return {"node": node, **(numbers if rejection.requested else {})}


class _Told(NamedTuple):
    """What was said of a pod last; nothing where it got a yes."""

    summary: str
    at: float
    code: error_codes.Code | None = None


class DecisionEvents:
    """Writes the story of each pod."""

    def __init__(
        self,
        mirror: Mirror,
        placer: Placer,
        recorder: Recorder,
        settings: Settings,
        leads: Callable[[], bool],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._mirror = mirror
        self._placer = placer
        self._recorder = recorder
        self._settings = settings
        self._leads = leads
        self._clock = clock
        self._told: collections.OrderedDict[identifiers.PodUid, _Told] = collections.OrderedDict()

    def scheduled(
        self,
        pod: from_objects.PendingPod,
        node: identifiers.NodeName,
        placed: placement.Placement,
        score: float,
        decision: identifiers.DecisionId,
    ) -> None:
        """A pod was bound."""
        assert isinstance(pod.request, requests.PodRequest)
        node_facts = self._mirror.ledger.node_facts(node)
        gpus_on_node = len(node_facts.inventory) if node_facts else placed.gpu_count
        policy = self._placer.node_policy(pod.request).name
        if logs.shows(logs.DECISIONS):
            gpus = [share.uuid for shares in placed.shares for share in shares]
            log.info(
                "bound", pod=pod.key, node=node, gpus=gpus, score=round(score * 100), policy=policy,
                decision_id=decision,
            )  # fmt: skip
        note = event_notes.scheduled(node, gpus_on_node, pod.request, placed, score, policy)
        self._pod_event(pod.key, pod.uid, event_reasons.SCHEDULED, note, _BINDING)

    def refused(
        self, pod: from_objects.PendingPod, offered: Iterable[identifiers.NodeName], decision: identifiers.DecisionId
    ) -> None:
        """No offered node takes the pod."""
        explained = self.explain(pod, offered)
        summary = explained.note.partition("\n")[0]
        now = self._clock()
        before = self._told.get(pod.uid)
        if before and before.summary == summary and now - before.at < _SAME_REFUSAL_SECONDS:
            return
        self._remember(pod.uid, _Told(summary, now, explained.code))
        log.error(
            "refused", error_code=explained.code, pod=pod.key, **explained.facts(), why=explained.note,
            decision_id=decision,
        )  # fmt: skip
        self._pod_event(pod.key, pod.uid, event_reasons.FAILED_SCHEDULING, explained.note, _SCHEDULING)

    def bind_failed(
        self,
        pod_key: str,
        node: str,
        code: error_codes.Code,
        message: str,
        decision: identifiers.DecisionId | None,
    ) -> None:
        """A bind was answered with an error. kube-scheduler tells the pod; the log has the code."""
        log.error("bind failed", error_code=code, pod=pod_key, node=node, cause=message, decision_id=decision)

    def reason_of(self, uid: identifiers.PodUid) -> error_codes.Code | None:
        """Why a pod was refused last; None where it was not, or that is long ago."""
        told = self._told.get(uid)
        return told.code if told else None

    def asked(self, uid: identifiers.PodUid) -> None:
        """kube-scheduler asked about the pod and got a yes."""
        self._remember(uid, _Told("", self._clock()))

    def foreign(self, pod: facts.BoundPod) -> None:
        """A pod with GPUs was bound by somebody else."""
        entry = error_codes.REGISTRY[error_codes.FOREIGN_POD]
        self._problem(pod, event_reasons.FOREIGN_POD, entry)

    def corrupt(self, pod: facts.BoundPod) -> None:
        """A pod's record does not decode."""
        self._problem(pod, event_reasons.CORRUPT_RECORD, error_codes.REGISTRY[error_codes.CORRUPT_POD_RECORD])

    def preempting(
        self, pod: from_objects.PendingPod, node: identifiers.NodeName, gone: Iterable[facts.BoundPod]
    ) -> None:
        """Pods of lower priority are evicted for a pod."""
        names = [f"{one.key} (priority {one.traits.priority})" for one in gone]
        log.info("preempting", pod=pod.key, node=node, priority=pod.priority, victims=names)
        note = "\n    ".join([f"Evicting {len(names)} of lower priority on {node} for its GPUs", *names])
        self._pod_event(pod.key, pod.uid, event_reasons.PREEMPTING, note, _SCHEDULING)

    def preempted(self, gone: facts.BoundPod, pod: from_objects.PendingPod) -> None:
        """A pod is evicted for another."""
        note = f"Preempted by {pod.key} (priority {pod.priority}), which needs its GPU memory or cores on {gone.node}"
        self._pod_event(gone.key, gone.uid, event_reasons.PREEMPTED, note, _SCHEDULING)

    def gang_torn(
        self, gang: str, unbound: Iterable[from_objects.PendingPod], bound: Iterable[facts.BoundPod], *, evicting: bool
    ) -> None:
        """Not all members of a gang were bound in time."""
        waiting, held = list(unbound), list(bound)
        head = f"{error_codes.GANG_TORN}: of gang {gang} {len(waiting)} were not bound in time, {len(held)} were"
        for one in waiting:
            self._pod_event(one.key, one.uid, event_reasons.GANG_TORN, head, _SCHEDULING)
        end = "it is evicted, to start with the others" if evicting else "it stays, and holds its GPUs"
        for gone in held:
            self._pod_event(gone.key, gone.uid, event_reasons.GANG_TORN, f"{head}\n    {end}", _SCHEDULING)

    def bad_links(self, node: facts.Node) -> None:
        """A node's record of links cannot be read or contradicts itself."""
        if self._leads():
            entry = error_codes.REGISTRY[error_codes.BAD_LINKS]
            note = f"{entry.code}: {node.bad_links}\n    {entry.remedy}"
            # The kubelet names a node by its name where others have a UID, and `kubectl describe node` looks for that.
            regarding = events.Regarding("Node", node.name, "", node.name)
            self._recorder.tell(events.Event(regarding, event_reasons.BAD_LINKS, note, _SCHEDULING))

    def stopped(self, pod: from_objects.PendingPod) -> None:
        """kube-scheduler says it cannot place a pod: explain its GPUs too, unless it was us who refused."""
        asyncio.get_running_loop().call_later(_STOPPED_GRACE_SECONDS, self._explain_stopped, pod.uid)

    def explain(self, pod: from_objects.PendingPod, offered: Iterable[identifiers.NodeName]) -> Summary:
        """Every node of the cluster and why it does not take the pod, and the reason that most nodes give."""
        ledger = self._mirror.ledger
        total = ledger.settle().live
        if isinstance(pod.request, requests.InvalidRequest):
            return Summary(event_notes.refused_everywhere(total, pod.request), pod.request.code)
        allowed = frozenset(offered)
        if total <= event_notes.MOST_NODES_LISTED:
            named = [(name, self.why_not(pod, name, allowed)) for name in sorted(ledger.node_names())]
            lines = [(str(name), rejection) for name, rejection in named]
            counts = collections.Counter(rejection.reason for _, rejection in lines)
        else:
            groups = self._groups(pod, pod.request, allowed)
            lines = event_notes.grouped(groups)
            named = [(group.nearest_node, group.nearest) for group in groups]
            counts = collections.Counter()
            for group in groups:
                counts[group.nearest.reason] += group.count
        main = min(counts, key=lambda reason: (-counts[reason], reason), default=Reason.NODE_NOT_REGISTERED)
        nearest = next(((name, rejection) for name, rejection in named if rejection.reason is main), None)
        note = event_notes.refused(total, list(counts.items()), lines)
        return Summary(note, rejections.REASONS[main].code, nearest)

    def why_not(
        self, pod: from_objects.PendingPod, name: identifiers.NodeName, offered: frozenset[identifiers.NodeName]
    ) -> rejections.Rejection:
        """Why one node does not take the pod; a node that would was not offered."""
        away = self._placer.unavailable(name)
        if away is not None and name not in offered:
            return away
        answer = self._placer.place_on(pod, name, nominations=name in offered)
        return answer if isinstance(answer, rejections.Rejection) else rejections.Rejection(Reason.NOT_OFFERED)

    def _groups(
        self, pod: from_objects.PendingPod, request: requests.PodRequest, offered: frozenset[identifiers.NodeName]
    ) -> list[event_notes.Group]:
        arrays = self._mirror.ledger.settle()
        fitting = self._placer.everywhere(request).fitting
        live = np.array([bool(name) for name in arrays.names])
        # The GPU that would have to be taken last tells how near a node came.
        depth = min(max(request.gpus, 1), arrays.exists.shape[0])
        nearness = np.sort(np.where(arrays.usable, arrays.memory_free, -1)[:, : arrays.columns], axis=0)[-depth]
        reasons, away = fitting.reasons, arrays.unavailable[: arrays.columns]
        if away.any():
            away = np.where(np.isin(np.array(arrays.names), list(offered)), Reason.NONE, away)
            reasons = np.where(away != Reason.NONE, away, reasons)
        groups = []
        for code in np.unique(reasons[live]):
            columns = np.flatnonzero(live & (reasons == code))
            nearest = arrays.names[int(columns[nearness[columns].argmax()])]
            groups.append(event_notes.Group(len(columns), nearest, self.why_not(pod, nearest, offered)))
        return groups

    def _explain_stopped(self, uid: identifiers.PodUid) -> None:
        pod = self._mirror.waiting.get(uid)
        told = self._told.get(uid)
        recently = told is not None and self._clock() - told.at < 2 * _STOPPED_GRACE_SECONDS + 1
        if pod is None or recently or not self._leads() or pod.scheduler_name != self._settings.scheduler_name:
            return
        self.refused(pod, (), identifiers.DecisionId(""))

    def _remember(self, uid: identifiers.PodUid, told: _Told) -> None:
        self._told[uid] = told
        self._told.move_to_end(uid)
        if len(self._told) > _REMEMBERED:
            self._told.popitem(last=False)

    def _problem(self, pod: facts.BoundPod, reason: str, entry: error_codes.ErrorCode) -> None:
        if self._leads():
            note = f"{entry.code}: {entry.meaning}\n    {entry.remedy}"
            self._pod_event(pod.key, pod.uid, reason, note, _SCHEDULING)

    def _pod_event(self, key: str, uid: identifiers.PodUid, reason: str, note: str, action: str) -> None:
        namespace, _, name = key.partition("/")
        self._recorder.tell(events.Event(events.Regarding("Pod", name, namespace, uid), reason, note, action))
