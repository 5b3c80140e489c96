"""What the read API answers about remediation: the last plan of the leader, and what is written on the nodes."""

from gpu_sharing.adapters import read_api_types
from gpu_sharing.core import remediation_rules
from scheduler_extender.decide.core import DecisionCore

_MOST_ACTS = 1_000
"""Of the nodes first by name, so that a cluster full of faults is answered as fast as any other."""


def view(core: DecisionCore, visible: frozenset[str] | None) -> read_api_types.Remediation:
    """Return the answer.

    Args:
        core: The cluster as it is known.
        visible: The namespaces whose pods the caller may see; None for all.
    """
    health, settings = core.mirror.node_health, core.settings
    plan = health.latest
    history = [
        read_api_types.RemediationEntry(
            node=node.name,
            gpu=entry.gpu,
            action=entry.action.value,
            rule=entry.rule,
            times=list(entry.times),
            holds=entry.holds,
        )
        for node in health.nodes()
        for entry in node.history
        if entry.action is not remediation_rules.Action.RELEASE
    ]
    answer = read_api_types.Remediation(mode=_mode(settings.remediation), history=history[:_MOST_ACTS])
    if plan is None:
        return answer
    return read_api_types.Remediation(
        mode=answer.mode,
        leading=True,
        breaker=plan.breaker.value,
        budget_left=plan.budget_left,
        affected_nodes=plan.affected_nodes,
        acts=[
            read_api_types.RemediationAct(
                node=act.node,
                gpu=act.gpu,
                action=act.action.value,
                rule=act.rule.name,
                cause=act.cause,
                reason=act.refusal.value if act.refusal else "",
                wait_seconds=act.wait_seconds,
            )
            for act in plan.acts[:_MOST_ACTS]
        ],
        history=answer.history,
        migrations=[
            read_api_types.Migration(namespace, name, reason)
            for key, reason in health.migrations
            for namespace, _, name in (key.partition("/"),)
            if visible is None or namespace in visible
        ],
    )


def _mode(text: str) -> read_api_types.RemediationMode:
    return "on" if text == "on" else "dry-run" if text == "dry-run" else "off"
