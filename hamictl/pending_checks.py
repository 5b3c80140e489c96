"""Checks of pods and cordons for what does not end by itself: pods that wait in vain, names that have no effect. Pure.

Causes are computed by the extender's own code on a copy of the cluster, so that doctor and `hamictl explain` agree.
"""

import asyncio
import collections
from collections.abc import Hashable, Iterator

from gpu_sharing.adapters import objects
from gpu_sharing.core import error_codes, near_misses, records, requests
from hamictl import snapshot
from hamictl.findings import WARNING, Check, Finding
from hamictl.record_checks import Observation
from scheduler_extender import settings
from scheduler_extender.cluster import from_objects, pending
from scheduler_extender.decide import explaining
from scheduler_extender.decide.causes import Cause
from scheduler_extender.decide.core import DecisionCore
from scheduler_extender.metrics import Metrics
from scheduler_extender.report import event_notes

LONG_SECONDS = 120
"""A pod that is pending for less may only have to be tried."""
_CORDON = frozenset({records.CORDON})
"""The one annotation of nodes that a person writes."""
_MOST_SHAPES = 200
"""Different pending pods that are examined: for each, every node is."""


def checks(observed: Observation, names: requests.ResourceNames) -> Iterator[Check]:
    """Yield every check with its findings, in the order of the output."""
    yield "pending pods", _pending(observed, names)
    yield "misspelled names", _misspelled(observed.cluster, names)
    yield "cordons", _cordons(observed.cluster, names)


def _pending(observed: Observation, names: requests.ResourceNames) -> Iterator[Finding]:
    """Report pods that are pending for long and for a cause that no end of another pod cures."""
    core = _core_of(observed.cluster, names)
    long_ago = observed.now - LONG_SECONDS
    known: dict[Hashable, tuple[Cause, ...]] = {}
    for pod in core.pending:
        if pod.is_deleting or pod.traits.created_at > long_ago:
            continue
        shape = _shape(pod)
        if shape not in known:
            if len(known) >= _MOST_SHAPES:
                continue
            known[shape] = asyncio.run(explaining.Explainer(core).causes(pod))
        first = next(iter(known[shape]), None)
        if first is not None and first.lasts:
            yield Finding(first.code, WARNING, f"pod/{pod.key}", first.sentence)


def _core_of(cluster: snapshot.State, names: requests.ResourceNames) -> DecisionCore:
    """Return what the extender knows of a cluster."""
    chosen = settings.Settings(resource_names=names, scheduler_name=_scheduler_name(cluster, names))
    core = DecisionCore(chosen, Metrics())
    for node in cluster.nodes:
        core.mirror.see_node(node)
    for quota in cluster.quotas:
        core.mirror.see_quota(quota)
    for pod in cluster.pods:
        core.mirror.see_pod(pod)
    return core


def _scheduler_name(cluster: snapshot.State, names: requests.ResourceNames) -> str:
    """Return the schedulerName of pods with a record, because the extender bound them; else the default."""
    bound = (pod for pod in cluster.pods if pod.spec.node_name and from_objects.pod_facts(pod, names).allocated)
    counts = collections.Counter(pod.spec.scheduler_name for pod in bound)
    return counts.most_common(1)[0][0] if counts else settings.Settings().scheduler_name


def _shape(pod: pending.AnyPod) -> Hashable:
    """Return what the causes of a pod depend on: equal for the replicas of a controller."""
    request: Hashable = pod.invalid if isinstance(pod, pending.UnreadablePod) else pod.request
    return (
        request, pod.namespace, pod.scheduler_name, pod.priority, str(pod.gates), str(pod.node_requirements),
        pod.unscheduled_reason, pod.unschedulable_message, pod.traits.gang, pod.nominated_node,
        pod.traits.cpu_thousandths, pod.traits.memory_thousandths,
    )  # fmt: skip


def _misspelled(cluster: snapshot.State, names: requests.ResourceNames) -> Iterator[Finding]:
    for pod in (*cluster.pods, *(cluster.misspelled or ())):
        for warning in _warnings(pod, names):
            yield Finding(error_codes.DOCTOR_MISSPELLED, WARNING, f"pod/{pod.key}", warning)


def _warnings(pod: objects.Pod, names: requests.ResourceNames) -> list[str]:
    return requests.unknown_words((*pod.init_containers, *pod.containers), pod.annotations, names)


def _cordons(cluster: snapshot.State, names: requests.ResourceNames) -> Iterator[Finding]:
    for node in cluster.nodes:
        about = f"node/{node.metadata.name}"
        seen = from_objects.node_facts(node, names, allow_hami_nodes=True)
        if seen.unknown_cordons:
            sentence = event_notes.unknown_cordon(seen.unknown_cordons, [gpu.uuid for gpu in seen.inventory])
            yield Finding(error_codes.UNKNOWN_CORDON, WARNING, about, sentence)
        for key in node.metadata.annotations or {}:
            if key != records.CORDON and near_misses.closest(key, _CORDON) and key.startswith(requests.PREFIXES):
                sentence = f"annotation {key} has no effect: the known one is {records.CORDON}"
                yield Finding(error_codes.DOCTOR_MISSPELLED, WARNING, about, sentence)
