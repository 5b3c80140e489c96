"""The few fields of Kubernetes objects that we read, as typed values.

Everything else in an object is skipped while decoding, which is what makes a list of 50,000 pods cheap. `null` is
read like an absent field, because Go writes empty lists and maps as `null`.

Source: k8s.io/api core/v1 and coordination/v1, JSON names.
"""

import datetime
from typing import Any

import msgspec

from gpu_sharing.core import quantities


def unix_seconds(timestamp: str | None) -> float:
    """Return the Unix seconds of a time of the API server; 0 if it is absent or unreadable."""
    try:
        return datetime.datetime.fromisoformat(timestamp).timestamp() if timestamp else 0.0
    except ValueError:
        return 0.0


class OwnerReference(msgspec.Struct, gc=False):
    """The owner of an object, such as its controller."""

    uid: str = ""
    controller: bool | None = None


class Metadata(msgspec.Struct, gc=False, rename="camel"):
    """`metadata` of any object."""

    name: str = ""
    namespace: str = ""
    uid: str = ""
    resource_version: str = ""
    generation: int = 0
    creation_timestamp: str | None = None
    deletion_timestamp: str | None = None
    annotations: dict[str, str] | None = None
    labels: dict[str, str] | None = None
    owner_references: list[OwnerReference] | None = None

    @property
    def controller(self) -> str:
        """UID of the object's controller, or an empty string."""
        return next((one.uid for one in self.owner_references or () if one.controller), "")


class Resources(msgspec.Struct, gc=False):
    """`resources` of a container."""

    limits: dict[str, quantities.Raw] | None = None
    requests: dict[str, quantities.Raw] | None = None


class Container(msgspec.Struct, gc=False, rename="camel"):
    """A container, plain, init or sidecar. Satisfies `core.requests.ContainerSpec`."""

    name: str = ""
    resources: Resources | None = None
    restart_policy: str | None = None

    @property
    def limits(self) -> dict[str, quantities.Raw]:
        """`resources.limits`, empty where there are none."""
        return (self.resources.limits or {}) if self.resources else {}

    @property
    def requests(self) -> dict[str, quantities.Raw]:
        """`resources.requests`, empty where there are none."""
        return (self.resources.requests or {}) if self.resources else {}

    @property
    def restarts_always(self) -> bool:
        """Whether an init container is a sidecar."""
        return self.restart_policy == "Always"


class PreferredTerm(msgspec.Struct, gc=False):
    """A preferred affinity term, of which only the presence matters."""

    weight: int = 0


class Requirement(msgspec.Struct, gc=False, frozen=True):
    """One expression of a node selector term."""

    key: str = ""
    operator: str = ""
    values: list[str] | None = None


class NodeSelectorTerm(msgspec.Struct, gc=False, frozen=True, rename="camel"):
    """A term of a node affinity: all its expressions must hold."""

    match_expressions: list[Requirement] | None = None
    match_fields: list[Requirement] | None = None


class NodeSelector(msgspec.Struct, gc=False, frozen=True, rename="camel"):
    """Terms of which one must hold."""

    node_selector_terms: list[NodeSelectorTerm] | None = None


class Toleration(msgspec.Struct, gc=False, frozen=True):
    """A toleration of a pod."""

    key: str = ""
    operator: str = ""
    value: str = ""
    effect: str = ""


class Taint(msgspec.Struct, gc=False, frozen=True):
    """A taint of a node, which excludes pods without a toleration."""

    key: str = ""
    value: str = ""
    effect: str = ""


class AffinityKind(msgspec.Struct, gc=False, rename="camel"):
    """Node, pod or pod anti-affinity."""

    preferred_during_scheduling_ignored_during_execution: list[PreferredTerm] | None = None


class NodeAffinity(AffinityKind, gc=False, rename="camel"):
    """`spec.affinity.nodeAffinity`."""

    required_during_scheduling_ignored_during_execution: NodeSelector | None = None


class Affinity(msgspec.Struct, gc=False, rename="camel"):
    """The part of `spec.affinity` that is read."""

    node_affinity: NodeAffinity | None = None
    pod_affinity: AffinityKind | None = None
    pod_anti_affinity: AffinityKind | None = None


