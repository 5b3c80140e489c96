"""Checks of a cluster's records, and of the extender's state against them. Pure.

Allocations are computed from the records by the extender's own code, and compared with what the extender reports.
"""

import collections
import contextlib
import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from gpu_sharing.adapters import read_api_types
from gpu_sharing.core import (
    allocations,
    error_codes,
    errors,
    gpus,
    identifiers,
    quotas,
    reconciliation,
    records,
    remediation,
    remediation_history,
    requests,
)
from hamictl import snapshot
from hamictl.findings import ERROR, WARNING, Check, Finding
from scheduler_extender.cluster import from_objects
from scheduler_extender.fleet import facts

_STUCK_SECONDS = 300
_DRIFTS = {
    reconciliation.Drift.OTHER_NODE: (
        error_codes.DOCTOR_RECORD_OTHER_NODE, "bound to {node}, and its record names {other}"
    ),
    reconciliation.Drift.UNKNOWN_GPU: (
        error_codes.DOCTOR_RECORD_UNKNOWN_GPU, "its record names a GPU that {node} does not have"
    ),
    reconciliation.Drift.NODE_GONE: (error_codes.DOCTOR_RECORD_NODE_GONE, "there is no node {node}"),
}  # fmt: skip
"""Code and detail of each."""
_LABEL = "gpu"
_NO_ISOLATION = "none"
_PASSING = frozenset(refusal.value for refusal in remediation.PASSING)


@dataclass(frozen=True, slots=True)
class Observation:
    """A cluster's objects, and the extender's state of them."""

    cluster: snapshot.State
    reported: Sequence[read_api_types.Pod] | None
    """The extender's pods by its read API; None where it does not answer."""
    problem: str
    """Why the extender does not answer."""
    now: float
    """Unix seconds."""
    remediation: read_api_types.Remediation | None = None
    """What the extender does about faulty GPUs; None where it does not answer."""


def checks(observed: Observation, names: requests.ResourceNames) -> Iterator[Check]:
    """Yield every check with its findings, in the order of the output."""
    cluster = observed.cluster
    yield "nodes", _nodes(cluster, names)
    yield "setup of nodes", _problems(cluster)
    yield "GPUs", _gpus(cluster, names)
    yield "remediation", _remediation(cluster, observed.remediation)
    yield "pods", _pods(cluster, names, observed.now)
    yield "records", _drift(cluster, names)
    yield "allocations", _allocations(cluster, names)
    yield "quotas", _quotas(cluster, names)
    yield "extender", _extender(observed, names)


def _nodes(cluster: snapshot.State, names: requests.ResourceNames) -> Iterator[Finding]:
    for node in cluster.nodes:
        about = f"node/{node.metadata.name}"
        annotations, labels = node.metadata.annotations or {}, node.metadata.labels or {}
        text = annotations.get(records.INVENTORY)
        offered = str((node.status.allocatable or {}).get(names.count, "0"))
        if text is None:
            if offered not in ("0", ""):
                detail = f"its kubelet offers {offered} {names.count}, and the node has no record of ours"
                yield Finding(error_codes.DOCTOR_FOREIGN_PLUGIN, WARNING, about, detail)
            elif labels.get(_LABEL) == "on" and not records.decode_problems(annotations.get(records.PROBLEMS, "")):
                yield Finding(error_codes.DOCTOR_NODE_WITHOUT_PLUGIN, ERROR, about, "labelled gpu=on, without a record")
            continue
        try:
            inventory = records.decode_inventory(text)
        except errors.CorruptRecord as cause:
            yield Finding(error_codes.DOCTOR_NODE_RECORD, ERROR, about, str(cause))
            continue
        if not records.is_our_agent(annotations.get(records.AGENT)):
            agent = annotations.get(records.AGENT) or "none"
            yield Finding(error_codes.DOCTOR_FOREIGN_PLUGIN, WARNING, about, f"its agent is {agent}")
        slots = sum(gpu.slots for gpu in inventory if gpu.healthy)
        if offered != str(slots):
            detail = f"the kubelet offers {offered} {names.count}, the healthy GPUs have {slots} slots"
            yield Finding(error_codes.DOCTOR_SLOTS_DIFFER, WARNING, about, detail)


