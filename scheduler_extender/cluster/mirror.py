"""Feeds what the API server says into the ledger, and knows the pods that wait.

Every source has its place in time, so that an old word never undoes a newer one:

- A bind of ours is newer than any watch event that shows the pod unbound.
- What a single read or a bind was answered is newer than any list that began before that answer. A pod that such a list
  lacks is not gone: it is *in doubt*, and `pod_reader` reads it by itself.
- A pod that was deleted or has ended stays so. A read that was answered later does not bring it back.
- A read counts only if its `resourceVersion` is not smaller than what the watch said while it was under way. Between
  lists and watches versions are not compared: an etcd that was restored from a backup counts from an earlier one.

Each object is taken in by itself. One that cannot be taken in is set aside: counted, logged, and what it may hold is
kept out of use. The others, and a start, do not depend on it.
"""

import collections
import contextlib
import time
from collections.abc import Callable, Iterator
from typing import Protocol, TypeVar

import structlog

from gpu_sharing.adapters import objects
from gpu_sharing.core import error_codes, gangs, identifiers, quotas, records, requests
from gpu_sharing.core.rejections import Reason
from scheduler_extender import set_aside
from scheduler_extender.cluster import from_objects
from scheduler_extender.fleet import facts
from scheduler_extender.fleet.ledger import Ledger
from scheduler_extender.metrics import Metrics
from scheduler_extender.settings import Settings

_GONE_KEPT_SECONDS = 120.0
"""Longer than any read of a pod takes to be answered."""
DRA_DRIVER = "gpu.nvidia.com"
"""The name under which NVIDIA's DRA driver offers GPUs."""

_T = TypeVar("_T")

log = structlog.get_logger("mirror")


class Listener(Protocol):
    """Who wants to tell people what the mirror sees."""

    def foreign(self, pod: facts.BoundPod) -> None:
        """A pod with GPUs was bound by somebody else."""

    def corrupt(self, pod: facts.BoundPod) -> None:
        """A pod's record does not decode."""

    def bad_links(self, node: facts.Node) -> None:
        """A node's record of links cannot be read or contradicts itself."""

    def stopped(self, pod: from_objects.PendingPod) -> None:
        """kube-scheduler says it cannot place a pod."""


