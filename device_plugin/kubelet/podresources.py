"""The kubelet's podresources API: which container holds which device ids, without UIDs of pods.

The kubelet refuses more than 100 calls a second (burst 10), so callers at the same time share one answer.

Source: k8s.io/kubelet pkg/apis/podresources/v1; limits measured on 1.36.
"""

import asyncio
import pathlib
from dataclasses import dataclass

import grpc
import grpc.aio

from protos.podresources.v1 import api_pb2, api_pb2_grpc

SOCKET = "pod-resources/kubelet.sock"
_TIMEOUT_SECONDS = 5.0
_TRIES = 8
_RETRY_SECONDS = 0.01
_LARGEST_MESSAGE = 16 * 1024 * 1024


@dataclass(frozen=True, slots=True)
class ListedContainer:
    """The device ids of one container, by podresources."""

    namespace: str
    pod: str
    container: str
    device_ids: frozenset[str]


class Unanswered(Exception):
    """The kubelet does not answer; the text has the reason."""


class PodResources:
    """A client of the kubelet's podresources socket."""

    def __init__(self, kubelet_dir: pathlib.Path, resource: str) -> None:
        self._address = f"unix://{kubelet_dir / SOCKET}"
        self._resource = resource
        self._channel: grpc.aio.Channel | None = None
        self._next: asyncio.Task[tuple[ListedContainer, ...]] | None = None

    async def listed(self) -> tuple[ListedContainer, ...]:
        """Return what every container holds, read at some moment after the call.

        Raises:
            Unanswered: The kubelet does not answer.
        """
        if self._next is None or self._next.done():
            self._next = asyncio.create_task(self._list())
        return await asyncio.shield(self._next)

    async def _list(self) -> tuple[ListedContainer, ...]:
        # A caller from here on may come after the kubelet read its state, and needs another call.
        await asyncio.sleep(0)
        self._next = None
        if self._channel is None:
            self._channel = grpc.aio.insecure_channel(
                self._address,
                options=[
                    ("grpc.max_receive_message_length", _LARGEST_MESSAGE),
                    # A kubelet that restarts answers within seconds; by default gRPC would retry after minutes.
                    ("grpc.initial_reconnect_backoff_ms", 100),
                    ("grpc.max_reconnect_backoff_ms", 1000),
                ],
            )
        stub = api_pb2_grpc.PodResourcesListerStub(self._channel)
        for tried in range(1, _TRIES + 1):
            try:
                answer: api_pb2.ListPodResourcesResponse = await stub.List(
                    api_pb2.ListPodResourcesRequest(), timeout=_TIMEOUT_SECONDS
                )
                return self._read(answer)
            except grpc.aio.AioRpcError as refused:
                if refused.code() is not grpc.StatusCode.RESOURCE_EXHAUSTED or tried == _TRIES:
                    raise Unanswered(f"podresources: {refused.code().name} {refused.details()}") from refused
                await asyncio.sleep(_RETRY_SECONDS * tried)
        raise AssertionError("unreachable")

    def _read(self, answer: api_pb2.ListPodResourcesResponse) -> tuple[ListedContainer, ...]:
        entries = []
        for pod in answer.pod_resources:
            for container in pod.containers:
                # A resource comes in several entries, such as one per NUMA node or per id.
                held = frozenset(
                    device_id
                    for devices in container.devices
                    if devices.resource_name == self._resource
                    for device_id in devices.device_ids
                )
                if held:
                    entries.append(ListedContainer(pod.namespace, pod.name, container.name, held))
        return tuple(entries)

    async def close(self) -> None:
        """Close the connection."""
        if self._channel is not None:
            await self._channel.close()
