"""Values of the ledger: what a node offers, what a bound pod holds, what is reserved for a pending pod."""

from collections.abc import Mapping
from dataclasses import KW_ONLY, dataclass, field
from typing import NamedTuple

from gpu_sharing.core import allocations, gangs, gpus, identifiers, quotas, reconciliation, requests, topology
from gpu_sharing.core.rejections import Reason

Allocations = Mapping[identifiers.GpuUuid, allocations.Allocation]


class Taint(NamedTuple):
    """What keeps pods off a node."""

    key: str
    value: str
    effect: str


@dataclass(frozen=True, slots=True)
class Node:
    """A node by its API object."""

    name: identifiers.NodeName
    _: KW_ONLY
    inventory: tuple[gpus.Gpu, ...] = ()
    cordoned: frozenset[identifiers.GpuUuid] = frozenset()
    unknown_cordons: tuple[identifiers.GpuUuid, ...] = ()
    """UUIDs that a person cordoned and no GPU of the node has."""
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
    unhealthy_reasons: Mapping[identifiers.GpuUuid, str] = field(default_factory=dict)
    """Why GPUs are out of use, by the node's own words; for people only."""
    problems: Mapping[str, str] = field(default_factory=dict)
    """What is wrong with how it is set up, by error code, by the node's own words; for people only."""
    lacks: tuple[str, ...] = ()
    """Resources of our pods beside the count that are no key of its allocatable."""
    cpu_thousandths: int = 0
    """Its allocatable CPU; 0 where it is not known."""
    memory_thousandths: int = 0
    """Its allocatable memory, in thousandths of a byte; 0 where it is not known."""
    one_at_a_time: bool = False
    """Another project's plugin serves it, which serves the first pending pod it finds: no second one may be started."""


class Traits(NamedTuple):
    """What a pod is apart from its GPUs: what an eviction weighs, and who it belongs to."""

    priority: int = 0
    ending: bool = False
    """It is being deleted."""
    cpu_thousandths: int = 0
    """What kube-scheduler counts for it: the most of its phases, or its pod-level request, and its overhead."""
    memory_thousandths: int = 0
    """In thousandths of a byte."""
    gang: gangs.Gang | None = None
    bound_at: int = 0
    """Unix seconds of its Binding, by its record; 0 for a pending pod."""
    created_at: int = 0
    """Unix seconds; 0 where it is not known."""
    owner: str = ""
    """The UID of its controller, which starts another pod in its place; empty where it has none."""


_NOTHING_KNOWN = Traits()


class HostAmounts(NamedTuple):
    """CPU and memory of a node."""

    cpu_milli: int
    memory_mib: int

    def plus(self, other: "HostAmounts", sign: int) -> "HostAmounts":
        """Return the sum, or with -1 the difference."""
        return HostAmounts(self.cpu_milli + sign * other.cpu_milli, self.memory_mib + sign * other.memory_mib)


_MOST_HOST_AMOUNT = 1 << 40
"""More than any node has; sums of many pods stay within 64 bits."""
NO_HOST_AMOUNTS = HostAmounts(0, 0)


def host_amounts(cpu_thousandths: int, memory_thousandths: int) -> HostAmounts:
    """Return a pod's request of its node, memory in thousandths of a byte, rounded up."""
    memory_mib = -(-memory_thousandths // (1000 << 20))
    return HostAmounts(min(cpu_thousandths, _MOST_HOST_AMOUNT), min(memory_mib, _MOST_HOST_AMOUNT))


@dataclass(frozen=True, slots=True)
class BoundPod:
    """What a pod holds, by the API server's word or by a bind of ours."""

    uid: identifiers.PodUid
    key: identifiers.PodKey
    node: identifiers.NodeName
    _: KW_ONLY
    allocated: Allocations = field(default_factory=dict)
    shares: allocations.Shares = ()
    """Per container, for display; `allocated` is what counts."""
    amounts: quotas.Amounts = quotas.NOTHING
    """What it counts against its namespace's quota."""
    foreign_slots: int = 0
    """Device ids of a pod that has no record of ours."""
    corrupt: bool = False
    """The record does not decode: the node's GPUs that `allocated` does not name are unknown."""
    other_node: str = ""
    """The node that its record names, where that is another one."""
    starting: bool = False
    """The device plugin has not handed the GPUs over yet."""
    not_running: str = ""
    """Why its containers do not run: `Refused` by the device plugin, or the kubelet's word such as CrashLoopBackOff."""
    traits: Traits = _NOTHING_KNOWN

    @property
    def namespace(self) -> str:
        """The pod's namespace."""
        return self.key.partition("/")[0]


def record_drift(pod: BoundPod, node: Node | None) -> reconciliation.Drift | None:
    """Return how a pod's record differs from its node; None for a node whose GPUs are not known just now."""
    known = None if node is None else {gpu.uuid for gpu in node.inventory} or pod.allocated
    return reconciliation.record_drift(pod.other_node, pod.node, pod.allocated, known)


@dataclass(frozen=True, slots=True)
class Reservation:
    """What is reserved on a node for a pending pod: a nomination or a hold."""

    uid: identifiers.PodUid
    node: identifiers.NodeName
    allocated: Allocations
    _: KW_ONLY
    priority: int = 0
    request: requests.PodRequest | None = None
    """Set for a hold, whose place is chosen anew whenever its node changes."""
    reserved_gpus: frozenset[identifiers.GpuUuid] = frozenset()
    """GPUs whose freed memory and cores are kept for this pod while its victims terminate; for a hold."""
    expires_at: float = float("inf")
    """Seconds on the clock of the caller; never for a hold."""

    @property
    def is_hold(self) -> bool:
        """Whether it is a hold, not a nomination."""
        return self.request is not None

    @property
    def key(self) -> tuple[identifiers.PodUid, bool]:
        """UID and kind: a pod has at most one reservation of each kind."""
        return self.uid, self.is_hold
