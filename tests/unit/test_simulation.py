"""What `hamictl simulate` makes of manifests, and where their pods would go."""

import dataclasses
import pathlib
from typing import Any

import msgspec
import pytest

from gpu_sharing.adapters import objects
from gpu_sharing.core import requests
from hamictl import findings, installation, simulation, state, surroundings
from lab import gpus
from scheduler_extender import settings
from tests import inputs

A10 = gpus.Model("NVIDIA A10", 23_028)
NAMES = requests.ResourceNames()
RENAMED = requests.ResourceNames("example.com/vgpu", "example.com/vgpumem")


def cluster(*nodes: dict[str, Any], names: requests.ResourceNames | None = None) -> state.State:
    found = [msgspec.convert(node, objects.Node, strict=False) for node in nodes or (gpus.gpu_node("node-01", A10, 1),)]
    return state.State(state.VERSION, "", found, [], [], names or requests.ResourceNames())


def simulated(text: str, found: state.State | None = None, replicas: int | None = None) -> list[simulation.Outcome]:
    seen = found or cluster()
    options = dataclasses.replace(settings.Settings(), resource_names=seen.resource_names)
    pods = simulation.pods_of(pathlib.Path("x.yaml"), text, replicas, seen.nodes)
    return simulation.Simulation(seen, options).place_all(pods)


def case(name: str) -> str:
    return (inputs.FOLDER / name).read_text()


def test_a_cron_job_makes_the_pods_of_its_jobs() -> None:
    """It said that there was no pod in it."""
    (one,) = simulated(case("10-cronjob.yaml"))

    assert (one.pod, one.node) == ("default/nightly-embed", "node-01")


def test_a_daemon_set_has_a_pod_on_each_node_that_takes_it() -> None:
    """It counted as one pod; a node with a taint gets none."""
    tainted = gpus.gpu_node("node-03", A10, 1)
    tainted["spec"] = {"taints": [{"key": "team", "value": "x", "effect": "NoSchedule"}]}
    nodes = [gpus.gpu_node("node-01", A10, 1), gpus.gpu_node("node-02", A10, 1), tainted]

    found = simulated(case("11-daemonset.yaml"), cluster(*nodes))

    assert [(one.pod, one.node) for one in found] == [
        ("default/embedder-node-01", "node-01"), ("default/embedder-node-02", "node-02"),
    ]  # fmt: skip
    assert len(simulated(case("11-daemonset.yaml"), cluster(*nodes), replicas=3)) == 3


def test_a_pod_that_has_a_node_is_placed_as_if_it_had_none() -> None:
    """It ended in a KeyError; so did the YAML of a pod that runs."""
    (one,) = simulated(case("13-nodename.yaml"))
    (running,) = simulated(
        case("13-nodename.yaml").replace(
            "{name: pinned}", "{name: pinned, annotations: {hami.io/vgpu-devices-allocated: 'GPU-x,NVIDIA,1,1:;'}}"
        )
    )

    assert one.node == running.node == "node-01"


@pytest.mark.parametrize("name", ["16-gang.yaml", "16-gang-pods.yaml"])
def test_a_gang_is_placed_as_a_whole(name: str) -> None:
    """It said of each that it waits for its gang; a real cluster starts them."""
    small = cluster(gpus.gpu_node("node-01", gpus.Model("NVIDIA A10", 15_000), 1))

    assert {one.node for one in simulated(case(name))} == {"node-01"}
    waiting = simulated(case(name), small)
    assert {one.node for one in waiting} == {""}
    assert sorted({one.code for one in waiting}) == ["SCHED_GANG_WAITS", "SCHED_INSUFFICIENT_GPU_MEMORY"]


def test_a_gang_whose_members_are_not_all_there_waits_for_them() -> None:
    """Two of four in a manifest never start."""
    two = "---\n".join(case("16-gang-pods.yaml").split("---\n")[:2])

    found = simulated(two)

    assert {one.code for one in found} == {"SCHED_GANG_WAITS"}
    assert "2 of 4 members are not in the manifest" in found[0].why


def test_a_job_runs_no_more_pods_than_it_completes_and_templates_of_unknown_kinds_are_found() -> None:
    """As the controllers make them."""
    gang = '{hami.io/gang: g, hami.io/gang-size: "4"}'
    job = case("16-gang.yaml").replace("completions: 4", "completions: 3").replace(gang, "{}")
    pod_spec = "{containers: [{name: c, image: x, resources: {limits: {nvidia.com/gpu: 1, nvidia.com/gpumem: 1000}}}]}"
    training = f"""
kind: PyTorchJob
metadata: {{name: train}}
spec:
  pytorchReplicaSpecs:
    Master: {{replicas: 1, template: {{spec: {pod_spec}}}}}
    Worker: {{replicas: 2, template: {{spec: {pod_spec}}}}}
"""

    assert len(simulated(job)) == 3
    assert [one.pod for one in simulated(training)] == ["default/train", "default/train-1", "default/train-2"]


