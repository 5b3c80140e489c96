"""Who holds what: the one place where the cluster's state changes.

Facts come from the API server (nodes, pods) and from our own binds, which are *assumed* before the API server has
said yes. Everything is keyed by UID and written whole, so that a fact told twice, late or out of order counts once; a
ledger after any history equals one built anew from the API objects, plus the binds in flight.

Beside what is held there are claims: a *nomination* is our own short-lived note that kube-scheduler will probably
bind a pod to a node; a *hold* is a pod's `status.nominatedNodeName`. Claims of others count as taken in the arrays;
where nothing fits that way, `view_for` says what a pod may see instead.

Pure: the time is handed in. Not thread-safe: everything happens on one event loop.
"""

import collections
import dataclasses
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import NamedTuple

from gpu_sharing.core import (
    gangs,
    gpus,
    identifiers,
    mig,
    placement,
    policies,
    quotas,
    requests,
    reservations,
    topology,
)
from gpu_sharing.core.rejections import Reason
from scheduler_extender.fleet import arrays, budgets, rolls

_LONGEST_JOURNAL = 20_000

Bookings = Mapping[identifiers.GpuUuid, reservations.Booking]


class Taint(NamedTuple):
    """What keeps pods off a node."""

    key: str
    value: str
    effect: str


@dataclass(frozen=True, slots=True)
class NodeFacts:
    """What the API server says of a node."""

    name: identifiers.NodeName
    inventory: tuple[gpus.Gpu, ...] = ()
    cordoned: frozenset[identifiers.GpuUuid] = frozenset()
    standing: Reason = Reason.NONE
    unavailable: Reason = Reason.NONE
    """NODE_NOT_READY or NODE_CORDONED, else NONE. What is free there counts as free for no pod, although pods that
    tolerate it may be placed."""
    links: topology.Links = ()
    """How well its GPUs reach each other, in the order of `inventory`."""
    labels: Mapping[str, str] = field(default_factory=dict)
    taints: tuple[Taint, ...] = ()
    bad_links: str = ""
    """What is wrong with the record of its links."""
    ailments: Mapping[identifiers.GpuUuid, str] = field(default_factory=dict)
    """Why GPUs are out of use, by the node's own words; for people only."""
    problems: Mapping[str, str] = field(default_factory=dict)
    """What is wrong with how it is set up, by error code, by the node's own words; for people only."""
    lacks: tuple[str, ...] = ()
    """Resources of our pods beside the count that are no key of its allocatable."""
    one_at_a_time: bool = False
    """Another project's plugin serves it, which takes the first pending pod it sees: no second one may wait."""


class Plain(NamedTuple):
    """What a pod is apart from its GPUs, for those who consider evicting it."""

    priority: int = 0
    ending: bool = False
    """It is being deleted."""
    cpu_thousandths: int = 0
    """What kube-scheduler counts for it: the most of its phases, or what the pod says as a whole, and its overhead."""
    memory_thousandths: int = 0
    """In thousandths of a byte."""
    gang: gangs.Gang | None = None
    bound_at: int = 0
    """Unix seconds of its Binding, by its record; 0 for a pod that waits."""
    created_at: int = 0
    """Unix seconds; 0 where the API server does not say."""


_NOTHING_KNOWN = Plain()


@dataclass(frozen=True, slots=True)
class PodFacts:
    """What a pod holds, by the API server's word or by a bind of ours."""

    uid: identifiers.PodUid
    key: identifiers.PodKey
    node: identifiers.NodeName
    bookings: Bookings = field(default_factory=dict)
    shares: reservations.Shares = ()
    """Per container, for people to look at; `bookings` is what counts."""
    amounts: quotas.Amounts = quotas.NOTHING
    """What it counts against its namespace's quota."""
    foreign_slots: int = 0
    """Device ids of a pod that has no record of ours."""
    corrupt: bool = False
    """The record does not decode: the node's GPUs that `bookings` does not name are unknown."""
    starting: bool = False
    """The device plugin has not handed the GPUs over yet."""
    trouble: str = ""
    """Why its containers do not run: `Refused` by the device plugin, or the kubelet's word such as CrashLoopBackOff."""
    plain: Plain = _NOTHING_KNOWN

    @property
    def namespace(self) -> str:
        """The pod's namespace."""
        return self.key.partition("/")[0]


