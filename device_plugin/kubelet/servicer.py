"""The kubelet's questions, answered: its messages to values, values to its messages.

Source: k8s.io/kubelet pkg/apis/deviceplugin/v1beta1; kubelet's device manager for what it does with an error: one
from Allocate is final for a pod, one from PreStartContainer is shown and retried.
"""

import asyncio
import re
import time
from collections.abc import AsyncIterator, Callable, Sequence
from typing import Any

import grpc
import grpc.aio
import structlog

from device_plugin import metrics
from device_plugin.allocation import allocator, checks
from device_plugin.allocation.allocator import Allocator
from device_plugin.delivery import edits, methods
from device_plugin.kubelet import device_ids
from gpu_sharing.core import error_codes
from protos.deviceplugin.v1beta1 import api_pb2, api_pb2_grpc

HEALTHY, UNHEALTHY = "Healthy", "Unhealthy"
_TOKEN = re.compile(r"(slot|spare)-\d{4,5}")

log = structlog.get_logger("kubelet")


class DeviceIdList:
    """The list of tokens that the kubelet is told, and who waits for the next one.

    Attributes:
        current: The list now.
    """

    def __init__(self) -> None:
        self.current: tuple[device_ids.DeviceId, ...] = ()
        self._changed = asyncio.Event()

    def set(self, listed: tuple[device_ids.DeviceId, ...]) -> bool:
        """Make it the current list. Returns whether it is another one."""
        if listed == self.current:
            return False
        self.current = listed
        self._changed.set()
        self._changed = asyncio.Event()
        return True

    async def next_after(self, seen: tuple[device_ids.DeviceId, ...]) -> tuple[device_ids.DeviceId, ...]:
        """The list, once it is another one than that."""
        while self.current == seen:
            await self._changed.wait()
        return self.current


class Servicer(api_pb2_grpc.DevicePluginServicer):
    """The DevicePlugin service.

    Attributes:
        followers: How many calls of ListAndWatch are open; without one the kubelet offers no device id.
        followed: How many there were so far.
    """

    def __init__(
        self,
        allocator: Allocator,
        listing: DeviceIdList,
        counters: metrics.Metrics,
        confirmed: Callable[[allocator.Confirmed], None],
        doubted: Callable[[frozenset[str], checks.StartRefused], None],
    ) -> None:
        self._allocator = allocator
        self._listing = listing
        self._metrics = counters
        self._confirmed = confirmed
        self._doubted = doubted
        self.followers = self.followed = 0

    async def GetDevicePluginOptions(  # noqa: N802  # the wire's name
        self, request: api_pb2.Empty, context: Any
    ) -> api_pb2.DevicePluginOptions:
        """PreStartContainer is our barrier."""
        return api_pb2.DevicePluginOptions(pre_start_required=True)

    async def ListAndWatch(  # noqa: N802
        self, request: api_pb2.Empty, context: Any
    ) -> AsyncIterator[api_pb2.ListAndWatchResponse]:
        """The whole list, whenever it changes."""
        seen: tuple[device_ids.DeviceId, ...] = ()
        self.followers += 1
        self.followed += 1
        try:
            while True:
                seen = await self._listing.next_after(seen)
                yield api_pb2.ListAndWatchResponse(
                    devices=[api_pb2.Device(ID=one.token, health=HEALTHY if one.healthy else UNHEALTHY) for one in seen]
                )
        finally:
            self.followers -= 1

    async def GetPreferredAllocation(  # noqa: N802
        self, request: api_pb2.PreferredAllocationRequest, context: Any
    ) -> api_pb2.PreferredAllocationResponse:
        """Any token is as good as another."""
        return api_pb2.PreferredAllocationResponse(
            container_responses=[
                api_pb2.ContainerPreferredAllocationResponse(
                    deviceIDs=list(one.must_include_deviceIDs)
                    + [token for token in one.available_deviceIDs if token not in set(one.must_include_deviceIDs)][
                        : max(one.allocation_size - len(one.must_include_deviceIDs), 0)
                    ]
                )
                for one in request.container_requests
            ]
        )

    async def Allocate(self, request: api_pb2.AllocateRequest, context: Any) -> api_pb2.AllocateResponse:  # noqa: N802
        """A name, or edits where names are not understood."""
        started = time.perf_counter()
        try:
            if not request.container_requests:
                raise checks.StartRefused(error_codes.ALLOC_BAD_IDS, "the kubelet asks for no container")
            answers = [
                _answer(await self._allocator.allocate(_tokens(one.devices_ids))) for one in request.container_requests
            ]
        except checks.StartRefused as doubt:
            self._metrics.failed(doubt.code)
            log.error("allocate refused", error_code=doubt.code, cause=str(doubt))
            await context.abort(grpc.StatusCode.INVALID_ARGUMENT, doubt.text)
        self._metrics.allocate_seconds.observe(time.perf_counter() - started)
        return api_pb2.AllocateResponse(container_responses=answers)

    async def PreStartContainer(  # noqa: N802
        self, request: api_pb2.PreStartContainerRequest, context: Any
    ) -> api_pb2.PreStartContainerResponse:
        """The barrier: the container starts with its own record's slice, or not at all."""
        started = time.perf_counter()
        asked = frozenset(request.devices_ids)
        try:
            confirmed = await self._confirm(request.devices_ids)
        except checks.StartRefused as doubt:
            self._metrics.failed(doubt.code)
            self._doubted(asked, doubt)
            await context.abort(grpc.StatusCode.FAILED_PRECONDITION, doubt.text)
            raise AssertionError("unreachable") from doubt
        self._metrics.confirm_seconds.observe(time.perf_counter() - started)
        self._confirmed(confirmed)
        return api_pb2.PreStartContainerResponse()

    async def _confirm(self, ids: Sequence[str]) -> allocator.Confirmed:
        try:
            return await self._allocator.confirm(_tokens(ids))
        except checks.StartRefused:
            raise
        except Exception as defect:
            log.exception("defect", error_code=error_codes.ALLOC_INTERNAL)
            raise checks.StartRefused(error_codes.ALLOC_INTERNAL, f"{type(defect).__name__}: {defect}") from defect


def _tokens(ids: Sequence[str]) -> frozenset[str]:
    strange = [one for one in ids if not _TOKEN.fullmatch(one)]
    if not ids or strange:
        what = f"device id {strange[0][:80]!r} is none of ours" if strange else "the kubelet asks for no device ids"
        raise checks.StartRefused(error_codes.ALLOC_BAD_IDS, what)
    return frozenset(ids)


def _answer(given: edits.Edits | str) -> api_pb2.ContainerAllocateResponse:
    if isinstance(given, str):
        # What a runtime without CDI would start the container with: no GPU at all. The specification overrides it.
        return api_pb2.ContainerAllocateResponse(
            envs={methods.VISIBLE: methods.VOID}, cdi_devices=[api_pb2.CDIDevice(name=given)]
        )
    return api_pb2.ContainerAllocateResponse(
        envs=dict(given.environment),
        mounts=[
            api_pb2.Mount(container_path=one.container, host_path=one.host, read_only=one.read_only)
            for one in given.mounts
        ],
        devices=[
            api_pb2.DeviceSpec(container_path=one.container, host_path=one.host, permissions=one.permissions)
            for one in given.device_nodes
        ],
    )
