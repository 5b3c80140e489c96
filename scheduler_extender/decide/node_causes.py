"""Why no node takes a pod, as causes over all nodes: those of the nodes that came nearest are the first. Pure.

Where a node selector leaves one node, and that one is cordoned, the cordon is the cause; that the other nodes do not
match comes after it.
"""

import collections
import dataclasses
from collections.abc import Iterable, Sequence

from gpu_sharing.core import error_codes, rejections
from gpu_sharing.core.rejections import Reason
from scheduler_extender.cluster import node_selection, pending, scheduler_condition
from scheduler_extender.decide import causes, node_obstacles
from scheduler_extender.decide.causes import Cause, cause
from scheduler_extender.decide.core import DecisionCore
from scheduler_extender.decide.node_obstacles import Obstacle, Stage
from scheduler_extender.fleet import facts

_MOST_NAMED = 3
_MOST_CAUSES = 5
"""Of one stage."""
_SEEN_BY_US = frozenset({error_codes.NODE_SELECTOR, error_codes.NODE_TAINT, error_codes.NODE_CORDONED})
"""Rules that we examine too: kube-scheduler cannot mean a node that passes them here."""
_OF_THE_POD = frozenset({Reason.QUOTA, Reason.QUOTA_UNREADABLE, Reason.GANG})
"""Reasons that are the same on every node."""
_MAY_PASS = frozenset({Reason.QUOTA, Reason.GANG, Reason.HAMI_NODE_BUSY})
"""Reasons that the end or the start of other pods may cure, although no eviction does."""
_STATES = {error_codes.NODE_CORDONED: "cordoned", error_codes.NODE_NOT_READY: "not ready"}


def joined(
    core: DecisionCore, pod: pending.PendingPod, of_pod: Sequence[Cause], obstacles: Sequence[Obstacle]
) -> tuple[Cause, ...]:
    """Return all causes of a pod, each once: first what concerns it as a whole.

    That kube-scheduler has not tried a pod is no cause of its own where a gate or another schedulerName prevents it.
    """
    known = {each.sentence for each in of_pod}
    more = (each for each in of_nodes(core, pod, obstacles) if each.sentence not in known)
    return (*of_pod, *(each for each in more if not of_pod or each.code != error_codes.NOT_TRIED))


def of_nodes(core: DecisionCore, pod: pending.PendingPod, obstacles: Sequence[Obstacle]) -> tuple[Cause, ...]:
    """Return what keeps a pod off the nodes, given what keeps it off each."""
    by_stage: dict[Stage, list[Obstacle]] = collections.defaultdict(list)
    for obstacle in obstacles:
        by_stage[obstacle.stage].append(obstacle)
    if not by_stage.keys() - {Stage.NO_GPUS}:
        return (_no_gpus(obstacles),)
    by_stage.pop(Stage.NO_GPUS, None)
    with_gpus = [obstacle for obstacle in obstacles if obstacle.stage is not Stage.NO_GPUS]
    stages = _Stages(core, pod, with_gpus)
    nearest = max(by_stage)
    first = list(stages.causes(nearest, by_stage.pop(nearest)))
    if first[0].code == error_codes.NOT_TRIED:
        return tuple(first)
    # Of the other nodes those count where only one rule is in the way: without it the pod would fit there.
    lone = {
        stage: some for stage in by_stage if (some := [obstacle for obstacle in by_stage[stage] if obstacle.gpus_fit])
    }
    return (*first, *(each for stage in sorted(lone, reverse=True) for each in stages.causes(stage, lone[stage])))


def _no_gpus(obstacles: Sequence[Obstacle]) -> Cause:
    """The cause where no node has GPUs that the extender allocates."""
    reasons = [obstacle.rejection.reason for obstacle in obstacles if obstacle.rejection]
    others = collections.Counter(reason for reason in reasons if reason is not Reason.NODE_NOT_REGISTERED)
    if not others:
        return cause(error_codes.NODE_NOT_REGISTERED, "no node has registered GPUs", len(obstacles), lasts=True)
    ((reason, count),) = others.most_common(1)
    where = _names(obstacle for obstacle in obstacles if obstacle.rejection and obstacle.rejection.reason is reason)
    info = rejections.REASONS[reason]
    return cause(info.code, f"{info.phrase} ({where}), and no other node has GPUs", count, lasts=True)


