"""What every pod holds and what is reserved: the one place where the cluster's state changes.

Facts come from the API server (nodes, pods) and from our own binds. Each fact is keyed by UID and written whole, so
that one learned twice, late or out of order counts once: a ledger after any history equals one built anew from the API
objects, plus the binds in flight. A pod passes through these states:

    unknown ──set_pending──▶ pending ──assume──▶ assumed ──confirm, set_bound──▶ bound
                                ▲                   │                              │
                                └──────forget───────┘                       finish (its gang keeps it as done)

    set_pending  the watch shows it without a node; ignored once it is assumed or bound, as our bind is newer
    assume       a bind is about to be written: its GPUs count from now on
    confirm      the API server has done the bind; the watch need not have shown it
    forget       the API server has certainly not done the bind
    set_bound    the watch, or a read, shows it with a node; also from unknown and pending (bound by another scheduler)
    remove_pod   from every state: the pod is deleted or has failed

A pending pod holds nothing, but GPUs may be *reserved* for it. A *nomination* is our own short-lived note that
kube-scheduler will probably bind the pod to a node; a *hold* stands on the pod itself (`status.nominatedNodeName`, or
our annotation). Reservations of others count as allocated in the arrays; where nothing fits that way, `view_for` says
what a pod may see instead.

Pure: the time is an argument. Not thread-safe: everything happens on one event loop.
"""

import collections
import dataclasses
from collections.abc import Callable, Container, Iterable, Mapping
from dataclasses import dataclass, field

from gpu_sharing.core import (
    allocations,
    gangs,
    gpus,
    identifiers,
    mig,
    placement,
    policies,
    quotas,
)
from gpu_sharing.core.rejections import Reason
from scheduler_extender.fleet import arrays, facts, gang_members, namespace_quotas

_LONGEST_JOURNAL = 20_000


@dataclass(slots=True, kw_only=True)
class _Node:
    known: facts.Node
    pods: dict[identifiers.PodUid, facts.BoundPod] = field(default_factory=dict)
    allocated: dict[identifiers.GpuUuid, allocations.Allocation] = field(default_factory=dict)
    """The sum of what `pods` hold, kept as they come and go: a node has many."""
    foreign_slots: int = 0
    """The same for their foreign slots."""
    host_used: facts.HostAmounts = facts.NO_HOST_AMOUNTS
    """The CPU and memory that all pods of the node request, those without GPUs too."""
    reservations: dict[tuple[identifiers.PodUid, bool], facts.Reservation] = field(default_factory=dict)
    inventory_changed: bool = True
    held: placement.NodeState | None = None
    """The node with what its pods hold and no reservations; None once that changed."""
    settled: placement.NodeState | None = None
    """What its column holds."""

    @property
    def host(self) -> tuple[facts.HostAmounts, facts.HostAmounts]:
        """Its allocatable CPU and memory, and what of them no pod has requested."""
        total = facts.host_amounts(self.known.cpu_thousandths, self.known.memory_thousandths)
        return total, total.plus(self.host_used, -1)


class QuotaAudit:
    """A count of what each namespace's pods hold, during which pods may come and go."""

    def __init__(
        self, pods: Mapping[identifiers.PodUid, facts.BoundPod], quotas_: namespace_quotas.NamespaceQuotas
    ) -> None:
        self._pods = pods
        self._quotas = quotas_
        self._seen = quotas_.changes()
        self._sums: dict[str, quotas.Amounts] = {}

    def add(self, uid: identifiers.PodUid) -> None:
        """Count one pod; what has changed since the beginning is not corrected."""
        pod = self._pods.get(uid)
        if pod is not None:
            self._sums[pod.namespace] = self._sums.get(pod.namespace, quotas.NOTHING).plus(pod.amounts)

    def correct(self) -> list[str]:
        """Correct the sums that differ. Returns their namespaces."""
        return self._quotas.correct(self._sums, self._seen)


