"""Partitions, delays and losses as NetworkChaos objects, where Chaos Mesh is installed.

Source: chaos-mesh.org, `NetworkChaos` of chaos-mesh.org/v1alpha1: action, direction, selector, target, externalTargets,
and the condition AllInjected.
"""

import asyncio
from typing import Any

import msgspec
import orjson

from fault_injector.backends import BackendFailed, pod_networks
from gpu_sharing.adapters import discovery, kubernetes, objects
from gpu_sharing.core import errors, faults

_API_SERVER = "kubernetes.default.svc"
_INJECTED_SECONDS = 30.0
_POLL_SECONDS = 0.5


class _Status(msgspec.Struct):
    conditions: list[objects.Condition] | None = None


class _Chaos(msgspec.Struct):
    status: _Status = msgspec.field(default_factory=_Status)


class ChaosMesh:
    """Creates and deletes NetworkChaos objects."""

    name = "chaos-mesh"
    outlives_process = True

    def __init__(self, client: kubernetes.Client, own_namespace: str, *, is_installed: bool) -> None:
        """Make the backend; see `installed`."""
        self._client = client
        self._own_namespace = own_namespace
        self.kinds = frozenset({"partition", "network-latency", "packet-loss"}) if is_installed else frozenset[str]()

    async def resolve(self, request: faults.Request) -> faults.Request:
        """See `Backend`."""
        pod_networks.demand_reachable(request)
        return request

    async def inject(self, fault: faults.Fault) -> None:
        """See `Backend`."""
        chaos = network_chaos(fault, self._own_namespace)
        path = _collection(chaos["metadata"]["namespace"])
        await self._client.post(path, orjson.dumps(chaos))
        try:
            async with asyncio.timeout(_INJECTED_SECONDS):
                while not await self._is_injected(f"{path}/{chaos['metadata']['name']}"):
                    await asyncio.sleep(_POLL_SECONDS)
        except TimeoutError as cause:
            raise BackendFailed(f"Chaos Mesh has not injected it within {_INJECTED_SECONDS:g} s") from cause

    async def _is_injected(self, path: str) -> bool:
        conditions = (await self._client.get(path, _Chaos)).status.conditions or ()
        return any(one.type == "AllInjected" and one.status == "True" for one in conditions)

    async def recover(self, fault: faults.Fault) -> None:
        """See `Backend`; the object is gone when Chaos Mesh has recovered every pod, because of its finalizer."""
        metadata = network_chaos(fault, self._own_namespace)["metadata"]
        path = f"{_collection(metadata['namespace'])}/{metadata['name']}"
        try:
            await self._client.delete(path)
            while True:
                await self._client.get(path, _Chaos)
                await asyncio.sleep(_POLL_SECONDS)
        except errors.NotFound:
            return


async def installed(client: kubernetes.Client) -> bool:
    """Return whether the cluster has the kind NetworkChaos.

    Raises:
        KubernetesError: The API server does not answer.
    """
    return await discovery.path_of(client, "chaos-mesh.org", "networkchaos") is not None


def _collection(namespace: str) -> str:
    return f"/apis/chaos-mesh.org/v1alpha1/namespaces/{namespace}/networkchaos"


def network_chaos(fault: faults.Fault, own_namespace: str) -> dict[str, Any]:
    """Return the object of a fault."""
    first, second = pod_networks.sides(fault.values, own_namespace)
    spec: dict[str, Any] = {"mode": "all", "selector": _selector(first), "direction": "both"}
    if second is None:
        spec |= {"direction": "to", "externalTargets": [_API_SERVER]}
    else:
        spec["target"] = {"mode": "all", "selector": _selector(second)}
    match fault.kind.name:
        case "network-latency":
            spec |= {"action": "delay", "delay": {"latency": f"{fault.values['latency_ms']}ms"}}
        case "packet-loss":
            spec |= {"action": "loss", "loss": {"loss": str(fault.values["loss_percent"])}}
        case _:
            spec["action"] = "partition"
    labels = {"app.kubernetes.io/managed-by": "hami-fault-injector", "hami.io/fault": str(fault.id)}
    metadata = {"name": f"hami-fault-{fault.id}", "namespace": first.namespace, "labels": labels}
    return {"apiVersion": "chaos-mesh.org/v1alpha1", "kind": "NetworkChaos", "metadata": metadata, "spec": spec}


def _selector(side: pod_networks.Side) -> dict[str, Any]:
    return {"namespaces": [side.namespace], "labelSelectors": dict(side.labels)}
