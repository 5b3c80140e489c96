"""A whole cluster in one process: API server, scheduler and nodes here, the extender as a real process beside it."""

import asyncio
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
    replica_sets,
    scheduler,
    service_process,
    simple_kubelets,
    store,
    tcp_proxy,
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
        links: The networks between its processes, by pair such as `extender-apiserver`; empty where they are direct.
    """

    def __init__(
        self,
        server: api_server.Running,
        extender: extender_process.ExtenderProcess,
        folder: pathlib.Path,
        verbs: str = "",
    ) -> None:
        self.server = server
        self.extender = extender
        self.folder = folder
        self.kubeconfig = folder / _KUBECONFIG
        self.gpu_nodes: dict[str, ServedNode] = {}
        self.links: dict[str, tcp_proxy.TcpProxy] = {}
        address = verbs or extender.verbs
        self.scheduler = server.call(lambda: scheduler.Scheduler(server.app, scheduler.Extender(address)))

    @property
    def read_api(self) -> str:
        """The URL of the extender's read API for the WebUI."""
        link = self.links.get("ui-extender")
        return f"http://{link.address if link else self.extender.api}"

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
    linked: bool = False,
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
        linked: Whether its processes reach each other by links that can be cut.
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
        links = _Links(stack, server, folder) if linked else None
        of_extender = links.to_server("extender-apiserver") if links else kubeconfig
        of_plugins = links.to_server("plugin-apiserver") if links else kubeconfig
        extender = stack.enter_context(
            extender_process.running(of_extender, folder / "extender.log", *arguments, stop=stop)
        )
        cluster = Cluster(server, extender, folder, links.open("scheduler-extender", extender.verbs) if links else "")
        if links:
            links.open("ui-extender", extender.api)
            cluster.links = links.by_pair
        for node in wanted if plugins else ():
            if inventory := records.decode_inventory(node["metadata"]["annotations"].get(records.INVENTORY, "[]")):
                files = folder / node["metadata"]["name"]
                _check_length(files)
                stack.enter_context(_serving(cluster, make_node(files, of_plugins, node, inventory)))
        _wait_registered(cluster, stop or threading.Event())
        stack.enter_context(_task(server, lambda: simple_kubelets.run(server.app, frozenset(cluster.gpu_nodes))))
        stack.enter_context(_task(server, lambda: replica_sets.run(server.app)))
        stack.enter_context(_task(server, cluster.scheduler.run))
        yield cluster


class _Links:
    """The networks between the processes of one cluster."""

    def __init__(self, stack: contextlib.ExitStack, server: api_server.Running, folder: pathlib.Path) -> None:
        self._stack = stack
        self._server = server
        self._folder = folder
        self.by_pair: dict[str, tcp_proxy.TcpProxy] = {}

    def open(self, pair: str, target: str) -> str:
        """Open a link to `HOST:PORT`. Return its address."""
        self.by_pair[pair] = self._stack.enter_context(tcp_proxy.running(target))
        return self.by_pair[pair].address

    def to_server(self, pair: str) -> pathlib.Path:
        """Open a link to the API server. Return a kubeconfig that leads over it."""
        address = self.open(pair, self._server.url.removeprefix("http://"))
        path = self._folder / f"kubeconfig-{pair}"
        path.touch(mode=0o600)
        path.write_text(api_server.kubeconfig(f"http://{address}", self._server.token))
        return path


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
    """Run a task on the server's event loop until the context ends, and wait for its end.

    Cancelled only, it would still close its servers while the loop ends, which cancels it a second time.
    """

    async def begin() -> asyncio.Task[None]:
        return asyncio.create_task(make())

    task = asyncio.run_coroutine_threadsafe(begin(), server.loop).result()
    try:
        yield
    finally:
        with contextlib.suppress(TimeoutError):
            asyncio.run_coroutine_threadsafe(_ended(task), server.loop).result(timeout=10)


async def _ended(task: asyncio.Task[None]) -> None:
    """Cancel a task and wait for its end; what it failed with is raised."""
    task.cancel()
    await asyncio.wait([task])
    if not task.cancelled():
        task.result()
