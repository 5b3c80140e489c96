"""What the plugin writes about its node, and what it leaves as it is."""

import asyncio
from typing import Any

import orjson
import pytest

from device_plugin.node import inventory
from device_plugin.node.publisher import NodePublisher
from gpu_sharing.adapters import objects
from gpu_sharing.core import errors, records, requests

NAMES = requests.ResourceNames()


class Node:
    """An API server with one node."""

    def __init__(self, labels: dict[str, str], forbids_status: bool = False) -> None:
        self.node = objects.Node()
        self.node.metadata.labels = labels
        self.node.metadata.resource_version = "7"
        self.forbids_status = forbids_status
        self.patches: list[tuple[str, Any]] = []

    async def get(self, path: str, kind: type[Any]) -> Any:
        assert path == "/api/v1/nodes/a"
        return self.node

    async def patch(self, path: str, body: bytes) -> bytes:
        if path.endswith("/status") and self.forbids_status:
            raise errors.Forbidden("patch nodes/status", 403)
        change = orjson.loads(body)
        self.patches.append((path, change))
        if path.endswith("/status"):
            self.node.status.capacity = {**(self.node.status.capacity or {}), **change["status"]["capacity"]}
        return b"{}"


def publish(node: Node, times: int = 1) -> NodePublisher:
    client: Any = node
    publisher = NodePublisher(client, "a", lambda: {records.INVENTORY: "[]"}, lambda: inventory.capacity(NAMES))
    for _ in range(times):
        asyncio.run(publisher._write())
    return publisher


@pytest.mark.parametrize("there", ["nvidia-tesla-v100", "nvidia", ""])
def test_a_label_that_is_there_stays(there: str) -> None:
    """Pods select nodes by it: with another value they would be Pending after the installation."""
    node = Node({"accelerator": there})

    publish(node)

    assert node.patches[0][1] == {"metadata": {"annotations": {records.INVENTORY: "[]"}}}


def test_a_node_without_the_label_gets_it_unless_it_changes_meanwhile() -> None:
    """The version is a precondition: a label that is set at the same time wins."""
    node = Node({})

    publish(node)

    metadata = node.patches[0][1]["metadata"]
    assert metadata == {
        "annotations": {records.INVENTORY: "[]"},
        "labels": {"accelerator": "nvidia"},
        "resourceVersion": "7",
    }


def test_the_capacity_of_every_name_that_our_pods_carry_is_written_once() -> None:
    """More than pods can ask for: the kubelet fails pods whose requests add up to more, in whatever unit they are."""
    node = Node({"accelerator": "x"})

    publish(node, times=3)

    written = [change for path, change in node.patches if path.endswith("/status")]
    assert [one["status"]["capacity"] for one in written] == [
        {
            "nvidia.com/gpumem": "8191Pi",
            "nvidia.com/gpumem-percentage": "8E",
            "nvidia.com/gpucores": "8E",
            "nvidia.com/priority": "8E",
        }
    ]


def test_an_account_that_may_not_write_capacity_still_publishes_its_gpus() -> None:
    """The record is what pods are placed by."""
    node = Node({}, forbids_status=True)

    publish(node)

    assert [path for path, _ in node.patches] == ["/api/v1/nodes/a"]
