"""The monitor as a real process beside the device plugin, on the fake driver and a made-up `/proc`."""

import collections
import concurrent.futures
import contextlib
import json
import pathlib
import shutil
import socket
import subprocess
from collections.abc import Iterator

import pytest
from prometheus_client import parser

from gpu_sharing.core import records
from lab import fake_driver, monitor_process
from tests import shared_regions, tools
from tests.component import gpu_node

pytestmark = pytest.mark.slow

GIB = 1 << 30
ID = "ab" * 32


@pytest.fixture
def node() -> Iterator[gpu_node.GpuNode]:
    with gpu_node.running() as running:
        yield running


@pytest.fixture
def monitor(node: gpu_node.GpuNode) -> Iterator[monitor_process.MonitorProcess]:
    with monitoring(node) as process:
        yield process


@contextlib.contextmanager
def monitoring(node: gpu_node.GpuNode, ids: str = "4711") -> Iterator[monitor_process.MonitorProcess]:
    """A monitor that runs with these ids in the PID namespaces from the host's inwards."""
    (node.folder / "proc" / "self" / "status").write_text(f"Name:\tpython\nNSpid:\t{ids}\n")
    process = monitor_process.MonitorProcess(
        node.folder,
        node.driver,
        [
            "--kubeconfig", str(node.kubeconfig), "--node-name", gpu_node.NODE, "--interval", "0.1",
            "--kubelet-dir", str(node.folder / "kubelet"), "--proc-dir", str(node.folder / "proc"),
            "--nvml-timeout", "0.3", "--stale-after", "1",
        ],
    )  # fmt: skip
    with monitor_process.running(process):
        yield process


def scraped(monitor: monitor_process.MonitorProcess) -> dict[str, dict[str, float]]:
    """Name and labels, as text, to value; empty for a name that is not exported, or not yet."""
    status, body = monitor.get("health", "/metrics")
    assert status == 200
    found: dict[str, dict[str, float]] = collections.defaultdict(dict)
    for family in parser.text_string_to_metric_families(body.decode()):
        for one in family.samples:
            found[one.name][",".join(f"{k}={v}" for k, v in sorted(one.labels.items()))] = one.value
    return found


def use(node: gpu_node.GpuNode, pod_uid: str, container_id: str, gpu: int, pid: int, memory: int, percent: int) -> None:
    """Let a process of a container use a GPU."""
    (node.folder / "proc" / str(pid)).mkdir(exist_ok=True)
    (node.folder / "proc" / str(pid) / "cgroup").write_text(f"0::/kubepods/pod{pod_uid}/{container_id}\n")
    node.driver.processes.append(f"process {gpu} {pid} {memory} {percent}")
    node.driver.write()


def run_pod(node: gpu_node.GpuNode, name: str, container_id: str, *shares: str) -> str:
    """A pod that runs on the node. Returns its UID."""
    pod = node.create(name, *shares)
    path = f"/api/v1/namespaces/default/pods/{name}/status"
    statuses = [{"name": "c0", "containerID": f"containerd://{container_id}", "state": {"running": {}}}]
    node.server.request(
        "PATCH", path, {"status": {"phase": "Running", "containerStatuses": statuses}}, "application/merge-patch+json"
    )
    uid: str = pod["metadata"]["uid"]
    return uid


def test_a_slice_has_series_from_its_allocation_to_the_end_of_its_pod(
    node: gpu_node.GpuNode, monitor: monitor_process.MonitorProcess
) -> None:
    """First at zero, then what its processes use; nothing stays behind."""
    uid = run_pod(node, "train", ID, "1:4096:30")
    labels = f"container=c0,device={node.uuid(1)},namespace=default,pod=train"
    node.wait("zero", lambda: scraped(monitor).get("hami_vgpu_memory_usage_bytes") == {labels: 0})

    use(node, uid, ID, 1, 71, 2 * GIB, 40)
    node.wait("used", lambda: scraped(monitor)["hami_vgpu_memory_usage_bytes"] == {labels: 2 * GIB})
    found = scraped(monitor)
    assert found["hami_vgpu_utilization_percent"] == {labels: 40}
    assert found["hami_gpu_memory_total_bytes"][f"device={node.uuid(0)},node={gpu_node.NODE}"] == 81_920 << 20
    assert found["hami_gpu_containers"][f"device={node.uuid(1)},node={gpu_node.NODE}"] == 1

    # The process ends between two questions: what it holds is nobody's until the driver notices.
    shutil.rmtree(node.folder / "proc" / "71")
    node.wait("ended", lambda: scraped(monitor)["hami_vgpu_memory_usage_bytes"] == {labels: 0})

    node.delete(node.pod("train"))
    node.wait("gone", lambda: "hami_vgpu_memory_usage_bytes" not in scraped(monitor))
    assert "train" not in monitor.get("health", "/metrics")[1].decode()


