"""A whole cluster in one process: API server, kubelets and scheduler here, the extender as a real process beside it."""

import asyncio
import concurrent.futures
import contextlib
import pathlib
import tempfile
from collections.abc import Callable, Coroutine, Iterable, Iterator
from typing import Any

from lab import api_server, extender_process, kinds, kubelet, scheduler, store


class Cluster:
    """A running cluster.

    Attributes:
        server: Its API server.
        extender: Its extender.
        scheduler: Its scheduler loop.
        kubeconfig: The way in for kubectl and for everything else.
    """

    def __init__(
        self, server: api_server.Running, extender: extender_process.ExtenderProcess, kubeconfig: pathlib.Path
    ) -> None:
        self.server = server
        self.extender = extender
        self.kubeconfig = kubeconfig
        self.scheduler = server.call(lambda: scheduler.Scheduler(server.app, scheduler.Extender(extender.verbs)))

    def create(self, resource: kinds.Resource, body: store.Object, namespace: str = "default") -> store.Object:
        """Create an object as a client would, with defaults."""
        path = f"/{'apis/' + resource.group if resource.group else 'api'}/{resource.version}"
        path += f"/namespaces/{namespace}" if resource.namespaced else ""
        created: store.Object = self.server.request("POST", f"{path}/{resource.plural}", body)
        return created

    def all(self, resource: kinds.Resource) -> list[store.Object]:
        """All objects of a kind."""
        found: list[store.Object] = self.server.call(
            lambda: [value for _, value in self.server.app.store.all(resource)]
        )
        return found


@contextlib.contextmanager
def running(
    nodes: Iterable[store.Object], arguments: Iterable[str] = (), port: int = 0, folder: pathlib.Path | None = None
) -> Iterator[Cluster]:
    """A cluster for as long as the context lasts.

    Args:
        nodes: Its nodes.
        arguments: More flags for the extender.
        port: Port of the API server; 0 takes a free one.
        folder: Where kubeconfig and logs lie; a temporary one by default.
    """
    with contextlib.ExitStack() as stack:
        folder = folder or pathlib.Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="gpu-sharing-lab-")))
        server = stack.enter_context(api_server.running(port=port))
        kubeconfig = server.write_kubeconfig(folder / "kubeconfig")
        server.call(lambda: [server.app.store.create(kinds.NODES, "", node) for node in nodes])
        extender = stack.enter_context(extender_process.running(kubeconfig, folder / "extender.log", *arguments))
        cluster = Cluster(server, extender, kubeconfig)
        stack.enter_context(_task(server, lambda: kubelet.run(server.app)))
        stack.enter_context(_task(server, cluster.scheduler.run))
        yield cluster


@contextlib.contextmanager
def _task(server: api_server.Running, make: Callable[[], Coroutine[Any, Any, None]]) -> Iterator[None]:
    """Something that runs on the server's event loop for as long as the context lasts."""
    future = asyncio.run_coroutine_threadsafe(make(), server.loop)
    try:
        yield
    finally:
        future.cancel()
        with contextlib.suppress(concurrent.futures.CancelledError, TimeoutError):
            future.result(timeout=10)
