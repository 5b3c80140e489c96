import asyncio
from typing import Any, cast

import grpc
import pytest

from device_plugin.allocation import starts
from device_plugin.kubelet import device_ids, servicer
from device_plugin.kubelet.refusals import StartRefused
from device_plugin.metrics import Metrics
from gpu_sharing.core import error_codes
from protos.deviceplugin.v1beta1 import api_pb2


class Aborted(Exception):
    """What gRPC raises in the place of an answer."""


class Context:
    """Only the way out that the servicer uses."""

    async def abort(self, code: grpc.StatusCode, text: str) -> None:
        raise Aborted(code, text)


class Broken:
    """An allocator with a defect."""

    async def confirm(self, device_ids: frozenset[str]) -> Any:
        raise KeyError("GPU-x")


class Reporter:
    """Keeps the codes of refusals."""

    def __init__(self) -> None:
        self.codes: list[error_codes.Code] = []

    def refused(self, device_ids: frozenset[str], refused: StartRefused) -> None:
        self.codes.append(refused.code)


def make(listing: servicer.DeviceIdList | None = None) -> tuple[servicer.Servicer, Reporter, Metrics]:
    reporter, metrics = Reporter(), Metrics()
    made = starts.Starts(cast("Any", Broken()), cast("Any", reporter))
    return servicer.Servicer(made, listing or servicer.DeviceIdList(), metrics), reporter, metrics


def test_a_defect_is_a_coded_error_that_starts_nothing() -> None:
    """The name of an exception alone tells a user nothing."""
    service, reporter, metrics = make()

    with pytest.raises(Aborted, match="ALLOC_INTERNAL: KeyError: 'GPU-x'"):
        asyncio.run(service.PreStartContainer(api_pb2.PreStartContainerRequest(devices_ids=["slot-0001"]), Context()))

    assert reporter.codes == [error_codes.ALLOC_INTERNAL]
    assert b'failures_total{error_code="ALLOC_INTERNAL"} 1.0' in metrics.exposition()[0]


def test_the_list_is_told_at_once_and_again_only_when_it_changes() -> None:
    async def story() -> list[list[tuple[str, str]]]:
        listing = servicer.DeviceIdList()
        service, _, _ = make(listing)
        heard: list[list[tuple[str, str]]] = []

        async def follow() -> None:
            async for answer in service.ListAndWatch(api_pb2.Empty(), Context()):
                told = [(device.ID, device.health) for device in answer.devices]
                heard.append(told)

        following = asyncio.create_task(follow())
        one = device_ids.DeviceId("slot-0000", healthy=True)
        for listed in ((one,), (one,), (device_ids.DeviceId("slot-0000", healthy=False),)):
            listing.set(listed)
            for _ in range(100):  # Turns of the loop, not time.
                await asyncio.sleep(0)
        following.cancel()
        return heard

    assert asyncio.run(story()) == [[("slot-0000", "Healthy")], [("slot-0000", "Unhealthy")]]


def test_any_device_id_is_as_good_as_another() -> None:
    asked = api_pb2.ContainerPreferredAllocationRequest(
        available_deviceIDs=["slot-0001", "slot-0002", "slot-0003"],
        must_include_deviceIDs=["slot-0003"],
        allocation_size=2,
    )
    service, _, _ = make()

    answer = asyncio.run(
        service.GetPreferredAllocation(api_pb2.PreferredAllocationRequest(container_requests=[asked]), Context())
    )

    assert list(answer.container_responses[0].deviceIDs) == ["slot-0003", "slot-0001"]
