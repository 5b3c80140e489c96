"""A whole cluster in one process: API server, scheduler and nodes here, the extender as a real process beside it."""

import asyncio
import concurrent.futures
import contextlib
import pathlib
import tempfile
import time
from collections.abc import Callable, Coroutine, Iterable, Iterator, Sequence
from typing import Any, Protocol

from gpu_sharing.core import gpus, records
from lab import api_server, extender_process, gpu_nodes, kinds, kubelet, scheduler, simple_kubelets, store

_READY_SECONDS = 30.0


class NodesNotReady(Exception):
    """A device plugin does not register in time."""


class ServedNode(Protocol):
    """A node that a device plugin serves."""

    name: str
    kubelet: kubelet.Kubelet

    async def run(self, keep: store.Store) -> None:
        """Serve until cancelled."""


class Cluster:
    """A running cluster.

    Attributes:
        server: Its API server.
        extender: Its extender.
        scheduler: Its scheduler loop.
        kubeconfig: The kubeconfig for kubectl and all other clients.
        gpu_nodes: The nodes that a device plugin serves, by name.
    """

    def __init__(
        self, server: api_server.Running, extender: extender_process.ExtenderProcess, kubeconfig: pathlib.Path
    ) -> None:
        self.server = server
        self.extender = extender
        self.kubeconfig = kubeconfig
        self.gpu_nodes: dict[str, ServedNode] = {}
        self.scheduler = server.call(lambda: scheduler.Scheduler(server.app, scheduler.Extender(extender.verbs)))

    def create(self, resource: kinds.Resource, body: store.Object, namespace: str = "default") -> store.Object:
        """Create an object as a client would, with defaults."""
        path = f"/{'apis/' + resource.group if resource.group else 'api'}/{resource.version}"
        path += f"/namespaces/{namespace}" if resource.namespaced else ""
        created: store.Object = self.server.request("POST", f"{path}/{resource.plural}", body)
        return created

    def all(self, resource: kinds.Resource) -> list[store.Object]:
        """Return all objects of a kind."""
        found: list[store.Object] = self.server.call(
            lambda: [value for _, value in self.server.app.store.all(resource)]
        )
        return found


@contextlib.contextmanager
def running(
    nodes: Iterable[store.Object],
    arguments: Iterable[str] = (),
    port: int = 0,
    folder: pathlib.Path | None = None,
    *,
    plugins: bool = False,
    make_node: Callable[[pathlib.Path, pathlib.Path, store.Object, Sequence[gpus.Gpu]], ServedNode] = gpu_nodes.GpuNode,
) -> Iterator[Cluster]:
    """Run a cluster until the context ends.

    Args:
        nodes: Its nodes.
        arguments: More flags for the extender.
        port: Port of the API server; 0 selects a free one.
        folder: Holds the kubeconfig and logs; a temporary one by default.
        plugins: Whether a device plugin and a kubelet of its own serve each node, instead of one task for all.
        make_node: Creates a served node from a folder, the kubeconfig, the node and its GPUs.

    Raises:
        NodesNotReady: A device plugin does not register in time.
    """
    with contextlib.ExitStack() as stack:
        folder = folder or pathlib.Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="gpu-sharing-lab-")))
        server = stack.enter_context(api_server.running(port=port))
        kubeconfig = server.write_kubeconfig(folder / "kubeconfig")
        keep = server.app.store
        wanted = list(nodes)
        objects = [gpu_nodes.unserved(node) if plugins else node for node in wanted]
        server.call(lambda: [keep.create(kinds.NODES, "", node) for node in objects])
        extender = stack.enter_context(extender_process.running(kubeconfig, folder / "extender.log", *arguments))
        cluster = Cluster(server, extender, kubeconfig)
        for node in wanted if plugins else ():
            if inventory := records.decode_inventory(node["metadata"]["annotations"].get(records.INVENTORY, "[]")):
                files = folder / node["metadata"]["name"]
                stack.enter_context(_serving(cluster, make_node(files, kubeconfig, node, inventory)))
        _wait_registered(cluster)
        stack.enter_context(_task(server, lambda: simple_kubelets.run(server.app, frozenset(cluster.gpu_nodes))))
        stack.enter_context(_task(server, cluster.scheduler.run))
        yield cluster


@contextlib.contextmanager
def _serving(cluster: Cluster, node: ServedNode) -> Iterator[None]:
    """Run the device plugin and the kubelet of a node until the context ends."""
    cluster.gpu_nodes[node.name] = node
    with _task(cluster.server, lambda: node.run(cluster.server.app.store)):
        yield


def _wait_registered(cluster: Cluster) -> None:
    deadline = time.monotonic() + _READY_SECONDS
    while time.monotonic() < deadline:
        found = {node["metadata"]["name"]: node for node in cluster.all(kinds.NODES)}
        waiting = [
            name
            for name in cluster.gpu_nodes
            if found[name]["status"]["allocatable"].get("nvidia.com/gpu", "0") == "0"
            or records.INVENTORY not in found[name]["metadata"]["annotations"]
        ]
        if not waiting:
            return
        time.sleep(0.02)
    raise NodesNotReady(f"no device plugin has registered on {', '.join(waiting)}")


@contextlib.contextmanager
def _task(server: api_server.Running, make: Callable[[], Coroutine[Any, Any, None]]) -> Iterator[None]:
    """Run a task on the server's event loop until the context ends."""
    future = asyncio.run_coroutine_threadsafe(make(), server.loop)
    try:
        yield
    finally:
        future.cancel()
        with contextlib.suppress(concurrent.futures.CancelledError, TimeoutError):
            future.result(timeout=10)