def test_a_gpu_that_hangs_hangs_no_scrape_and_grows_stale(
    node: gpu_node.GpuNode, monitor: monitor_process.MonitorProcess
) -> None:
    """Its neighbour is measured on; when it answers again it is fresh again."""
    hung, well = (f"device={node.uuid(index)},node={gpu_node.NODE}" for index in (0, 1))
    node.wait("measured", lambda: len(scraped(monitor).get("hami_gpu_memory_used_bytes", {})) == 2)

    node.driver.rules = ["hang nvmlDeviceGetMemoryInfo 0"]
    node.driver.write()
    node.wait("stale", lambda: scraped(monitor)["hami_monitor_gpu_stale"].get(hung) == 1)

    found = scraped(monitor)
    assert list(found["hami_gpu_memory_used_bytes"]) == [well]
    assert found["hami_monitor_gpu_stale"][well] == 0
    assert found["hami_monitor_sample_failures_total"][""] > 0
    assert monitor.get("health", "/livez")[0] == 200
    assert b"MONITOR_NOT_MEASURED" in monitor.log_file.read_bytes()

    node.driver.rules = []
    node.driver.write()
    node.wait("fresh", lambda: scraped(monitor)["hami_monitor_gpu_stale"].get(hung) == 0)


def test_what_cannot_be_measured_is_missing_and_counted(
    node: gpu_node.GpuNode, monitor: monitor_process.MonitorProcess
) -> None:
    """Never zero."""
    node.driver.rules = ["fail nvmlDeviceGetUtilizationRates 3 0", "fail nvmlDeviceGetPowerUsage 3 0"]
    node.driver.write()
    key = f"device={node.uuid(0)},node={gpu_node.NODE},quantity=power"
    node.wait("counted", lambda: scraped(monitor).get("hami_monitor_unmeasured", {}).get(key) == 1)

    found = scraped(monitor)
    labels = f"device={node.uuid(0)},node={gpu_node.NODE}"
    for name in ("hami_gpu_power_watts", "hami_gpu_utilization_percent"):
        assert found[name], name  # Of the other GPU.
        assert labels not in found[name]
    assert labels in found["hami_gpu_temperature_celsius"]


def test_a_region_that_a_tenant_spoils_is_reported(
    node: gpu_node.GpuNode, monitor: monitor_process.MonitorProcess
) -> None:
    """And its container's other numbers stay."""
    uid = run_pod(node, "train", ID, "0:4096:30")
    folder = node.folder / "hook" / "vgpu" / "containers" / f"{uid}_c0"
    folder.mkdir(parents=True)
    (folder / "x.cache").write_bytes(b"garbage")

    node.wait("reported", lambda: scraped(monitor)["hami_monitor_shared_regions"].get("state=version") == 1)
    assert "hami_vgpu_memory_usage_bytes" in scraped(monitor)


def write_region(node: gpu_node.GpuNode, folder: str, gpu: int, memory: int) -> None:
    """Let the HAMi-core library of a container count what it uses of a GPU."""
    path = node.folder / "hook" / "vgpu" / "containers" / folder
    path.mkdir(parents=True, exist_ok=True)
    shared_regions.write(path / "x.cache", used=(memory,), uuids=(node.uuid(gpu),), percent=30)


def test_in_a_foreign_pid_namespace_no_container_is_at_zero_and_its_library_is_read(node: gpu_node.GpuNode) -> None:
    """A pod without hostPID: every driver since 2023 lists no process to it, as if nobody used the GPU."""
    counted, uncounted = run_pod(node, "counted", ID, "1:4096:30"), run_pod(node, "uncounted", "cd" * 32, "1:1024:0")
    write_region(node, f"{counted}_c0", 1, 2 * GIB)
    node.driver.gpus[1].used_mib = 3000
    node.driver.write()
    with monitoring(node, "4711\t7") as monitor:
        unknown = f"device={node.uuid(1)},node={gpu_node.NODE},quantity=container_memory"
        node.wait("counted", lambda: scraped(monitor).get("hami_monitor_unmeasured", {}).get(unknown) == 1)

        found = scraped(monitor)
        labels = f"container=c0,device={node.uuid(1)},namespace=default,pod=counted"
        assert found["hami_vgpu_memory_usage_bytes"] == {labels: 2 * GIB}
        assert found["hami_vgpu_utilization_percent"] == {labels: 30}
        assert "hami_monitor_unattributed_bytes" not in found
        assert found["hami_gpu_memory_used_bytes"][f"device={node.uuid(1)},node={gpu_node.NODE}"] == 3000 << 20
        assert b"MONITOR_PID_NAMESPACE" in monitor.log_file.read_bytes()
        assert not json.loads(monitor.get("health", "/healthz")[1])["components"]["processes"]["healthy"]
        assert monitor.get("health", "/readyz")[0] == 200
    assert uncounted


