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
    """The user of a container."""

    run_as_user: int | None = None


class Container(objects.Container, gc=False, rename="camel"):
    """A container, with the fields that isolation reads."""

    env: list[Variable] | None = None
    security_context: SecurityContext | None = None


class Spec(objects.PodSpec, gc=False, rename="camel"):
    """Fields of `spec` of a pod."""

    containers: list[Container] | None = None  # type: ignore[assignment]
    init_containers: list[Container] | None = None  # type: ignore[assignment]
    security_context: SecurityContext | None = None
    runtime_class_name: str | None = None


class LinuxUser(msgspec.Struct, gc=False):
    """User of the first process of a container."""

    uid: int = 0


class ContainerUser(msgspec.Struct, gc=False):
    """Users of a container by operating system."""

    linux: LinuxUser | None = None


class ContainerStatus(objects.ContainerStatus, gc=False, rename={"container_id": "containerID"}):
    """Status of one container."""

    container_id: str = ""
    user: ContainerUser | None = None


class Status(objects.PodStatus, gc=False, rename="camel"):
    """Fields of `status` of a pod."""

    container_statuses: list[ContainerStatus] | None = None  # type: ignore[assignment]
    init_container_statuses: list[ContainerStatus] | None = None  # type: ignore[assignment]


class Pod(objects.Pod, gc=False):
    """A pod that runs on this node."""

    spec: Spec = msgspec.field(default_factory=Spec)
    status: Status | None = None

    @property
    def all_statuses(self) -> list[ContainerStatus]:
        """Statuses of the containers that were started, with init containers."""
        if self.status is None:
            return []
        every = (*(self.status.init_container_statuses or ()), *(self.status.container_statuses or ()))
        return [one for one in every if one.container_id]

    @property
    def running_containers(self) -> list[ContainerStatus]:
        """Statuses of the app containers that run now."""
        statuses = (self.status.container_statuses or ()) if self.status else ()
        return [one for one in statuses if one.state and one.state.running is not None and one.container_id]

    @property
    def uid(self) -> identifiers.PodUid:
        """UID of the pod, typed."""
        return identifiers.PodUid(self.metadata.uid)

    @property
    def all_containers(self) -> list[Container]:
        """All containers, init containers first, as records count them."""
        return [*(self.spec.init_containers or ()), *(self.spec.containers or ())]

    def container(self, name: str) -> tuple[int, Container] | None:
        """Return a container and its position; None where the pod has none of that name."""
        for position, container in enumerate(self.all_containers):
            if container.name == name:
                return position, container
        return None

    def user_of(self, container: Container) -> int | None:
        """Return the user that a container runs as: by the kubelet once it has run, before that by its specification.

        Returns:
            None where only the image sets it: it is known once the container runs, from Kubernetes 1.33 on.
        """
        for status in self.all_statuses:
            if status.name == container.name and status.user is not None and status.user.linux is not None:
                return status.user.linux.uid
        for context in (container.security_context, self.spec.security_context):
            if context is not None and context.run_as_user is not None:
                return context.run_as_user
        return None

    def shares(self, names: requests.ResourceNames) -> allocations.Shares | None:
        """Return the shares of each container by its record; None where it has no record.

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
        """Return the MIG instances of its record, of all its containers."""
        text = self.annotations.get(records.MIG_ALLOCATIONS, "")
        every = range(len(self.all_containers)) if text else ()
        return tuple(share for position in every for share in records.mig_shares(text, position))

    def allocated(self, names: requests.ResourceNames) -> Mapping[identifiers.GpuUuid, allocations.Allocation]:
        """Return what the pod holds of each GPU by its record; of a record that does not decode, what can be read of
        it.
        """
        try:
            shares = self.shares(names)
        except errors.CorruptRecord:
            legible = records.legible_shares(self.annotations.get(records.ALLOCATED, ""))
            return allocations.by_gpu((allocations.Kind.APP,), (legible,))
        kinds = requests.kinds_of(self.spec.init_containers or (), self.spec.containers or ())
        return allocations.by_gpu(kinds, shares) if shares else {}


class NodeInfo(msgspec.Struct, gc=False, rename="camel"):
    """What the kubelet reports about its machine."""

    container_runtime_version: str = ""


class NodeStatus(objects.NodeStatus, gc=False, rename="camel"):
    """Fields of `status` of a node."""

    node_info: NodeInfo = msgspec.field(default_factory=NodeInfo)


class Node(objects.Node, gc=False):
    """The node that the plugin serves."""

    status: NodeStatus = msgspec.field(default_factory=NodeStatus)