def _problems(cluster: snapshot.State) -> Iterator[Finding]:
    """Report the problems that device plugins wrote on their nodes, and nodes without limits of memory."""
    for node in cluster.nodes:
        about = f"node/{node.metadata.name}"
        annotations = node.metadata.annotations or {}
        problems = records.decode_problems(annotations.get(records.PROBLEMS, ""))
        for code, sentence in problems.items():
            if code in error_codes.REGISTRY:
                yield Finding(error_codes.Code(code), ERROR, about, sentence)
            else:
                yield Finding(error_codes.DOCTOR_NODE_PROBLEM, ERROR, about, f"{code}: {sentence}")
        inventory: tuple[gpus.Gpu, ...] = ()
        with contextlib.suppress(errors.CorruptRecord):
            inventory = records.decode_inventory(annotations.get(records.INVENTORY, "[]"))
        unlimited = [str(gpu.index) for gpu in inventory if gpu.mode == _NO_ISOLATION]
        if unlimited and error_codes.PLUGIN_MEMORY_NOT_LIMITED not in problems:
            detail = f"GPU {', '.join(unlimited)}: isolation none"
            yield Finding(error_codes.DOCTOR_MEMORY_NOT_LIMITED, WARNING, about, detail)


def _gpus(cluster: snapshot.State, names: requests.ResourceNames) -> Iterator[Finding]:
    first: dict[identifiers.GpuUuid, identifiers.NodeName] = {}
    for seen in _node_facts(cluster, names):
        for gpu in seen.inventory:
            other = first.setdefault(gpu.uuid, seen.name)
            if other != seen.name:
                about = f"gpu/{seen.name}/{gpu.index}"
                yield Finding(error_codes.DOCTOR_GPU_TWICE, ERROR, about, f"{gpu.uuid} is on node {other} too")
            if not gpu.healthy:
                about = f"gpu/{seen.name}/{gpu.index}"
                yield Finding(error_codes.DOCTOR_GPU_SICK, ERROR, about, f"{gpu.uuid} {gpu.type}")


def _remediation(cluster: snapshot.State, seen: read_api_types.Remediation | None) -> Iterator[Finding]:
    """Report what remediation keeps from use, and what a rule asks for and is not done."""
    for node in cluster.nodes:
        text = (node.metadata.annotations or {}).get(remediation_history.ANNOTATION, "")
        for entry in remediation_history.decode(text):
            if entry.holds:
                about = f"node/{node.metadata.name}"
                detail = f"{entry.action.value}{f' of {entry.gpu}' if entry.gpu else ''} by rule {entry.rule}"
                yield Finding(error_codes.REMEDIATED, WARNING, about, detail)
    if seen is None:
        return
    for act in seen.acts:
        if act.reason and act.reason not in _PASSING:
            of = f" of {act.gpu}" if act.gpu else ""
            detail = f"{act.action}{of} by rule {act.rule}: {act.reason} ({act.cause})"
            yield Finding(error_codes.REMEDIATION_REFUSED, WARNING, f"node/{act.node}", detail)
    if seen.breaker != "closed":
        detail = f"{seen.affected_nodes} nodes have a fault; the breaker is {seen.breaker}"
        yield Finding(error_codes.REMEDIATION_STOPPED, ERROR, "cluster", detail)


