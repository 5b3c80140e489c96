"""The controller's side of the agents on nodes: it leaves work in its record, and reads results from a ConfigMap.

An agent reads the record, acts on the faults of its own node, and writes `<fault>: <result>` into the ConfigMap of
results, one key a fault, so that no write meets another. No connection between the two is needed.
"""

import asyncio
from dataclasses import replace

import msgspec
import orjson

from fault_injector.backends import BackendFailed
from gpu_sharing.adapters import decoding, kubernetes, objects
from gpu_sharing.core import error_codes, errors, faults, records

_ANSWER_SECONDS = 45.0
_POLL_SECONDS = 0.5


class Result(msgspec.Struct, frozen=True):
    """What an agent has done with a fault."""

    state: str
    """`injecting`, `injected`, `failed` or `recovered`."""
    cause: str = ""


class ConfigMap(msgspec.Struct):
    """The part of a ConfigMap that is read."""

    data: dict[str, str] | None = None


def result_of(config_map: ConfigMap, fault_id: str) -> Result | None:
    """Return the result about a fault; None where there is none that can be read."""
    try:
        return decoding.json_as(Result, (config_map.data or {})[fault_id])
    except (KeyError, msgspec.MsgspecError):
        return None


class NodeAgents:
    """Has the agent of a node inject and recover, by one of its own backends."""

    outlives_process = True

    def __init__(self, client: kubernetes.Client, results: str, name: str, kinds: frozenset[str]) -> None:
        """Make the backend.

        Args:
            client: Of the API server.
            results: The path of the ConfigMap of results.
            name: The agent's backend.
            kinds: The kinds that it can inject on nodes that have what it needs.
        """
        self._client = client
        self._results = results
        self.name = name
        self.kinds = kinds

    async def resolve(self, request: faults.Request) -> faults.Request:
        """Return the request with the UUID of its GPU, by the node's inventory."""
        node, wanted = str(request.values["node"]), str(request.values["gpu"])
        try:
            annotations = (await self._client.get(f"/api/v1/nodes/{node}", objects.Node)).metadata.annotations or {}
            inventory = records.decode_inventory(annotations.get(records.INVENTORY, "[]"))
        except errors.NotFound as cause:
            raise errors.FaultRefused(error_codes.FAULT_NO_TARGET, f"no node is named {node}") from cause
        except (errors.KubernetesError, errors.CorruptRecord) as cause:
            text = f"the GPUs of {node} cannot be read: {cause}"
            raise errors.FaultRefused(error_codes.FAULT_NO_TARGET, text) from cause
        for gpu in inventory:
            if wanted in (gpu.uuid, str(gpu.index)):
                return replace(request, values={**request.values, "gpu": str(gpu.uuid)})
        listed = ", ".join(f"{gpu.index} ({gpu.uuid})" for gpu in inventory) or "none"
        raise errors.FaultRefused(error_codes.FAULT_NO_TARGET, f"{node} has no GPU {wanted}; it has {listed}")

    async def inject(self, fault: faults.Fault) -> None:
        """See `Backend`; the record has the fault as `injecting` already."""
        result = await self._wait(fault, frozenset({"injected", "failed"}))
        if result.state == "failed":
            raise BackendFailed(result.cause or "the node's agent has failed")

    async def recover(self, fault: faults.Fault) -> None:
        """See `Backend`; the record has the fault as `recovering`, or as `injecting` after a failure."""
        result = await self._read(fault)
        if result is None or result.state == "failed":
            done = {"state": "recovered", "cause": ""}
            if fault.state is not faults.State.RECOVERING:  # The agent has undone what it did.
                await self._client.patch(self._results, orjson.dumps({"data": {fault.id: orjson.dumps(done).decode()}}))
                return
        await self._wait(fault, frozenset({"recovered"}))
        await self._client.patch(self._results, orjson.dumps({"data": {fault.id: None}}))

    async def _read(self, fault: faults.Fault) -> Result | None:
        return result_of(await self._client.get(self._results, ConfigMap), fault.id)

    async def _wait(self, fault: faults.Fault, states: frozenset[str]) -> Result:
        try:
            async with asyncio.timeout(_ANSWER_SECONDS):
                while True:
                    result = await self._read(fault)
                    if result is not None and result.state in states:
                        return result
                    await asyncio.sleep(_POLL_SECONDS)
        except TimeoutError as cause:
            text = f"no agent on {fault.values['node']} has answered within {_ANSWER_SECONDS:g} s"
            raise BackendFailed(f"{text}; does the fault injection DaemonSet run there?") from cause