@dataclass(frozen=True, slots=True)
class Claim:
    """A pod that is expected on a node and holds nothing yet."""

    uid: identifiers.PodUid
    node: identifiers.NodeName
    bookings: Bookings
    priority: int = 0
    request: requests.PodRequest | None = None
    """Set for a hold, whose place is chosen anew whenever its node changes."""
    closes: frozenset[identifiers.GpuUuid] = frozenset()
    """For a hold that waits for others to leave: the GPUs of which nobody else may have what becomes free."""
    expires_at: float = float("inf")
    """Seconds on the clock of the caller; never for a hold."""

    @property
    def is_hold(self) -> bool:
        """Whether it is a hold, not a nomination."""
        return self.request is not None

    @property
    def key(self) -> tuple[identifiers.PodUid, bool]:
        """A pod has at most one of each kind."""
        return self.uid, self.is_hold


@dataclass(slots=True)
class _Node:
    facts: NodeFacts
    pods: dict[identifiers.PodUid, PodFacts] = field(default_factory=dict)
    used: dict[identifiers.GpuUuid, reservations.Booking] = field(default_factory=dict)
    """The sum of what `pods` book, kept as they come and go: a node holds many."""
    foreign_slots: int = 0
    """The same for their foreign slots."""
    claims: dict[tuple[identifiers.PodUid, bool], Claim] = field(default_factory=dict)
    inventory_changed: bool = True
    held: placement.NodeState | None = None
    """The node with what its pods hold and no claims; None once that changed."""
    settled: placement.NodeState | None = None
    """What its column holds."""