def _pods(cluster: snapshot.State, names: requests.ResourceNames, now: float) -> Iterator[Finding]:
    for pod in cluster.pods:
        if not pod.spec.node_name:
            continue
        about = f"pod/{pod.key}"
        held = from_objects.pod_facts(pod, names)
        if held.corrupt:
            yield Finding(error_codes.DOCTOR_POD_RECORD, ERROR, about, f"on node {held.node}")
        elif held.foreign_slots:
            detail = f"on node {held.node}, schedulerName {pod.spec.scheduler_name or 'none'}"
            yield Finding(error_codes.DOCTOR_POD_WITHOUT_RECORD, ERROR, about, detail)
        elif held.starting and held.traits.bound_at and now - held.traits.bound_at > _STUCK_SECONDS:
            minutes = int((now - held.traits.bound_at) // 60)
            yield Finding(error_codes.DOCTOR_STUCK, WARNING, about, f"bound to {held.node} {minutes} minutes ago")


def _drift(cluster: snapshot.State, names: requests.ResourceNames) -> Iterator[Finding]:
    """Report records that do not agree with the nodes that are there."""
    nodes = {seen.name: seen for seen in _node_facts(cluster, names)}
    for pod in cluster.pods:
        if not pod.spec.node_name:
            continue
        held = from_objects.pod_facts(pod, names)
        drift = facts.record_drift(held, nodes.get(held.node))
        if drift is not None:
            code, what = _DRIFTS[drift]
            yield Finding(code, WARNING, f"pod/{pod.key}", what.format(node=held.node, other=held.other_node))


def _allocations(cluster: snapshot.State, names: requests.ResourceNames) -> Iterator[Finding]:
    """Report GPUs that records allocate twice, by the rules that place pods."""
    holders: dict[identifiers.GpuUuid, list[allocations.Allocation]] = collections.defaultdict(list)
    for pod in cluster.pods:
        if pod.spec.node_name:
            for uuid, allocation in from_objects.pod_facts(pod, names).allocated.items():
                holders[uuid].append(allocation)
    for seen in _node_facts(cluster, names):
        for gpu in seen.inventory:
            held, uuid_of = allocations.NOTHING, dict[str, str]()
            for allocation in holders[gpu.uuid]:
                # The last sentence of a kind has the complete sum.
                uuid_of |= {text.lstrip("0123456789"): text for text in gpus.conflicts(gpu, held, allocation)}
                held = held.plus(allocation)
            for text in uuid_of.values():
                about = f"gpu/{seen.name}/{gpu.index}"
                yield Finding(error_codes.DOCTOR_OVERSUBSCRIBED, ERROR, about, text)


def _quotas(cluster: snapshot.State, names: requests.ResourceNames) -> Iterator[Finding]:
    for quota in cluster.quotas:
        about = f"quota/{quota.metadata.namespace}/{quota.metadata.name}"
        for key, meant in quotas.uncounted(quota.spec.hard or {}, names):
            yield Finding(error_codes.DOCTOR_QUOTA_KEY, WARNING, about, f"{key} has no effect; {meant} is counted")
        read = quotas.read(quota.metadata.name, quota.spec.hard or {}, names)
        if read is not None and read.unreadable:
            yield Finding(error_codes.DOCTOR_QUOTA, ERROR, about, read.unreadable)


def _extender(observed: Observation, names: requests.ResourceNames) -> Iterator[Finding]:
    if observed.reported is None:
        yield Finding(error_codes.DOCTOR_EXTENDER_AWAY, ERROR, "extender", observed.problem)
        return
    reported = {one.uid: one for one in observed.reported}
    actual = {pod.metadata.uid: pod for pod in observed.cluster.pods}
    names_of = {uid: (one.namespace, one.name) for uid, one in reported.items()}
    names_of |= {uid: (pod.metadata.namespace, pod.metadata.name) for uid, pod in actual.items()}
    for uid in sorted(names_of, key=lambda one: (names_of[one], one)):
        pod, report = actual.get(uid), reported.get(uid)
        if report is None:
            assert pod is not None
            yield Finding(error_codes.DOCTOR_DRIFT, ERROR, f"pod/{pod.key}", "the extender does not know it")
        elif pod is None:
            about = f"pod/{report.namespace}/{report.name}"
            yield Finding(error_codes.DOCTOR_DRIFT, ERROR, about, "the extender knows it, and it is deleted")
        elif (report.node or "") != pod.spec.node_name:
            detail = f"the extender has it on {report.node or 'no node'}, it is on {pod.spec.node_name or 'no node'}"
            yield Finding(error_codes.DOCTOR_DRIFT, ERROR, f"pod/{pod.key}", detail)
        elif pod.spec.node_name and _reported_shares(report) != _recorded_shares(from_objects.pod_facts(pod, names)):
            detail = "the extender counts other GPUs for it than its record has"
            yield Finding(error_codes.DOCTOR_DRIFT, ERROR, f"pod/{pod.key}", detail)


def _reported_shares(report: read_api_types.Pod) -> list[tuple[str, int]]:
    shares = itertools.chain.from_iterable(report.containers)
    return [(share.uuid, share.memory_mib) for share in shares]


def _recorded_shares(held: facts.BoundPod) -> list[tuple[str, int]]:
    return [(share.uuid, share.memory_mib) for shares in held.shares for share in shares]


def _node_facts(cluster: snapshot.State, names: requests.ResourceNames) -> Iterator[facts.Node]:
    for node in cluster.nodes:
        yield from_objects.node_facts(node, names, allow_hami_nodes=True)
