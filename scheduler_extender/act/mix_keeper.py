"""Keeps the mix of requests across restarts, in a ConfigMap: the leader writes it, every replica reads it at its start.

It is knowledge that can be learned again: what cannot be read or written costs some hours of slightly worse packing.
"""

import asyncio
from collections.abc import Callable

import msgspec
import orjson
import structlog

from gpu_sharing.adapters import kubernetes
from gpu_sharing.core import error_codes, errors, request_mix
from scheduler_extender.decide.packing import Packing

WRITE_SECONDS = 600.0
_KEY = "mix"

log = structlog.get_logger("mix")


class _ConfigMap(msgspec.Struct):
    data: dict[str, str] | None = None


class MixKeeper:
    """Reads the mix once, then writes it now and then.

    Attributes:
        every_seconds: Between two writes.
    """

    def __init__(self, client: kubernetes.Client, place: str, packing: Packing, leads: Callable[[], bool]) -> None:
        namespace, _, self._name = place.partition("/")
        self._folder = f"/api/v1/namespaces/{namespace}/configmaps"
        self._client = client
        self._packing = packing
        self._leads = leads
        self._written_at_arrivals = 0
        self.every_seconds = WRITE_SECONDS

    async def run(self) -> None:
        """Follow the mix for ever; ends only by cancellation."""
        await self._read()
        while True:
            await asyncio.sleep(self.every_seconds)
            if self._leads() and self._packing.mix.arrivals != self._written_at_arrivals:
                await self._write()

    async def _read(self) -> None:
        try:
            kept = await self._client.get(f"{self._folder}/{self._name}", _ConfigMap)
            self._packing.remember(request_mix.decode((kept.data or {}).get(_KEY, "")))
        except errors.NotFound:
            log.info("no request mix yet", config_map=self._name)
        except (errors.KubernetesError, errors.CorruptRecord) as cause:
            log.warning("request mix unreadable", error_code=error_codes.REQUEST_MIX, cause=str(cause))

    async def _write(self) -> None:
        arrivals, data = self._packing.mix.arrivals, {_KEY: self._packing.mix.encode()}
        try:
            try:
                await self._client.patch(f"{self._folder}/{self._name}", orjson.dumps({"data": data}))
            except errors.NotFound:
                body = {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": self._name}, "data": data}
                await self._client.post(self._folder, orjson.dumps(body))
        except errors.KubernetesError as cause:
            log.warning("request mix not kept", error_code=error_codes.REQUEST_MIX, cause=str(cause))
            return
        self._written_at_arrivals = arrivals