class _Stages:
    """Makes the causes of each stage from the nodes that came so far."""

    def __init__(self, core: DecisionCore, pod: pending.PendingPod, with_gpus: Sequence[Obstacle]) -> None:
        self._core = core
        self._pod = pod
        self._with_gpus = len(with_gpus)
        self._selected = [obstacle for obstacle in with_gpus if obstacle.selected]

    def causes(self, stage: Stage, obstacles: Sequence[Obstacle]) -> Iterable[Cause]:
        """Return the causes of one stage, the most frequent one first."""
        match stage:
            case Stage.FITS:
                return self._fits(obstacles)
            case Stage.GPUS:
                return self._gpus(obstacles)
            case Stage.UNAVAILABLE:
                return self._unavailable(obstacles)
            case Stage.SELECTOR:
                return (self._selector(obstacles),)
            case Stage.NEVER:
                return self._never(obstacles)
            case _:
                return self._by_message(obstacles)

    def _fits(self, obstacles: Sequence[Obstacle]) -> Iterable[Cause]:
        """The pod fits as far as the extender knows: only kube-scheduler knows what is in the way."""
        where, pod = _names(obstacles), self._pod
        if pod.nominated_node:
            return (cause(error_codes.NOT_TRIED, f"pods of lower priority are evicted for it on {pod.nominated_node}"),)
        count = self._core.settings.resource_names.count
        rules = [
            rule
            for rule in causes.scheduler_rules(pod)
            if rule.nodes and rule.code not in _SEEN_BY_US and rule.resource != count
        ]
        if not rules:
            tried = "since then" if pod.unschedulable_message else "yet"
            sentence = f"its GPUs fit on {where}; kube-scheduler has not tried the pod {tried}"
            return (cause(error_codes.NOT_TRIED, sentence),)
        return [
            cause(rule.code, f"{self._rule(rule, obstacles)}; its GPUs would fit on {where}", rule.nodes)
            for rule in rules[:_MOST_CAUSES]
        ]

    def _rule(self, rule: scheduler_condition.Rule, obstacles: Sequence[Obstacle]) -> str:
        """Return a rule of kube-scheduler in words, with the pod's request where that is CPU or memory."""
        traits = self._pod.traits
        asked = {"cpu": traits.cpu_thousandths, "memory": traits.memory_thousandths}.get(rule.resource, 0)
        if not asked:
            return f"kube-scheduler: {rule}"
        most = max((_allocatable(node, rule.resource) for node in self._facts(obstacles)), default=0)
        whole = f"; the largest node has {node_obstacles.amount(rule.resource, most)} in all" if most else ""
        asked_words = node_obstacles.amount(rule.resource, asked)
        return f"{rule.text} on {causes.nodes_words(rule.nodes)}: the pod requests {asked_words}{whole}"

    def _gpus(self, obstacles: Sequence[Obstacle]) -> Iterable[Cause]:
        """One cause for each reason, with the numbers of its nearest node."""
        by_reason: dict[Reason, list[Obstacle]] = collections.defaultdict(list)
        for obstacle in obstacles:
            if obstacle.rejection:
                by_reason[obstacle.rejection.reason].append(obstacle)
        for reason, some in sorted(by_reason.items(), key=lambda item: (-len(item[1]), item[0])):
            nearest = min(some, key=lambda obstacle: (obstacle.short_mib, obstacle.node))
            assert nearest.rejection is not None
            others = f" and {causes.nodes_words(len(some) - 1)} more" if len(some) > 1 else ""
            where = "" if reason in _OF_THE_POD else f" on {nearest.node}{others}"
            advice = causes.advice_for(self._pod.request, nearest.rejection)
            if nearest.rejection.info.curable and advice[0].islower():
                advice = f"{advice}, or wait for a pod to end"
            lasts = not nearest.rejection.info.curable and reason not in _MAY_PASS
            yield causes.advised(
                cause(nearest.rejection.code, f"{nearest.rejection.sentence}{where}", len(some), lasts=lasts), advice
            )

    def _unavailable(self, obstacles: Sequence[Obstacle]) -> Iterable[Cause]:
        by_code: dict[error_codes.Code, list[Obstacle]] = collections.defaultdict(list)
        for obstacle in obstacles:
            by_code[obstacle.code or error_codes.NOT_OFFERED].append(obstacle)
        for code, some in sorted(by_code.items(), key=lambda item: -len(item[1])):
            named = f"node {_names(some)} is" if len(some) == 1 else f"nodes {_names(some)} are"
            sentence = f"{named} {_STATES[code]}" if code in _STATES else f"{_names(some)}: {some[0].message}"
            yield cause(code, sentence + self._would_fit(some), len(some), lasts=True)

    def _selector(self, obstacles: Sequence[Obstacle]) -> Cause:
        known, wanted = self._facts(obstacles), self._pod.node_requirements
        nowhere = [pair for pair in wanted.selector if all(node.labels.get(pair[0]) != pair[1] for node in known)]
        what = f"nodeSelector {node_selection.selector_words(nowhere or wanted.selector)}"
        if not nowhere and wanted.terms:
            affinity = f"required affinity {node_selection.affinity_words(wanted)}"
            what = f"{what} with {affinity}" if wanted.selector else affinity
        if not self._selected:
            sentence = f"{what} matches no node with GPUs{_labels_there(nowhere, known)}"
        elif all(obstacle.stage is Stage.NEVER for obstacle in self._selected):
            sentence = f"{what} leaves only nodes whose GPUs never serve the request, and excludes {_names(obstacles)}"
        else:
            sentence = f"{what} excludes {causes.nodes_words(len(obstacles))}{self._would_fit(obstacles)}"
        return cause(error_codes.NODE_SELECTOR, sentence, len(obstacles), lasts=True)

    def _never(self, obstacles: Sequence[Obstacle]) -> Iterable[Cause]:
        """The request is more than the nodes have, or names other GPUs."""
        whole = causes.of_request(self._core, self._pod)
        if whole:
            return [dataclasses.replace(each, nodes=len(obstacles)) for each in whole]
        by_reason: dict[rejections.Rejection, int] = collections.Counter(
            obstacle.rejection for obstacle in obstacles if obstacle.rejection
        )
        return [
            self._never_on(rejection, count)
            for rejection, count in sorted(by_reason.items(), key=lambda item: -item[1])[:_MOST_CAUSES]
        ]

    def _never_on(self, rejection: rejections.Rejection, count: int) -> Cause:
        sentence = f"{rejection.sentence} on {causes.nodes_words(count)}, also when all GPUs there are empty"
        never = cause(error_codes.NEVER_FITS, sentence, count, lasts=True)
        advice = causes.advice_for(self._pod.request, rejection)
        return causes.advised(never, advice) if advice[0].islower() else never

    def _by_message(self, obstacles: Sequence[Obstacle]) -> Iterable[Cause]:
        """One cause for each text, such as a taint."""
        by_text: dict[tuple[error_codes.Code, str], list[Obstacle]] = collections.defaultdict(list)
        for obstacle in obstacles:
            by_text[obstacle.code or error_codes.NOT_OFFERED, obstacle.message].append(obstacle)
        for (code, message), some in sorted(by_text.items(), key=lambda item: -len(item[1]))[:_MOST_CAUSES]:
            sentence = f"{message} ({_names(some)}){self._would_fit(some)}"
            yield cause(code, sentence, len(some), lasts=True)

    def _would_fit(self, obstacles: Sequence[Obstacle]) -> str:
        """Return which of these nodes the pod would fit on without this cause; empty where it is the only one."""
        fitting = [obstacle for obstacle in obstacles if obstacle.gpus_fit]
        if not fitting or len(obstacles) == self._with_gpus:
            return ""
        return (
            ", where its GPUs would fit" if len(fitting) == len(obstacles) else f"; they would fit on {_names(fitting)}"
        )

    def _facts(self, obstacles: Iterable[Obstacle]) -> list[facts.Node]:
        nodes = (self._core.ledger.node_facts(obstacle.node) for obstacle in obstacles)
        return [node for node in nodes if node is not None]


def _names(obstacles: Iterable[Obstacle]) -> str:
    """Return the names of a few nodes, and how many more there are."""
    names = sorted(obstacle.node for obstacle in obstacles)
    if len(names) <= _MOST_NAMED:
        return ", ".join(names)
    return f"{', '.join(names[:_MOST_NAMED])} and {len(names) - _MOST_NAMED:,} more nodes"


def _allocatable(node: facts.Node, resource: str) -> int:
    return node.cpu_thousandths if resource == "cpu" else node.memory_thousandths


def _labels_there(pairs: Sequence[tuple[str, str]], nodes: Sequence[facts.Node]) -> str:
    """Return which values of the first label the nodes have, for a label with a wrong value or key."""
    if not pairs:
        return ""
    key = pairs[0][0]
    values = sorted({node.labels[key] for node in nodes if key in node.labels})
    if not values:
        return f"; none has the label {key}"
    more = f" and {len(values) - _MOST_NAMED} more values" if len(values) > _MOST_NAMED else ""
    return f"; they have {', '.join(f'{key}={value}' for value in values[:_MOST_NAMED])}{more}"