def test_pods_are_what_the_webhook_lets_them_be() -> None:
    """Memory alone is a share of one GPU there, and a mistake is refused with its code."""
    (one,) = simulated(case("01-gpumem-only.yaml"))
    (bad,) = simulated(case("34-type-excluded-by-substring.yaml"))

    assert one.node == "node-01"
    assert bad.code == "SCHED_CONTRADICTORY_REQUEST"


def test_the_installations_names_are_used_for_placing_and_for_examining() -> None:
    """With renamed resources it said that the pod asks for no GPU, and saw no GPU promised twice."""
    (node,) = inputs.documents("17-renamed-node.json")
    found = cluster(node, names=RENAMED)
    (one,) = simulated(case("17-renamed.yaml"), found)
    record = "GPU-77777777-3ad5-542c-9d6f-5e4ddee6115b,NVIDIA,20000,0:;"
    for name in ("p", "q"):
        (body,) = inputs.documents("17-renamed.yaml")
        body["metadata"] = {"name": name, "uid": name, "annotations": {"hami.io/vgpu-devices-allocated": record}}
        body["spec"]["nodeName"] = "node-renamed-res"
        found.pods.append(msgspec.convert(body, objects.Pod, strict=False))
    patient = findings.Patient(found, None, "", 0.0)
    told = [finding for _, check in findings.checks(patient, found.resource_names) for finding in check]

    assert one.code == "SCHED_INSUFFICIENT_GPU_MEMORY"
    assert "DOCTOR_OVERSUBSCRIBED" in {finding.code for finding in told}


@pytest.mark.parametrize(
    ("args", "names"),
    [
        (["scheduler_extender", "--resource-name=example.com/vgpu", "--resource-mem=example.com/vgpumem"], RENAMED),
        (["scheduler_extender", "--http-bind=127.0.0.1:9444"], requests.ResourceNames()),
        (["scheduler_extender", "--resource-of-the-future=x"], requests.ResourceNames()),
        (["scheduler_extender", "--default-memory=lots"], requests.ResourceNames()),
    ],
)
def test_the_names_are_read_from_the_extenders_own_flags(args: list[str], names: requests.ResourceNames) -> None:
    """What cannot be read are the usual names, as before."""
    containers = [{"name": "kube-scheduler", "args": ["--v=2"]}, {"name": "extender", "args": args}]
    body = {"spec": {"template": {"spec": {"containers": containers}}}}

    assert installation.names_of(msgspec.convert(body, installation.Deployment)) == names


def test_two_nodes_with_one_gpu_are_a_finding() -> None:
    """The node that came back under another name keeps an object that promises the GPU a second time."""
    (ghost,) = inputs.documents("25-renamed-node.json")
    alive = gpus.gpu_node("node-01", A10, 1)
    uuid = "GPU-6c4f1aee-3ad5-542c-9d6f-5e4ddee6115b"
    key = "hami.io/node-nvidia-register"
    alive["metadata"]["annotations"][key] = ghost["metadata"]["annotations"][key]

    found = cluster(alive, ghost)
    patient = findings.Patient(found, None, "", 0.0)
    told = [finding for _, check in findings.checks(patient, found.resource_names) for finding in check]

    assert ("DOCTOR_GPU_TWICE", f"{uuid} is on node node-01 too") in {(one.code, one.detail) for one in told}


def test_a_quota_key_that_nothing_counts_is_a_finding() -> None:
    """The team believes that it is limited."""
    found = cluster()
    quota = objects.ResourceQuota(
        objects.Metadata("team", "ai"), objects.ResourceQuotaSpec({"requests.nvidia.com/gpumemory": "8000"})
    )
    found.quotas.append(quota)
    told = [
        one
        for _, check in findings.checks(findings.Patient(found, None, "", 0.0), found.resource_names)
        for one in check
    ]

    assert [one.detail for one in told if one.code == "DOCTOR_QUOTA_KEY"] == [
        "requests.nvidia.com/gpumemory limits nothing; limits.nvidia.com/gpumem is counted"
    ]


def test_a_device_class_that_keeps_pods_pending_is_named() -> None:
    """kube-scheduler only says that the node is not available."""
    (body,) = inputs.documents("40-deviceclass.yaml")
    device_class = msgspec.convert(body, surroundings.DeviceClass)
    with_names = gpus.gpu_node("good", A10, 1)
    with_names["status"]["allocatable"] |= {"nvidia.com/gpumem": "1Pi", "nvidia.com/gpucores": "1G"}
    found = cluster(gpus.gpu_node("node-01", A10, 1), with_names, gpus.gpu_node("plain", A10, 0))

    told = [(one.about, one.detail) for one in surroundings.device_classes([device_class], found, NAMES)]

    lacking = "offers nvidia.com/gpu; node node-01 lacks nvidia.com/gpumem, nvidia.com/gpucores"
    assert told == [("deviceclass/gpu.nvidia.com", lacking)]
    device_class.spec.extended_resource_name = "example.com/fpga"
    assert list(surroundings.device_classes([device_class], found, NAMES)) == []
