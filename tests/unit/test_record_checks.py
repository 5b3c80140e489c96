"""What `hamictl doctor` finds in records and around them, without a cluster."""

import dataclasses
from typing import Any

import msgspec
import pytest

from gpu_sharing.adapters import kubernetes, objects, read_api_types
from gpu_sharing.core import records, requests
from gpu_sharing.core.rejections import Reason
from hamictl import cluster_checks, record_checks, snapshot
from lab import gpus
from scheduler_extender.cluster import from_objects
from tests import inputs
from tests.support import extender_world

A10 = gpus.Model("NVIDIA A10", 23_028)
NAMES = requests.ResourceNames()
SEEN = cluster_checks.Environment(
    missing=(),
    ping=kubernetes.Ping(0.01, 0.0),
    webhooks=[],
    guarded=True,
    leases=[],
    daemon_sets=[],
    device_classes=[],
    components={},
    now=0.0,
)


def cluster(*nodes: dict[str, Any]) -> snapshot.State:
    return snapshot.State(snapshot.VERSION, "", [msgspec.convert(one, objects.Node) for one in nodes], [], [])


def test_one_gpu_on_two_nodes_is_found() -> None:
    """As after a machine came back under another name: its GPUs would count twice."""
    first, second = gpus.gpu_node("a", A10, 1), gpus.gpu_node("old", A10, 1)
    second["metadata"]["annotations"] = first["metadata"]["annotations"]

    told = list(record_checks._gpus(cluster(first, second), NAMES))

    assert [(one.code, one.about) for one in told] == [("DOCTOR_GPU_TWICE", "gpu/old/0")]
    assert "is on node a too" in told[0].detail


def test_what_a_node_says_of_its_set_up_is_found() -> None:
    """Each problem by its own code, and a code of a newer plugin too; without a record the node is not called bare."""
    node = gpus.gpu_node("a", A10, 1)
    node["metadata"]["labels"] = {"gpu": "on"}
    node["status"]["allocatable"] = {}
    node["metadata"]["annotations"] = {
        records.PROBLEMS: '{"PLUGIN_NO_DRIVER": "no library", "PLUGIN_OF_TOMORROW": "something else"}'
    }

    told = [(one.code, one.about, one.detail) for one in record_checks._problems(cluster(node))]

    assert told == [
        ("PLUGIN_NO_DRIVER", "node/a", "no library"),
        ("DOCTOR_NODE_PROBLEM", "node/a", "PLUGIN_OF_TOMORROW: something else"),
    ]
    assert list(record_checks._nodes(cluster(node), NAMES)) == []


@pytest.mark.parametrize(
    "code",
    [
        "PLUGIN_MEMORY_NOT_LIMITED", "PLUGIN_ISOLATION_LOST", "PLUGIN_HAMI_CORE", "PLUGIN_NO_DRIVER", "PLUGIN_MPS",
        "MONITOR_PID_NAMESPACE", "PLUGIN_CDI_TWICE", "PLUGIN_CDI_STALE", "PLUGIN_RUNTIME_CLASS", "PLUGIN_DELIVERY",
        "PLUGIN_XIDS_NOT_HEARD", "PLUGIN_GPU_NOT_RELEASED",
    ],
)  # fmt: skip
def test_each_problem_that_a_plugin_reports_is_a_finding_with_what_to_do(code: str) -> None:
    """The words are the node's, the remedy is the code's."""
    node = gpus.gpu_node("a", A10, 1)
    node["metadata"]["annotations"][records.PROBLEMS] = records.encode_problems({code: "what was found"})

    (told,) = (one.to_facts() for one in record_checks._problems(cluster(node)))

    assert (told["code"], told["severity"], told["detail"]) == (code, "error", "what was found")
    assert len(told["remedy"]) > 20


def test_gpus_whose_memory_nothing_limits_are_found_once() -> None:
    """As a warning where that was chosen, as an error where the node says that it should be otherwise."""
    node = gpus.gpu_node("a", A10, 2)
    inventory = records.decode_inventory(node["metadata"]["annotations"][records.INVENTORY])
    free = [dataclasses.replace(gpu, mode="none") for gpu in inventory]
    node["metadata"]["annotations"][records.INVENTORY] = records.encode_inventory([free[0], inventory[1]])

    (told,) = record_checks._problems(cluster(node))
    assert (told.code, told.severity, told.detail) == ("DOCTOR_MEMORY_NOT_LIMITED", "warning", "GPU 0: isolation none")

    node["metadata"]["annotations"][records.PROBLEMS] = '{"PLUGIN_MEMORY_NOT_LIMITED": "1 of 2 GPUs: no library"}'
    (told,) = record_checks._problems(cluster(node))
    assert (told.code, told.severity) == ("PLUGIN_MEMORY_NOT_LIMITED", "error")