class Mirror:
    """The cluster as the API server describes it.

    Attributes:
        ledger: Who holds what.
        waiting: Pods that ask for GPUs and are not bound, by UID.
        in_doubt: Pods that a list may lack although something newer than the list knew them, with their keys.
        lists: How many lists of pods have arrived.
    """

    def __init__(
        self,
        settings: Settings,
        metrics: Metrics,
        clock: Callable[[], float] = time.monotonic,
        wall_clock: Callable[[], float] = time.time,
    ) -> None:
        self.ledger = Ledger(lambda name, defect: set_aside.report("Node", name, defect, metrics))
        self.waiting: dict[identifiers.PodUid, from_objects.PendingPod] = {}
        self.listener: Listener | None = None
        self._settings = settings
        self._names = settings.resource_names
        self._metrics = metrics
        self._clock = clock
        self._wall_clock = wall_clock
        self._hold_ends: dict[identifiers.PodUid, tuple[records.Hold, float]] = {}
        self.in_doubt: dict[identifiers.PodUid, identifiers.PodKey] = {}
        self._answered_at: dict[identifiers.PodUid, float] = {}
        """When the API server last answered about this one pod, in seconds of `clock`."""
        self._gone_at: dict[identifiers.PodUid, float] = {}
        """Pods that were deleted or have ended lately, in that order."""
        self._reads: collections.Counter[identifiers.PodUid] = collections.Counter()
        """Pods that are being read by themselves, each with the number of reads."""
        self._versions: dict[identifiers.PodUid, int] = {}
        """Of those, the resource version of what was taken in since the read began."""
        self.lists = 0
        self.nodes = NodeSink(self)
        self.pods = PodSink(self)
        self.quotas = QuotaSink(self)
        self.slices = SliceSink(self)
        self.classes = ClassSink(self)
        self.groups = {api_group: GroupSink(self, api_group) for api_group in (gangs.KUBERNETES, gangs.COSCHEDULING)}

    @property
    def resource_names(self) -> requests.ResourceNames:
        """Under which names containers ask."""
        return self._names

    def hold_ends_at(self, pod: from_objects.PendingPod) -> float:
        """When what is kept for a pending pod is kept no longer, in seconds of `clock`; minus infinity without a hold.

        The hold says it in Unix time, for a successor. Here it counts from when this process saw it first, so that a
        step of the wall clock neither ends a hold nor makes it last.
        """
        if pod.hold is None:
            return float("-inf")
        known = self._hold_ends.get(pod.uid)
        if known is None or known[0] != pod.hold:
            longest = max(self._settings.gang_deadline_seconds, records.LONGEST_HOLD_SECONDS)
            left = min(max(pod.hold.until - self._wall_clock(), 0.0), longest)
            known = self._hold_ends[pod.uid] = pod.hold, self._clock() + left
        return known[1]

    def waiting_by_key(self, key: str) -> from_objects.PendingPod | None:
        """A waiting pod by `<namespace>/<name>`."""
        return next((pod for pod in self.waiting.values() if pod.key == key), None)

    def confirm(self, uid: identifiers.PodUid) -> None:
        """A bind of ours was answered: no list that began earlier can say otherwise."""
        if self.ledger.pod(uid) is not None:
            self._answered_at[uid] = self._clock()
        self.ledger.confirm(uid)
        self._waits_no_more(uid)

    def not_bound(self, uid: identifiers.PodUid) -> None:
        """A bind of ours was certainly not done: the pod is pending, as it was last seen."""
        self.ledger.forget(uid)
        pod = self.waiting.get(uid)
        if pod is not None:
            self._see_waiting(pod)

    def see_node(self, node: objects.Node) -> None:
        """A node was added or modified."""
        try:
            seen = from_objects.node_facts(node, self._names, allow_hami_nodes=self._settings.allow_hami_nodes)
        except Exception as defect:
            set_aside.report("Node", node.metadata.name, defect, self._metrics)
            seen = facts.Node(identifiers.NodeName(node.metadata.name), standing=Reason.CORRUPT_NODE_RECORD)
        before = self.ledger.node_facts(seen.name)
        self.ledger.set_node(seen)
        if seen.standing is Reason.CORRUPT_NODE_RECORD and (before is None or before.standing is not seen.standing):
            self._metrics.corrupt_records.inc()
            log.error("node record unreadable", error_code=error_codes.CORRUPT_NODE_RECORD, node=seen.name)
        if seen.bad_links and (before is None or before.bad_links != seen.bad_links):
            log.error("links unreadable", error_code=error_codes.BAD_LINKS, node=seen.name, cause=seen.bad_links)
            self._tell(lambda listener: listener.bad_links(seen))

    @contextlib.contextmanager
    def reading(self, uid: identifiers.PodUid) -> Iterator[None]:
        """Keep the versions of a pod while it is read, so that `see_read_pod` can tell an old answer from news."""
        self._reads[uid] += 1
        try:
            yield
        finally:
            self._reads[uid] -= 1
            if not self._reads[uid]:
                del self._reads[uid]
                self._versions.pop(uid, None)

    def see_read_pod(self, pod: objects.Pod) -> bool:
        """A pod as one read of it was answered just now. Returns whether it is still there, by all that is known."""
        uid = identifiers.PodUid(pod.metadata.uid)
        if _version(pod) >= self._versions.get(uid, 0):
            self.see_pod(pod)
        if uid in self._gone_at:
            return False
        if uid in self.waiting or self.ledger.pod(uid) is not None:
            self._answered_at[uid] = self._clock()
        return True

    def see_pod(self, pod: objects.Pod) -> None:
        """A pod was added or modified."""
        try:
            if from_objects.is_ours(pod, self._names):
                self._take_in(pod)
        except Exception as defect:
            set_aside.report("Pod", pod.key, defect, self._metrics)
            self._keep_out(pod)

    def _take_in(self, pod: objects.Pod) -> None:
        uid = identifiers.PodUid(pod.metadata.uid)
        if uid in self._reads:
            self._versions[uid] = _version(pod)
        if pod.has_ended:
            self.forget_pod(uid)
            if pod.status and pod.status.phase == "Succeeded":
                self.ledger.gangs.is_done(uid, pod.metadata.namespace, from_objects.gang_of(pod))
        elif uid in self._gone_at:
            return
        elif pod.spec.node_name:
            self._hold(from_objects.pod_facts(pod, self._names))
        else:
            self._see_waiting(from_objects.pending_pod(pod, self._names))

    def _keep_out(self, pod: objects.Pod) -> None:
        """Count a bound pod that could not be taken in as one whose record does not decode, and forget any other."""
        uid, key = identifiers.PodUid(pod.metadata.uid), identifiers.PodKey(pod.key)
        if pod.has_ended:
            self.forget_pod(uid)
        elif pod.spec.node_name and uid not in self._gone_at:
            self._hold(facts.BoundPod(uid, key, identifiers.NodeName(pod.spec.node_name), corrupt=True))
        else:
            self._waits_no_more(uid)

    def _hold(self, held: facts.BoundPod) -> None:
        self._waits_no_more(held.uid)
        self._answered_at.pop(held.uid, None)
        self.in_doubt.pop(held.uid, None)
        before = self.ledger.pod(held.uid)
        self.ledger.set_pod(held)
        self._report(held, before)

    def forget_pod(self, uid: identifiers.PodUid) -> None:
        """A pod is gone or has ended; what is answered about it later is old."""
        now = self._clock()
        self._gone_at.pop(uid, None)
        self._gone_at[uid] = now
        while (oldest := next(iter(self._gone_at))) != uid and self._gone_at[oldest] < now - _GONE_KEPT_SECONDS:
            del self._gone_at[oldest]
        self._waits_no_more(uid)
        self._answered_at.pop(uid, None)
        self.in_doubt.pop(uid, None)
        self.ledger.remove_pod(uid)
        self.ledger.gangs.is_gone(uid)

    def replace_nodes(self, nodes: list[objects.Node]) -> Iterator[None]:
        """These are all nodes. One step a node; others may have their turn between steps."""
        listed = {node.metadata.name for node in nodes}
        for name in self.ledger.node_names():
            if name not in listed:
                self.ledger.remove_node(name)
        for node in _consumed(nodes):
            self.see_node(node)
            self.ledger.settle_some(1)
            yield

    def replace_pods(self, pods: list[objects.Pod], listed_at: float) -> Iterator[None]:
        """These are all pods, as of some moment after `listed_at`. One step a pod; binds may happen between steps."""
        listed: dict[identifiers.PodUid, bool] = {}
        known_before = set(self.waiting) | {held.uid for held in self.ledger.pods()} if self.lists else None
        self.lists += 1
        for pod in pods:
            uid = identifiers.PodUid(pod.metadata.uid)
            listed[uid] = bool(pod.spec.node_name)
            if known_before is not None and uid not in known_before:
                self._metrics.drift.inc(from_objects.is_ours(pod, self._names) and not pod.has_ended)
            yield
        if known_before is not None:
            self._metrics.drift.inc(len(known_before - listed.keys()))
        for uid in [held.uid for held in self.ledger.pods()] + list(self.waiting) + self.ledger.gangs.done():
            self._compare(uid, listed.get(uid), listed_at)
            yield
        for pod in _consumed(pods):
            self.see_pod(pod)
            yield

    def _compare(self, uid: identifiers.PodUid, bound: bool | None, listed_at: float) -> None:
        """Hold what is known of a pod against a list in which it is bound, is not, or (None) does not occur."""
        held = self.ledger.pod(uid)
        if self.ledger.is_assumed(uid) or self._answered_at.get(uid, float("-inf")) > listed_at:
            if bound is None:
                known = held or self.waiting.get(uid)
                if known is not None:
                    self.in_doubt[uid] = known.key
        elif bound is None:
            self.forget_pod(uid)
        elif held is not None and not bound:
            self.ledger.remove_pod(uid)

    def see_quota(self, quota: objects.ResourceQuota) -> None:
        """A ResourceQuota was added or modified."""
        name, namespace = quota.metadata.name, quota.metadata.namespace
        try:
            read = quotas.read(name, quota.spec.hard or {}, self._names)
        except Exception as defect:
            set_aside.report("ResourceQuota", f"{namespace}/{name}", defect, self._metrics)
            read = quotas.Quota(name, (None, None, None), f"ResourceQuota {name} cannot be read")
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

    def _tell(self, tell: Callable[[Listener], None]) -> None:
        """Have the listener say something; what goes wrong there changes nothing of what is known."""
        if self.listener:
            try:
                tell(self.listener)
            except Exception:
                log.exception("defect", error_code=error_codes.INTERNAL)

    def _waits_no_more(self, uid: identifiers.PodUid) -> None:
        self.waiting.pop(uid, None)
        self._hold_ends.pop(uid, None)
        self.ledger.gangs.waits_no_more(uid)

    def _see_waiting(self, pod: from_objects.PendingPod) -> None:
        held = self.ledger.pod(pod.uid)
        if held is not None:
            if self.ledger.is_assumed(pod.uid):
                self.waiting[pod.uid] = pod  # It counts again if the bind turns out not to be done.
            return  # We bound it, and this event is older.
        before = self.waiting.get(pod.uid)
        self.waiting[pod.uid] = pod
        counts = not pod.is_deleting and pod.scheduler_name == self._settings.scheduler_name
        self.ledger.gangs.waits(pod.uid, pod.namespace, pod.gang if counts else None, self.hold_ends_at(pod))
        if pod.is_deleting:
            self.ledger.drop_nomination(pod.uid)
        if pod.nominated_node and isinstance(pod.request, requests.PodRequest) and not pod.is_deleting:
            self.ledger.set_hold(facts.Reservation(pod.uid, pod.nominated_node, {}, pod.priority, pod.request))
        elif pod.hold and isinstance(pod.request, requests.PodRequest) and not pod.is_deleting:
            kept = facts.Reservation(pod.uid, pod.hold.node, {}, pod.priority, pod.request, pod.hold.gpus)
            self.ledger.set_hold(kept)
        else:
            self.ledger.drop_hold(pod.uid)
        if pod.stopped_by and (before is None or before.stopped_by != pod.stopped_by):
            self._tell(lambda listener: listener.stopped(pod))

    def _report(self, held: facts.BoundPod, before: facts.BoundPod | None) -> None:
        if held.corrupt and not (before and before.corrupt):
            self._metrics.corrupt_records.inc()
            log.error("pod record unreadable", error_code=error_codes.CORRUPT_POD_RECORD, pod=held.key, node=held.node)
            self._tell(lambda listener: listener.corrupt(held))
        elif held.foreign_slots and before is None:
            log.warning("foreign pod", error_code=error_codes.FOREIGN_POD, pod=held.key, node=held.node)
            self._tell(lambda listener: listener.foreign(held))


