"""Pods that request GPUs and have no node: what each requests, and what was last decided about it.

One entry a pod, by UID, from its first sight until it is bound or gone. Verbs, the loop that wakes pods, gauges, the
read API and explanations all read it here. kube-scheduler's watch may be ahead of ours, so it may ask about a pod that
is not *listed* yet: that pod has an entry too, and only the youngest of those entries are kept.
"""

import collections
import secrets
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

from gpu_sharing.core import error_codes, gangs, identifiers, records, rejections, requests
from gpu_sharing.core.rejections import Reason
from scheduler_extender.cluster import node_selection
from scheduler_extender.fleet import facts

_MOST_UNLISTED = 10_000


@dataclass(frozen=True, slots=True, kw_only=True)
class _UnboundPod:
    """What a pod without a node says of itself, apart from its GPU request."""

    uid: identifiers.PodUid
    key: identifiers.PodKey
    resource_version: str
    traits: facts.Traits
    """What stays the same once it is bound."""
    scheduler_name: str
    annotation_bytes: int
    nominated_node: identifiers.NodeName | None
    has_soft_preferences: bool
    unschedulable_message: str
    """Of its condition `PodScheduled=False`; empty while it has none."""
    unscheduled_reason: str = ""
    """Of the same condition: `Unschedulable`, `SchedulingGated` or `SchedulerError`."""
    preempts: bool = True
    """Whether other pods may be evicted for it."""
    hold: records.Hold | None = None
    """GPUs reserved for it while its victims terminate, or until its whole gang is bound."""
    gates: tuple[dict[str, Any], ...] = ()
    """Its scheduling gates."""
    node_requirements: node_selection.NodeRequirements = node_selection.NONE

    @property
    def priority(self) -> int:
        """The larger, the more urgent."""
        return self.traits.priority

    @property
    def is_deleting(self) -> bool:
        """Whether it has a deletion timestamp, so that nothing needs to be done for it."""
        return self.traits.ending

    @property
    def gate_names(self) -> tuple[str, ...]:
        """The gates that another program opens; a gang's own gate is opened by this extender, so it is none of them."""
        names = (str(gate.get("name", "")) for gate in self.gates)
        return tuple(name for name in names if name != gangs.GATE)

    @property
    def gang(self) -> gangs.Gang | None:
        """The gang that it names; also None where what it says of its gang is invalid."""
        return self.traits.gang

    @property
    def namespace(self) -> str:
        """The part of its key before the slash."""
        return self.key.partition("/")[0]


@dataclass(frozen=True, slots=True, kw_only=True)
class PendingPod(_UnboundPod):
    """A pod that requests GPUs and has no node."""

    request: requests.PodRequest


@dataclass(frozen=True, slots=True, kw_only=True)
class UnreadablePod(_UnboundPod):
    """A pod without a node whose GPU request cannot be read, so that it fits nowhere."""

    invalid: requests.InvalidRequest


AnyPod = PendingPod | UnreadablePod


class RejectedNodes(NamedTuple):
    """Nodes that reject a pod for one reason, and the rejection of the one that came nearest."""

    nodes: int
    nearest: identifiers.NodeName
    rejection: rejections.Rejection


@dataclass(frozen=True, slots=True)
class PodRejection:
    """Why no node takes a pod: the one value from which its event, log line, metric and pages are written."""

    nodes: int
    """All nodes of the cluster."""
    reason: Reason = Reason.NONE
    """The reason that most nodes give."""
    counts: tuple[tuple[Reason, int], ...] = ()
    """How many nodes give each reason."""
    details: tuple[RejectedNodes, ...] = ()
    """One entry a node in a small cluster, else one a reason."""
    invalid: requests.InvalidRequest | None = None
    """Set where the request cannot be read; then no node gives a reason."""

    @property
    def code(self) -> error_codes.Code:
        """The error code of the main reason."""
        return self.invalid.code if self.invalid else rejections.REASONS[self.reason].code

    @property
    def nearest(self) -> RejectedNodes | None:
        """An entry of the main reason; of many nodes the one that came nearest."""
        return next((some for some in self.details if some.rejection.reason is self.reason), None)


@dataclass(slots=True)
class Decision:
    """What filter decided for a pod, kept for prioritize and bind.

    Attributes:
        names: The nodes that fit, as answered; prioritize is asked about the same list.
        node: The node ranked first.
        score: Of that node, 0 to 1.
    """

    id: identifiers.DecisionId
    names: list[str]
    node: identifiers.NodeName | None = None
    score: float = 0.0


@dataclass(frozen=True, slots=True)
class FilterRejection:
    """An answer of filter without nodes, after which the pod waits to be woken."""

    generation: int
    """The ledger's generation at that time: what was freed later is news for the pod."""
    offered: tuple[str, ...]
    """The nodes that kube-scheduler offered; empty where the pod cannot preempt."""
    since: float
    """Monotonic seconds of the first rejection since the pod last fitted."""


class Report(NamedTuple):
    """The last event about a pod."""

    head: str
    """First line of its note; empty after a pod that fitted."""
    at: float
    """Monotonic seconds."""


