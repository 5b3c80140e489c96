"""The patch of a node for one act of remediation: the effect and its entry in the history, in one write. Pure."""

from collections.abc import Mapping
from typing import Any

import msgspec

from gpu_sharing.adapters import objects
from gpu_sharing.core import identifiers, records, remediation_history
from gpu_sharing.core.remediation import NODE, Act
from gpu_sharing.core.remediation_history import Entry, History
from gpu_sharing.core.remediation_rules import HOLDING, Action

EFFECT = "NoSchedule"
RESET, REBOOT = "reset", "reboot"
CONDITIONS = {Action.REQUEST_RESET: "GPUNeedsReset", Action.REQUEST_REBOOT: "GPUNeedsReboot"}
"""Conditions of the node that a request sets; True is a problem, as in Kubernetes' node-problem-detector."""


class NodeSpec(msgspec.Struct):
    """The part of a node's `spec` that is written; taints keep all their fields."""

    taints: list[dict[str, Any]] | None = None
    unschedulable: bool | None = None


class Node(msgspec.Struct):
    """A node as it is read before it is written."""

    metadata: objects.Metadata = msgspec.field(default_factory=objects.Metadata)
    spec: NodeSpec = msgspec.field(default_factory=NodeSpec)


def patch(node: Node, act: Act, known: History, now: float) -> dict[str, Any] | None:
    """Return the merge patch of an act.

    Args:
        node: As it was just read.
        act: A permitted act.
        known: The history by which the act was planned.
        now: Unix seconds.

    Returns:
        The patch, with the version that was read as a precondition; None if another process has acted since.
    """
    annotations = node.metadata.annotations or {}
    history = remediation_history.decode(annotations.get(remediation_history.ANNOTATION, ""))
    if _differs(history, known, act):
        return None
    if act.action is Action.RELEASE:
        changed, spec = _released(node, act.releases)
        after = remediation_history.without_hold(history, act.releases, now)
    else:
        changed, spec = _done(node, act)
        holds = act.action in HOLDING
        entry = Entry(action=act.action, gpu=act.gpu, rule=act.rule.name, holds=holds)
        after = remediation_history.with_act(history, entry, now)
    changed[remediation_history.ANNOTATION] = remediation_history.encode(after)
    metadata = {"annotations": changed, "resourceVersion": node.metadata.resource_version, "uid": node.metadata.uid}
    return {"metadata": metadata, **({"spec": spec} if spec else {})}


def _differs(history: History, known: History, act: Act) -> bool:
    """Return whether another process has written about the same thing."""
    keys = [(one.action, one.gpu) for one in act.releases] or [(act.action, act.gpu)]
    return any(remediation_history.entry(history, *key) != remediation_history.entry(known, *key) for key in keys)


def _done(node: Node, act: Act) -> tuple[dict[str, str | None], dict[str, Any]]:
    """Return the annotations and the fields of `spec` that an act writes."""
    annotations, spec = node.metadata.annotations or {}, node.spec
    match act.action:
        case Action.CORDON_GPU:
            return {records.CORDON: _with(annotations, records.CORDON, act.gpu)}, {}
        case Action.CORDON_NODE:
            return {}, {"unschedulable": True}
        case Action.TAINT_NODE:
            taint = {"key": remediation_history.TAINT, "value": act.rule.name, "effect": EFFECT}
            return {}, {"taints": [*_foreign_taints(spec), taint]}
        case Action.REQUEST_RESET | Action.REQUEST_REBOOT:
            word = request_word(act.action, act.gpu)
            return {remediation_history.REQUEST: _with(annotations, remediation_history.REQUEST, word)}, {}
        case _:
            return {}, {}


def _released(node: Node, entries: tuple[Entry, ...]) -> tuple[dict[str, str | None], dict[str, Any]]:
    """Return the annotations and the fields of `spec` that a release writes."""
    annotations = dict(node.metadata.annotations or {})
    changed: dict[str, str | None] = {}
    spec: dict[str, Any] = {}
    for one in entries:
        if one.action is Action.CORDON_GPU:
            changed[records.CORDON] = _without(annotations, records.CORDON, one.gpu)
        elif one.action is Action.CORDON_NODE:
            spec["unschedulable"] = None
        elif one.action is Action.TAINT_NODE:
            spec["taints"] = _foreign_taints(node.spec) or None
        else:
            word = request_word(one.action, one.gpu)
            changed[remediation_history.REQUEST] = _without(annotations, remediation_history.REQUEST, word)
        annotations.update({key: value or "" for key, value in changed.items()})
    return changed, spec


def request_word(action: Action, uuid: identifiers.GpuUuid) -> str:
    """Return what the annotation of requests has for one: `reset GPU-…` or `reboot`."""
    return REBOOT if action is Action.REQUEST_REBOOT or uuid == NODE else f"{RESET} {uuid}"


def _foreign_taints(spec: NodeSpec) -> list[dict[str, Any]]:
    return [taint for taint in spec.taints or () if taint.get("key") != remediation_history.TAINT]


def _parts(annotations: Mapping[str, str], key: str) -> list[str]:
    return [part.strip() for part in annotations.get(key, "").split(",") if part.strip()]


def _with(annotations: Mapping[str, str], key: str, word: str) -> str:
    parts = _parts(annotations, key)
    return ",".join(parts if word in parts else [*parts, word])


def _without(annotations: Mapping[str, str], key: str, word: str) -> str | None:
    return ",".join(part for part in _parts(annotations, key) if part != word) or None