def _consumed(items: list[_T]) -> Iterator[_T]:
    """The items in their order, each freed before the next: a list of 50,000 pods takes tens of MiB."""
    items.reverse()
    while items:
        yield items.pop()


def _version(pod: objects.Pod) -> int:
    """The pod's resource version as a number, 0 where it is none.

    Source: KEP-5504, comparable resource versions: a decimal number that grows with each write.
    """
    text = pod.metadata.resource_version
    return int(text) if text.isascii() and text.isdigit() and len(text) < 20 else 0


class NodeSink:
    """What a reflector of nodes feeds."""

    def __init__(self, mirror: Mirror) -> None:
        self._mirror = mirror

    def replaced(self, items: list[objects.Node], listed_at: float) -> Iterator[None]:
        """All nodes."""
        return self._mirror.replace_nodes(items)

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

    def replaced(self, items: list[objects.Pod], listed_at: float) -> Iterator[None]:
        """All pods."""
        return self._mirror.replace_pods(items, listed_at)

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

    def replaced(self, items: list[objects.ResourceQuota], listed_at: float) -> Iterator[None]:
        """All quotas."""
        listed = {(item.metadata.namespace, item.metadata.name) for item in items}
        for namespace, name in self._mirror.ledger.quotas.names():
            if (namespace, name) not in listed:
                self._mirror.ledger.set_quota(namespace, name, None)
        for item in items:
            self._mirror.see_quota(item)
            yield

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

    def replaced(self, items: list[objects.ResourceSlice], listed_at: float) -> Iterator[None]:
        """All slices."""
        self._nodes.clear()
        for item in items:
            self._learn(item)
        self._tell()
        yield

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


