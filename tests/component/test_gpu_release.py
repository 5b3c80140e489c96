"""A GPU is reset, or divided, beside a plugin and a monitor that hold every GPU of the node otherwise."""

import os
import re
import subprocess
import sys
from collections.abc import Iterator

import pytest

from gpu_sharing.core import gpus, records
from lab import fake_driver, monitor_process
from tests.component import gpu_node

pytestmark = pytest.mark.slow


@pytest.fixture
def node() -> Iterator[gpu_node.GpuNode]:
    with gpu_node.running(2, "--health-hold", "0") as found:
        process = monitor_process.MonitorProcess(
            found.folder, found.driver,
            [
                "--kubeconfig", str(found.kubeconfig), "--node-name", gpu_node.NODE, "--interval", "0.1",
                "--proc-dir", str(found.proc_dir), "--stale-after", "1",
            ],
        )  # fmt: skip
        with monitor_process.running(process):
            yield found


def hamictl(node: gpu_node.GpuNode, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "hamictl", "gpu", "release", gpu_node.NODE, *arguments]
    kubeconfig = {**os.environ, "KUBECONFIG": str(node.kubeconfig)}
    return subprocess.run(command, capture_output=True, text=True, timeout=90, env=kubeconfig)


def reset(node: gpu_node.GpuNode, gpu: int) -> bool:
    """What `nvidia-smi --gpu-reset` does; False where it says that the GPU is in use."""
    try:
        node.driver.reset(gpu)
    except fake_driver.InUse:
        return False
    return True


def causes(node: gpu_node.GpuNode) -> dict[str, str]:
    found = records.decode_unhealthy_reasons(node.node()["metadata"]["annotations"].get(records.HEALTH, ""))
    return {str(uuid): cause for uuid, cause in found.items()}


def inventory(node: gpu_node.GpuNode) -> tuple[gpus.Gpu, ...]:
    return records.decode_inventory(node.node()["metadata"]["annotations"][records.INVENTORY])


def healthy(node: gpu_node.GpuNode) -> list[bool]:
    return [one.healthy for one in inventory(node)]


def problems(node: gpu_node.GpuNode) -> dict[str, str]:
    return records.decode_problems(node.node()["metadata"]["annotations"].get(records.PROBLEMS, ""))


def test_the_how_to_word_by_word_brings_a_sick_gpu_back(node: gpu_node.GpuNode) -> None:
    """Its neighbour serves all the while; the plugin's own pod need not be deleted."""
    node.driver.gpus[1].recovery_action = 1
    node.driver.write()
    node.wait("it is sick", lambda: healthy(node) == [True, False])
    assert not reset(node, 1)

    released = hamictl(node, node.uuid(1))

    assert released.returncode == 0, released.stderr
    assert f"nvidia-smi --gpu-reset -i {node.uuid(1)}" in released.stdout
    assert causes(node)[node.uuid(1)].startswith(records.RELEASED)
    node.wait("the monitor has closed it, too", lambda: reset(node, 1))
    assert not reset(node, 0)
    assert node.run(node.create("neighbour", "0:100:0")).environment["HAMI_GPUS"] == node.uuid(0)
    (after,) = re.findall(r"and after that: hamictl gpu release node-01 (.+)", released.stdout)

    cancelled = hamictl(node, *after.split())

    assert cancelled.returncode == 0, cancelled.stderr
    node.wait("it is back", lambda: healthy(node) == [True, True])
    assert causes(node) == {}
    assert node.run(node.create("again", "1:100:0")).environment["HAMI_GPUS"] == node.uuid(1)
    node.driver.report_xid(1, 79)
    node.wait("its XIDs are received again", lambda: "XID 79" in causes(node).get(node.uuid(1), ""))


def test_the_mig_mode_of_a_released_gpu_can_be_switched(node: gpu_node.GpuNode) -> None:
    """By its index, and with its pods named, which have to leave first."""
    node.run(node.create("holder", "1:100:0"))

    released = hamictl(node, "1")

    assert "still held by default/holder" in released.stdout
    node.wait("nothing of ours holds it", lambda: reset(node, 1))
    node.driver.set_mig_mode(1, 1)
    assert hamictl(node, "1", "--cancel").returncode == 0
    node.wait("it is divided", lambda: inventory(node)[1].mode == "mig")


def test_a_plugin_that_starts_meanwhile_does_not_touch_the_gpu(node: gpu_node.GpuNode) -> None:
    """Else an update of the chart would break a reset under way; and the GPU stays in the node's record."""
    assert hamictl(node, "1").returncode == 0
    node.plugin.kill()
    node.plugin.start()
    node.plugin.wait_ready()
    node.wait("it serves the other", lambda: node.allocatable() == 10)

    assert healthy(node) == [True, False]
    node.wait("nothing of ours holds it", lambda: reset(node, 1))
    assert hamictl(node, "1", "--cancel").returncode == 0
    node.wait("it is back", lambda: healthy(node) == [True, True])


def test_what_cannot_be_released_is_a_no_that_says_why(node: gpu_node.GpuNode) -> None:
    """A GPU that is not there, and one whose driver hangs."""
    missing = hamictl(node, "7")
    assert (missing.returncode, f"1 ({node.uuid(1)})" in missing.stderr) == (1, True)
    node.driver.rules = ["hang * 1"]
    node.driver.write()
    node.wait("it hangs", lambda: "no answer within" in causes(node).get(node.uuid(1), ""))

    hung = hamictl(node, "1", "--timeout", "1")

    assert (hung.returncode, "has not closed it" in hung.stdout) == (1, True)
    node.wait("the node says it", lambda: "PLUGIN_GPU_NOT_RELEASED" in problems(node))
