"""A DeviceClass that offers the GPUs' resource does not keep pods with GPU memory Pending, on real components."""

import pathlib
from collections.abc import Iterator

import pytest

from lab.real import control_plane
from tests import inputs
from tests.e2e import gpu_node

CLASSES = "/apis/resource.k8s.io/v1/deviceclasses"
NAMES = ("nvidia.com/gpumem", "nvidia.com/gpumem-percentage", "nvidia.com/gpucores", "nvidia.com/priority")


@pytest.fixture(scope="module")
def node(programs: pathlib.Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[gpu_node.GpuNode]:
    with gpu_node.running(tmp_path_factory.mktemp("node"), 2) as site:
        yield site


def test_pods_with_gpu_memory_bind_and_run_beside_a_device_class(node: gpu_node.GpuNode) -> None:
    """kube-scheduler refuses a node whose allocatable lacks the name of one of the pod's extended resources."""
    (device_class,) = inputs.documents("40-deviceclass.yaml")
    node.plane.api("POST", CLASSES, device_class)
    node.wait("the names are allocatable", lambda: _has_names(node), 60)
    bodies = [gpu_node.pod(f"m{number}", gpu_node.container("c", 9_000, cores=40)) for number in range(4)]
    bytes_ = gpu_node.container("c", 0)
    bytes_["resources"]["limits"]["nvidia.com/gpumem"] = "1Gi"  # The kubelet counts it as bytes.
    share = gpu_node.container("c", 0)
    del share["resources"]["limits"]["nvidia.com/gpumem"]
    share["resources"]["limits"] |= {"nvidia.com/gpumem-percentage": "5", "nvidia.com/priority": "1"}

    node.create(*bodies, gpu_node.pod("bytes", bytes_), gpu_node.pod("share", share))

    node.wait_running(*(body["metadata"]["name"] for body in bodies), "bytes", "share")
    assert node.mismatches() == []


def test_the_names_outlive_a_restart_of_the_kubelet(node: gpu_node.GpuNode) -> None:
    """Else pods would become Pending from then on."""
    node.node.kill_kubelet()
    node.node.start_kubelet()

    node.wait("the names are allocatable", lambda: _has_names(node), 90)


def _has_names(node: gpu_node.GpuNode) -> bool:
    found = node.plane.api("GET", f"/api/v1/nodes/{control_plane.NODE_NAME}")["status"]["allocatable"]
    return all(name in found for name in NAMES)
