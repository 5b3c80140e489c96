"""Feeds what the API server says into the ledger, and knows the pods that wait.

A bind of ours is newer than any watch event that shows the pod unbound, and than any list that began before the bind
was answered; so neither makes a held place free again.
"""

import time
from collections.abc import Callable
from typing import Protocol

import structlog

from gpu_sharing.adapters import objects
from gpu_sharing.core import error_codes, gangs, identifiers, quotas, requests
from gpu_sharing.core.rejections import Reason
from scheduler_extender import facts, metrics, settings
from scheduler_extender.fleet import ledger

DRA_DRIVER = "gpu.nvidia.com"
"""The name under which NVIDIA's DRA driver offers GPUs."""

log = structlog.get_logger("mirror")


class Listener(Protocol):
    """Who wants to tell people what the mirror sees."""

    def foreign(self, pod: ledger.PodFacts) -> None:
        """A pod with GPUs was bound by somebody else."""

    def corrupt(self, pod: ledger.PodFacts) -> None:
        """A pod's record does not decode."""

    def bad_links(self, node: ledger.NodeFacts) -> None:
        """A node's record of links cannot be read or contradicts itself."""

    def stopped(self, pod: facts.Waiting) -> None:
        """kube-scheduler says it cannot place a pod."""


class Mirror:
    """The cluster as the API server describes it.

    Attributes:
        ledger: Who holds what.
        waiting: Pods that ask for GPUs and are not bound, by UID.
        troubles: Why bound pods do not run, by UID; empty for those that do.
    """

    def __init__(
        self, options: settings.Settings, counters: metrics.Metrics, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self.ledger = ledger.Ledger()
        self.waiting: dict[identifiers.PodUid, facts.Waiting] = {}
        self.troubles: dict[identifiers.PodUid, str] = {}
        self.listener: Listener | None = None
        self._options = options
        self._names = options.resource_names
        self._metrics = counters
        self._clock = clock
        self._confirmed_at: dict[identifiers.PodUid, float] = {}
        self._was_listed = False
        self.nodes = NodeSink(self)
        self.pods = PodSink(self)
        self.quotas = QuotaSink(self)
        self.slices = SliceSink(self)
        self.groups = {api_group: GroupSink(self, api_group) for api_group in (gangs.KUBERNETES, gangs.COSCHEDULING)}

    def waiting_by_key(self, key: str) -> facts.Waiting | None:
        """A waiting pod by `<namespace>/<name>`."""
        return next((pod for pod in self.waiting.values() if pod.key == key), None)

    def confirm(self, uid: identifiers.PodUid) -> None:
        """A bind of ours was answered: no list that began earlier can say otherwise."""
        self._outdate_lists(uid)
        self.ledger.confirm(uid)
        self._waits_no_more(uid)

    def see_node(self, node: objects.Node) -> None:
        """A node was added or modified."""
        seen = facts.node_facts(node, self._names, allow_hami_nodes=self._options.allow_hami_nodes)
        before = self.ledger.node_facts(seen.name)
        if seen.standing is Reason.CORRUPT_NODE_RECORD and (before is None or before.standing is not seen.standing):
            self._metrics.corrupt_records.inc()
            log.error("node record unreadable", error_code=error_codes.CORRUPT_NODE_RECORD, node=seen.name)
        if seen.bad_links and (before is None or before.bad_links != seen.bad_links):
            log.error("links unreadable", error_code=error_codes.BAD_LINKS, node=seen.name, cause=seen.bad_links)
            if self.listener:
                self.listener.bad_links(seen)
        self.ledger.set_node(seen)

    def see_read_pod(self, pod: objects.Pod) -> None:
        """A pod as it was read by itself just now: no list that began earlier can say otherwise."""
        self.see_pod(pod)
        self._outdate_lists(identifiers.PodUid(pod.metadata.uid))

    def see_pod(self, pod: objects.Pod) -> None:
        """A pod was added or modified."""
        if not facts.is_ours(pod, self._names):
            return
        uid = identifiers.PodUid(pod.metadata.uid)
        if pod.has_ended:
            self.forget_pod(uid)
            if pod.status and pod.status.phase == "Succeeded":
                self.ledger.rolls.is_done(uid, pod.metadata.namespace, facts.gang_of(pod))
        elif pod.spec.node_name:
            self._waits_no_more(uid)
            self._confirmed_at.pop(uid, None)
            before = self.ledger.pod(uid)
            held = facts.pod_facts(pod, self._names)
            self.troubles[uid] = facts.trouble(pod)
            self.ledger.set_pod(held)
            self._report(held, before)
        else:
            self._see_waiting(facts.waiting(pod, self._names))

    def forget_pod(self, uid: identifiers.PodUid) -> None:
        """A pod is gone or has ended."""
        self._waits_no_more(uid)
        self._confirmed_at.pop(uid, None)
        self.troubles.pop(uid, None)
        self.ledger.remove_pod(uid)
        self.ledger.rolls.is_gone(uid)

    def replace_nodes(self, nodes: list[objects.Node]) -> None:
        """These are all nodes."""
        listed = {node.metadata.name for node in nodes}
        for name in self.ledger.node_names():
            if name not in listed:
                self.ledger.remove_node(name)
        for node in nodes:
            self.see_node(node)

    def replace_pods(self, pods: list[objects.Pod], listed_at: float) -> None:
        """These are all pods, as of some moment after `listed_at`."""
        listed = {identifiers.PodUid(pod.metadata.uid) for pod in pods}
        if self._was_listed:
            known = {held.uid for held in self.ledger.pods()} | self.waiting.keys()
            ours = {
                identifiers.PodUid(pod.metadata.uid)
                for pod in pods
                if facts.is_ours(pod, self._names) and not pod.has_ended
            }
            self._metrics.drift.inc(len(known ^ ours))
        self._was_listed = True
        bound = {identifiers.PodUid(pod.metadata.uid) for pod in pods if pod.spec.node_name}
        for held in list(self.ledger.pods()):
            newer = self.ledger.is_assumed(held.uid) or self._confirmed_at.get(held.uid, 0.0) > listed_at
            if held.uid not in bound and not newer:
                self.forget_pod(held.uid)
        for uid in list(self.waiting):
            if uid not in listed:
                self.forget_pod(uid)
        for uid in self.ledger.rolls.done():
            if uid not in listed:
                self.ledger.rolls.is_gone(uid)
        for pod in pods:
            self.see_pod(pod)

    def see_quota(self, quota: objects.ResourceQuota) -> None:
        """A ResourceQuota was added or modified."""
        name, namespace = quota.metadata.name, quota.metadata.namespace
        read = quotas.read(name, quota.spec.hard or {}, self._names)
        if self.ledger.set_quota(namespace, name, read) and read is not None and read.unreadable:
            log.error(
                "quota unreadable",
                error_code=error_codes.QUOTA_UNREADABLE,
                quota=f"{namespace}/{name}",
                cause=read.unreadable,
            )

    def undecodable(self, kind: str, code: error_codes.Code, error: Exception) -> None:
        """Something that is not of the kind that its path has."""
        self._metrics.undecodable_objects.inc()
        log.error("object unreadable", error_code=code, kind=kind, cause=str(error))

    def _outdate_lists(self, uid: identifiers.PodUid) -> None:
        if self.ledger.pod(uid) is not None:
            self._confirmed_at[uid] = self._clock()

    def _waits_no_more(self, uid: identifiers.PodUid) -> None:
        self.waiting.pop(uid, None)
        self.ledger.rolls.waits_no_more(uid)

    def _see_waiting(self, pod: facts.Waiting) -> None:
        held = self.ledger.pod(pod.uid)
        if held is not None:
            return  # We bound it, and this event is older.
        before = self.waiting.get(pod.uid)
        self.waiting[pod.uid] = pod
        counts = not pod.is_deleting and pod.scheduler_name == self._options.scheduler_name
        reserved_until = pod.hold.until if pod.hold else 0
        self.ledger.rolls.waits(pod.uid, pod.namespace, pod.gang if counts else None, reserved_until)
        if pod.is_deleting:
            self.ledger.drop_nomination(pod.uid)
        if pod.nominated_node and isinstance(pod.request, requests.PodRequest) and not pod.is_deleting:
            self.ledger.set_hold(ledger.Claim(pod.uid, pod.nominated_node, {}, pod.priority, pod.request))
        elif pod.hold and isinstance(pod.request, requests.PodRequest) and not pod.is_deleting:
            kept = ledger.Claim(pod.uid, pod.hold.node, {}, pod.priority, pod.request, pod.hold.gpus)
            self.ledger.set_hold(kept)
        else:
            self.ledger.drop_hold(pod.uid)
        if self.listener and pod.stopped_by and (before is None or before.stopped_by != pod.stopped_by):
            self.listener.stopped(pod)

    def _report(self, held: ledger.PodFacts, before: ledger.PodFacts | None) -> None:
        if held.corrupt and not (before and before.corrupt):
            self._metrics.corrupt_records.inc()
            log.error("pod record unreadable", error_code=error_codes.CORRUPT_POD_RECORD, pod=held.key, node=held.node)
            if self.listener:
                self.listener.corrupt(held)
        elif held.foreign_slots and before is None:
            log.warning("foreign pod", error_code=error_codes.FOREIGN_POD, pod=held.key, node=held.node)
            if self.listener:
                self.listener.foreign(held)


class NodeSink:
    """What a reflector of nodes feeds."""

    def __init__(self, mirror: Mirror) -> None:
        self._mirror = mirror

    def replaced(self, items: list[objects.Node], listed_at: float) -> None:
        """All nodes."""
        self._mirror.replace_nodes(items)

    def changed(self, item: objects.Node) -> None:
        """One node."""
        self._mirror.see_node(item)

    def deleted(self, item: objects.Node) -> None:
        """A node is gone."""
        self._mirror.ledger.remove_node(identifiers.NodeName(item.metadata.name))

    def undecodable(self, raw: bytes, error: Exception) -> None:
        """Something that is no node."""
        self._mirror.undecodable("Node", error_codes.CORRUPT_NODE_RECORD, error)


class PodSink:
    """What a reflector of pods feeds."""

    def __init__(self, mirror: Mirror) -> None:
        self._mirror = mirror

    def replaced(self, items: list[objects.Pod], listed_at: float) -> None:
        """All pods."""
        self._mirror.replace_pods(items, listed_at)

    def changed(self, item: objects.Pod) -> None:
        """One pod."""
        self._mirror.see_pod(item)

    def deleted(self, item: objects.Pod) -> None:
        """A pod is gone."""
        self._mirror.forget_pod(identifiers.PodUid(item.metadata.uid))

    def undecodable(self, raw: bytes, error: Exception) -> None:
        """Something that is no pod."""
        self._mirror.undecodable("Pod", error_codes.CORRUPT_POD_RECORD, error)


class QuotaSink:
    """What a reflector of resource quotas feeds."""

    def __init__(self, mirror: Mirror) -> None:
        self._mirror = mirror

    def replaced(self, items: list[objects.ResourceQuota], listed_at: float) -> None:
        """All quotas."""
        listed = {(item.metadata.namespace, item.metadata.name) for item in items}
        for namespace, name in self._mirror.ledger.budgets.names():
            if (namespace, name) not in listed:
                self._mirror.ledger.set_quota(namespace, name, None)
        for item in items:
            self._mirror.see_quota(item)

    def changed(self, item: objects.ResourceQuota) -> None:
        """One quota."""
        self._mirror.see_quota(item)

    def deleted(self, item: objects.ResourceQuota) -> None:
        """A quota is gone."""
        self._mirror.ledger.set_quota(item.metadata.namespace, item.metadata.name, None)

    def undecodable(self, raw: bytes, error: Exception) -> None:
        """Something that is no quota."""
        self._mirror.undecodable("ResourceQuota", error_codes.QUOTA_UNREADABLE, error)


class SliceSink:
    """What a reflector of DRA's resource slices feeds."""

    def __init__(self, mirror: Mirror) -> None:
        self._mirror = mirror
        self._nodes: dict[str, identifiers.NodeName] = {}

    def replaced(self, items: list[objects.ResourceSlice], listed_at: float) -> None:
        """All slices."""
        self._nodes.clear()
        for item in items:
            self._learn(item)
        self._tell()

    def changed(self, item: objects.ResourceSlice) -> None:
        """One slice."""
        self._learn(item)
        self._tell()

    def deleted(self, item: objects.ResourceSlice) -> None:
        """A slice is gone."""
        self._nodes.pop(item.metadata.name, None)
        self._tell()

    def undecodable(self, raw: bytes, error: Exception) -> None:
        """Something that is no slice."""
        self._mirror.undecodable("ResourceSlice", error_codes.DRA_NODE, error)

    def _learn(self, item: objects.ResourceSlice) -> None:
        if item.spec.driver == DRA_DRIVER and item.spec.node_name:
            self._nodes[item.metadata.name] = identifiers.NodeName(item.spec.node_name)

    def _tell(self) -> None:
        self._mirror.ledger.set_dra_nodes(frozenset(self._nodes.values()))


class GroupSink:
    """What a reflector of pod groups of one API feeds."""

    def __init__(self, mirror: Mirror, api_group: str) -> None:
        self._mirror = mirror
        self._api_group = api_group

    def replaced(self, items: list[objects.PodGroup], listed_at: float) -> None:
        """All pod groups."""
        listed = {(item.metadata.namespace, item.metadata.name) for item in items}
        for namespace, name in self._mirror.ledger.rolls.groups(self._api_group):
            if (namespace, name) not in listed:
                self._set(namespace, name, None)
        for item in items:
            self.changed(item)

    def changed(self, item: objects.PodGroup) -> None:
        """One pod group."""
        self._set(item.metadata.namespace, item.metadata.name, item.least_members)

    def deleted(self, item: objects.PodGroup) -> None:
        """A pod group is gone."""
        self._set(item.metadata.namespace, item.metadata.name, None)

    def undecodable(self, raw: bytes, error: Exception) -> None:
        """Something that is no pod group."""
        self._mirror.undecodable("PodGroup", error_codes.BAD_GANG, error)

    def _set(self, namespace: str, name: str, size: int | None) -> None:
        self._mirror.ledger.rolls.set_group(self._api_group, namespace, name, size)
