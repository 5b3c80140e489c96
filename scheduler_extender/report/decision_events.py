"""Reports what was decided: one log line and one pod event per decision, with the same numbers.

Each is written from the value that decided. Events are handed to a recorder and never waited for. A pod that is
rejected again with the same counts within a few seconds is not reported again.
"""

import asyncio
from collections.abc import Callable, Iterable, Sequence
from typing import Protocol

import structlog

from gpu_sharing.adapters import events, logs
from gpu_sharing.core import error_codes, event_reasons, identifiers, placement
from scheduler_extender.cluster import pending
from scheduler_extender.cluster.pending import PendingPod
from scheduler_extender.decide import verbs
from scheduler_extender.decide.core import DecisionCore
from scheduler_extender.fleet import facts
from scheduler_extender.report import event_notes

_SAME_REJECTION_SECONDS = 5.0
_UNSCHEDULABLE_GRACE_SECONDS = 1.0
"""After kube-scheduler says that it cannot place a pod: our own rejection of it, if there is one, comes first."""
_SCHEDULING, _BINDING = "GPUScheduling", "GPUBinding"

log = structlog.get_logger("decisions")


class Recorder(Protocol):
    """Writes events in the background."""

    def record(self, event: events.Event) -> None:
        """Accept an event without waiting."""


