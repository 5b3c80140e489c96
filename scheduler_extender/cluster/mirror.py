"""Feeds what the API server says into the ledger and the pending pods.

Every source has its place in time, so that old information never replaces newer:

- A bind of ours is newer than any watch event that shows the pod unbound.
- The answer of a single read or of a bind is newer than any list that began before that answer. A pod that such a list
  lacks is not gone: it is *in doubt*, and `pod_reader` reads it by itself.
- A pod that was deleted or has ended stays so. A read that was answered later does not bring it back.
- A read counts only if its `resourceVersion` is not smaller than what the watch showed while it was under way. Between
  lists and watches versions are not compared: an etcd that was restored from a backup counts from an earlier one.

Each object is handled by itself. One that cannot be handled is set aside: counted, logged, and what it may hold is
kept out of use. The others, and a start, do not depend on it.
"""

import collections
import contextlib
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Generic, Protocol, TypeVar

import structlog

from gpu_sharing.adapters import objects
from gpu_sharing.core import error_codes, gangs, identifiers, quotas, records, requests
from gpu_sharing.core.rejections import Reason
from scheduler_extender import set_aside
from scheduler_extender.cluster import dra, from_objects, pending
from scheduler_extender.cluster.agents import Agents
from scheduler_extender.cluster.node_health import NodeHealth
from scheduler_extender.fleet import facts
from scheduler_extender.fleet.ledger import Ledger
from scheduler_extender.metrics import Metrics
from scheduler_extender.settings import Settings

_GONE_KEPT_SECONDS = 120.0
"""Longer than any read of a pod takes to be answered."""

_T = TypeVar("_T")

log = structlog.get_logger("mirror")


class Listener(Protocol):
    """Receives what the mirror finds that people must know."""

    def foreign(self, pod: facts.BoundPod) -> None:
        """Report a pod with GPUs that another scheduler has bound."""

    def corrupt(self, pod: facts.BoundPod) -> None:
        """Report a pod whose record does not decode."""

    def bad_links(self, node: facts.Node) -> None:
        """Report a node whose record of links cannot be read or contradicts itself."""

    def unknown_cordon(self, node: facts.Node) -> None:
        """Report a node whose cordon names a UUID that no GPU of it has."""

    def unschedulable(self, pod: pending.AnyPod) -> None:
        """Report a pod that kube-scheduler says it cannot place."""


@dataclass(frozen=True, slots=True)
class Sink(Generic[_T]):
    """Receives one kind of object: the whole list first, then each change.

    Attributes:
        replaced: Called with all objects and the monotonic second at which their list began; one step an object.
        changed: Called with one that was added or modified.
        deleted: Called with one that is gone.
        undecodable: Called with the bytes of one that is not of its kind, and the error.
    """

    replaced: Callable[[list[_T], float], Iterator[None]]
    changed: Callable[[_T], None]
    deleted: Callable[[_T], object]
    undecodable: Callable[[bytes, Exception], None]


