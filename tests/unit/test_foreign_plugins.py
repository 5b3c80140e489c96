"""Who else registers GPUs is found by what lies in the API, not by the name of one image."""

import pathlib
from typing import Any

import pytest
import yaml

from gpu_sharing.core import requests
from hamictl import foreign_plugins

GOLDENS = pathlib.Path(__file__).parents[1] / "chart" / "golden"
FOLDER = {"hostPath": {"path": "/var/lib/kubelet/device-plugins"}}


def spec(image: str = "x", folder: dict[str, Any] | None = FOLDER, **container: Any) -> dict[str, Any]:
    return {"containers": [{"name": "c", "image": image, **container}], "volumes": [folder] if folder else None}


@pytest.mark.parametrize(
    ("name", "labels", "pod", "vendor"),
    [
        (
            "nvidia-device-plugin-daemonset",
            {"app": "nvidia-device-plugin-daemonset"},
            spec("private/mirror:1"),
            "NVIDIA's",
        ),
        ("plugin", {"app.kubernetes.io/name": "nvidia-device-plugin"}, spec("private/mirror:1"), "NVIDIA's"),
        ("x", {}, spec("nvcr.io/nvidia/k8s-device-plugin:v0.17.0", None), "NVIDIA's"),
        ("nvidia-gpu-device-plugin-small-cos", {"k8s-app": "nvidia-gpu-device-plugin"}, spec(), "GKE's"),
        ("x", {}, spec(command=["/usr/bin/nvidia-gpu-device-plugin", "-logtostderr"]), "GKE's"),
        ("hami-device-plugin", {}, spec("docker.io/projecthami/hami:v2.10.0"), "HAMi's"),
        ("vgpu-device-plugin", {"app.kubernetes.io/component": "hami-device-plugin"}, spec("mirror/x"), "HAMi's"),
        ("volcano-device-plugin", {"name": "volcano-device-plugin"}, spec("mirror/x"), "Volcano's"),
        ("x", {}, spec("projecthami/volcano-vgpu-device-plugin:v1.11"), "Volcano's"),
        ("metagpu-device-plugin", {}, spec("mirror/x"), "a device plugin"),
        (
            "x",
            {},
            spec(folder={"hostPath": {"path": "/var/lib/k0s/kubelet/device-plugins/"}}, name="gpu-share"),
            "a device",
        ),
        ("rdma-shared-dp", {}, spec("mellanox/k8s-rdma-shared-dev-plugin"), ""),
        ("volcano-agent", {}, spec("volcanosh/vc-agent", None), ""),
        ("dcgm-exporter", {}, spec("nvcr.io/nvidia/k8s/dcgm-exporter", None), ""),
        ("hami-device-plugin", {}, spec("ours/hami-node", args=["device_plugin", "--node-name", "a"]), ""),
        ("hami-mps", {}, spec("ours/hami-node", args=["device_plugin.isolation.mps"]), ""),
        ("empty", {}, {}, ""),
    ],
)
def test_a_plugin_is_known_by_any_of_its_signs(
    name: str, labels: dict[str, str], pod: dict[str, Any], vendor: str
) -> None:
    """A private mirror has another image, an operator another name, k0s another folder."""
    found = foreign_plugins.vendor(name, labels, pod)
    assert found.startswith(vendor)
    assert bool(found) is bool(vendor)


def test_resources_of_other_plugins_are_known_and_ours_are_not_theirs() -> None:
    """The same GPUs under two names are allocated twice."""
    names = requests.ResourceNames("nvidia.com/gpu.shared")
    offered = {
        "cpu": "64", "nvidia.com/gpu": "10", "nvidia.com/gpu.shared": "8", "volcano.sh/vgpu-number": "10",
        "nvidia.com/mig-1g.5gb": "0", "aliyun.com/gpu-mem": 40,
    }  # fmt: skip

    assert foreign_plugins.resources(offered, requests.ResourceNames()) == [
        "aliyun.com/gpu-mem: 40", "nvidia.com/gpu.shared: 8", "volcano.sh/vgpu-number: 10",
    ]  # fmt: skip
    assert "nvidia.com/gpu.shared: 8" not in foreign_plugins.resources(offered, names)
    assert foreign_plugins.annotations({"volcano.sh/node-vgpu-register": "GPU-1,10,16384"}) != []
    assert foreign_plugins.annotations({"volcano.sh/node-vgpu-register": "[]"}) == []


def test_nothing_that_our_chart_installs_is_taken_for_another_plugin() -> None:
    """HAMi's image brings its library to our nodes, and our DaemonSet has a name that HAMi's has too."""
    rendered = [one for path in GOLDENS.glob("*.yaml") for one in yaml.safe_load_all(path.read_text()) if one]
    daemon_sets = [one for one in rendered if one["kind"] == "DaemonSet"]

    assert len({one["metadata"]["name"] for one in daemon_sets}) == 3
    for one in daemon_sets:
        template = one["spec"]["template"]
        labels = template["metadata"]["labels"]
        assert foreign_plugins.vendor(one["metadata"]["name"], labels, template["spec"]) == ""