@dataclass(slots=True)
class Entry:
    """All that is known of one pending pod.

    Attributes:
        decision: The last one; None before filter was asked.
        rejection: Why no node takes it; None where the last answer had nodes, or none was given.
        last_code: The code of its last rejection, also after an answer that had nodes; None if it was never rejected.
        ungated_at: Unix seconds at which its last gate was seen open; 0 where it was never seen gated.
        filter_rejection: Set while the pod waits to be woken.
        report: The last event about it.
        hold_end: Its hold, and the monotonic second at which the hold ends.
    """

    pod: AnyPod
    decision: Decision | None = None
    rejection: PodRejection | None = None
    last_code: error_codes.Code | None = None
    ungated_at: float = 0.0
    filter_rejection: FilterRejection | None = None
    report: Report | None = None
    hold_end: tuple[records.Hold, float] | None = None

    @property
    def pending_since(self) -> float:
        """Unix seconds from which it counts as pending; 0 where that is not known.

        That is its creation, so that a restart of this process changes nothing. A pod that this process saw gated
        counts from when its gates were open: until then another program kept it back.
        """
        return self.ungated_at or float(self.pod.traits.created_at)


class Pending:
    """The pending pods of a cluster, by UID. Iterating yields the listed ones."""

    def __init__(
        self, clock: Callable[[], float] = time.monotonic, wall_clock: Callable[[], float] = time.time
    ) -> None:
        self._clock = clock
        self._wall_clock = wall_clock
        self._listed: dict[identifiers.PodUid, Entry] = {}
        self._unlisted: collections.OrderedDict[identifiers.PodUid, Entry] = collections.OrderedDict()
        self._offered_last: tuple[str, ...] = ()

    def __len__(self) -> int:
        return len(self._listed)

    def __iter__(self) -> Iterator[AnyPod]:
        return iter([entry.pod for entry in self._listed.values()])

    def __contains__(self, uid: object) -> bool:
        return uid in self._listed

    def uids(self) -> list[identifiers.PodUid]:
        """Return the UIDs of the listed pods."""
        return list(self._listed)

    def entries(self) -> list[Entry]:
        """Return the entries of the listed pods."""
        return list(self._listed.values())

    def get(self, uid: identifiers.PodUid) -> AnyPod | None:
        """Return a listed pod."""
        entry = self._listed.get(uid)
        return entry.pod if entry else None

    def by_key(self, key: str) -> AnyPod | None:
        """Return a listed pod by `<namespace>/<name>`."""
        return next((entry.pod for entry in self._listed.values() if entry.pod.key == key), None)

    def entry(self, uid: identifiers.PodUid) -> Entry | None:
        """Return the entry of a pod, listed or not."""
        return self._listed.get(uid) or self._unlisted.get(uid)

    def entry_of(self, pod: AnyPod) -> Entry:
        """Return the entry of a pod; for a pod that is not listed it is made, and the oldest one may be dropped."""
        entry = self.entry(pod.uid)
        if entry is None:
            entry = self._unlisted[pod.uid] = Entry(pod)
            if len(self._unlisted) > _MOST_UNLISTED:
                self._unlisted.popitem(last=False)
        return entry

    def see(self, pod: AnyPod) -> None:
        """List a pod, or replace its value."""
        entry = self._listed.get(pod.uid) or self._unlisted.pop(pod.uid, None)
        if entry is None:
            self._listed[pod.uid] = Entry(pod)
        else:
            if entry.pod.gate_names and not pod.gate_names:
                entry.ungated_at = self._wall_clock()
            entry.pod = pod
            self._listed[pod.uid] = entry

    def remove(self, uid: identifiers.PodUid) -> None:
        """Forget a pod that is bound or gone."""
        self._listed.pop(uid, None)
        self._unlisted.pop(uid, None)

    def decision_id(self, uid: identifiers.PodUid) -> identifiers.DecisionId:
        """Return one id for all that is decided about a pod, from its first filter to its bind."""
        entry = self.entry(uid)
        known = entry.decision if entry else None
        return known.id if known else identifiers.DecisionId(secrets.token_hex(8))

    def reject(self, pod: AnyPod, rejection: PodRejection) -> None:
        """Keep why no node takes a pod."""
        entry = self.entry_of(pod)
        entry.rejection, entry.last_code = rejection, rejection.code

    def accept(self, pod: AnyPod) -> None:
        """Note that filter found nodes for a pod: it has no rejection any more and needs no wake-up."""
        entry = self.entry_of(pod)
        entry.rejection = entry.filter_rejection = None

    def refuse(self, pod: AnyPod, generation: int, offered: tuple[str, ...] = ()) -> None:
        """Note that a pod must be woken when something becomes free after that generation of the ledger."""
        entry = self.entry_of(pod)
        since = entry.filter_rejection.since if entry.filter_rejection else self._clock()
        if offered == self._offered_last:
            offered = self._offered_last  # Thousands of pods may have been offered the same thousands of nodes.
        self._offered_last = offered
        entry.filter_rejection = FilterRejection(generation, offered, since)

    def rejected_for(self, seconds: float) -> list[tuple[PendingPod, tuple[str, ...]]]:
        """Return the pods rejected for at least so long that were offered nodes, most urgent first, then oldest."""
        long_ago = self._clock() - seconds
        rejected = [
            (entry.pod, entry.filter_rejection)
            for entry in self._listed.values()
            if entry.filter_rejection and entry.filter_rejection.offered and entry.filter_rejection.since <= long_ago
        ]
        rejected.sort(key=lambda one: (-one[0].priority, one[1].since))
        return [(pod, rejection.offered) for pod, rejection in rejected if isinstance(pod, PendingPod)]

    @property
    def refused_count(self) -> int:
        """How many listed pods wait to be woken."""
        return sum(entry.filter_rejection is not None for entry in self._listed.values())
