"""Why a pod is pending, as data: one cause after another. Pure.

It comes from two sources: our own examination of the pod and of every node (`node_obstacles`, `node_causes`), and the
condition that kube-scheduler writes, for the rules that only kube-scheduler knows. The read API, the pages, `hamictl`
and doctor all use these, so that they cannot disagree.
"""

import dataclasses
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from gpu_sharing.core import error_codes, rejections, requests
from gpu_sharing.core.rejections import Reason
from scheduler_extender.cluster import pending, scheduler_condition
from scheduler_extender.decide.core import DecisionCore

_MOST_RULES, _LONGEST_NAME = 5, 253
_REWRITTEN = frozenset({"", "default-scheduler"})
"""The schedulerNames that the webhook replaces."""
_OUR_PHRASES = frozenset(info.phrase for info in rejections.REASONS.values())


@dataclass(frozen=True, slots=True, kw_only=True)
class Cause:
    """One thing that keeps a pod pending."""

    code: error_codes.Code
    sentence: str
    """What is in the way, with names and numbers; no full stop, because it also stands in lists."""
    advice: str
    """What the pod's owner can do, as a sentence."""
    nodes: int = 0
    """How many nodes it keeps the pod off; 0 where it concerns the pod as a whole."""
    lasts: bool = False
    """Whether it stays until a person changes something: no end of another pod cures it."""


def cause(code: error_codes.Code, sentence: str, nodes: int = 0, *, lasts: bool = False) -> Cause:
    """Return a cause with the advice of its code."""
    return Cause(code=code, sentence=sentence, advice=error_codes.REGISTRY[code].advice, nodes=nodes, lasts=lasts)


_UNTRIED = cause(error_codes.NOT_TRIED, "kube-scheduler has not tried it yet")


def of_pod(core: DecisionCore, pod: pending.AnyPod) -> Iterator[Cause]:
    """Yield what keeps a pod pending whatever the nodes are like, the first to be cured first."""
    ours = core.settings.scheduler_name
    if pod.scheduler_name != ours:
        yield _other_scheduler(pod.scheduler_name, ours)
    if isinstance(pod, pending.UnreadablePod):
        yield cause(pod.invalid.code, pod.invalid.sentence, lasts=True)
    gates = pod.gate_names
    if gates:
        named = ", ".join(name[:_LONGEST_NAME] for name in gates[:_MOST_RULES])
        keeps = f"gate {named} keeps" if len(gates) == 1 else f"gates {named} keep"
        yield cause(error_codes.GATED, f"the scheduling {keeps} kube-scheduler from trying the pod", lasts=True)
    incomplete = core.ledger.gangs.incomplete(pod.namespace, pod.gang) if pod.gang else None
    if incomplete:
        yield cause(incomplete.code, incomplete.sentence, lasts=True)
    if pod.scheduler_name == ours:
        yield from _on_every_node(scheduler_rules(pod), core.settings.resource_names)


def _other_scheduler(named: str, ours: str) -> Cause:
    by_webhook = ", or have the webhook installed, which writes it" if named in _REWRITTEN else ""
    return Cause(
        code=error_codes.OTHER_SCHEDULER,
        sentence=f"schedulerName is {named or 'not set'}, and GPUs are allocated by {ours}",
        advice=f"Write schedulerName: {ours} and create the pod again{by_webhook}.",
        lasts=True,
    )


def scheduler_rules(pod: pending.AnyPod) -> tuple[scheduler_condition.Rule, ...]:
    """Return the rules by which kube-scheduler rejects the pod, without those that are the extender's own words."""
    if pod.unscheduled_reason == scheduler_condition.GATED:
        return ()
    rules = scheduler_condition.rules(pod.unschedulable_message)
    return tuple(rule for rule in rules if rule.text not in _OUR_PHRASES)


def _on_every_node(rules: Iterable[scheduler_condition.Rule], names: requests.ResourceNames) -> Iterator[Cause]:
    """Yield the rules that reject the pod on every node: claims of volumes, misspelled resources, errors."""
    for rule in rules:
        meant = requests.meant_resource(rule.resource, names)
        if meant:
            sentence = f"no node has the resource {rule.resource}; the known one is {meant}"
            misspelled = cause(error_codes.NODE_RESOURCES, sentence, lasts=True)
            yield dataclasses.replace(misspelled, advice=f"Write {meant} and create the pod again.")
        elif not rule.nodes:
            yield cause(rule.code, f"kube-scheduler: {rule.text}", lasts=rule.code == error_codes.VOLUME)


def of_request(core: DecisionCore, pod: pending.AnyPod) -> list[Cause]:
    """Return what of a pod's request no node can ever serve."""
    impossible = () if isinstance(pod, pending.UnreadablePod) else core.placer.never_fits(pod.request)
    return [advised(cause(part.code, part.sentence, lasts=True), part.advice) for part in impossible]


def advised(original: Cause, advice: str) -> Cause:
    """Return a cause with other advice, as a sentence."""
    text = advice if advice.endswith(".") else f"{advice}."
    return dataclasses.replace(original, advice=text[0].upper() + text[1:])


def headline(core: DecisionCore, entry: pending.Entry) -> Cause | None:
    """Return why a pod is pending without examining nodes, or None where that is not known.

    A list of 50,000 pods is made of these; only the explanation of one pod examines every node.
    """
    for first in (*of_pod(core, entry.pod), *of_request(core, entry.pod)):
        return first
    rejection = entry.rejection
    if rejection is not None and rejection.nearest and rejection.reason is not Reason.NOT_OFFERED:
        count = dict(rejection.counts)[rejection.reason]
        return cause(rejection.code, f"{rejection.nearest.rejection.sentence} on {nodes_words(count)}", count)
    rules = scheduler_rules(entry.pod)
    if rules:
        main = max(rules, key=lambda rule: rule.nodes)
        return cause(main.code, f"kube-scheduler: {', '.join(map(str, rules[:_MOST_RULES]))}", main.nodes)
    return None if entry.decision else _UNTRIED


def nodes_words(count: int) -> str:
    """Return a number of nodes in words."""
    return "1 node" if count == 1 else f"{count:,} nodes"


def advice_for(request: requests.PodRequest, refused: rejections.Rejection) -> str:
    """Return what a pod's owner would have to write for a node, where that is known; else the advice of the code."""
    match refused.reason:
        case Reason.MEMORY if refused.available_words:
            return f"request at most {refused.available_words} of each GPU's memory"
        case Reason.CORES if refused.available_words:
            return f"request at most {refused.available_words} of each GPU's cores"
        case Reason.TOO_FEW_GPUS:
            return f"request at most {refused.available} GPUs in one container"
        case Reason.TYPE:
            excluded = requests.USE_TYPE if request.selectors.use_types else requests.NOUSE_TYPE
            return f"the annotation {excluded} excludes it"
        case Reason.UUID:
            excluded = requests.USE_UUID if request.selectors.use_uuids else requests.NOUSE_UUID
            return f"the annotation {excluded} excludes it"
        case Reason.MODE:
            return f"write {requests.MODE}: {refused.available}"
        case _:
            return error_codes.REGISTRY[refused.code].advice