class Mirror:
    """The cluster as the API server describes it.

    Attributes:
        ledger: What every pod holds and what is reserved.
        pending: The pods that request GPUs and have no node.
        agents: Registered nodes, and the plugins and monitors there.
        node_health: Faults of GPUs and nodes, for remediation.
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
        self.pending = pending.Pending(clock, wall_clock)
        self.agents = Agents(settings.leader_lease.partition("/")[0], clock, wall_clock)
        self.node_health = NodeHealth(settings.remediation != "off", metrics)
        self.listener: Listener | None = None
        self._settings = settings
        self._names = settings.resource_names
        self._metrics = metrics
        self._clock = clock
        self._wall_clock = wall_clock
        self.in_doubt: dict[identifiers.PodUid, identifiers.PodKey] = {}
        self._answered_at: dict[identifiers.PodUid, float] = {}
        """When the API server last answered about this one pod, in seconds of `clock`."""
        self._gone_at: dict[identifiers.PodUid, float] = {}
        """Pods that were deleted or have ended lately, in that order."""
        self._reads: collections.Counter[identifiers.PodUid] = collections.Counter()
        """Pods that are being read by themselves, each with the number of reads."""
        self._versions: dict[identifiers.PodUid, int] = {}
        """Of those, the resource version of what was seen since the read began."""
        self.lists = 0
        self._make_sinks()

    def _make_sinks(self) -> None:
        """What reflectors feed, one for each kind of object."""
        ledger, unreadable = self.ledger, self._unreadable
        self.nodes = Sink(
            self.replace_nodes,
            self.see_node,
            lambda node: self._forget_node(identifiers.NodeName(node.metadata.name)),
            unreadable("Node", error_codes.CORRUPT_NODE_RECORD),
        )
        self.pods = Sink(
            self.replace_pods,
            self.see_pod,
            lambda pod: self._delete_pod(identifiers.PodUid(pod.metadata.uid)),
            unreadable("Pod", error_codes.CORRUPT_POD_RECORD),
        )
        self.quotas = Sink(
            self._replace_quotas,
            self.see_quota,
            lambda quota: ledger.set_quota(quota.metadata.namespace, quota.metadata.name, None),
            unreadable("ResourceQuota", error_codes.QUOTA_UNREADABLE),
        )
        slices = dra.GpuNodes(ledger.set_dra_nodes)
        self.slices = Sink(slices.replace, slices.see, slices.remove, unreadable("ResourceSlice", error_codes.DRA_NODE))
        classes = dra.OfferingClasses(self._names.count, ledger.set_device_class)
        self.classes = Sink(
            classes.replace, classes.see, classes.remove, unreadable("DeviceClass", error_codes.DEVICE_CLASS)
        )
        self.groups = {api_group: self._group_sink(api_group) for api_group in (gangs.KUBERNETES, gangs.COSCHEDULING)}

    @property
    def resource_names(self) -> requests.ResourceNames:
        """The resource names by which containers request GPUs."""
        return self._names

    def hold_ends_at(self, pod: pending.AnyPod) -> float:
        """Return when a pending pod's hold ends, in seconds of `clock`; minus infinity without a hold.

        The hold says it in Unix time, for a successor. Here it counts from when this process saw it first, so that a
        step of the wall clock neither ends a hold nor makes it last.
        """
        if pod.hold is None:
            return float("-inf")
        entry = self.pending.entry_of(pod)
        if entry.hold_end is None or entry.hold_end[0] != pod.hold:
            longest = max(self._settings.gang_deadline_seconds, records.LONGEST_HOLD_SECONDS)
            left = min(max(pod.hold.until - self._wall_clock(), 0.0), longest)
            entry.hold_end = pod.hold, self._clock() + left
        return entry.hold_end[1]

    def pod_to_decide(self, pod: objects.Pod) -> pending.AnyPod | None:
        """Return a pod that kube-scheduler asks about as a value; None if it requests no GPU.

        What was read from the watch at the same version is not read again.
        """
        known = self.pending.get(identifiers.PodUid(pod.metadata.uid))
        if known is not None and known.resource_version == pod.metadata.resource_version:
            return known
        if not from_objects.is_ours(pod, self._names):
            return None
        return from_objects.pending_pod(pod, self._names)

    def confirm(self, uid: identifiers.PodUid) -> None:
        """Note that a bind of ours was answered: no list that began earlier can contradict it."""
        if self.ledger.pod(uid) is not None:
            self._answered_at[uid] = self._clock()
        self.ledger.confirm(uid)
        self.pending.remove(uid)

    def not_bound(self, uid: identifiers.PodUid) -> None:
        """A bind of ours was certainly not done: the pod is pending, as it was last seen."""
        self.ledger.forget(uid)
        pod = self.pending.get(uid)
        if pod is not None:
            self._see_pending(pod)

    def see_node(self, node: objects.Node) -> None:
        """A node was added or modified."""
        try:
            seen = from_objects.node_facts(node, self._names, allow_hami_nodes=self._settings.allow_hami_nodes)
        except Exception as defect:
            set_aside.report("Node", node.metadata.name, defect, self._metrics)
            seen = facts.Node(identifiers.NodeName(node.metadata.name), standing=Reason.CORRUPT_NODE_RECORD)
        before = self.ledger.node_facts(seen.name)
        self.node_health.see_node(node)
        self.ledger.set_node(seen)
        self.agents.see_node(seen)
        if seen.standing is Reason.CORRUPT_NODE_RECORD and (before is None or before.standing is not seen.standing):
            self._metrics.corrupt_records.inc()
            log.error("node record unreadable", error_code=error_codes.CORRUPT_NODE_RECORD, node=seen.name)
        if seen.bad_links and (before is None or before.bad_links != seen.bad_links):
            log.error("links unreadable", error_code=error_codes.BAD_LINKS, node=seen.name, cause=seen.bad_links)
            self._notify(lambda listener: listener.bad_links(seen))

        if seen.unknown_cordons and (before is None or before.unknown_cordons != seen.unknown_cordons):
            named = ", ".join(seen.unknown_cordons)
            log.error("cordon of an unknown GPU", error_code=error_codes.UNKNOWN_CORDON, node=seen.name, gpus=named)
            self._notify(lambda listener: listener.unknown_cordon(seen))

    @contextlib.contextmanager
    def reading(self, uid: identifiers.PodUid) -> Iterator[None]:
        """Record the versions of a pod while it is read, so that `see_read_pod` recognizes an old answer."""
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
        if uid in self.pending or self.ledger.pod(uid) is not None:
            self._answered_at[uid] = self._clock()
        return True

    def see_pod(self, pod: objects.Pod) -> None:
        """A pod was added or modified."""
        try:
            if from_objects.is_ours(pod, self._names):
                self._take_in(pod)
            else:
                self._count_host(pod)
                self.agents.see_pod(pod)
        except Exception as defect:
            set_aside.report("Pod", pod.key, defect, self._metrics)
            self._keep_out(pod)

    def _forget_node(self, name: identifiers.NodeName) -> None:
        self.ledger.remove_node(name)
        self.node_health.forget_node(name)
        self.agents.forget_node(name)

    def _delete_pod(self, uid: identifiers.PodUid) -> None:
        self.forget_pod(uid)
        self.agents.forget_pod(uid)
        self.ledger.remove_plain(uid)

    def _take_in(self, pod: objects.Pod) -> None:
        uid = identifiers.PodUid(pod.metadata.uid)
        if uid in self._reads:
            self._versions[uid] = _version(pod)
        if pod.has_ended:
            self.forget_pod(uid)
            if pod.status and pod.status.phase == "Succeeded":
                self.ledger.finish(uid, pod.metadata.namespace, from_objects.gang_of(pod))
        elif uid in self._gone_at:
            return
        elif pod.spec.node_name:
            self._hold(from_objects.pod_facts(pod, self._names))
        else:
            self._see_pending(from_objects.pending_pod(pod, self._names))

    def _count_host(self, pod: objects.Pod) -> None:
        """A pod without GPUs takes CPU and memory of its node, which GPUs there need too."""
        uid = identifiers.PodUid(pod.metadata.uid)
        if pod.spec.node_name and not pod.has_ended:
            self.ledger.set_plain(uid, identifiers.NodeName(pod.spec.node_name), from_objects.host_amounts(pod))
        else:
            self.ledger.remove_plain(uid)

    def _keep_out(self, pod: objects.Pod) -> None:
        """Count a bound pod that could not be handled as one whose record does not decode, and forget any other."""
        uid, key = identifiers.PodUid(pod.metadata.uid), identifiers.PodKey(pod.key)
        if pod.has_ended:
            self.forget_pod(uid)
        elif pod.spec.node_name and uid not in self._gone_at:
            self._hold(facts.BoundPod(uid, key, identifiers.NodeName(pod.spec.node_name), corrupt=True))
        else:
            self.pending.remove(uid)
            self.ledger.remove_pending(uid)

    def _hold(self, held: facts.BoundPod) -> None:
        self.pending.remove(held.uid)
        self._answered_at.pop(held.uid, None)
        self.in_doubt.pop(held.uid, None)
        before = self.ledger.pod(held.uid)
        self.ledger.set_bound(held)
        self._report(held, before)

    def forget_pod(self, uid: identifiers.PodUid) -> None:
        """A pod is gone or has ended; what is answered about it later is old."""
        now = self._clock()
        self._gone_at.pop(uid, None)
        self._gone_at[uid] = now
        while (oldest := next(iter(self._gone_at))) != uid and self._gone_at[oldest] < now - _GONE_KEPT_SECONDS:
            del self._gone_at[oldest]
        self.pending.remove(uid)
        self._answered_at.pop(uid, None)
        self.in_doubt.pop(uid, None)
        self.ledger.remove_pod(uid)

    def replace_nodes(self, nodes: list[objects.Node], listed_at: float) -> Iterator[None]:
        """These are all nodes. One step a node; others may have their turn between steps."""
        del listed_at
        listed = {node.metadata.name for node in nodes}
        for name in self.ledger.node_names():
            if name not in listed:
                self._forget_node(name)
        for node in _consumed(nodes):
            self.see_node(node)
            self.ledger.settle_some(1)
            yield

    def replace_pods(self, pods: list[objects.Pod], listed_at: float) -> Iterator[None]:
        """These are all pods, as of some moment after `listed_at`. One step a pod; binds may happen between steps."""
        listed: dict[identifiers.PodUid, bool] = {}
        known_before = set(self.pending.uids()) | {held.uid for held in self.ledger.pods()} if self.lists else None
        self.lists += 1
        for pod in pods:
            uid = identifiers.PodUid(pod.metadata.uid)
            listed[uid] = bool(pod.spec.node_name)
            if known_before is not None and uid not in known_before:
                self._metrics.drift.inc(from_objects.is_ours(pod, self._names) and not pod.has_ended)
            yield
        self.agents.keep_pods(listed)
        self.ledger.keep_plain(listed)
        if known_before is not None:
            self._metrics.drift.inc(len(known_before - listed.keys()))
        for uid in [held.uid for held in self.ledger.pods()] + self.pending.uids() + self.ledger.gangs.done():
            self._compare(uid, listed.get(uid), listed_at)
            yield
        for pod in _consumed(pods):
            self.see_pod(pod)
            yield

    def _compare(self, uid: identifiers.PodUid, bound: bool | None, listed_at: float) -> None:
        """Compare what is known of a pod with a list in which it is bound, is not, or (None) does not occur."""
        held = self.ledger.pod(uid)
        if self.ledger.is_assumed(uid) or self._answered_at.get(uid, float("-inf")) > listed_at:
            if bound is None:
                known = held or self.pending.get(uid)
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

    def _replace_quotas(self, quotas_: list[objects.ResourceQuota], listed_at: float) -> Iterator[None]:
        del listed_at
        listed = {(quota.metadata.namespace, quota.metadata.name) for quota in quotas_}
        for namespace, name in self.ledger.quotas.names():
            if (namespace, name) not in listed:
                self.ledger.set_quota(namespace, name, None)
        for quota in quotas_:
            self.see_quota(quota)
            yield

    def _group_sink(self, api_group: str) -> "Sink[objects.PodGroup]":
        """Return what a reflector of the pod groups of one API feeds."""

        def change(group: objects.PodGroup, size: int | None) -> None:
            self.ledger.set_pod_group(api_group, group.metadata.namespace, group.metadata.name, size)

        def replace(groups: list[objects.PodGroup], listed_at: float) -> Iterator[None]:
            del listed_at
            listed = {(group.metadata.namespace, group.metadata.name) for group in groups}
            for namespace, name in self.ledger.gangs.groups(api_group):
                if (namespace, name) not in listed:
                    self.ledger.set_pod_group(api_group, namespace, name, None)
            for group in groups:
                change(group, group.least_members)
                yield

        return Sink(
            replace,
            lambda group: change(group, group.least_members),
            lambda group: change(group, None),
            self._unreadable("PodGroup", error_codes.BAD_GANG),
        )

    def _unreadable(self, kind: str, code: error_codes.Code) -> Callable[[bytes, Exception], None]:
        """Return what counts and logs an object that is not of the kind that its path has."""

        def report(raw: bytes, error: Exception) -> None:
            del raw
            self._metrics.undecodable_objects.inc()
            log.error("object unreadable", error_code=code, kind=kind, cause=str(error))

        return report

    def _notify(self, call: Callable[[Listener], None]) -> None:
        """Call the listener; an error there changes nothing of what is known."""
        if self.listener:
            try:
                call(self.listener)
            except Exception:
                log.exception("defect", error_code=error_codes.INTERNAL)

    def _see_pending(self, pod: pending.AnyPod) -> None:
        if self.ledger.pod(pod.uid) is not None:
            if self.ledger.is_assumed(pod.uid):
                self.pending.see(pod)  # It counts again if the bind turns out not to be done.
            return  # We bound it, and this event is older.
        before = self.pending.get(pod.uid)
        self.pending.see(pod)
        counts = not pod.is_deleting and pod.scheduler_name == self._settings.scheduler_name
        self.ledger.set_pending(
            pod.uid,
            namespace=pod.namespace,
            gang=pod.gang if counts else None,
            hold=_hold_of(pod),
            reserved_until=self.hold_ends_at(pod),
        )
        if pod.is_deleting:
            self.ledger.drop_nomination(pod.uid)
        message = pod.unschedulable_message
        if message and (before is None or before.unschedulable_message != message):
            self._notify(lambda listener: listener.unschedulable(pod))

    def _report(self, held: facts.BoundPod, before: facts.BoundPod | None) -> None:
        if held.corrupt and not (before and before.corrupt):
            self._metrics.corrupt_records.inc()
            log.error("pod record unreadable", error_code=error_codes.CORRUPT_POD_RECORD, pod=held.key, node=held.node)
            self._notify(lambda listener: listener.corrupt(held))
        elif held.foreign_slots and before is None:
            log.warning("foreign pod", error_code=error_codes.FOREIGN_POD, pod=held.key, node=held.node)
            self._notify(lambda listener: listener.foreign(held))


def _hold_of(pod: pending.AnyPod) -> facts.Reservation | None:
    """What is reserved for a pending pod by its own words: where it is nominated, or what its annotation names."""
    if not isinstance(pod, pending.PendingPod) or pod.is_deleting:
        return None
    if pod.nominated_node:
        return facts.Reservation(pod.uid, pod.nominated_node, {}, priority=pod.priority, request=pod.request)
    if pod.hold:
        return facts.Reservation(
            pod.uid, pod.hold.node, {}, priority=pod.priority, request=pod.request, reserved_gpus=pod.hold.gpus
        )
    return None


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