class SpreadConstraint(msgspec.Struct, gc=False, rename="camel"):
    """One of `spec.topologySpreadConstraints`."""

    when_unsatisfiable: str = ""


class SchedulingGroup(msgspec.Struct, gc=False, rename="camel"):
    """`spec.schedulingGroup`, where the API server has the alpha feature GenericWorkload."""

    pod_group_name: str = ""


class PodSpec(msgspec.Struct, gc=False, rename="camel"):
    """The part of a pod's `spec` that is read."""

    node_name: str = ""
    scheduler_name: str = ""
    containers: list[Container] | None = None
    init_containers: list[Container] | None = None
    priority: int | None = None
    preemption_policy: str | None = None
    affinity: Affinity | None = None
    topology_spread_constraints: list[SpreadConstraint] | None = None
    scheduling_gates: list[dict[str, Any]] | None = None
    node_selector: dict[str, str] | None = None
    tolerations: list[Toleration] | None = None
    scheduling_group: SchedulingGroup | None = None
    resources: Resources | None = None
    """The resources of the pod as a whole, besides those of its containers."""
    overhead: dict[str, quantities.Raw] | None = None
    """The overhead of its RuntimeClass."""


class Condition(msgspec.Struct, gc=False, rename="camel"):
    """A condition of a pod or node."""

    type: str = ""
    status: str = ""
    reason: str = ""
    message: str = ""


class ContainerWaiting(msgspec.Struct, gc=False):
    """The reason why a container does not run."""

    reason: str = ""


class ContainerRunning(msgspec.Struct, gc=False, rename="camel"):
    """A container that runs; an empty object counts as that state."""

    started_at: str | None = None


class ContainerState(msgspec.Struct, gc=False):
    """The current state of a container."""

    waiting: ContainerWaiting | None = None
    running: ContainerRunning | None = None


class ContainerStatus(msgspec.Struct, gc=False):
    """Status of one container."""

    name: str = ""
    state: ContainerState | None = None
    ready: bool | None = None


class PodStatus(msgspec.Struct, gc=False, rename="camel"):
    """The part of a pod's `status` that is read."""

    phase: str = ""
    nominated_node_name: str = ""
    conditions: list[Condition] | None = None
    init_container_statuses: list[ContainerStatus] | None = None
    container_statuses: list[ContainerStatus] | None = None


class Pod(msgspec.Struct, gc=False):
    """The part of a Pod that is read."""

    metadata: Metadata = msgspec.field(default_factory=Metadata)
    spec: PodSpec = msgspec.field(default_factory=PodSpec)
    status: PodStatus | None = None

    @property
    def key(self) -> str:
        """`<namespace>/<name>`."""
        return f"{self.metadata.namespace}/{self.metadata.name}"

    @property
    def annotations(self) -> dict[str, str]:
        """Its annotations, empty where there are none."""
        return self.metadata.annotations or {}

    @property
    def init_containers(self) -> list[Container]:
        """Its init containers and sidecars, in order."""
        return self.spec.init_containers or []

    @property
    def containers(self) -> list[Container]:
        """The app containers; none where the list is null."""
        return self.spec.containers or []

    @property
    def has_ended(self) -> bool:
        """Whether the pod has ended, and the kubelet has released its GPUs."""
        return self.status is not None and self.status.phase in ("Succeeded", "Failed")

    @property
    def has_soft_preferences(self) -> bool:
        """Whether the pod has soft preferences, which should decide between nodes that fit."""
        affinity = self.spec.affinity
        kinds = (affinity.node_affinity, affinity.pod_affinity, affinity.pod_anti_affinity) if affinity else ()
        return any(kind and kind.preferred_during_scheduling_ignored_during_execution for kind in kinds) or any(
            constraint.when_unsatisfiable == "ScheduleAnyway"
            for constraint in self.spec.topology_spread_constraints or ()
        )


class NodeSpec(msgspec.Struct, gc=False):
    """The part of a node's `spec` that is read."""

    taints: list[Taint] | None = None
    unschedulable: bool | None = None


class NodeStatus(msgspec.Struct, gc=False):
    """The part of a node's `status` that is read."""

    conditions: list[Condition] | None = None
    capacity: dict[str, quantities.Raw] | None = None
    allocatable: dict[str, quantities.Raw] | None = None