class Ledger:
    """The ledger of a cluster.

    Attributes:
        arrays: The same facts for all nodes at once, reservations included; call `settle` before reading.
        quotas: What each namespace holds and may hold.
        gangs: The members of each gang.
        generation: Grows with every change that may let a refused pod fit.
        device_class: The DeviceClass that offers the resource that counts GPUs; empty where none does.
        set_aside: Called for a node whose state cannot be computed, with the defect; the node is out of use until it
            changes.
    """

    def __init__(self, set_aside: Callable[[identifiers.NodeName, Exception], None] | None = None) -> None:
        self.set_aside = set_aside or (lambda name, defect: None)
        self.arrays = arrays.Arrays()
        self.quotas = namespace_quotas.NamespaceQuotas()
        self.gangs = gang_members.Gangs()
        self.generation = 0
        self.device_class = ""
        self._nodes: dict[identifiers.NodeName, _Node] = {}
        self._pods: dict[identifiers.PodUid, facts.BoundPod] = {}
        self._plain: dict[identifiers.PodUid, tuple[identifiers.NodeName, facts.HostAmounts]] = {}
        """Bound pods without GPUs."""
        self._assumed: set[identifiers.PodUid] = set()
        self._nominations: dict[identifiers.PodUid, facts.Reservation] = {}
        self._holds: dict[identifiers.PodUid, facts.Reservation] = {}
        self._unsettled: set[identifiers.NodeName] = set()
        self._journal: list[int] = []
        self._journal_start = 0
        self._freed: set[identifiers.NodeName] = set()
        self._dra: frozenset[identifiers.NodeName] = frozenset()
        self._priorities: collections.Counter[int] = collections.Counter()

    # What is learned from the API server.

    def set_node(self, seen: facts.Node) -> None:
        """Learn of a node, or that it changed."""
        node = self._nodes.get(seen.name)
        if node is None:
            node = self._nodes[seen.name] = _Node(known=seen)
        elif node.known == seen:
            return
        same = node.known.inventory == seen.inventory and node.known.links == seen.links
        node.inventory_changed |= not same or seen.name not in self.arrays.column_of
        node.known = seen
        node.held = None
        self._touch(seen.name, freed=True)

    def remove_node(self, name: identifiers.NodeName) -> None:
        """Learn that a node is gone; its pods stay allocated, because it may come back before they end."""
        node = self._nodes.get(name)
        if node is not None:
            node.known = facts.Node(name, standing=Reason.NODE_UNKNOWN)
            node.held = None
            self._touch(name)

    def set_pending(
        self,
        uid: identifiers.PodUid,
        *,
        namespace: str,
        gang: gangs.Gang | None,
        hold: facts.Reservation | None,
        reserved_until: float,
    ) -> None:
        """Learn that a pod has no node; ignored for a pod that holds GPUs, because our bind is newer.

        Args:
            uid: The pod.
            namespace: Its namespace.
            gang: The gang that it counts for, or None.
            hold: What is reserved for it by its own words, or None.
            reserved_until: Monotonic seconds at which that ends for its gang.
        """
        if uid in self._pods:
            return
        self.gangs.add_pending(uid, namespace, gang, reserved_until)
        if hold is None:
            self.drop_hold(uid)
        elif self._holds.get(uid) != hold:
            self.drop_hold(uid)
            self._holds[uid] = hold
            self._reserve(hold)

    def remove_pending(self, uid: identifiers.PodUid) -> None:
        """Learn that a pod is not pending any more: nothing is reserved for it."""
        self.gangs.remove_pending(uid)
        self.drop_nomination(uid)
        self.drop_hold(uid)

    def set_bound(self, pod: facts.BoundPod) -> None:
        """Learn what a bound pod holds. It replaces an assumption about the same pod."""
        self._assumed.discard(pod.uid)
        self.remove_pending(pod.uid)
        self._put(pod)

    def set_plain(self, uid: identifiers.PodUid, name: identifiers.NodeName, amounts: facts.HostAmounts) -> None:
        """Learn what a bound pod without GPUs requests of its node."""
        if self._plain.get(uid) != (name, amounts):
            self.remove_plain(uid)
            self._plain[uid] = (name, amounts)
            self._use_host(name, amounts, 1)

    def remove_plain(self, uid: identifiers.PodUid) -> None:
        """Learn that a pod without GPUs is gone or has ended."""
        before = self._plain.pop(uid, None)
        if before is not None:
            self._use_host(*before, -1)

    def keep_plain(self, uids: Container[identifiers.PodUid]) -> None:
        """Learn that no other pods without GPUs exist."""
        for uid in [uid for uid in self._plain if uid not in uids]:
            self.remove_plain(uid)

    def remove_pod(self, uid: identifiers.PodUid) -> None:
        """Learn that a pod is gone or has ended: it holds nothing, and nothing is reserved for it."""
        self._assumed.discard(uid)
        self.remove_pending(uid)
        self.gangs.remove_done(uid)
        self._take(uid)

    def finish(self, uid: identifiers.PodUid, namespace: str, gang: gangs.Gang | None) -> None:
        """Learn that a pod has succeeded: it holds nothing, and its gang counts it as placed."""
        self.remove_pod(uid)
        self.gangs.add_done(uid, namespace, gang)

    def set_pod_group(self, api_group: str, namespace: str, name: str, size: int | None) -> None:
        """Learn the least number of members that a pod group demands; None for a group that is gone."""
        self.gangs.set_group(api_group, namespace, name, size)

    def set_dra_nodes(self, names: frozenset[identifiers.NodeName]) -> None:
        """Learn on which nodes a DRA driver allocates the GPUs."""
        changed, self._dra = names ^ self._dra, names
        for name in changed & self._nodes.keys():
            self._nodes[name].held = None
            self._touch(name, freed=True)

    def set_quota(self, namespace: str, name: str, quota: quotas.Quota | None) -> bool:
        """Learn a quota of a namespace, or with None that it is gone or does not limit GPUs.

        Returns:
            Whether that changes anything.
        """
        changed = self.quotas.set_quota(namespace, name, quota)
        self.generation += changed
        return changed

    def set_device_class(self, name: str) -> None:
        """Learn which DeviceClass offers the resource that counts GPUs; an empty name for none."""
        if name != self.device_class:
            self.device_class = name
            for node in self._nodes:
                self._touch(node)

    def drop_hold(self, uid: identifiers.PodUid) -> None:
        """Learn that a pod has no hold any more."""
        reservation = self._holds.pop(uid, None)
        if reservation is not None:
            self._unreserve(reservation)

    # What we decide.

    def assume(self, pod: facts.BoundPod) -> None:
        """Count a bind that is about to be written."""
        self._assumed.add(pod.uid)
        self.drop_nomination(pod.uid)
        hold = self._holds.get(pod.uid)
        if hold is not None:
            self._unreserve(hold)  # Its allocation counts now, so its reservation must not count as well.
        self._put(pod)

    def confirm(self, uid: identifiers.PodUid) -> None:
        """The bind was written. Of a pod that has gone meanwhile nothing is left to confirm."""
        self._assumed.discard(uid)
        self.remove_pending(uid)

    def forget(self, uid: identifiers.PodUid) -> None:
        """The bind was certainly not written."""
        if uid in self._assumed:
            self._assumed.discard(uid)
            self._take(uid)
            hold = self._holds.get(uid)
            if hold is not None:
                self._reserve(hold)

    def nominate(self, reservation: facts.Reservation) -> None:
        """Note where a pod will probably go. Its earlier nomination is replaced."""
        self.drop_nomination(reservation.uid)
        if reservation.uid not in self._pods:
            self._nominations[reservation.uid] = reservation
            self._reserve(reservation)

    def drop_nomination(self, uid: identifiers.PodUid) -> None:
        """Remove a nomination: the pod is bound, or decided about again."""
        reservation = self._nominations.pop(uid, None)
        if reservation is not None:
            self._unreserve(reservation)

    def expire(self, now: float) -> None:
        """Drop nominations whose time has passed; they are kept in the order in which they expire."""
        while self._nominations:
            uid, reservation = next(iter(self._nominations.items()))
            if reservation.expires_at > now:
                return
            self.drop_nomination(uid)

    # Queries.

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
    def unsettled_count(self) -> int:
        """How many nodes `settle_some` has still to bring up to date."""
        return len(self._unsettled)

    @property
    def changes(self) -> int:
        """How often a column of the arrays was written so far."""
        return self._journal_start + len(self._journal)

    def changed_since(self, seen: int) -> set[int] | None:
        """The columns written since `changes` had that value; None if that is too long ago to know."""
        return set(self._journal[seen - self._journal_start :]) if seen >= self._journal_start else None

    def settled(self, name: identifiers.NodeName) -> placement.NodeState:
        """A node as it stands in the arrays: what is held and all reservations. An empty name is a free column."""
        node = self._nodes.get(name)
        if node is None or node.known.standing is Reason.NODE_UNKNOWN:
            return placement.NodeState(name, standing=Reason.NODE_UNKNOWN)
        return self._state(name, node.reservations.values())

    def take_freed(self) -> frozenset[identifiers.NodeName]:
        """Return the nodes on which something may have become free since the last call."""
        freed = frozenset(self._freed)
        self._freed.clear()
        return freed

    def pod(self, uid: identifiers.PodUid) -> facts.BoundPod | None:
        """Return what a bound or assumed pod holds."""
        return self._pods.get(uid)

    def is_assumed(self, uid: identifiers.PodUid) -> bool:
        """Whether a bind of that pod is in flight or its outcome unknown."""
        return uid in self._assumed

    def pods_on(self, name: identifiers.NodeName) -> list[facts.BoundPod]:
        """The pods that hold something on a node."""
        node = self._nodes.get(name)
        return list(node.pods.values()) if node else []

    def pods(self) -> Iterable[facts.BoundPod]:
        """All pods that hold something."""
        return self._pods.values()

    def latest_pods(self) -> Iterable[facts.BoundPod]:
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

    def node_facts(self, name: identifiers.NodeName) -> facts.Node | None:
        """What is known of a node, or None."""
        node = self._nodes.get(name)
        return node.known if node and node.known.standing is not Reason.NODE_UNKNOWN else None

    def unavailable(self, name: identifiers.NodeName) -> Reason:
        """Why kube-scheduler keeps ordinary pods off a node, whatever its GPUs are like; NONE where it does not."""
        node = self._nodes.get(name)
        if node is None or node.known.unavailable is not Reason.NONE:
            return node.known.unavailable if node else Reason.NONE
        return Reason.DEVICE_CLASS if self.device_class and node.known.lacks else Reason.NONE

    def gpu_memories(self, name: identifiers.NodeName) -> set[int]:
        """The different sizes of a node's GPUs, in MiB."""
        node = self._nodes.get(name)
        return {gpu.memory_mib for gpu in node.known.inventory} if node else set()

    def node_names(self) -> list[identifiers.NodeName]:
        """All nodes known to the API server."""
        return [name for name, node in self._nodes.items() if node.known.standing is not Reason.NODE_UNKNOWN]

    def reserved_nodes(self) -> set[identifiers.NodeName]:
        """Return the nodes with reservations, which count as allocated in the arrays."""
        return {
            reservation.node
            for reservations in (self._nominations, self._holds)
            for reservation in reservations.values()
        }

    def hold_of(self, uid: identifiers.PodUid) -> facts.Reservation | None:
        """Return the hold of a pending pod, or None."""
        return self._holds.get(uid)

    def allocated_on(self, name: identifiers.NodeName) -> placement.NodeState:
        """Return a node with what its pods hold and no reservations."""
        return self._state(name, ())

    def view_for(
        self, name: identifiers.NodeName, uid: identifiers.PodUid, priority: int, *, nominations: bool
    ) -> placement.NodeState:
        """Return a node as one pod must see it: allocations, and reservations for pods of at least its priority.

        Args:
            name: The node.
            uid: The pod; its own reservations do not count against it.
            priority: The pod's priority. A hold of a lower one does not stand in its way.
            nominations: Whether nominations of others count too. They do as long as the pod fits elsewhere.
        """
        node = self._nodes.get(name)
        if node is None:
            return placement.NodeState(name, standing=Reason.NODE_UNKNOWN)
        reservations = [
            reservation
            for reservation in node.reservations.values()
            if reservation.uid != uid and (reservation.priority >= priority if reservation.is_hold else nominations)
        ]
        return self._state(name, reservations)

    # What is compared with its parts.

    def correct_node(self, name: identifiers.NodeName) -> bool:
        """Compare what is allocated on a node with its pods. Returns whether it differed, and is corrected."""
        node = self._nodes.get(name)
        if node is None:
            return False
        allocated: dict[identifiers.GpuUuid, allocations.Allocation] = {}
        for pod in node.pods.values():
            _add(allocated, pod.allocated)
        foreign_slots = sum(pod.foreign_slots for pod in node.pods.values())
        if allocated == node.allocated and foreign_slots == node.foreign_slots:
            return False
        node.allocated, node.foreign_slots, node.held = allocated, foreign_slots, None
        self._touch(name, freed=True)
        return True

    def quota_audit(self) -> "QuotaAudit":
        """Begin to count what each namespace holds, a pod at a time."""
        return QuotaAudit(self._pods, self.quotas)

    # How it is kept.

    def _put(self, pod: facts.BoundPod) -> None:
        before = self._pods.get(pod.uid)
        if before == pod:
            return
        if before is not None and dataclasses.replace(before, not_running=pod.not_running) == pod:
            # It holds what it held, so nothing became free.
            self._pods[pod.uid] = self._nodes[pod.node].pods[pod.uid] = pod
            return
        if before is not None:
            self._take(pod.uid)
        self._pods[pod.uid] = pod
        node = self._nodes.get(pod.node)
        if node is None:
            node = self._nodes[pod.node] = _Node(known=facts.Node(pod.node, standing=Reason.NODE_UNKNOWN))
        node.pods[pod.uid] = pod
        _add(node.allocated, pod.allocated)
        node.foreign_slots += pod.foreign_slots
        node.host_used = node.host_used.plus(_host_amounts(pod), 1)
        self.quotas.add(pod.namespace, pod.amounts)
        self._priorities[pod.traits.priority] += 1
        self.gangs.add_bound(pod.uid, pod.namespace, None if pod.traits.ending else pod.traits.gang)
        node.held = None
        self._touch(pod.node)

    def _use_host(self, name: identifiers.NodeName, amounts: facts.HostAmounts, sign: int) -> None:
        node = self._nodes.get(name)
        if node is None:
            node = self._nodes[name] = _Node(known=facts.Node(name, standing=Reason.NODE_UNKNOWN))
        node.host_used = node.host_used.plus(amounts, sign)
        self._unsettled.add(name)

    def _take(self, uid: identifiers.PodUid) -> None:
        before = self._pods.pop(uid, None)
        if before is not None:
            node = self._nodes[before.node]
            del node.pods[uid]
            _subtract(node.allocated, before.allocated)
            node.foreign_slots -= before.foreign_slots
            node.host_used = node.host_used.plus(_host_amounts(before), -1)
            self.quotas.subtract(before.namespace, before.amounts)
            self.gangs.remove_bound(uid)
            self._priorities[before.traits.priority] -= 1
            if not self._priorities[before.traits.priority]:
                del self._priorities[before.traits.priority]
            node.held = None
            self._touch(before.node, freed=True)

    def _reserve(self, reservation: facts.Reservation) -> None:
        node = self._nodes.get(reservation.node)
        if node is None:
            node = self._nodes[reservation.node] = _Node(
                known=facts.Node(reservation.node, standing=Reason.NODE_UNKNOWN)
            )
        node.reservations[reservation.key] = reservation
        self._touch(reservation.node)

    def _unreserve(self, reservation: facts.Reservation) -> None:
        """Remove a reservation from its node; either may be gone already."""
        node = self._nodes.get(reservation.node)
        if node is not None and node.reservations.pop(reservation.key, None) is not None:
            self._touch(reservation.node, freed=True)

    def _touch(self, name: identifiers.NodeName, *, freed: bool = False) -> None:
        self._unsettled.add(name)
        if freed:
            self.generation += 1
            self._freed.add(name)

    def _settle_node(self, name: identifiers.NodeName) -> None:
        node = self._nodes[name]
        if node.known.standing is Reason.NODE_UNKNOWN:
            if name in self.arrays.column_of:
                self._note(self.arrays.column_of[name])
                self.arrays.release(name)
                node.settled = None
            if not node.pods and not node.reservations and node.host_used == facts.NO_HOST_AMOUNTS:
                del self._nodes[name]
            return
        state = self._state(name, node.reservations.values())
        host = node.host
        if (
            state == node.settled
            and not node.inventory_changed
            and self.arrays.unavailable[self.arrays.column_of[name]] == self.unavailable(name)
        ):
            # A nomination became a bind: another reason for the same numbers.
            if self.arrays.set_host(self.arrays.column_of[name], *host):
                self._note(self.arrays.column_of[name])
            return
        column = self.arrays.column(name)
        try:
            self.arrays.write(column, state, inventory_changed=node.inventory_changed)
        except Exception as defect:
            state = self._set_aside(node, defect)
            self.arrays.write(column, state, inventory_changed=True)
        self.arrays.set_host(column, *host)
        self.arrays.unavailable[column] = self.unavailable(name)
        node.settled = state
        node.inventory_changed = False
        self._note(column)

    def _set_aside(self, node: _Node, defect: Exception) -> placement.NodeState:
        """Take a node out of use until it changes, because its state cannot be computed; all others stay in use."""
        self.set_aside(node.known.name, defect)
        node.inventory_changed = True
        node.held = placement.NodeState(node.known.name, standing=Reason.CORRUPT_NODE_RECORD)
        return node.held

    def _note(self, column: int) -> None:
        self._journal.append(column)
        if len(self._journal) > _LONGEST_JOURNAL:
            self._journal_start += len(self._journal)
            self._journal.clear()

    def _state(self, name: identifiers.NodeName, reservations: Iterable[facts.Reservation]) -> placement.NodeState:
        node = self._nodes.get(name)
        if node is None:
            return placement.NodeState(name, standing=Reason.NODE_UNKNOWN)
        try:
            if node.held is None:
                node.held = self._held(node)
            return _with_reservations(node.held, reservations)
        except Exception as defect:
            return self._set_aside(node, defect)

    def _held(self, node: _Node) -> placement.NodeState:
        known, allocated = node.known, node.allocated
        standing = Reason.DRA if known.name in self._dra else known.standing
        if known.one_at_a_time and standing is Reason.NONE and any(pod.starting for pod in node.pods.values()):
            standing = Reason.HAMI_NODE_BUSY
        corrupt = any(pod.corrupt for pod in node.pods.values())
        undivided = _undivided(node) if any(gpu.mode == gpus.MIG_MODE for gpu in known.inventory) else ()
        return placement.NodeState(
            known.name,
            tuple(
                gpus.GpuState(
                    gpu,
                    allocated.get(gpu.uuid, allocations.NOTHING),
                    cordoned=gpu.uuid in known.cordoned,
                    allocation_unknown=(corrupt and gpu.uuid not in allocated) or gpu.uuid in undivided,
                )
                for gpu in known.inventory
            ),
            node.foreign_slots,
            standing,
            known.links,
        )


