"""The example programs inside containers of a real kubelet, with the ConfigMap and the exec probe of their manifests.

The image has no Python here: that of the tests is mounted from the host, and the driver's stub as NVML.
"""

import dataclasses
import json
import pathlib
import sys
import sysconfig
from collections.abc import Iterator
from typing import Any

import pytest
import yaml

from gpu_sharing.core import records
from lab import fake_driver
from lab.real import images
from tests.e2e import gpu_node

ROOT = pathlib.Path(__file__).parents[2]
EXAMPLES = ROOT / "examples" / "workloads"
CONFIG_MAPS = "/api/v1/namespaces/default/configmaps"


@pytest.fixture(scope="module")
def node(programs: pathlib.Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[gpu_node.GpuNode]:
    del programs
    with gpu_node.running(tmp_path_factory.mktemp("examples"), 2) as running:
        data = {path.name: path.read_text() for path in sorted((EXAMPLES / "programs").glob("*.py"))}
        running.plane.api("POST", CONFIG_MAPS, {"metadata": {"name": "tiny-programs"}, "data": data})
        yield running


@pytest.fixture(scope="module")
def stub(node: gpu_node.GpuNode, tmp_path_factory: pytest.TempPathFactory) -> fake_driver.FakeDriver:
    """The driver's stub for containers: the node's own folder has its mounts, too."""
    found = dataclasses.replace(node.driver, path=tmp_path_factory.mktemp("stub") / "gpus.txt")
    found.write()
    return found


def host_folders(driver: fake_driver.FakeDriver) -> dict[str, str]:
    """What a dynamic Python needs of the host: the path in the container to that on the host."""
    python = sysconfig.get_config_var("prefix")
    own = [python, sys.prefix, str(ROOT), str(driver.path.parent), str(fake_driver.library().parent)]
    system = {path: str(pathlib.Path(path).resolve()) for path in ("/lib", "/lib64", "/usr/lib")}
    return {path: path for path in own} | {path: real for path, real in system.items() if pathlib.Path(real).is_dir()}


def pod_of(stub: fake_driver.FakeDriver, manifest: str, name: str) -> dict[str, Any]:
    """The pod of an example's controller, with the Python of the tests in place of its image's."""
    template = next(yaml.safe_load_all((EXAMPLES / f"{manifest}.yaml").read_text()))["spec"]["template"]
    spec = template["spec"]
    (container,) = spec["containers"]
    del spec["initContainers"]
    container |= {"image": images.BUSYBOX, "imagePullPolicy": "Never"}
    container["command"] = [sys.executable, *container["command"][1:]]
    if "readinessProbe" in container:
        command = container["readinessProbe"]["exec"]["command"]
        container["readinessProbe"] |= {"exec": {"command": [sys.executable, *command[1:]]}, "periodSeconds": 1}
        container["readinessProbe"]["timeoutSeconds"] = 30
    container["env"] = [one for one in container["env"] if one["name"] != "PYTHONPATH"]
    variables = stub.environment() | {"PYTHONPATH": str(ROOT), "PYTHONDONTWRITEBYTECODE": "1"}
    container["env"] += [{"name": key, "value": value} for key, value in variables.items()]
    spec["volumes"] = [one for one in spec["volumes"] if one["name"] == "programs"]
    container["volumeMounts"] = [one for one in container["volumeMounts"] if one["name"] == "programs"]
    for number, (path, real) in enumerate(host_folders(stub).items()):
        spec["volumes"].append({"name": f"host-{number}", "hostPath": {"path": real}})
        container["volumeMounts"].append({"name": f"host-{number}", "mountPath": path, "readOnly": True})
    spec["terminationGracePeriodSeconds"] = 1
    return {"metadata": {"name": name, **template["metadata"]}, "spec": spec}


def lines(node: gpu_node.GpuNode, name: str, container: str) -> dict[str, Any]:
    """The log lines of a container by their event; of several, the last."""
    texts = node.node.log(node.pod(name), container).splitlines()
    found = [json.loads(text) for text in texts if text.startswith("{") and text.endswith("}")]
    return {one["event"]: one for one in found}


def test_a_training_runs_to_its_end_and_knows_its_slice(node: gpu_node.GpuNode, stub: fake_driver.FakeDriver) -> None:
    """The manifest that a reader copies, on the real path of scheduler, plugin, CDI and containerd."""
    body = pod_of(stub, "training", "training")
    body["spec"]["containers"][0]["args"] = ["--epochs", "3", "--linger-seconds", "2"]

    node.create(body)
    node.wait(
        "the training ends",
        lambda: node.pod("training")["status"]["phase"] in ("Succeeded", "Failed"),
        120,
    )

    assert node.pod("training")["status"]["phase"] == "Succeeded", node.node.log(node.pod("training"), "main")
    events = lines(node, "training", "main")
    begun = events["training begins"]
    assert (begun["gpus"], begun["memory_mib"]) == (1, [4000])
    assert (begun["node"], begun["namespace"], begun["pod"]) == (gpu_node.NODE, "default", "training")
    assert begun["decision_id"] == node.pod("training")["metadata"]["annotations"][records.DECISION]
    assert events["epoch ended"]["accuracy"] > 0.9
    node.delete_and_wait("training")


def test_two_servers_share_a_gpu_and_the_kubelet_finds_them_ready_by_their_probe(
    node: gpu_node.GpuNode, stub: fake_driver.FakeDriver
) -> None:
    """An exec probe that does not start in the container would keep every copy of the example out of its Service."""

    def ready(name: str) -> bool:
        found = node.pod(name)["status"].get("conditions", ())
        return any(one["type"] == "Ready" and one["status"] == "True" for one in found)

    names = ("server-a", "server-b")
    node.create(*(pod_of(stub, "inference", name) for name in names))
    node.wait("both generate tokens", lambda: all(map(ready, names)), 120)

    held = [node.pod(name)["metadata"]["annotations"][records.ALLOCATED] for name in names]
    assert len({text.partition(",")[0] for text in held}) == 1
    for name in names:
        serving = lines(node, name, "server")["serving"]
        assert (serving["pod"], serving["memory_mib"]) == (name, [6000])
    assert [text for name in names for text in lines(node, name, "server") if text == "request refused"] == []
    node.delete_and_wait(*names)
