"""Which GPUs an administrator wants to reset: an annotation of the node that plugin and monitor follow.

A reset, and a switch of the MIG mode, are refused while any process holds the GPU. Nothing tells from outside whether
the reset was done without touching the GPU, so the hold ends when the annotation does.
"""

import asyncio
import contextlib
from collections.abc import Awaitable, Callable, Iterable, Iterator, Mapping

import structlog

from device_plugin import gpu_source, pods, watchdog
from gpu_sharing.adapters import kubernetes, watching
from gpu_sharing.core import identifiers, records

log = structlog.get_logger("node")


def wanted(annotations: Mapping[str, str] | None) -> frozenset[identifiers.GpuUuid]:
    """Return the GPUs that a node's annotations release."""
    return records.decode_cordon((annotations or {}).get(records.RELEASE, ""))


def positions(
    released: Iterable[identifiers.GpuUuid], indices: Mapping[identifiers.GpuUuid, int]
) -> dict[identifiers.GpuUuid, int]:
    """Return released GPUs with their positions, those that the node has."""
    return {uuid: indices[uuid] for uuid in released if uuid in indices}


async def carry_out(driver: watchdog.Watched, released: Mapping[identifiers.GpuUuid, int]) -> str:
    """Have the driver let go of GPUs, and of no other any more.

    Returns:
        Why it did not; empty where it did, or where there is no driver that could hold one.

    Raises:
        DriverChanged: The process has to start anew.
    """
    with contextlib.suppress(gpu_source.DriverMissing):
        try:
            await driver.release(released)
        except gpu_source.GpuFailed as cause:
            return str(cause)
    return ""


class NodeWatch:
    """Follows the node, and hands each state of it on, one at a time.

    Args:
        client: The API server.
        node_name: The node.
        changed: Called with the latest state after each change, and again from time to time, so that what it could not
            do is tried again.
    """

    def __init__(
        self, client: kubernetes.Client, node_name: str, changed: Callable[[pods.Node], Awaitable[None]]
    ) -> None:
        path = f"/api/v1/nodes?fieldSelector=metadata.name%3D{node_name}"
        self.reflector = watching.Reflector(client, path, pods.Node, self, lambda node: node.metadata.resource_version)
        self._changed = changed
        self._latest: pods.Node | None = None
        self._news = asyncio.Event()
        self.handed_on = asyncio.Event()
        """Set once a state was handed on."""

    async def run(self, again_seconds: float) -> None:
        """Follow for ever; ends only by cancellation."""
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self.reflector.run())
            while True:
                with contextlib.suppress(TimeoutError):
                    await asyncio.wait_for(self._news.wait(), again_seconds)
                self._news.clear()
                if self._latest is not None:
                    await self._changed(self._latest)
                    self.handed_on.set()

    def replaced(self, items: list[pods.Node], listed_at: float) -> Iterator[None]:
        """See `watching.Sink`."""
        for node in items:
            self.changed(node)
        yield

    def changed(self, item: pods.Node) -> None:
        """See `watching.Sink`."""
        self._latest = item
        self._news.set()

    def deleted(self, item: pods.Node) -> None:
        """See `watching.Sink`. A node that is made anew comes as another change."""

    def undecodable(self, raw: bytes, error: Exception) -> None:
        """See `watching.Sink`."""
        log.error("the node is not what a node should be", cause=str(error), start=raw[:120].decode(errors="replace"))
