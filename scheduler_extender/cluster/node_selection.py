"""Which nodes a pod may be placed on by its own specification: node selector, required node affinity, tolerations.

kube-scheduler decides that by itself; but gangs are planned before it schedules them, and a plan that it would reject
is useless. An explanation names the label or the taint that is in the way. CPU, volumes and pod
affinity are not checked here; kube-scheduler rejects the node for them later.

Source: k8s.io/component-helpers/scheduling/corev1, node selector terms and toleration of taints.
"""

import functools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from gpu_sharing.adapters import objects
from scheduler_extender.fleet import facts

_MOST_WORDS, _LONGEST_WORD, _LONGEST_TEXT = 5, 80, 400
_REPELLING = ("NoSchedule", "NoExecute")


@dataclass(frozen=True, slots=True)
class NodeRequirements:
    """The nodes that a pod accepts."""

    selector: tuple[tuple[str, str], ...] = ()
    terms: tuple[objects.NodeSelectorTerm, ...] = ()
    """At least one must match; empty for no requirement."""
    tolerations: tuple[objects.Toleration, ...] = ()


NONE = NodeRequirements()


def requirements_of(pod: objects.Pod) -> NodeRequirements:
    """Return the nodes that a pod accepts."""
    affinity = pod.spec.affinity.node_affinity if pod.spec.affinity else None
    required = affinity.required_during_scheduling_ignored_during_execution if affinity else None
    terms = tuple(required.node_selector_terms or ()) if required else ()
    selector, tolerations = tuple(sorted((pod.spec.node_selector or {}).items())), tuple(pod.spec.tolerations or ())
    return NodeRequirements(selector, terms, tolerations) if terms else _shared(selector, tolerations)


@functools.lru_cache(maxsize=1024)
def _shared(selector: tuple[tuple[str, str], ...], tolerations: tuple[objects.Toleration, ...]) -> NodeRequirements:
    """Return one value for all pods with equal ones: the API server gives every pod the same two tolerations."""
    return NodeRequirements(selector, (), tolerations)


def admits(wanted: NodeRequirements, name: str, labels: Mapping[str, str], taints: Sequence[facts.Taint]) -> bool:
    """Whether a node is one that the pod may go to."""
    return selects(wanted, name, labels) and untolerated(wanted, taints) is None


def selects(wanted: NodeRequirements, name: str, labels: Mapping[str, str]) -> bool:
    """Whether the pod's node selector and required node affinity match a node."""
    return not unmatched(wanted, labels) and affinity_matches(wanted, name, labels)


def unmatched(wanted: NodeRequirements, labels: Mapping[str, str]) -> tuple[tuple[str, str], ...]:
    """Return the pairs of the pod's node selector that a node's labels lack."""
    return tuple((key, value) for key, value in wanted.selector if labels.get(key) != value)


def affinity_matches(wanted: NodeRequirements, name: str, labels: Mapping[str, str]) -> bool:
    """Whether the pod's required node affinity matches a node; True where it has none."""
    return not wanted.terms or any(_holds(term, name, labels) for term in wanted.terms)


def untolerated(wanted: NodeRequirements, taints: Sequence[facts.Taint]) -> facts.Taint | None:
    """Return the first taint of a node that keeps the pod off it, or None."""
    repelling = (taint for taint in taints if taint.effect in _REPELLING)
    return next(
        (taint for taint in repelling if not any(_tolerates(toleration, taint) for toleration in wanted.tolerations)),
        None,
    )


def selector_words(pairs: Sequence[tuple[str, str]]) -> str:
    """Return pairs of a node selector in one line, such as `zone=a, disk=ssd`; of many the first ones."""
    return _few([f"{key}={value}" for key, value in pairs[: _MOST_WORDS + 1]], len(pairs), ", ")


def affinity_words(wanted: NodeRequirements) -> str:
    """Return the required node affinity in one line, such as `gpu In (a, b), disk Exists; or zone In (x)`.

    Of many terms, expressions and values the first ones: a person reads it, and a tenant writes it.
    """
    return _few([_term_words(term) for term in wanted.terms[: _MOST_WORDS + 1]], len(wanted.terms), "; or ")


def _term_words(term: objects.NodeSelectorTerm) -> str:
    wanted = (*(term.match_expressions or ()), *(term.match_fields or ()))
    return _few([_expression_words(one) for one in wanted[: _MOST_WORDS + 1]], len(wanted), ", ")


def _expression_words(wanted: objects.Requirement) -> str:
    values = wanted.values or []
    shown = f" ({_few(values, len(values), ', ')})" if values else ""
    return f"{wanted.key[:_LONGEST_WORD]} {wanted.operator[:_LONGEST_WORD]}{shown}"


def _few(words: Sequence[str], count: int, separator: str) -> str:
    more = f"{separator}and {count - _MOST_WORDS} more" if count > _MOST_WORDS else ""
    return separator.join(word[:_LONGEST_TEXT] for word in words[:_MOST_WORDS]) + more


def _holds(term: objects.NodeSelectorTerm, name: str, labels: Mapping[str, str]) -> bool:
    expressions, fields = term.match_expressions or (), term.match_fields or ()
    return bool(expressions or fields) and (
        all(_matches(one, labels) for one in expressions)
        and all(_matches(one, {"metadata.name": name}) for one in fields)
    )


def _matches(wanted: objects.Requirement, labels: Mapping[str, str]) -> bool:
    value, values = labels.get(wanted.key), wanted.values or []
    match wanted.operator:
        case "In":
            return value in values
        case "NotIn":
            return value not in values
        case "Exists":
            return value is not None
        case "DoesNotExist":
            return value is None
        case "Gt" | "Lt":
            try:
                mine, theirs = int(value or ""), int(values[0])
            except (ValueError, IndexError):
                return False
            return mine > theirs if wanted.operator == "Gt" else mine < theirs
        case _:
            return False


def _tolerates(toleration: objects.Toleration, taint: facts.Taint) -> bool:
    if toleration.effect and toleration.effect != taint.effect:
        return False
    if toleration.operator == "Exists":
        return not toleration.key or toleration.key == taint.key
    return toleration.key == taint.key and toleration.value == taint.value