class Node(msgspec.Struct, gc=False):
    """The part of a Node that is read."""

    metadata: Metadata = msgspec.field(default_factory=Metadata)
    spec: NodeSpec = msgspec.field(default_factory=NodeSpec)
    status: NodeStatus = msgspec.field(default_factory=NodeStatus)


class ResourceQuotaSpec(msgspec.Struct, gc=False):
    """`spec` of a ResourceQuota."""

    hard: dict[str, str | int | float | bool | None] | None = None


class ResourceQuota(msgspec.Struct, gc=False):
    """The part of a ResourceQuota that is read."""

    metadata: Metadata = msgspec.field(default_factory=Metadata)
    spec: ResourceQuotaSpec = msgspec.field(default_factory=ResourceQuotaSpec)


class ResourceSliceSpec(msgspec.Struct, gc=False, rename="camel"):
    """`spec` of a ResourceSlice."""

    driver: str = ""
    node_name: str = ""


class ResourceSlice(msgspec.Struct, gc=False):
    """A ResourceSlice: the devices of a DRA driver on a node."""

    metadata: Metadata = msgspec.field(default_factory=Metadata)
    spec: ResourceSliceSpec = msgspec.field(default_factory=ResourceSliceSpec)


class DeviceClassSpec(msgspec.Struct, gc=False, rename="camel"):
    """`spec` of a DeviceClass."""

    extended_resource_name: str | None = None


class DeviceClass(msgspec.Struct, gc=False):
    """A DeviceClass, which may offer an extended resource."""

    metadata: Metadata = msgspec.field(default_factory=Metadata)
    spec: DeviceClassSpec = msgspec.field(default_factory=DeviceClassSpec)


class GangPolicy(msgspec.Struct, gc=False, rename="camel"):
    """All or nothing, in a PodGroup of `scheduling.k8s.io`."""

    min_count: int = 1


class SchedulingPolicy(msgspec.Struct, gc=False):
    """`spec.schedulingPolicy` of a PodGroup: a gang, or `basic`, which requires nothing."""

    gang: GangPolicy | None = None


class PodGroupSpec(msgspec.Struct, gc=False, rename="camel"):
    """`spec` of a PodGroup, as `scheduling.k8s.io` or coscheduling's `scheduling.x-k8s.io` writes it."""

    scheduling_policy: SchedulingPolicy | None = None
    min_member: int | None = None


class PodGroup(msgspec.Struct, gc=False):
    """A PodGroup of either API."""

    metadata: Metadata = msgspec.field(default_factory=Metadata)
    spec: PodGroupSpec = msgspec.field(default_factory=PodGroupSpec)

    @property
    def least_members(self) -> int:
        """The number of its pods that must start together, at least 1."""
        gang = self.spec.scheduling_policy.gang if self.spec.scheduling_policy else None
        return max(gang.min_count if gang else self.spec.min_member or 1, 1)


class APIVersion(msgspec.Struct, gc=False, rename="camel"):
    """One version of an API group."""

    group_version: str = ""


class APIGroup(msgspec.Struct, gc=False):
    """One API group of an API server."""

    name: str = ""
    versions: list[APIVersion] | None = None
    """The preferred one first."""


class APIGroupList(msgspec.Struct, gc=False):
    """The API groups of an API server."""

    groups: list[APIGroup] | None = None


class APIResource(msgspec.Struct, gc=False):
    """One kind of object of an API group."""

    name: str = ""


class APIResourceList(msgspec.Struct, gc=False):
    """The kinds of objects of one version of an API group."""

    resources: list[APIResource] | None = None


class LeaseSpec(msgspec.Struct, gc=False, rename="camel"):
    """The part of a Lease's `spec` that is read."""

    holder_identity: str | None = None
    lease_duration_seconds: int | None = None
    acquire_time: str | None = None
    renew_time: str | None = None
    lease_transitions: int | None = None


class Lease(msgspec.Struct, gc=False):
    """The part of a Lease that is read."""

    metadata: Metadata = msgspec.field(default_factory=Metadata)
    spec: LeaseSpec = msgspec.field(default_factory=LeaseSpec)
