"""Measurements for the checks of a scenario, from the API objects alone."""

import time
from collections.abc import Callable, Iterable
from typing import Any, TypeVar

import msgspec

from fault_injector import api_types
from gpu_sharing.adapters import decoding, kubernetes, objects
from gpu_sharing.core import errors, faults, records

_PAGE = 500
_Item = TypeVar("_Item", objects.Node, objects.Pod)


def gpu(nodes: Iterable[objects.Node]) -> api_types.GpuMeasurement:
    """Return the state of all GPUs. A node whose annotation does not decode counts with no GPU."""
    count = cordoned = 0
    causes: dict[str, str] = {}
    for node in nodes:
        annotations = node.metadata.annotations or {}
        try:
            known = {one.uuid for one in records.decode_inventory(annotations.get(records.INVENTORY, "[]"))}
        except errors.CorruptRecord:
            continue
        count += len(known)
        cordoned += len(known & records.decode_cordon(annotations.get(records.CORDON, "")))
        reasons = records.decode_unhealthy_reasons(annotations.get(records.HEALTH, ""))
        causes |= {uuid: cause for uuid, cause in reasons.items() if uuid in known}
    return api_types.GpuMeasurement(
        gpus=count, healthy=count - len(causes), unhealthy=len(causes), cordoned=cordoned, causes=causes
    )


def scheduling(pods: Iterable[objects.Pod], resource: str) -> api_types.SchedulingMeasurement:
    """Return how many pods with GPUs are in which phase.

    Args:
        pods: All pods.
        resource: By which a container requests GPUs.
    """
    bound = running = pending = ended = 0
    for pod in pods:
        has_record = records.ALLOCATED in pod.annotations
        containers = [*pod.init_containers, *pod.containers]
        requests = any(one.resources and resource in (one.resources.limits or {}) for one in containers)
        if not has_record and not requests:
            continue
        if pod.has_ended:
            ended += 1
            continue
        bound += has_record
        running += pod.status is not None and pod.status.phase == "Running"
        pending += not pod.spec.node_name
    return api_types.SchedulingMeasurement(bound=bound, running=running, pending=pending, ended=ended)


def node_health(nodes: Iterable[objects.Node]) -> api_types.NodeMeasurement:
    """Return the state of the nodes that have GPUs."""
    count = ready = cordoned = 0
    problems: dict[str, list[str]] = {}
    for node in nodes:
        annotations = node.metadata.annotations or {}
        if records.INVENTORY not in annotations:
            continue
        count += 1
        conditions = {one.type: one.status for one in node.status.conditions or ()}
        ready += conditions.get("Ready") == "True"
        cordoned += bool(node.spec.unschedulable)
        if codes := sorted(records.decode_problems(annotations.get(records.PROBLEMS, ""))):
            problems[node.metadata.name] = codes
    return api_types.NodeMeasurement(nodes=count, ready=ready, cordoned=cordoned, problems=problems)


class Measurements:
    """Reads what the measurements are made of."""

    def __init__(
        self,
        client: kubernetes.Client,
        recorded: Callable[[], Iterable[faults.Fault]],
        resource: str = "nvidia.com/gpu",
    ) -> None:
        self._client = client
        self._recorded = recorded
        self._resource = resource

    async def measure(self, name: str) -> Any:
        """Return one of `api_types.MEASUREMENTS`.

        Raises:
            KubernetesError: The API server does not answer.
        """
        match name:
            case "gpu":
                return gpu(await self._all("nodes", objects.Node))
            case "scheduling":
                return scheduling(await self._all("pods", objects.Pod), self._resource)
            case "node-health":
                return node_health(await self._all("nodes", objects.Node))
            case _:
                return await self._network()

    async def _network(self) -> api_types.NetworkMeasurement:
        started = time.monotonic()
        try:
            answers = bool(await self._client.ping())
        except errors.KubernetesError:
            answers = False
        of_network = [fault for fault in self._recorded() if fault.kind.group is faults.Group.NETWORK]
        return api_types.NetworkMeasurement(
            apiserver_answers=answers,
            apiserver_seconds=round(time.monotonic() - started, 4),
            faults_in_effect=[str(fault.id) for fault in of_network if fault.is_in_effect],
        )

    async def _all(self, plural: str, kind: type[_Item]) -> list[_Item]:
        """Return all objects of a kind; one that does not decode is left out."""
        items: list[_Item] = []
        async for page in self._client.pages(f"/api/v1/{plural}", _PAGE):
            for raw in page.items or ():
                try:
                    items.append(decoding.json_as(kind, raw))
                except msgspec.MsgspecError:
                    continue
        return items