@pytest.mark.parametrize(
    ("offered", "allocatable", "found"),
    [
        ("nvidia.com/gpu", {}, 1),
        (
            "nvidia.com/gpu",
            {"nvidia.com/gpumem": "1Mi", "nvidia.com/gpumem-percentage": "1", "nvidia.com/gpucores": "1"},
            0,
        ),
        ("example.com/gpu", {}, 0),
        (None, {}, 0),
    ],
)
def test_a_device_class_that_keeps_pods_off_a_node_is_found(
    offered: str | None, allocatable: dict[str, str], found: int
) -> None:
    """kube-scheduler says of such pods only that nodes are not available."""
    node = gpus.gpu_node("a", A10, 1)
    node["status"]["allocatable"] |= allocatable
    offering = objects.DeviceClass(objects.Metadata("gpu.nvidia.com"), objects.DeviceClassSpec(offered))
    seen = dataclasses.replace(SEEN, device_classes=[offering])

    told = list(cluster_checks._device_classes(seen, cluster(node), NAMES))

    assert len(told) == found
    assert all("DeviceClass gpu.nvidia.com offers nvidia.com/gpu" in one.detail for one in told)


def test_an_inventory_under_a_second_node_that_is_not_ready_is_found_and_not_free() -> None:
    """The file of a machine that came back under another name."""
    old = msgspec.json.decode((inputs.FOLDER / "25-renamed-node.json").read_bytes(), type=objects.Node)
    new = msgspec.structs.replace(old, metadata=msgspec.structs.replace(old.metadata, name="node-new"))
    new.status = objects.NodeStatus(allocatable={"nvidia.com/gpu": "10"})

    told = list(record_checks._gpus(snapshot.State(snapshot.VERSION, "", [new, old], [], []), NAMES))

    assert [(one.code, one.about) for one in told] == [("DOCTOR_GPU_TWICE", "gpu/node-old/0")]
    assert from_objects.node_facts(old, NAMES, allow_hami_nodes=False).unavailable is Reason.NODE_NOT_READY


def test_what_remediation_did_and_what_it_does_not_do_is_found() -> None:
    """An operator sees why a GPU gets no pods, and which fault waits for a person."""
    held = '[{"action":"cordon-gpu","gpu":"GPU-1","rule":"r","at":[1],"holds":true},{"action":"evict-pods","at":[1]}]'
    node = gpus.gpu_node("a", A10, 1, annotations={"hami.io/remediation": held})

    def act(reason: str) -> read_api_types.RemediationAct:
        return read_api_types.RemediationAct("a", "GPU-1", "evict-pods", "s", "XID 79: lost", reason)

    acts = [act(""), act("cool-down"), act("budget used up")]
    seen = read_api_types.Remediation(mode="on", leading=True, breaker="open", affected_nodes=3, acts=acts)
    found = list(record_checks._remediation(cluster(node), seen))

    assert [(one.code, one.about, one.detail) for one in found] == [
        ("SCHED_REMEDIATED", "node/a", "cordon-gpu of GPU-1 by rule r"),
        ("SCHED_REMEDIATION_REFUSED", "node/a", "evict-pods of GPU-1 by rule s: budget used up (XID 79: lost)"),
        ("SCHED_REMEDIATION_STOPPED", "cluster", "3 nodes have a fault; the breaker is open"),
    ]
    assert len(list(record_checks._remediation(cluster(node), None))) == 1


def test_records_that_do_not_agree_with_their_nodes_are_found() -> None:
    """Each kind by its own code, with what to do about it."""
    copied = extender_world.held("copied", "a", 0, 1_000)
    copied["metadata"]["annotations"][records.NODE] = "elsewhere"
    bodies = [
        copied,
        extender_world.held("replaced", "a", 5, 1_000),
        extender_world.held("gone", "nowhere", 0, 1_000),
        extender_world.held("good", "a", 0, 1_000),
        extender_world.pod("pending", {"nvidia.com/gpu": "1"}),
    ]
    pods = [msgspec.convert(one, objects.Pod) for one in bodies]
    node = msgspec.convert(gpus.gpu_node("a", A10, 1), objects.Node)
    seen = snapshot.State(snapshot.VERSION, "", [node], pods, [])

    assert [(one.code, one.about, one.detail) for one in record_checks._drift(seen, NAMES)] == [
        ("DOCTOR_RECORD_OTHER_NODE", "pod/default/copied", "bound to a, and its record names elsewhere"),
        ("DOCTOR_RECORD_UNKNOWN_GPU", "pod/default/replaced", "its record names a GPU that a does not have"),
        ("DOCTOR_RECORD_NODE_GONE", "pod/default/gone", "there is no node nowhere"),
    ]
