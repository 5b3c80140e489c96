"""The DevicePlugin service: messages of the kubelet become values, and values become messages.

Source: k8s.io/kubelet pkg/apis/deviceplugin/v1beta1; kubelet's device manager for what it does with an error: one
from Allocate is final for a pod, one from PreStartContainer is shown and retried.
"""

import asyncio
import re
import time
from collections.abc import AsyncIterator, Sequence
from typing import Any, Protocol

import grpc
import grpc.aio
import structlog

from device_plugin.delivery import edits
from device_plugin.kubelet.device_ids import DeviceId
from device_plugin.kubelet.refusals import StartRefused
from device_plugin.metrics import Metrics
from gpu_sharing.core import error_codes, nvidia
from protos.deviceplugin.v1beta1 import api_pb2, api_pb2_grpc

HEALTHY, UNHEALTHY = "Healthy", "Unhealthy"
_DEVICE_ID = re.compile(r"(slot|spare)-\d{4,5}")

log = structlog.get_logger("kubelet")


class DeviceIdList:
    """The device ids that the kubelet receives.

    Attributes:
        current: The list now.
    """

    def __init__(self) -> None:
        self.current: tuple[DeviceId, ...] = ()
        self._changed = asyncio.Event()

    def set(self, listed: tuple[DeviceId, ...]) -> bool:
        """Set the list. Returns whether it has changed."""
        if listed == self.current:
            return False
        self.current = listed
        self._changed.set()
        self._changed = asyncio.Event()
        return True

    async def next_after(self, seen: tuple[DeviceId, ...]) -> tuple[DeviceId, ...]:
        """Return the list once it differs from one that was seen."""
        while self.current == seen:
            await self._changed.wait()
        return self.current


class Starts(Protocol):
    """Decides on starts of containers."""

    async def allocate(self, device_ids: frozenset[str]) -> edits.Edits | str:
        """Return what a container gets: edits, or the CDI name of edits that follow. Raises `StartRefused`."""

    async def confirm(self, device_ids: frozenset[str]) -> None:
        """Make sure that a container may start now. Raises `StartRefused`."""


class Servicer(api_pb2_grpc.DevicePluginServicer):
    """The DevicePlugin service.

    Attributes:
        followers: How many calls of ListAndWatch are open; without one the kubelet offers no device id.
        followed: How many there were so far.
        answered_at: Monotonic seconds of the last answer about a container, refusals among them.
    """

    def __init__(self, starts: Starts, listing: DeviceIdList, metrics: Metrics) -> None:
        self._starts = starts
        self._listing = listing
        self._metrics = metrics
        self.followers = self.followed = 0
        self.answered_at = float("-inf")

    async def GetDevicePluginOptions(  # noqa: N802  # the wire's name
        self, request: api_pb2.Empty, context: Any
    ) -> api_pb2.DevicePluginOptions:
        """Ask for PreStartContainer, at which each start is confirmed."""
        return api_pb2.DevicePluginOptions(pre_start_required=True)

    async def ListAndWatch(  # noqa: N802
        self, request: api_pb2.Empty, context: Any
    ) -> AsyncIterator[api_pb2.ListAndWatchResponse]:
        """Send the whole list of device ids, and again whenever it changes."""
        seen: tuple[DeviceId, ...] = ()
        self.followers += 1
        self.followed += 1
        try:
            while True:
                seen = await self._listing.next_after(seen)
                yield api_pb2.ListAndWatchResponse(
                    devices=[
                        api_pb2.Device(ID=one.device_id, health=HEALTHY if one.healthy else UNHEALTHY) for one in seen
                    ]
                )
        finally:
            self.followers -= 1

    async def GetPreferredAllocation(  # noqa: N802
        self, request: api_pb2.PreferredAllocationRequest, context: Any
    ) -> api_pb2.PreferredAllocationResponse:
        """Return any ids: each can stand for any GPU."""
        return api_pb2.PreferredAllocationResponse(
            container_responses=[
                api_pb2.ContainerPreferredAllocationResponse(
                    deviceIDs=list(one.must_include_deviceIDs)
                    + [
                        device_id
                        for device_id in one.available_deviceIDs
                        if device_id not in set(one.must_include_deviceIDs)
                    ][: max(one.allocation_size - len(one.must_include_deviceIDs), 0)]
                )
                for one in request.container_requests
            ]
        )

    async def Allocate(self, request: api_pb2.AllocateRequest, context: Any) -> api_pb2.AllocateResponse:  # noqa: N802
        """Answer a CDI name, or edits where the container runtime does not know CDI."""
        started = time.perf_counter()
        try:
            if not request.container_requests:
                raise StartRefused(error_codes.ALLOC_BAD_IDS, "the kubelet sends no container")
            answers = [
                _answer(await self._starts.allocate(_checked(one.devices_ids))) for one in request.container_requests
            ]
        except StartRefused as refused:
            self._metrics.failed(refused.code)
            log.error("allocate refused", error_code=refused.code, cause=str(refused))
            self.answered_at = time.monotonic()
            await context.abort(grpc.StatusCode.INVALID_ARGUMENT, refused.text)
        self._metrics.allocate_seconds.observe(time.perf_counter() - started)
        self.answered_at = time.monotonic()
        return api_pb2.AllocateResponse(container_responses=answers)

    async def PreStartContainer(  # noqa: N802
        self, request: api_pb2.PreStartContainerRequest, context: Any
    ) -> api_pb2.PreStartContainerResponse:
        """Let the container start with its own record's shares, or not at all."""
        started = time.perf_counter()
        try:
            await self._starts.confirm(_checked(request.devices_ids))
        except StartRefused as refused:
            self._metrics.failed(refused.code)
            self.answered_at = time.monotonic()
            await context.abort(grpc.StatusCode.FAILED_PRECONDITION, refused.text)
        self._metrics.confirm_seconds.observe(time.perf_counter() - started)
        self.answered_at = time.monotonic()
        return api_pb2.PreStartContainerResponse()


def _checked(ids: Sequence[str]) -> frozenset[str]:
    unknown = [device_id for device_id in ids if not _DEVICE_ID.fullmatch(device_id)]
    if not ids or unknown:
        what = f"device id {unknown[0][:80]!r} is unknown" if unknown else "the kubelet sends no device ids"
        raise StartRefused(error_codes.ALLOC_BAD_IDS, what)
    return frozenset(ids)


def _answer(given: edits.Edits | str) -> api_pb2.ContainerAllocateResponse:
    if isinstance(given, str):
        # A runtime that ignores CDI starts the container with this: no GPU at all. The specification replaces it.
        return api_pb2.ContainerAllocateResponse(
            envs={nvidia.VISIBLE_DEVICES: nvidia.NO_DEVICES}, cdi_devices=[api_pb2.CDIDevice(name=given)]
        )
    return api_pb2.ContainerAllocateResponse(
        envs=dict(given.environment),
        mounts=[
            api_pb2.Mount(container_path=mount.container, host_path=mount.host, read_only=mount.read_only)
            for mount in given.mounts
        ],
        devices=[
            api_pb2.DeviceSpec(container_path=node.container, host_path=node.host, permissions=node.permissions)
            for node in given.device_nodes
        ],
    )