class Ledger:
    """The books of a cluster.

    Attributes:
        arrays: The same facts for all nodes at once, claims included; call `settle` before reading.
        budgets: What each namespace may hold and holds.
        rolls: Who belongs to which gang.
        generation: Grows with every change that may make room for a refused pod.
        device_class: The DeviceClass that offers the resource that counts GPUs; empty where none does.
        set_aside: Called for a node whose state cannot be computed, with the defect; the node is out of use until it
            changes.
    """

    def __init__(self, set_aside: Callable[[identifiers.NodeName, Exception], None] | None = None) -> None:
        self.set_aside = set_aside or (lambda name, defect: None)
        self.arrays = arrays.Arrays()
        self.budgets = budgets.Budgets()
        self.rolls = rolls.Rolls()
        self.generation = 0
        self.device_class = ""
        self._nodes: dict[identifiers.NodeName, _Node] = {}
        self._pods: dict[identifiers.PodUid, PodFacts] = {}
        self._assumed: set[identifiers.PodUid] = set()
        self._nominations: dict[identifiers.PodUid, Claim] = {}
        self._holds: dict[identifiers.PodUid, Claim] = {}
        self._unsettled: set[identifiers.NodeName] = set()
        self._journal: list[int] = []
        self._journal_start = 0
        self._freed: set[identifiers.NodeName] = set()
        self._dra: frozenset[identifiers.NodeName] = frozenset()
        self._priorities: collections.Counter[int] = collections.Counter()

    # What the API server says.

    def set_node(self, facts: NodeFacts) -> None:
        """Learn a node, or that it changed."""
        node = self._nodes.get(facts.name)
        if node is None:
            node = self._nodes[facts.name] = _Node(facts)
        elif node.facts == facts:
            return
        same = node.facts.inventory == facts.inventory and node.facts.links == facts.links
        node.inventory_changed |= not same or facts.name not in self.arrays.column_of
        node.facts = facts
        node.held = None
        self._touch(facts.name, freed=True)

    def remove_node(self, name: identifiers.NodeName) -> None:
        """Learn that a node is gone; what its pods hold is kept, as it may come back before they go."""
        node = self._nodes.get(name)
        if node is not None:
            node.facts = NodeFacts(name, standing=Reason.NODE_UNKNOWN)
            node.held = None
            self._touch(name)

    def set_pod(self, facts: PodFacts) -> None:
        """Learn what a bound pod holds. It replaces an assumption about the same pod."""
        self._assumed.discard(facts.uid)
        self.drop_nomination(facts.uid)
        self.drop_hold(facts.uid)
        self._put(facts)

    def remove_pod(self, uid: identifiers.PodUid) -> None:
        """Learn that a pod is gone or has ended: it holds and claims nothing any more."""
        self._assumed.discard(uid)
        self.drop_nomination(uid)
        self.drop_hold(uid)
        self._take(uid)

    def set_dra_nodes(self, names: frozenset[identifiers.NodeName]) -> None:
        """Learn on which nodes a DRA driver gives out the GPUs."""
        changed, self._dra = names ^ self._dra, names
        for name in changed & self._nodes.keys():
            self._nodes[name].held = None
            self._touch(name, freed=True)

    def set_quota(self, namespace: str, name: str, quota: quotas.Quota | None) -> bool:
        """Learn a quota of a namespace, or with None that it is gone or says nothing of GPUs.

        Returns:
            Whether that is news.
        """
        changed = self.budgets.set_quota(namespace, name, quota)
        self.generation += changed
        return changed

    def set_device_class(self, name: str) -> None:
        """Learn which DeviceClass offers the resource that counts GPUs; an empty name for none."""
        if name != self.device_class:
            self.device_class = name
            for node in self._nodes:
                self._touch(node)

    def set_hold(self, claim: Claim) -> None:
        """Learn that an unbound pod is nominated to a node by somebody (`status.nominatedNodeName`)."""
        if claim.uid in self._pods or self._holds.get(claim.uid) == claim:
            return
        self.drop_hold(claim.uid)
        self._holds[claim.uid] = claim
        self._claim(claim)

    def drop_hold(self, uid: identifiers.PodUid) -> None:
        """Learn that a pod is nominated no more."""
        claim = self._holds.pop(uid, None)
        if claim is not None:
            self._unclaim(claim)

    # What we decide.

    def assume(self, facts: PodFacts) -> None:
        """Count a bind that is about to be written."""
        self._assumed.add(facts.uid)
        self.drop_nomination(facts.uid)
        hold = self._holds.get(facts.uid)
        if hold is not None:
            self._unclaim(hold)  # What it holds now counts; what was kept for it must not count as well.
        self._put(facts)

    def confirm(self, uid: identifiers.PodUid) -> None:
        """The bind was written. If the pod has gone meanwhile there is nothing left to confirm."""
        self._assumed.discard(uid)

    def forget(self, uid: identifiers.PodUid) -> None:
        """The bind was certainly not written."""
        if uid in self._assumed:
            self._assumed.discard(uid)
            self._take(uid)
            hold = self._holds.get(uid)
            if hold is not None:
                self._claim(hold)

    def nominate(self, claim: Claim) -> None:
        """Note where a pod will probably go. Its earlier nomination is replaced."""
        self.drop_nomination(claim.uid)
        if claim.uid not in self._pods:
            self._nominations[claim.uid] = claim
            self._claim(claim)

    def drop_nomination(self, uid: identifiers.PodUid) -> None:
        """The pod went elsewhere, or is asked about anew."""
        claim = self._nominations.pop(uid, None)
        if claim is not None:
            self._unclaim(claim)

    def expire(self, now: float) -> None:
        """Drop nominations whose time has passed; they are kept in the order in which they expire."""
        while self._nominations:
            uid, claim = next(iter(self._nominations.items()))
            if claim.expires_at > now:
                return
            self.drop_nomination(uid)

    # What can be asked.

    def settle(self) -> arrays.Arrays:
        """Bring the arrays up to date and return them."""
        unsettled, self._unsettled = self._unsettled, set()  # A set that was large stays slow to pop from.
        for name in unsettled:
            self._settle_node(name)
        return self.arrays

    def settle_some(self, most: int) -> bool:
        """Bring up to so many nodes up to date. Returns whether all are."""
        for _ in range(min(most, len(self._unsettled))):
            self._settle_node(self._unsettled.pop())
        return not self._unsettled

    @property
    def changes(self) -> int:
        """How often a column of the arrays was written so far."""
        return self._journal_start + len(self._journal)

    def changed_since(self, seen: int) -> set[int] | None:
        """The columns written since `changes` had that value; None if that is too long ago to know."""
        return set(self._journal[seen - self._journal_start :]) if seen >= self._journal_start else None

    def settled(self, name: identifiers.NodeName) -> placement.NodeState:
        """A node as it stands in the arrays: what is held and all claims. An empty name is a free column."""
        node = self._nodes.get(name)
        if node is None or node.facts.standing is Reason.NODE_UNKNOWN:
            return placement.NodeState(name, standing=Reason.NODE_UNKNOWN)
        return self._state(name, node.claims.values())

    def take_freed(self) -> frozenset[identifiers.NodeName]:
        """The nodes on which something may have become free since the last time this was asked."""
        freed = frozenset(self._freed)
        self._freed.clear()
        return freed

    def pod(self, uid: identifiers.PodUid) -> PodFacts | None:
        """What a pod holds."""
        return self._pods.get(uid)

    def is_assumed(self, uid: identifiers.PodUid) -> bool:
        """Whether a bind of that pod is in flight or its outcome unknown."""
        return uid in self._assumed

    def pods_on(self, name: identifiers.NodeName) -> list[PodFacts]:
        """The pods that hold something on a node."""
        node = self._nodes.get(name)
        return list(node.pods.values()) if node else []

    def pods(self) -> Iterable[PodFacts]:
        """All pods that hold something."""
        return self._pods.values()

    def latest_pods(self) -> Iterable[PodFacts]:
        """The same pods, the one learnt of last first."""
        return reversed(self._pods.values())

    @property
    def pod_count(self) -> int:
        """How many pods hold something."""
        return len(self._pods)

    @property
    def assumed_count(self) -> int:
        """How many of them were bound by us and not seen since."""
        return len(self._assumed)

    @property
    def nomination_count(self) -> int:
        """Pods for which a place is kept for some seconds."""
        return len(self._nominations)

    def holds_below(self, priority: int) -> bool:
        """Whether any pod of a lower priority holds something."""
        return any(one < priority for one in self._priorities)

    def node_facts(self, name: identifiers.NodeName) -> NodeFacts | None:
        """What is known of a node, or None."""
        node = self._nodes.get(name)
        return node.facts if node and node.facts.standing is not Reason.NODE_UNKNOWN else None

    def unavailable(self, name: identifiers.NodeName) -> Reason:
        """Why kube-scheduler keeps ordinary pods off a node, whatever its GPUs are like; NONE where it does not."""
        node = self._nodes.get(name)
        if node is None or node.facts.unavailable is not Reason.NONE:
            return node.facts.unavailable if node else Reason.NONE
        return Reason.DEVICE_CLASS if self.device_class and node.facts.lacks else Reason.NONE

    def gpu_memories(self, name: identifiers.NodeName) -> set[int]:
        """The different sizes of a node's GPUs, in MiB."""
        node = self._nodes.get(name)
        return {gpu.memory_mib for gpu in node.facts.inventory} if node else set()

    def node_names(self) -> list[identifiers.NodeName]:
        """All nodes known to the API server."""
        return [name for name, node in self._nodes.items() if node.facts.standing is not Reason.NODE_UNKNOWN]

    def claimed_nodes(self) -> set[identifiers.NodeName]:
        """Nodes on which some claim counts as taken in the arrays."""
        return {claim.node for claims in (self._nominations, self._holds) for claim in claims.values()}

    def hold_of(self, uid: identifiers.PodUid) -> Claim | None:
        """The pod's own hold."""
        return self._holds.get(uid)

    def held(self, name: identifiers.NodeName) -> placement.NodeState:
        """A node with what is held there and no claims: what the API server will find true."""
        return self._state(name, ())

    def view_for(
        self, name: identifiers.NodeName, uid: identifiers.PodUid, priority: int, *, nominations: bool
    ) -> placement.NodeState:
        """A node as one pod must see it: what is held, and what pods of at least its priority are promised.

        Args:
            name: The node.
            uid: The pod; its own claims do not count against it.
            priority: The pod's priority. A hold of a lower one does not stand in its way.
            nominations: Whether nominations of others count too. They do as long as the pod fits elsewhere.
        """
        node = self._nodes.get(name)
        if node is None:
            return placement.NodeState(name, standing=Reason.NODE_UNKNOWN)
        claims = [
            claim
            for claim in node.claims.values()
            if claim.uid != uid and (claim.priority >= priority if claim.is_hold else nominations)
        ]
        return self._state(name, claims)

    # How it is kept.

    def _put(self, facts: PodFacts) -> None:
        before = self._pods.get(facts.uid)
        if before == facts:
            return
        if before is not None and dataclasses.replace(before, trouble=facts.trouble) == facts:
            # It holds what it held, so nothing became free.
            self._pods[facts.uid] = self._nodes[facts.node].pods[facts.uid] = facts
            return
        if before is not None:
            self._take(facts.uid)
        self._pods[facts.uid] = facts
        node = self._nodes.get(facts.node)
        if node is None:
            node = self._nodes[facts.node] = _Node(NodeFacts(facts.node, standing=Reason.NODE_UNKNOWN))
        node.pods[facts.uid] = facts
        _add(node.used, facts.bookings)
        node.foreign_slots += facts.foreign_slots
        self.budgets.add(facts.namespace, facts.amounts)
        self._priorities[facts.plain.priority] += 1
        self.rolls.holds(facts.uid, facts.namespace, None if facts.plain.ending else facts.plain.gang)
        node.held = None
        self._touch(facts.node)

    def _take(self, uid: identifiers.PodUid) -> None:
        before = self._pods.pop(uid, None)
        if before is not None:
            node = self._nodes[before.node]
            del node.pods[uid]
            _subtract(node.used, before.bookings)
            node.foreign_slots -= before.foreign_slots
            self.budgets.subtract(before.namespace, before.amounts)
            self.rolls.holds_no_more(uid)
            self._priorities[before.plain.priority] -= 1
            if not self._priorities[before.plain.priority]:
                del self._priorities[before.plain.priority]
            node.held = None
            self._touch(before.node, freed=True)

    def _claim(self, claim: Claim) -> None:
        node = self._nodes.get(claim.node)
        if node is None:
            node = self._nodes[claim.node] = _Node(NodeFacts(claim.node, standing=Reason.NODE_UNKNOWN))
        node.claims[claim.key] = claim
        self._touch(claim.node)

    def _unclaim(self, claim: Claim) -> None:
        """Count a claim no more; its node may be gone, or the claim may give way to what the pod holds by now."""
        node = self._nodes.get(claim.node)
        if node is not None and node.claims.pop(claim.key, None) is not None:
            self._touch(claim.node, freed=True)

    def _touch(self, name: identifiers.NodeName, *, freed: bool = False) -> None:
        self._unsettled.add(name)
        if freed:
            self.generation += 1
            self._freed.add(name)

    def _settle_node(self, name: identifiers.NodeName) -> None:
        node = self._nodes[name]
        if node.facts.standing is Reason.NODE_UNKNOWN:
            if name in self.arrays.column_of:
                self._note(self.arrays.column_of[name])
                self.arrays.release(name)
                node.settled = None
            if not node.pods and not node.claims:
                del self._nodes[name]
            return
        state = self._state(name, node.claims.values())
        if (
            state == node.settled
            and not node.inventory_changed
            and self.arrays.unavailable[self.arrays.column_of[name]] == self.unavailable(name)
        ):
            return  # A nomination became a bind: another reason for the same numbers.
        column = self.arrays.column(name)
        try:
            self.arrays.write(column, state, inventory_changed=node.inventory_changed)
        except Exception as defect:
            state = self._set_aside(node, defect)
            self.arrays.write(column, state, inventory_changed=True)
        self.arrays.unavailable[column] = self.unavailable(name)
        node.settled = state
        node.inventory_changed = False
        self._note(column)

    def _set_aside(self, node: _Node, defect: Exception) -> placement.NodeState:
        """Take a node out of use until it changes, because its state cannot be computed; all others stay in use."""
        self.set_aside(node.facts.name, defect)
        node.inventory_changed = True
        node.held = placement.NodeState(node.facts.name, standing=Reason.CORRUPT_NODE_RECORD)
        return node.held

    def _note(self, column: int) -> None:
        self._journal.append(column)
        if len(self._journal) > _LONGEST_JOURNAL:
            self._journal_start += len(self._journal)
            self._journal.clear()

    def _state(self, name: identifiers.NodeName, claims: Iterable[Claim]) -> placement.NodeState:
        node = self._nodes.get(name)
        if node is None:
            return placement.NodeState(name, standing=Reason.NODE_UNKNOWN)
        try:
            if node.held is None:
                node.held = self._held(node)
            return _with_claims(node.held, claims)
        except Exception as defect:
            return self._set_aside(node, defect)

    def _held(self, node: _Node) -> placement.NodeState:
        facts, used = node.facts, node.used
        standing = Reason.DRA if facts.name in self._dra else facts.standing
        if facts.one_at_a_time and standing is Reason.NONE and any(pod.starting for pod in node.pods.values()):
            standing = Reason.HAMI_NODE_BUSY
        corrupt = any(pod.corrupt for pod in node.pods.values())
        undivided = _undivided(node) if any(gpu.mode == gpus.MIG_MODE for gpu in facts.inventory) else ()
        return placement.NodeState(
            facts.name,
            tuple(
                gpus.GpuState(
                    gpu,
                    used.get(gpu.uuid, reservations.NOTHING),
                    cordoned=gpu.uuid in facts.cordoned,
                    usage_unknown=(corrupt and gpu.uuid not in used) or gpu.uuid in undivided,
                )
                for gpu in facts.inventory
            ),
            node.foreign_slots,
            standing,
            facts.links,
        )


