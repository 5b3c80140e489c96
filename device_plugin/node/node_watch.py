"""Follows this node, and passes on each state of it."""

import asyncio
import contextlib
from collections.abc import Awaitable, Callable, Iterator

import structlog

from device_plugin.node.api_objects import Node
from gpu_sharing.adapters import kubernetes, watching

log = structlog.get_logger("node")


class NodeWatch:
    """Follows the node, and passes on each state, one at a time.

    Args:
        client: The API server.
        node_name: The node.
        changed: Called with the latest state after each change, and again periodically, so that it can retry what
            failed.
    """

    def __init__(self, client: kubernetes.Client, node_name: str, changed: Callable[[Node], Awaitable[None]]) -> None:
        path = f"/api/v1/nodes?fieldSelector=metadata.name%3D{node_name}"
        self.reflector = watching.Reflector(client, path, Node, self, lambda node: node.metadata.resource_version)
        self._changed = changed
        self._latest: Node | None = None
        self._news = asyncio.Event()
        self.passed_on = asyncio.Event()
        """Set once a state was passed on."""

    async def run(self, retry_seconds: float) -> None:
        """Follow the node until cancelled."""
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self.reflector.run())
            while True:
                with contextlib.suppress(TimeoutError):
                    await asyncio.wait_for(self._news.wait(), retry_seconds)
                self._news.clear()
                if self._latest is not None:
                    await self._changed(self._latest)
                    self.passed_on.set()

    def replaced(self, items: list[Node], listed_at: float) -> Iterator[None]:
        """See `watching.Sink`."""
        for node in items:
            self.changed(node)
        yield

    def changed(self, item: Node) -> None:
        """See `watching.Sink`."""
        self._latest = item
        self._news.set()

    def deleted(self, item: Node) -> None:
        """See `watching.Sink`. A node that is created again comes as a change."""

    def undecodable(self, raw: bytes, error: Exception) -> None:
        """See `watching.Sink`."""
        log.error("node not decoded", cause=str(error), start=raw[:120].decode(errors="replace"))
