"""The node and its pods as the API server sends them: the fields that the plugin and the monitor read."""

from collections.abc import Mapping

import msgspec
import structlog

from gpu_sharing.adapters import objects
from gpu_sharing.core import allocations, errors, identifiers, records, requests

log = structlog.get_logger("pods")


class Variable(msgspec.Struct, gc=False):
    """An environment variable of a container."""

    name: str = ""
    value: str = ""


class SecurityContext(msgspec.Struct, gc=False, rename="camel"):
    """Who a container runs as."""

    run_as_user: int | None = None


class Container(objects.Container, gc=False, rename="camel"):
    """A container with what isolation wants to know of it."""

    env: list[Variable] | None = None
    security_context: SecurityContext | None = None


class Spec(objects.PodSpec, gc=False, rename="camel"):
    """`spec` of a pod."""

    containers: list[Container] | None = None  # type: ignore[assignment]
    init_containers: list[Container] | None = None  # type: ignore[assignment]
    security_context: SecurityContext | None = None
    runtime_class_name: str | None = None


class ContainerState(objects.ContainerState, gc=False):
    """What a container does now; empty objects count."""

    running: dict[str, str] | None = None


class LinuxUser(msgspec.Struct, gc=False):
    """Who the first process of a container runs as."""

    uid: int = 0


class ContainerUser(msgspec.Struct, gc=False):
    """The same, by operating system."""

    linux: LinuxUser | None = None


class ContainerStatus(objects.ContainerStatus, gc=False, rename={"container_id": "containerID"}):
    """Status of one container."""

    container_id: str = ""
    state: ContainerState | None = None
    user: ContainerUser | None = None


class Status(objects.PodStatus, gc=False, rename="camel"):
    """`status` of a pod."""

    container_statuses: list[ContainerStatus] | None = None  # type: ignore[assignment]
    init_container_statuses: list[ContainerStatus] | None = None  # type: ignore[assignment]


class Pod(objects.Pod, gc=False):
    """A pod of this node."""

    spec: Spec = msgspec.field(default_factory=Spec)
    status: Status | None = None

    @property
    def all_statuses(self) -> list[ContainerStatus]:
        """Its containers that have been started, init containers too."""
        if self.status is None:
            return []
        every = (*(self.status.init_container_statuses or ()), *(self.status.container_statuses or ()))
        return [one for one in every if one.container_id]

    @property
    def running_containers(self) -> list[ContainerStatus]:
        """Its app containers that run now."""
        statuses = (self.status.container_statuses or ()) if self.status else ()
        return [one for one in statuses if one.state and one.state.running is not None and one.container_id]

    @property
    def uid(self) -> identifiers.PodUid:
        """Its UID."""
        return identifiers.PodUid(self.metadata.uid)

    @property
    def all_containers(self) -> list[Container]:
        """Init containers first, as records count them."""
        return [*(self.spec.init_containers or ()), *(self.spec.containers or ())]

    def container(self, name: str) -> tuple[int, Container] | None:
        """A container and its position."""
        for position, one in enumerate(self.all_containers):
            if one.name == name:
                return position, one
        return None

    def user_of(self, container: Container) -> int | None:
        """Return the user that a container runs as, by the kubelet once it has run, else by its specification.

        Returns:
            None where only its image says, which is not known before it runs; Kubernetes before 1.33 never says.
        """
        for status in self.all_statuses:
            if status.name == container.name and status.user is not None and status.user.linux is not None:
                return status.user.linux.uid
        for context in (container.security_context, self.spec.security_context):
            if context is not None and context.run_as_user is not None:
                return context.run_as_user
        return None

    def shares(self, names: requests.ResourceNames) -> allocations.Shares | None:
        """What its record promises each container; None where it has no record.

        Raises:
            CorruptRecord: It does not decode, or does not match the containers.
        """
        text = self.annotations.get(records.ALLOCATED, "")
        if not text.strip(";: "):
            return None
        asking = [requests.asks_for_gpu((container,), names) for container in self.all_containers]
        shares = records.decode_shares(text, asking)
        return records.decode_instances(self.annotations.get(records.MIG_ALLOCATIONS, ""), shares)

    def mig_shares(self) -> tuple[records.MigShare, ...]:
        """The MIG instances that its record names, of all its containers."""
        text = self.annotations.get(records.MIG_ALLOCATIONS, "")
        every = range(len(self.all_containers)) if text else ()
        return tuple(share for position in every for share in records.mig_shares(text, position))

    def allocated(self, names: requests.ResourceNames) -> Mapping[identifiers.GpuUuid, allocations.Allocation]:
        """What it holds of each GPU by its record; of a record that does not decode, what can be read of it."""
        try:
            shares = self.shares(names)
        except errors.CorruptRecord:
            legible = records.legible_shares(self.annotations.get(records.ALLOCATED, ""))
            return allocations.by_gpu((allocations.Kind.APP,), (legible,))
        kinds = requests.kinds_of(self.spec.init_containers or (), self.spec.containers or ())
        return allocations.by_gpu(kinds, shares) if shares else {}


class NodeInfo(msgspec.Struct, gc=False, rename="camel"):
    """What the kubelet says of its machine."""

    container_runtime_version: str = ""


class NodeStatus(objects.NodeStatus, gc=False, rename="camel"):
    """`status` of a node."""

    node_info: NodeInfo = msgspec.field(default_factory=NodeInfo)


class Node(objects.Node, gc=False):
    """The node that the plugin serves."""

    status: NodeStatus = msgspec.field(default_factory=NodeStatus)
