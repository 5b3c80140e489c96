"""Which GPUs an administrator wants to reset: an annotation of the node that plugin and monitor read every few seconds.

A reset, and a switch of the MIG mode, are refused while any process holds the GPU. Nothing tells from outside whether
the reset was done without touching the GPU, so the hold ends when the annotation does.
"""

import asyncio
from collections.abc import Awaitable, Callable, Iterable, Mapping

import structlog

from device_plugin import pods
from gpu_sharing.adapters import kubernetes
from gpu_sharing.core import errors, identifiers, records

log = structlog.get_logger("node")


def wanted(annotations: Mapping[str, str] | None) -> frozenset[identifiers.GpuUuid]:
    """Return the GPUs that a node's annotations release."""
    return records.decode_cordon((annotations or {}).get(records.RELEASE, ""))


def positions(
    released: Iterable[identifiers.GpuUuid], indices: Mapping[identifiers.GpuUuid, int]
) -> dict[identifiers.GpuUuid, int]:
    """Return released GPUs with their positions, those that the node has."""
    return {uuid: indices[uuid] for uuid in released if uuid in indices}


class NodeReader:
    """Reads the node again and again, and never goes back to an older state of it.

    Args:
        client: The API server.
        node_name: The node.
        changed: Called with each state that is not older than the one before.
    """

    def __init__(
        self, client: kubernetes.Client, node_name: str, changed: Callable[[pods.Node], Awaitable[None]]
    ) -> None:
        self._client = client
        self._path = f"/api/v1/nodes/{node_name}"
        self._changed = changed
        self._seen = 0
        self.attempted = asyncio.Event()
        """Set once the node was asked for, with or without an answer."""

    async def run(self, interval_seconds: float) -> None:
        """Read for ever; ends only by cancellation."""
        while True:
            try:
                # From the API server's cache, which may lag behind another server's.
                node = await self._client.get(f"{self._path}?resourceVersion=0", pods.Node)
            except errors.KubernetesError as refused:
                log.debug("the node cannot be read", cause=str(refused))
            else:
                version = node.metadata.resource_version
                order = int(version) if version.isdecimal() else 0
                if order >= self._seen:
                    self._seen = order
                    await self._changed(node)
            self.attempted.set()
            await asyncio.sleep(interval_seconds)