def test_memory_that_no_listed_process_uses_makes_idle_containers_unknown(
    node: gpu_node.GpuNode, monitor: monitor_process.MonitorProcess
) -> None:
    """Whatever hides the process: a GPU that is full of nobody's memory has no container at zero."""
    run_pod(node, "train", ID, "1:4096:30")
    node.wait("zero", lambda: scraped(monitor).get("hami_vgpu_memory_usage_bytes"))

    node.driver.gpus[1].used_mib = 9000
    node.driver.write()

    node.wait("unknown", lambda: "hami_vgpu_memory_usage_bytes" not in scraped(monitor))
    found = scraped(monitor)["hami_monitor_unmeasured"]
    assert found[f"device={node.uuid(1)},node={gpu_node.NODE},quantity=container_memory"] == 1


def test_a_matched_container_is_found_by_its_librarys_folder() -> None:
    """Without CDI the folder bears the allocation's name, because its owner is certain only at the start."""
    with gpu_node.running(1, runtime="containerd://1.7.20") as node:
        pod = node.create("train", "0:4096:30")
        started = node.run(pod)
        statuses = [{"name": "c0", "containerID": f"containerd://{ID}", "state": {"running": {}}}]
        status = {"status": {"phase": "Running", "containerStatuses": statuses}}
        path = "/api/v1/namespaces/default/pods/train/status"
        node.server.request("PATCH", path, status, "application/merge-patch+json")
        folder = pathlib.Path(started.mounts[f"{node.plugin.hook_path}/vgpu"]).name
        write_region(node, folder, 0, GIB)
        with monitoring(node, "4711\t7") as monitor:
            node.wait("read", lambda: list(scraped(monitor).get("hami_vgpu_memory_usage_bytes", {}).values()) == [GIB])


def test_a_node_whose_pod_is_in_a_foreign_pid_namespace_says_so(tmp_path: pathlib.Path) -> None:
    """The plugin, in the same pod as the monitor, writes it where doctor and pages read."""
    (tmp_path / "self").mkdir()
    (tmp_path / "self" / "status").write_text("NSpid:\t4711\t7\n")
    with gpu_node.running(1, "--proc-dir", str(tmp_path)) as node:
        found = node.wait("it is written", lambda: node.node()["metadata"]["annotations"].get(records.PROBLEMS))

        assert "4711, 7" in records.decode_problems(found)["MONITOR_PID_NAMESPACE"]


def test_a_hundred_scrapes_at_once_and_slow_ones_do_no_harm(
    node: gpu_node.GpuNode, monitor: monitor_process.MonitorProcess
) -> None:
    """A scraper that never reads its answer holds nobody up."""
    host, _, port = monitor.addresses["health"].rpartition(":")
    slow = [socket.create_connection((host, int(port))) for _ in range(20)]
    for one in slow:
        one.sendall(b"GET /metrics HTTP/1.1\r\nHost: x\r\n")  # And never the end of it.
    with concurrent.futures.ThreadPoolExecutor(100) as pool:
        answers = list(pool.map(lambda _: monitor.get("health", "/metrics"), range(100)))
    for one in slow:
        one.close()

    assert {status for status, _ in answers} == {200}
    assert monitor.get("health", "/readyz")[0] == 200


def test_promtool_finds_nothing_wrong_with_the_names(
    node: gpu_node.GpuNode, monitor: monitor_process.MonitorProcess
) -> None:
    """But for the two that the contract fixes."""
    promtool = tools.find("promtool")
    run_pod(node, "train", ID, "1:4096:30")
    node.wait("a slice", lambda: "hami_vgpu_info" in scraped(monitor))
    fixed = ("hami_device_plugin_device_count ", "hami_gpu_shared_count ")

    for text in (monitor.get("health", "/metrics")[1], node.plugin.get("health", "/metrics")[1]):
        done = subprocess.run([promtool, "check", "metrics"], input=text, capture_output=True, timeout=60)
        assert [line for line in done.stderr.decode().splitlines() if not line.startswith(fixed)] == []


def test_it_runs_on_a_node_without_a_driver(tmp_path: pathlib.Path, node: gpu_node.GpuNode) -> None:
    """Ready, with nothing to show, and looking again."""
    empty = fake_driver.make(tmp_path, "empty", 0)
    arguments = ["--kubeconfig", str(node.kubeconfig), "--node-name", "other", "--interval", "0.1"]
    with monitor_process.running(monitor_process.MonitorProcess(tmp_path, empty, arguments)) as monitor:
        found = scraped(monitor)
        assert found["hami_build_info"] == {"component=monitor,version=0.1.0": 1}
        assert "hami_gpu_memory_total_bytes" not in found
