"""Writes the node's annotations and capacity on every change, and again on a heartbeat in case they were removed.

A write of what is there already changes nothing in the API server.
"""

import asyncio
from collections.abc import Callable, Mapping
from typing import Any

import orjson
import structlog

from gpu_sharing.adapters import health_endpoint, kubernetes, objects
from gpu_sharing.core import error_codes, errors, quantities, records

_HEARTBEAT_SECONDS = 60.0
_FIRST_BACKOFF_SECONDS, _LONGEST_BACKOFF_SECONDS = 0.5, 15.0

log = structlog.get_logger("inventory")


class NodePublisher:
    """Writes the node's annotations and capacity, and the label by which people find GPU nodes.

    An existing label of that name stays: pods may select nodes by it.

    Args:
        client: The API server.
        node_name: The node.
        annotations: Returns what the node's annotations should be.
        capacity: Returns what its capacity should have.

    Attributes:
        written: Whether the latest annotations are written.
        problem: Why they are not; empty where they are.
    """

    def __init__(
        self,
        client: kubernetes.Client,
        node_name: str,
        annotations: Callable[[], Mapping[str, str]],
        capacity: Callable[[], Mapping[str, str]],
    ) -> None:
        self._client = client
        self._path = f"/api/v1/nodes/{node_name}"
        self._annotations = annotations
        self._capacity = capacity
        self._changed = asyncio.Event()
        self.written = False
        self.problem = ""

    def change(self) -> None:
        """Have the annotations written, because they have changed."""
        self.written = False
        self._changed.set()

    async def run(self) -> None:
        """Write on each change until cancelled; the first change is the first write."""
        await self._changed.wait()
        backoff = _FIRST_BACKOFF_SECONDS
        while True:
            self._changed.clear()
            try:
                await self._write()
            except errors.KubernetesError as refused:
                self.problem = str(refused)
                log.error(
                    "the node's annotations are not written",
                    error_code=error_codes.PLUGIN_INVENTORY_NOT_WRITTEN,
                    cause=str(refused),
                )
                await asyncio.sleep(backoff)
                backoff = min(2 * backoff, _LONGEST_BACKOFF_SECONDS)
                continue
            backoff, self.problem = _FIRST_BACKOFF_SECONDS, ""
            self.written = not self._changed.is_set()
            try:
                await asyncio.wait_for(self._changed.wait(), _HEARTBEAT_SECONDS)
            except TimeoutError:
                continue

    async def write_now(self, annotations: Mapping[str, str]) -> None:
        """Write annotations of the node at once.

        Raises:
            KubernetesError: They are not written.
        """
        await self._client.patch(self._path, orjson.dumps({"metadata": {"annotations": dict(annotations)}}))

    def component(self) -> health_endpoint.Component:
        """Return the state for probes."""
        return health_endpoint.Component(self.written, self.problem or "written", required=False)

    async def _write(self) -> None:
        node = await self._client.get(self._path, objects.Node)
        wanted = dict(self._annotations())
        metadata: dict[str, Any] = {"annotations": wanted}
        label, value = records.ACCELERATOR_LABEL
        has_gpus = records.INVENTORY in wanted
        if has_gpus and label not in (node.metadata.labels or {}):
            # With the version that was read: if a label was set since, the write is refused and tried again.
            metadata |= {"labels": {label: value}, "resourceVersion": node.metadata.resource_version}
        await self._client.patch(self._path, orjson.dumps({"metadata": metadata}))
        if has_gpus:
            await self._write_capacity(node.status.capacity or {})

    async def _write_capacity(self, there: Mapping[str, quantities.Raw]) -> None:
        """Write the capacity where it differs: pods need it only beside a DeviceClass (see `inventory`)."""
        wanted = self._capacity()
        if all(quantities.thousandths(there.get(name)) == quantities.thousandths(wanted[name]) for name in wanted):
            return
        try:
            await self._client.patch(f"{self._path}/status", orjson.dumps({"status": {"capacity": dict(wanted)}}))
        except errors.KubernetesError as refused:
            log.warning(
                "the node's capacity is not written",
                error_code=error_codes.PLUGIN_CAPACITY_NOT_WRITTEN,
                cause=str(refused),
            )
