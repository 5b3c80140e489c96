"""Reports what remediation does and does not do: an event on the node and its pods, a log line and a metric."""

from collections.abc import Iterable

import structlog

from gpu_sharing.adapters import events
from gpu_sharing.core import error_codes, event_reasons, remediation
from gpu_sharing.core.remediation import Act, Breaker, Plan, Refusal
from gpu_sharing.core.remediation_rules import Action
from scheduler_extender.fleet import facts
from scheduler_extender.metrics import DONE, DRY_RUN, FAILED, REFUSED, Metrics
from scheduler_extender.report.decision_events import Recorder

_ACTION = "GPURemediation"

log = structlog.get_logger("remediation")

_Key = tuple[str, str, Action, str]


class RemediationEvents:
    """Reports each act, and each reason why one is not done once, until it changes."""

    def __init__(self, recorder: Recorder, metrics: Metrics) -> None:
        self._recorder = recorder
        self._metrics = metrics
        self._refused: dict[_Key, Refusal] = {}
        self._breaker = Breaker.CLOSED

    def planned(self, plan: Plan) -> None:
        """Report the state of all limits, and what is not done, where either has changed."""
        metrics = self._metrics
        metrics.remediation_budget_left.set(plan.budget_left)
        metrics.remediation_affected.set(plan.affected_nodes)
        for state in Breaker:
            metrics.remediation_breaker.labels(state=state.value).set(plan.breaker is state)
        if plan.breaker is not self._breaker:
            self._breaker = plan.breaker
            fields = {"affected_nodes": plan.affected_nodes, "state": plan.breaker.value}
            if plan.breaker is Breaker.CLOSED:
                log.info("breaker closed", **fields)
            else:
                log.warning("breaker not closed", error_code=error_codes.REMEDIATION_STOPPED, **fields)
        refused = {_key(act): act.refusal for act in plan.acts if act.refusal}
        for act in plan.acts:
            if act.refusal and self._refused.get(_key(act)) is not act.refusal:
                self._not_done(act, act.refusal)
        self._refused = refused

    def _not_done(self, act: Act, refusal: Refusal) -> None:
        is_dry = refusal is Refusal.DRY_RUN
        self._count(act, DRY_RUN if is_dry else REFUSED)
        log.info(
            "would act" if is_dry else "not done",
            error_code=error_codes.REMEDIATION_REFUSED,
            **_fields(act),
            reason=refusal.value,
            wait_seconds=act.wait_seconds,
        )
        if refusal in remediation.PASSING:
            return  # The act follows by itself.
        note = f"{error_codes.REMEDIATION_REFUSED}: {'would do' if is_dry else 'does not do'} {describe(act)}"
        self._node_event(act, event_reasons.REMEDIATION_REFUSED, f"{note}\n    {refusal.value}")

    def done(self, act: Act) -> None:
        """Report an act or a release that the API server has done."""
        self._count(act, DONE)
        log.warning("remediated", error_code=error_codes.REMEDIATED, **_fields(act))
        if act.action is Action.RELEASE:
            ended = ", ".join(one.action.value for one in act.releases)
            note = f"Released {ended}{f' of {act.gpu}' if act.gpu else ''}: {act.cause}"
            self._node_event(act, event_reasons.REMEDIATION_RELEASED, note)
            return
        self._node_event(act, event_reasons.REMEDIATED, f"{error_codes.REMEDIATED}: {describe(act)}")

    def failed(self, act: Act, cause: Exception) -> None:
        """Report an act that the API server has refused or not answered."""
        self._count(act, FAILED)
        log.error("remediation failed", error_code=error_codes.REMEDIATION_FAILED, **_fields(act), cause=str(cause))
        note = f"{error_codes.REMEDIATION_FAILED}: {describe(act)}\n    {cause}"
        self._node_event(act, event_reasons.REMEDIATION_REFUSED, note)

    def evicted(self, act: Act, pod: facts.BoundPod, *, is_gone: bool) -> None:
        """Report on a pod that it is evicted, or that its eviction was refused."""
        self._metrics.remediation_evictions.labels(outcome=DONE if is_gone else REFUSED).inc()
        code = error_codes.REMEDIATED if is_gone else error_codes.REMEDIATION_FAILED
        log.info("evicted" if is_gone else "not evicted", error_code=code, pod=pod.key, **_fields(act))
        head = "Evicted from" if is_gone else "Its disruption budget or the API server refuses the eviction from"
        namespace, _, name = pod.key.partition("/")
        regarding = events.Regarding("Pod", name, namespace, pod.uid)
        note = f"{code}: {head} {act.node} by rule {act.rule.name}\n    {act.gpu}: {act.cause}"
        self._recorder.record(events.Event(regarding, event_reasons.REMEDIATED, note, _ACTION))

    def unowned(self, act: Act, pods: Iterable[facts.BoundPod]) -> None:
        """Log the pods that are not evicted, because no controller would start them again."""
        names = [pod.key for pod in pods]
        if names:
            code = error_codes.REMEDIATION_REFUSED
            log.warning("no owner", error_code=code, **_fields(act), pods=names)

    def migrated(self, pod: str, successor: str | None, node: str | None) -> None:
        """Count a migration that ended."""
        self._metrics.migrations.labels(outcome="done" if successor else "lost").inc()
        log.info("migrated", error_code=error_codes.REMEDIATED, pod=pod, successor=successor, node=node)

    def _count(self, act: Act, outcome: str) -> None:
        self._metrics.remediation_acts.labels(action=act.action.value, outcome=outcome).inc()

    def _node_event(self, act: Act, reason: str, note: str) -> None:
        # The kubelet names a node by its name where others have a UID, and `kubectl describe node` filters by that.
        regarding = events.Regarding("Node", act.node, "", act.node)
        self._recorder.record(events.Event(regarding, reason, note, _ACTION))


def describe(act: Act) -> str:
    """Return an act for people: what, where, by which rule and why."""
    of = f" of {act.gpu}" if act.gpu != remediation.NODE else ""
    return f"{act.action.value}{of} by rule {act.rule.name}: {act.cause}"


def _key(act: Act) -> _Key:
    return act.node, act.gpu, act.action, act.rule.name


def _fields(act: Act) -> dict[str, str]:
    return {"action": act.action.value, "node": act.node, "gpu": act.gpu, "rule": act.rule.name, "fault": act.cause}
