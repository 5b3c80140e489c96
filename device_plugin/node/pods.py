"""The pods of this node, kept current by a watch of this node alone."""

from collections.abc import Callable, Iterator, Mapping

import structlog

from device_plugin.node.api_objects import Pod
from gpu_sharing.adapters import kubernetes, watching
from gpu_sharing.core import allocations, identifiers, requests

log = structlog.get_logger("pods")


def watch(client: kubernetes.Client, node_name: str, sink: "Pods") -> watching.Reflector[Pod]:
    """Return a watch of the pods of a node."""
    path = f"/api/v1/pods?fieldSelector=spec.nodeName%3D{node_name}"
    return watching.Reflector(client, path, Pod, sink, lambda pod: pod.metadata.resource_version)


class Pods:
    """The pods of this node, as the sink of their watch.

    Attributes:
        by_uid: The pods of this node that have not ended.
    """

    def __init__(self, names: requests.ResourceNames, changed: Callable[[], None]) -> None:
        self.by_uid: dict[identifiers.PodUid, Pod] = {}
        self._names = names
        self._changed = changed
        self._allocated: dict[identifiers.PodUid, Mapping[identifiers.GpuUuid, allocations.Allocation]] = {}
        self._holders: dict[identifiers.GpuUuid, dict[identifiers.PodUid, allocations.Allocation]] = {}

    def holders(self, uuid: identifiers.GpuUuid) -> list[tuple[Pod, allocations.Allocation]]:
        """Return the pods that hold a GPU by their records, each with its allocation."""
        return [(self.by_uid[uid], allocation) for uid, allocation in self._holders.get(uuid, {}).items()]

    def replaced(self, items: list[Pod], listed_at: float) -> Iterator[None]:
        """See `watching.Sink`. In one step: the pods of one node are few, and none may be missing meanwhile."""
        for uid in list(self.by_uid):
            self._drop(uid)
        for pod in items:
            self._add(pod)
        self._changed()
        yield

    def changed(self, item: Pod) -> None:
        """See `watching.Sink`."""
        self._drop(item.uid)
        self._add(item)
        self._changed()

    def deleted(self, item: Pod) -> None:
        """See `watching.Sink`."""
        self._drop(item.uid)
        self._changed()

    def undecodable(self, raw: bytes, error: Exception) -> None:
        """See `watching.Sink`."""
        log.error("pod not decoded", cause=str(error), start=raw[:120].decode(errors="replace"))

    def _add(self, pod: Pod) -> None:
        if pod.has_ended:
            return
        self.by_uid[pod.uid] = pod
        self._allocated[pod.uid] = pod.allocated(self._names)
        for uuid, allocation in self._allocated[pod.uid].items():
            self._holders.setdefault(uuid, {})[pod.uid] = allocation

    def _drop(self, uid: identifiers.PodUid) -> None:
        self.by_uid.pop(uid, None)
        for uuid in self._allocated.pop(uid, {}):
            del self._holders[uuid][uid]
