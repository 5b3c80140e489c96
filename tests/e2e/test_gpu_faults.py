"""A GPU that fails, on a real kubelet: its own pods learn it, its neighbours go on, and it comes back rightly."""

import pathlib
from collections.abc import Iterator
from typing import Any

import pytest

from gpu_sharing.core import records
from tests.e2e import gpu_node

SLOTS = 20


@pytest.fixture(scope="module")
def node(programs: pathlib.Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[gpu_node.GpuNode]:
    with gpu_node.running(tmp_path_factory.mktemp("node"), 4, "--health-hold", "3") as site:
        site.create(*(on(site, index, f"pod-{index}") for index in range(4)))
        site.wait_running(*(f"pod-{index}" for index in range(4)))
        yield site


def on(node: gpu_node.GpuNode, index: int, name: str) -> dict[str, Any]:
    """A pod that wants one particular GPU."""
    body = gpu_node.pod(name, gpu_node.container("c", 1000))
    body["metadata"]["annotations"] = {"nvidia.com/use-gpuuuid": node.driver.gpus[index].uuid}
    return body


def inventory(node: gpu_node.GpuNode) -> dict[str, bool]:
    text = node.node_object()["metadata"]["annotations"][records.INVENTORY]
    return {gpu.uuid: gpu.healthy for gpu in records.decode_inventory(text)}


def free_slots(node: gpu_node.GpuNode) -> int:
    """What kube-scheduler thinks is free: allocatable minus requests."""
    bound = [pod for pod in node.pods() if pod["spec"].get("nodeName")]
    requested = sum(
        int(one["resources"]["limits"]["nvidia.com/gpu"]) for pod in bound for one in pod["spec"]["containers"]
    )
    return node.allocatable() - requested


def told(node: gpu_node.GpuNode, reason: str, uuid: str, kind: str) -> set[str]:
    return {
        event["regarding"]["name"]
        for event in node.events(reason)
        if event["regarding"]["kind"] == kind and uuid in event["note"]
    }


def test_a_gpu_off_the_bus_takes_only_its_own_pod_along_and_needs_a_reboot(node: gpu_node.GpuNode) -> None:
    """XID 79, within 5 s, in the kubelet's own status; back only when the node has been restarted."""
    sick = node.driver.gpus[1]

    node.driver.rules = ["fail * 15 1"]
    node.driver.report_xid(1, 79)
    node.wait("the kubelet shows it", lambda: node.token_health("pod-1") == {"Unhealthy"}, 60)
    node.wait("allocatable follows", lambda: free_slots(node) == 3 * (SLOTS - 1), 60)

    assert [node.token_health(f"pod-{index}") for index in (0, 2, 3)] == [{"Healthy"}] * 3
    assert inventory(node) == {gpu.uuid: gpu is not sick for gpu in node.driver.gpus}
    node.wait("pod and node are told", lambda: told(node, "DeviceUnhealthy", sick.uuid, "Pod") == {"pod-1"}, 60)
    assert told(node, "DeviceUnhealthy", sick.uuid, "Node") == {gpu_node.NODE}
    note = node.events("DeviceUnhealthy")[0]["note"]
    assert "GPU has fallen off the bus" in note  # By the XID, or by the check the GPU, whichever came first.
    assert "reboot the node" in note
    assert node.plugin.metric(f'hami_device_plugin_healthy_status{{device="{sick.uuid}",node="{gpu_node.NODE}"}}') == 0

    node.create(on(node, 1, "wants-sick"), on(node, 2, "wants-well"))
    node.wait_running("wants-well")
    assert not node.pod("wants-sick")["spec"].get("nodeName")
    node.delete("wants-sick")

    # The GPU answers again, and the plugin is restarted: neither is a reboot.
    node.driver.rules = []
    node.driver.write()
    node.plugin.kill()
    node.plugin.start()
    node.plugin.wait_ready()
    node.wait("it is remembered", lambda: free_slots(node) == 3 * (SLOTS - 1) - 1, 60)
    assert not inventory(node)[sick.uuid]

    node.plugin.kill()
    node.plugin.reboot("second")
    node.plugin.start()
    node.wait("it is back", lambda: inventory(node)[sick.uuid], 60)
    node.wait("all slots are back", lambda: free_slots(node) == 4 * SLOTS - 5, 60)
    node.create(on(node, 1, "wants-it-back"))
    node.wait_running("wants-it-back")
    node.delete_and_wait("wants-it-back", "wants-well")


def test_an_uncontained_error_recovers_after_a_reset_and_its_hold_down(node: gpu_node.GpuNode) -> None:
    """XID 95: the driver requests a reset; when that is done, the GPU is watched, then used again."""
    sick = node.driver.gpus[2]
    sick.recovery_action = 1

    node.driver.report_xid(2, 95)
    node.wait("the kubelet shows it", lambda: node.token_health("pod-2") == {"Unhealthy"}, 60)
    node.wait("the scheduler knows", lambda: not inventory(node)[sick.uuid], 60)
    sick.recovery_action = 0
    node.driver.write()

    node.wait("it is back", lambda: inventory(node)[sick.uuid], 60)
    node.wait("the kubelet shows it", lambda: node.token_health("pod-2") == {"Healthy"}, 60)
    node.wait("it is told", lambda: told(node, "DeviceRecovered", sick.uuid, "Pod") == {"pod-2"}, 60)


def test_a_hung_gpu_is_suspect_while_its_neighbours_go_on(node: gpu_node.GpuNode) -> None:
    """A driver call that does not come back costs its own GPU, and nothing else."""
    hung = node.driver.gpus[3]

    node.driver.rules = ["hang * 3"]
    node.driver.write()
    node.wait("it is withdrawn", lambda: not inventory(node)[hung.uuid], 60)
    assert sum(inventory(node).values()) == 3
    node.create(on(node, 0, "meanwhile"))
    node.wait_running("meanwhile")

    node.driver.rules = []
    node.driver.write()
    node.wait("it is back", lambda: inventory(node)[hung.uuid], 60)
    node.delete("meanwhile")


def test_a_replaced_driver_ends_the_process_on_purpose(node: gpu_node.GpuNode) -> None:
    """The old library cannot talk to the new kernel module; a fresh process can."""
    node.driver.mismatch = True
    node.driver.write()

    assert node.plugin.wait_ended(60) == 3
    node.driver.mismatch = False
    node.driver.write()
    node.plugin.start()
    node.plugin.wait_ready()


def test_without_a_driver_the_plugin_stays_up_and_looks_again(node: gpu_node.GpuNode, tmp_path: pathlib.Path) -> None:
    """Ready, says so once, takes back what was offered; and serves as soon as there is one."""
    node.plugin.kill()
    state = node.driver.path.read_text()
    node.driver.path.write_text("")
    offset = node.plugin.log_file.stat().st_size

    node.plugin.start()
    node.plugin.wait_ready()
    node.wait("it says so", lambda: node.plugin.logged("no driver", offset), 60)
    node.wait("no slot is free", lambda: free_slots(node) == 0, 60)
    annotations = node.node_object()["metadata"]["annotations"]
    assert "PLUGIN_NO_DRIVER" in annotations[records.PROBLEMS]
    assert not any(inventory(node).values())
    node.driver.path.write_text(state)
    node.wait("it serves", lambda: all(inventory(node).values()) and free_slots(node) > 0, 60)
    assert sum(line.get("event") == "no driver" for line in node.plugin.log_lines(offset)) == 1
