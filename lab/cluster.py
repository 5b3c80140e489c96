"""A whole cluster in one process: API server, scheduler and nodes here, the extender as a real process beside it."""

import asyncio
import concurrent.futures
import contextlib
import pathlib
import tempfile
import threading
import time
from collections.abc import Callable, Coroutine, Iterable, Iterator, Sequence
from typing import Any, Protocol

from gpu_sharing.core import gpus, records
from lab import (
    api_server,
    extender_process,
    gpu_nodes,
    kinds,
    kubelet,
    scheduler,
    service_process,
    simple_kubelets,
    store,
)

_READY_SECONDS = 30.0
DEMO_VERSION = "v1.36.0-demo"
"""Of the API server: `hamictl doctor` reads that the webhook and the guard are left out on purpose."""
_KUBECONFIG = "kubeconfig"
_LONGEST_SOCKET = "kubelet/device-plugins/hami-nvidia-com-gpu.sock"
_SOCKET_BYTES = 107
"""Source: Linux, unix(7): `sun_path` has 108 bytes with the zero at its end."""


class NodesNotReady(Exception):
    """A device plugin cannot register; the text has the reason."""


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
        folder: Holds the kubeconfig and logs.
        kubeconfig: The kubeconfig for kubectl and all other clients.
        gpu_nodes: The nodes that a device plugin serves, by name.
    """

    def __init__(
        self, server: api_server.Running, extender: extender_process.ExtenderProcess, folder: pathlib.Path
    ) -> None:
        self.server = server
        self.extender = extender
        self.folder = folder
        self.kubeconfig = folder / _KUBECONFIG
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
    stop: threading.Event | None = None,
    make_node: Callable[[pathlib.Path, pathlib.Path, store.Object, Sequence[gpus.Gpu]], ServedNode] = gpu_nodes.GpuNode,
) -> Iterator[Cluster]:
    """Run a cluster until the context ends.

    Args:
        nodes: Its nodes.
        arguments: More flags for the extender.
        port: Port of the API server; 0 selects a free one.
        folder: Holds the kubeconfig and logs; a temporary one by default.
        plugins: Whether a device plugin and a kubelet of its own serve each node, instead of one task for all.
        stop: Ends the start when it is set.
        make_node: Creates a served node from a folder, the kubeconfig, the node and its GPUs.

    Raises:
        NodesNotReady: A device plugin does not register in time, or the path of the folder is too long for its socket.
        service_process.ServiceFailed: The extender is not ready in time.
        service_process.Stopped: `stop` is set before everything runs.
    """
    with contextlib.ExitStack() as stack:
        folder = folder or pathlib.Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="gpu-sharing-lab-")))
        server = stack.enter_context(api_server.running(port=port))
        server.app.version = DEMO_VERSION
        kubeconfig = server.write_kubeconfig(folder / _KUBECONFIG)
        keep = server.app.store
        wanted = list(nodes)
        objects = [gpu_nodes.unserved(node) if plugins else node for node in wanted]
        server.call(lambda: [keep.create(kinds.NODES, "", node) for node in objects])
        extender = stack.enter_context(
            extender_process.running(kubeconfig, folder / "extender.log", *arguments, stop=stop)
        )
        cluster = Cluster(server, extender, folder)
        for node in wanted if plugins else ():
            if inventory := records.decode_inventory(node["metadata"]["annotations"].get(records.INVENTORY, "[]")):
                files = folder / node["metadata"]["name"]
                _check_length(files)
                stack.enter_context(_serving(cluster, make_node(files, kubeconfig, node, inventory)))
        _wait_registered(cluster, stop or threading.Event())
        stack.enter_context(_task(server, lambda: simple_kubelets.run(server.app, frozenset(cluster.gpu_nodes))))
        stack.enter_context(_task(server, cluster.scheduler.run))
        yield cluster


def _check_length(files: pathlib.Path) -> None:
    socket = files / _LONGEST_SOCKET
    if len(bytes(socket)) > _SOCKET_BYTES:
        raise NodesNotReady(
            f"the path of a socket may have {_SOCKET_BYTES} bytes, and {socket} has {len(bytes(socket))}; "
            "set TMPDIR to a shorter folder"
        )


@contextlib.contextmanager
def _serving(cluster: Cluster, node: ServedNode) -> Iterator[None]:
    """Run the device plugin and the kubelet of a node until the context ends."""
    cluster.gpu_nodes[node.name] = node
    with _task(cluster.server, lambda: node.run(cluster.server.app.store)):
        yield


def _wait_registered(cluster: Cluster, stop: threading.Event) -> None:
    deadline = time.monotonic() + _READY_SECONDS
    while time.monotonic() < deadline:
        if stop.is_set():
            raise service_process.Stopped
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
