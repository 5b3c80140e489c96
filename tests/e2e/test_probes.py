"""A real kubelet's probes of our processes, and real containers' processes as the monitor joins them.

A pod without GPU stands for ours: its probes go to the process that runs on the machine.
"""

import os
import pathlib
import signal
from collections.abc import Iterator
from typing import Any

import pytest

from lab import monitor_process
from lab.real import images
from tests.e2e import gpu_node, secrecy

GIB = 1 << 30


@pytest.fixture(scope="module")
def node(programs: pathlib.Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[gpu_node.GpuNode]:
    with gpu_node.running(tmp_path_factory.mktemp("node"), 2) as site:
        yield site


@pytest.fixture(scope="module")
def monitor(
    node: gpu_node.GpuNode, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[monitor_process.MonitorProcess]:
    folder = tmp_path_factory.mktemp("monitor")
    flags = [
        "--kubeconfig", str(node.plane.kubeconfig("plugin")), "--node-name", gpu_node.NODE, "--v", "6",
        "--kubelet-dir", str(node.node.kubelet_dir), "--interval", "0.5", "--nvml-timeout", "0.5", "--stale-after", "2",
        "--health-required", "gpus,pods",
    ]  # fmt: skip
    process = monitor_process.MonitorProcess(folder, node.driver, flags)
    with secrecy.kept(node.plane, folder), monitor_process.running(process):
        yield process


def probed(name: str, port: int) -> dict[str, Any]:
    """A pod whose probes ask a process of the machine."""

    def probe(path: str, failures: int) -> dict[str, Any]:
        where = {"host": "127.0.0.1", "port": port, "path": path}
        return {"httpGet": where, "periodSeconds": 1, "timeoutSeconds": 1, "failureThreshold": failures}

    container = {
        "name": "stand-in", "image": images.BUSYBOX, "imagePullPolicy": "Never", "command": ["sleep", "3600"],
        "startupProbe": probe("/startupz", 60), "livenessProbe": probe("/livez", 3),
        "readinessProbe": probe("/readyz", 1),
    }  # fmt: skip
    return {"metadata": {"name": name}, "spec": {"terminationGracePeriodSeconds": 1, "containers": [container]}}


def state(node: gpu_node.GpuNode, name: str) -> tuple[bool, int]:
    """Whether the pod's container is ready, and how often it was restarted."""
    statuses = node.pod(name)["status"].get("containerStatuses") or [{"ready": False, "restartCount": 0}]
    return statuses[0]["ready"], statuses[0]["restartCount"]


def test_readiness_takes_a_process_out_of_service_and_liveness_restarts_it(
    node: gpu_node.GpuNode, monitor: monitor_process.MonitorProcess
) -> None:
    """A GPU that hangs makes a monitor that needs it unready, no more; a process that stands still is restarted."""
    body = probed("probed", int(monitor.addresses["health"].rpartition(":")[2]))
    node.create({**body, "spec": {**body["spec"], "nodeName": gpu_node.NODE}})
    node.wait("it is ready", lambda: state(node, "probed") == (True, 0))

    node.driver.rules = ["hang nvmlDeviceGetPowerUsage 1"]
    node.driver.write()
    node.wait("it is not ready", lambda: state(node, "probed") == (False, 0))
    assert monitor.get("health", "/livez")[0] == 200
    node.driver.rules = []
    node.driver.write()
    node.wait("it is ready again", lambda: state(node, "probed") == (True, 0))

    os.kill(monitor.pid, signal.SIGSTOP)
    try:
        node.wait("it is restarted", lambda: state(node, "probed")[1] > 0)
    finally:
        os.kill(monitor.pid, signal.SIGCONT)
    node.wait("it is ready after all", lambda: state(node, "probed")[0])
    node.delete("probed")


def test_a_process_is_counted_for_the_container_in_whose_cgroup_it_really_is(
    node: gpu_node.GpuNode, monitor: monitor_process.MonitorProcess
) -> None:
    """By the kubelet's cgroups and containerd's ids, of two containers of one pod."""
    node.create(gpu_node.pod("user", gpu_node.container("one", 2000), gpu_node.container("two", 3000)))
    node.wait_running("user")
    uid = node.pod("user")["metadata"]["uid"]
    container_id = next(
        one["containerID"].rpartition("/")[2]
        for one in node.pod("user")["status"]["containerStatuses"]
        if one["name"] == "two"
    )
    pid = next(
        int(path.parent.name)
        for path in pathlib.Path("/proc").glob("[0-9]*/cgroup")
        if container_id in _text(path) and uid.replace("-", "_") in _text(path).replace("-", "_")
    )
    record = node.pod("user")["metadata"]["annotations"]["hami.io/vgpu-devices-allocated"]
    gpu = next(index for index, one in enumerate(node.driver.gpus) if one.uuid in record.split(";")[1])
    node.driver.processes = [f"process {gpu} {pid} {GIB} 33"]
    node.driver.write()

    def used() -> dict[str, float]:
        lines = monitor.get("health", "/metrics")[1].decode().splitlines()
        mine = [line for line in lines if line.startswith('hami_vgpu_memory_usage_bytes{container="')]
        return {line.split('"')[1]: float(line.rpartition(" ")[2]) for line in mine if 'pod="user"' in line}

    node.wait("its use is seen", lambda: used() == {"one": 0, "two": GIB}, 60)
    node.delete_and_wait("user")
    node.wait("its series are gone", lambda: used() == {}, 60)


def _text(path: pathlib.Path) -> str:
    try:
        return path.read_text()
    except OSError:
        return ""
