"""Writes the node's annotations and capacity on every change, and again on a heartbeat in case they were removed.

A write of what is there already changes nothing in the API server.
"""

import asyncio
from collections.abc import Callable, Mapping
from typing import Any

import orjson
import structlog

from gpu_sharing.adapters import kubernetes, objects
from gpu_sharing.core import error_codes, errors, quantities, records

_HEARTBEAT_SECONDS = 60.0
_FIRST_BACKOFF_SECONDS, _LONGEST_BACKOFF_SECONDS = 0.5, 15.0

log = structlog.get_logger("inventory")


class Publisher:
    """Writes the node's annotations and capacity, and the label by which people find such nodes.

    A label of that name that is there already stays: pods may select nodes by it.

    Attributes:
        written: Whether what is wanted now is written.
        trouble: Why not, if it is not.
    """

    def __init__(
        self,
        client: kubernetes.Client,
        node_name: str,
        wanted: Callable[[], Mapping[str, str]],
        wanted_capacity: Callable[[], Mapping[str, str]],
    ) -> None:
        self._client = client
        self._path = f"/api/v1/nodes/{node_name}"
        self._wanted = wanted
        self._wanted_capacity = wanted_capacity
        self._changed = asyncio.Event()
        self.written = False
        self.trouble = ""

    def change(self) -> None:
        """Say that there is something new to write."""
        self.written = False
        self._changed.set()

    async def run(self) -> None:
        """Write for ever; ends only by cancellation. Nothing is written before the first change."""
        await self._changed.wait()
        backoff = _FIRST_BACKOFF_SECONDS
        while True:
            self._changed.clear()
            try:
                await self._write()
            except errors.KubernetesError as refused:
                self.trouble = str(refused)
                log.error("not written", error_code=error_codes.PLUGIN_INVENTORY_NOT_WRITTEN, cause=str(refused))
                await asyncio.sleep(backoff)
                backoff = min(2 * backoff, _LONGEST_BACKOFF_SECONDS)
                continue
            backoff, self.trouble = _FIRST_BACKOFF_SECONDS, ""
            self.written = not self._changed.is_set()
            try:
                await asyncio.wait_for(self._changed.wait(), _HEARTBEAT_SECONDS)
            except TimeoutError:
                continue

    async def _write(self) -> None:
        node = await self._client.get(self._path, objects.Node)
        wanted = dict(self._wanted())
        metadata: dict[str, Any] = {"annotations": wanted}
        label, value = records.ACCELERATOR_LABEL
        has_gpus = records.INVENTORY in wanted
        if has_gpus and label not in (node.metadata.labels or {}):
            # A label that is set after this read wins: then the version is another one, and this is tried again.
            metadata |= {"labels": {label: value}, "resourceVersion": node.metadata.resource_version}
        await self._client.patch(self._path, orjson.dumps({"metadata": metadata}))
        if has_gpus:
            await self._write_capacity(node.status.capacity or {})

    async def _write_capacity(self, there: Mapping[str, quantities.Raw]) -> None:
        """Write the capacity where it differs. Pods are placed without it too, except beside such a DeviceClass."""
        wanted = self._wanted_capacity()
        if all(quantities.thousandths(there.get(name)) == quantities.thousandths(wanted[name]) for name in wanted):
            return
        try:
            await self._client.patch(f"{self._path}/status", orjson.dumps({"status": {"capacity": dict(wanted)}}))
        except errors.KubernetesError as refused:
            log.warning("not written", error_code=error_codes.PLUGIN_CAPACITY_NOT_WRITTEN, cause=str(refused))