class DecisionEvents:
    """Writes the events of pods and nodes."""

    def __init__(self, core: DecisionCore, recorder: Recorder, leads: Callable[[], bool]) -> None:
        self._core = core
        self._recorder = recorder
        self._leads = leads

    def filtered(self, answer: verbs.FilterDecision, offered: Sequence[str]) -> None:
        """Report what filter decided."""
        self._log_nodes(answer, offered)
        if logs.shows(logs.HIGHEST):
            log.debug("fit cache", pod=answer.pod.key, use=self._core.placer.last_cache_use, nodes=len(offered))
        if answer.rejection is None:
            self._core.pending.entry_of(answer.pod).report = pending.Report("", self._core.clock())
        else:
            self.rejected(answer.pod, answer.rejection, answer.decision.id)

    def prioritized(self, pod: pending.AnyPod, names: Sequence[str], ranking: verbs.Ranking) -> None:
        """Log how the score of each node came about, from verbosity 5 on."""
        if not logs.shows(logs.DEVICES) or isinstance(pod, pending.UnreadablePod):
            return
        policy = self._core.placer.node_policy(pod.request)
        for name in map(identifiers.NodeName, names):
            placed = self._core.placer.place_on(pod, name, nominations=False)
            if not isinstance(placed, placement.Placement):
                continue
            node = self._core.ledger.settled(name)
            parts = placement.allocated_after(pod.request, node, placed)
            slots, cores, memory = (round(100 * part, 1) for part in parts)
            log.info(
                "score",
                pod=pod.key,
                node=name,
                policy=policy.name,
                slots_percent_after=slots,
                cores_percent_after=cores,
                memory_percent_after=memory,
                free_gpus_after=round(placement.free_gpus_after(node, parts), 2),
                score=round(100 * placement.node_score(pod.request, node, placed, policy)),
                best=name == ranking.best,
            )

    def rejected(
        self, pod: pending.AnyPod, rejection: pending.PodRejection, decision: identifiers.DecisionId | None = None
    ) -> None:
        """Report why no node takes a pod."""
        note = event_notes.rejected(rejection)
        report = pending.Report(note.partition("\n")[0], self._core.clock())
        entry = self._core.pending.entry_of(pod)
        before = entry.report
        if before and before.head == report.head and report.at - before.at < _SAME_REJECTION_SECONDS:
            return
        entry.report = report
        log.error(
            "Failed to schedule pod",
            error_code=rejection.code,
            pod=pod.key,
            **_numbers(rejection),
            why=note,
            decision_id=decision,
        )
        self._pod_event(pod.key, pod.uid, event_reasons.FAILED_SCHEDULING, note, _SCHEDULING)

    def scheduled(
        self,
        pod: PendingPod,
        node: identifiers.NodeName,
        placed: placement.Placement,
        *,
        score: float,
        decision: identifiers.DecisionId,
    ) -> None:
        """Report a bind that the API server has done."""
        known = self._core.ledger.node_facts(node)
        gpus_on_node = len(known.inventory) if known else placed.gpu_count
        policy = self._core.placer.node_policy(pod.request)
        if logs.shows(logs.DECISIONS):
            gpus = [share.uuid for shares in placed.shares for share in shares]
            log.info(
                "bound",
                pod=pod.key,
                node=node,
                gpus=gpus,
                score=round(score * 100),
                policy=policy.name,
                decision_id=decision,
            )
        gpu_policy = self._core.placer.gpu_policy(pod.request)
        note = event_notes.scheduled(
            node,
            gpus_on_node,
            pod.request,
            placed,
            score=score,
            node_policy=policy,
            gpu_policy=gpu_policy,
            room=placement.room_for_more(self._core.ledger.settled(node), placed)
            if gpu_policy.by_fragmentation
            else None,
        )
        self._pod_event(pod.key, pod.uid, event_reasons.SCHEDULED, note, _BINDING)

    def bind_failed(
        self,
        pod_key: str,
        node: str,
        *,
        code: error_codes.Code,
        message: str,
        decision: identifiers.DecisionId | None,
    ) -> None:
        """Log a bind that was answered with an error; kube-scheduler writes the pod's event."""
        log.error("bind failed", error_code=code, pod=pod_key, node=node, cause=message, decision_id=decision)

    def preempting(self, pod: PendingPod, node: identifiers.NodeName, victims: Iterable[facts.BoundPod]) -> None:
        """Report on a pod that pods of lower priority are evicted for it."""
        names = [f"{victim.key} (priority {victim.traits.priority})" for victim in victims]
        log.info("preempting", pod=pod.key, node=node, priority=pod.priority, victims=names)
        note = "\n    ".join([f"Evicting {len(names)} of lower priority on {node} for its GPUs", *names])
        self._pod_event(pod.key, pod.uid, event_reasons.PREEMPTING, note, _SCHEDULING)

    def preempted(self, victim: facts.BoundPod, pod: PendingPod) -> None:
        """Report on a pod that it is evicted for another."""
        note = f"Preempted by {pod.key} (priority {pod.priority}), which needs its GPU memory or cores on {victim.node}"
        self._pod_event(victim.key, victim.uid, event_reasons.PREEMPTED, note, _SCHEDULING)

    def gang_aborted(
        self, gang: str, unbound: Iterable[pending.AnyPod], bound: Iterable[facts.BoundPod], *, evicting: bool
    ) -> None:
        """Report on every member that not all members of its gang were bound in time."""
        waiting, held = list(unbound), list(bound)
        head = f"{error_codes.GANG_TORN}: of gang {gang} {len(waiting)} were not bound in time, {len(held)} were"
        for member in waiting:
            self._pod_event(member.key, member.uid, event_reasons.GANG_TORN, head, _SCHEDULING)
        end = "it is evicted, to start with the others" if evicting else "it stays, and holds its GPUs"
        for victim in held:
            self._pod_event(victim.key, victim.uid, event_reasons.GANG_TORN, f"{head}\n    {end}", _SCHEDULING)

    # What the mirror finds.

    def foreign(self, pod: facts.BoundPod) -> None:
        """Report a pod with GPUs that another scheduler has bound."""
        self._problem(pod, event_reasons.FOREIGN_POD, error_codes.REGISTRY[error_codes.FOREIGN_POD])

    def corrupt(self, pod: facts.BoundPod) -> None:
        """Report a pod whose record does not decode."""
        self._problem(pod, event_reasons.CORRUPT_RECORD, error_codes.REGISTRY[error_codes.CORRUPT_POD_RECORD])

    def bad_links(self, node: facts.Node) -> None:
        """Report a node whose record of links cannot be read or contradicts itself."""
        self._node_event(node.name, event_reasons.BAD_LINKS, error_codes.BAD_LINKS, node.bad_links)

    def unknown_cordon(self, node: facts.Node) -> None:
        """Report a node whose cordon names a UUID that no GPU of it has."""
        sentence = event_notes.unknown_cordon(node.unknown_cordons, [gpu.uuid for gpu in node.inventory])
        self._node_event(node.name, event_reasons.UNKNOWN_CORDON, error_codes.UNKNOWN_CORDON, sentence)

    def _node_event(self, name: str, reason: str, code: error_codes.Code, sentence: str) -> None:
        if self._leads():
            note = f"{code}: {sentence}\n    {error_codes.REGISTRY[code].remedy}"
            # The kubelet names a node by its name where others have a UID, and `kubectl describe node` filters by that.
            regarding = events.Regarding("Node", name, "", name)
            self._recorder.record(events.Event(regarding, reason, note, _SCHEDULING))

    def unschedulable(self, pod: pending.AnyPod) -> None:
        """Report the GPUs of a pod that kube-scheduler says it cannot place, unless the rejection was ours."""
        asyncio.get_running_loop().call_later(_UNSCHEDULABLE_GRACE_SECONDS, self._report_unschedulable, pod.uid)

    def _report_unschedulable(self, uid: identifiers.PodUid) -> None:
        entry = self._core.pending.entry(uid)
        pod = self._core.pending.get(uid)
        if entry is None or pod is None or not self._leads():
            return
        recently = 2 * _UNSCHEDULABLE_GRACE_SECONDS + 1
        if entry.report and self._core.clock() - entry.report.at < recently:
            return
        if pod.scheduler_name == self._core.settings.scheduler_name:
            self.rejected(pod, self._core.reject(pod))

    def _problem(self, pod: facts.BoundPod, reason: str, entry: error_codes.ErrorCode) -> None:
        if self._leads():
            note = f"{entry.code}: {entry.meaning}\n    {entry.remedy}"
            self._pod_event(pod.key, pod.uid, reason, note, _SCHEDULING)

    def _pod_event(self, key: str, uid: identifiers.PodUid, reason: str, note: str, action: str) -> None:
        namespace, _, name = key.partition("/")
        self._recorder.record(events.Event(events.Regarding("Pod", name, namespace, uid), reason, note, action))

    def _log_nodes(self, answer: verbs.FilterDecision, offered: Sequence[str]) -> None:
        if not logs.shows(logs.NODES) or isinstance(answer.pod, pending.UnreadablePod):
            return
        for name in offered:
            why = answer.refused.get(name, "")
            log.info("node", pod=answer.pod.key, node=name, fits=not why, why=why)
            if logs.shows(logs.DEVICES):
                for state in self._core.ledger.allocated_on(identifiers.NodeName(name)).states:
                    log.info(
                        "gpu",
                        node=name,
                        gpu=state.gpu.uuid,
                        free_mib=state.free_memory_mib,
                        free_cores_percent=state.free_cores_percent,
                        free_slots=state.gpu.slots - state.allocated.slots,
                    )


def _numbers(rejection: pending.PodRejection) -> dict[str, str]:
    """The nearest node and its numbers, as fields of a log line."""
    if rejection.nearest is None:
        return {}
    node, why = rejection.nearest.nearest, rejection.nearest.rejection
    return {"node": node, **({"requested": why.requested, "available": why.available} if why.requested else {})}
