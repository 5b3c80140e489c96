"""A DeviceClass that offers our GPU resource keeps no pod away, on a real kube-scheduler, kubelet and containerd.

kube-scheduler's DynamicResources plugin then wants every other extended resource of a pod to be a key of the node's
allocatable, and does not know `ignoredByScheduler`. No DRA driver has to be there for that.
"""

import pathlib
from collections.abc import Iterator
from typing import Any

import pytest

from lab import gpus
from tests.e2e import gpu_node
from tests.e2e import site as sites

CLASSES = "/apis/resource.k8s.io/v1/deviceclasses"
CLASS: dict[str, Any] = {
    "metadata": {"name": "gpu.nvidia.com"},
    "spec": {
        "extendedResourceName": "nvidia.com/gpu",
        "selectors": [{"cel": {"expression": "device.driver == 'gpu.nvidia.com'"}}],
    },
}
NAMES = ("nvidia.com/gpumem", "nvidia.com/gpumem-percentage", "nvidia.com/gpucores", "nvidia.com/priority")
LIMITS = {"nvidia.com/gpu": "1", "nvidia.com/gpumem": "4000", "nvidia.com/gpucores": "30"}
MERGE = "application/merge-patch+json"


@pytest.fixture(scope="module")
def node(programs: pathlib.Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[gpu_node.GpuNode]:
    del programs
    with gpu_node.running(tmp_path_factory.mktemp("class"), 1) as running:
        yield running


def test_a_node_without_the_names_is_where_the_class_bites_and_the_names_cure_it(own_site: sites.Site) -> None:
    """What the real kube-scheduler does: pending pod already are woken by the node's new capacity."""
    own_site.add_nodes(gpus.gpu_node("a", gpus.A100, 1))
    own_site.api("POST", CLASSES, CLASS)
    own_site.create(own_site.pod_body("waits", LIMITS))

    def message() -> str:
        found = own_site.pod("waits")["status"].get("conditions", ())
        return next((one["message"] for one in found if one["type"] == "PodScheduled"), "")

    def explained() -> str:
        assert own_site.extender is not None
        return own_site.extender.get("api", "/api/v1/explain/default/waits")[1].decode()

    sites.wait_for(lambda: "0/1 nodes are available" in message(), 60)
    sites.wait_for(lambda: "SCHED_DEVICE_CLASS" in explained() and "gpu.nvidia.com" in explained(), 30, explained)
    status = {"status": {kind: dict.fromkeys(NAMES, "100Gi") for kind in ("capacity", "allocatable")}}
    own_site.api("PATCH", "/api/v1/nodes/a/status", status, MERGE)

    own_site.wait_bound("waits", seconds=60)


def test_the_plugin_writes_the_names_and_pods_run_beside_the_class(node: gpu_node.GpuNode) -> None:
    """The kubelet copies them to allocatable and admits pods by them, whichever unit memory is written in."""
    node.wait("the kubelet has the names", lambda: set(NAMES) <= set(node.node_object()["status"]["allocatable"]))
    assert node.node_object()["status"]["capacity"]["nvidia.com/gpumem"] == "8191Pi"
    node.plane.api("POST", CLASSES, CLASS)
    bytes_of_memory = gpu_node.container("main", 4000)
    bytes_of_memory["resources"]["limits"]["nvidia.com/gpumem"] = "4Gi"
    in_percent = gpu_node.container("main", 0, 30)
    del in_percent["resources"]["limits"]["nvidia.com/gpumem"]
    in_percent["resources"]["limits"]["nvidia.com/gpumem-percentage"] = "20"

    node.create(
        gpu_node.pod("plain", gpu_node.container("main", 4000, 30)),
        gpu_node.pod("bytes", bytes_of_memory),
        gpu_node.pod("percent", in_percent),
    )

    node.wait_running("plain", "bytes", "percent")
    assert node.mismatches() == []


def test_the_kubelet_keeps_the_names_when_it_starts_anew(node: gpu_node.GpuNode) -> None:
    """A pod created right after a restart must not wait for the plugin's next heartbeat."""
    node.wait("the kubelet has the names", lambda: set(NAMES) <= set(node.node_object()["status"]["allocatable"]))

    node.node.kill_kubelet()
    node.node.start_kubelet()

    node.wait("it is ready again", lambda: node.allocatable() == 20)
    assert set(NAMES) <= set(node.node_object()["status"]["allocatable"])
    node.create(gpu_node.pod("after", gpu_node.container("main", 1000)))
    node.wait_running("after")