class ClassSink:
    """What a reflector of DRA's device classes feeds."""

    def __init__(self, mirror: Mirror) -> None:
        self._mirror = mirror
        self._offering: set[str] = set()
        """Those that offer the resource that counts GPUs."""

    def replaced(self, items: list[objects.DeviceClass], listed_at: float) -> Iterator[None]:
        """All classes."""
        self._offering.clear()
        for item in items:
            self._learn(item)
        self._tell()
        yield

    def changed(self, item: objects.DeviceClass) -> None:
        """One class."""
        self._learn(item)
        self._tell()

    def deleted(self, item: objects.DeviceClass) -> None:
        """A class is gone."""
        self._offering.discard(item.metadata.name)
        self._tell()

    def undecodable(self, raw: bytes, error: Exception) -> None:
        """Something that is no class."""
        self._mirror.undecodable("DeviceClass", error_codes.DEVICE_CLASS, error)

    def _learn(self, item: objects.DeviceClass) -> None:
        offers = item.spec.extended_resource_name == self._mirror.resource_names.count
        (self._offering.add if offers else self._offering.discard)(item.metadata.name)

    def _tell(self) -> None:
        self._mirror.ledger.set_device_class(min(self._offering, default=""))


class GroupSink:
    """What a reflector of pod groups of one API feeds."""

    def __init__(self, mirror: Mirror, api_group: str) -> None:
        self._mirror = mirror
        self._api_group = api_group

    def replaced(self, items: list[objects.PodGroup], listed_at: float) -> Iterator[None]:
        """All pod groups."""
        listed = {(item.metadata.namespace, item.metadata.name) for item in items}
        for namespace, name in self._mirror.ledger.gangs.groups(self._api_group):
            if (namespace, name) not in listed:
                self._set(namespace, name, None)
        for item in items:
            self.changed(item)
            yield

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
        self._mirror.ledger.gangs.set_group(self._api_group, namespace, name, size)