def _undivided(node: _Node) -> frozenset[identifiers.GpuUuid]:
    """Return the GPUs on which a pod holds a share without the MIG instance in its record."""
    held = (share for pod in node.pods.values() for container in pod.shares for share in container)
    return frozenset(share.uuid for share in held if share.instance is None)


def _with_reservations(state: placement.NodeState, reservations: Iterable[facts.Reservation]) -> placement.NodeState:
    """Return a node with reservations counted as allocated.

    Nominations first, because they name their GPU; then holds in a fixed order, so that every replica computes the same
    place for each.
    """
    taken: dict[identifiers.GpuUuid, allocations.Allocation] = {}
    holds = []
    for reservation in reservations:
        if reservation.is_hold:
            holds.append(reservation)
        else:
            _add(taken, reservation.allocated)
    state = state.plus(taken)
    for reservation in sorted(holds, key=lambda hold: (-hold.priority, hold.uid)):
        if reservation.reserved_gpus:
            state = state.plus(
                {one.gpu.uuid: _rest(one) for one in state.states if one.gpu.uuid in reservation.reserved_gpus}
            )
            continue
        assert reservation.request is not None
        placed = placement.fit(reservation.request, state, policies.BINPACK)
        if isinstance(placed, placement.Placement):
            state = state.plus(allocations.by_gpu(reservation.request.kinds, placed.shares))
    return state


def _host_amounts(pod: facts.BoundPod) -> facts.HostAmounts:
    return facts.host_amounts(pod.traits.cpu_thousandths, pod.traits.memory_thousandths)


def _rest(state: gpus.GpuState) -> allocations.Allocation:
    """All that is free on a GPU, but for its slots."""
    memory = max(state.free_memory_mib, 0)
    cores = max(state.free_cores_percent, 0)
    return allocations.Allocation(0, memory, cores, 0, mig.taken(0, mig.MOST_SLICES))


def _add(used: dict[identifiers.GpuUuid, allocations.Allocation], allocated: facts.Allocations) -> None:
    for uuid, allocation in allocated.items():
        before = used.get(uuid)
        used[uuid] = allocation if before is None else before.plus(allocation)


def _subtract(used: dict[identifiers.GpuUuid, allocations.Allocation], allocated: facts.Allocations) -> None:
    for uuid, allocation in allocated.items():
        left = used.get(uuid, allocations.NOTHING).minus(allocation)
        if left == allocations.NOTHING:
            used.pop(uuid, None)  # It is absent where all that was allocated is nothing.
        else:
            used[uuid] = left