def _undivided(node: _Node) -> frozenset[identifiers.GpuUuid]:
    """The GPUs of which some pod holds a part without saying which instance."""
    held = (share for pod in node.pods.values() for container in pod.shares for share in container)
    return frozenset(share.uuid for share in held if share.instance is None)


def _with_claims(state: placement.NodeState, claims: Iterable[Claim]) -> placement.NodeState:
    """A node with claims counted as taken.

    Nominations first, as they say which GPU; then holds in a fixed order, so that every replica gives each the same
    place.
    """
    taken: dict[identifiers.GpuUuid, reservations.Booking] = {}
    holds = []
    for claim in claims:
        if claim.is_hold:
            holds.append(claim)
        else:
            _add(taken, claim.bookings)
    state = state.plus(taken)
    for claim in sorted(holds, key=lambda hold: (-hold.priority, hold.uid)):
        if claim.closes:
            state = state.plus({one.gpu.uuid: _rest(one) for one in state.states if one.gpu.uuid in claim.closes})
            continue
        assert claim.request is not None
        placed = placement.fit(claim.request, state, policies.BINPACK)
        if isinstance(placed, placement.Placement):
            state = state.plus(reservations.booked(claim.request.kinds, placed.shares))
    return state


def _rest(state: gpus.GpuState) -> reservations.Booking:
    """All that is free on a GPU, but for its slots."""
    memory = max(state.gpu.memory_mib - state.used.memory_mib, 0)
    cores = max(state.gpu.cores_percent - state.used.cores_percent, 0)
    return reservations.Booking(0, memory, cores, 0, mig.taken(0, mig.MOST_SLICES))


def _add(used: dict[identifiers.GpuUuid, reservations.Booking], bookings: Bookings) -> None:
    for uuid, booking in bookings.items():
        before = used.get(uuid)
        used[uuid] = booking if before is None else before.plus(booking)


def _subtract(used: dict[identifiers.GpuUuid, reservations.Booking], bookings: Bookings) -> None:
    for uuid, booking in bookings.items():
        left = used.get(uuid, reservations.NOTHING).minus(booking)
        if left == reservations.NOTHING:
            used.pop(uuid, None)  # It is not there where all that was booked is nothing.
        else:
            used[uuid] = left
