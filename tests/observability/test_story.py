"""A small cluster of real processes, scraped by a real Prometheus, through a story of good and bad days.

The rule file is the shipped one with its durations divided by `watched_cluster.FASTER`; Prometheus finds its targets as
the example for a Prometheus without operator does, in what the chart renders.
"""

import json
import pathlib
import re
import urllib.error
import urllib.request
from collections.abc import Iterator
from typing import Any

import pytest

from lab import faults, kinds, node_processes, prometheus_process, webui_process
from observability import alerts, dashboards
from tests import tools
from tests.architecture import test_metrics
from tests.observability import watched_cluster

WINDOW = "2m"
"""What `$__rate_interval` stands for here: the whole story."""
GIB = 1 << 30


@pytest.fixture(scope="module")
def world() -> Iterator[watched_cluster.WatchedCluster]:
    print(f"\nall durations of the rules are divided by {watched_cluster.FASTER}", flush=True)
    with watched_cluster.running(tools.find("prometheus")) as found:
        yield found


def test_a_story_of_good_and_bad_days(world: watched_cluster.WatchedCluster) -> None:
    """What should fire fires, and nothing else; allocated series have just their labels; every panel shows data."""
    node_1, node_2 = world.node("node-1"), world.node("node-2")
    world.cluster.create(
        kinds.BY_PATH["", "v1", "resourcequotas"],
        {"metadata": {"name": "team", "namespace": "default"}, "spec": {"hard": {"limits.nvidia.com/gpu": "100"}}},
    )

    # Two pods share a GPU, one has one to itself.
    world.create("share-a", {"gpu": "1", "gpumem": "4000", "gpucores": "30"})
    world.create("share-b", {"gpu": "1", "gpumem": "4000"})
    world.create("whole", {"gpu": "1"})
    world.runs("share-a", "share-b", "whole")
    share, whole = world.pod("share-a"), world.pod("whole")
    where = {pod["metadata"]["name"]: _place(world, pod) for pod in (share, whole)}
    share_node, share_gpu = where["share-a"]
    share_node.use(share, "main", share_gpu, 4001, 2 * GIB, 40)
    world.wait(
        "use is seen",
        lambda: (
            _value(world, 'hami_vgpu_memory_usage_bytes{pod="share-a"}') == 2 * GIB
            and _value(world, 'hami_vgpu_utilization_percent{pod="share-a"}') == 40
        ),
    )
    world.wait_alert("GPUFullyAllocated")
    whole_node, whole_gpu = where["whole"]
    whole_node.driver.gpus[whole_gpu].used_mib = 81_500
    whole_node.driver.write()
    world.wait_alert("GPUNoAvailableMemory")
    world.wait_alert("GPUMemoryUsageElevated")
    world.wait_alert("GPUMemoryUsageHigh")

    # One pod that no node takes; one that somebody bound past the scheduler; binds that the API server refuses.
    world.create("large", {"gpu": "1", "gpumem": "100000"})
    world.create("smuggled", {"gpu": "1"}, nodeName="node-1")
    world.wait_alert("GPUAllocationFailures")
    # Its kubelet here tries without pause: on a slow machine the plugin would drop events about it in the end.
    world.cluster.server.request("DELETE", "/api/v1/namespaces/default/pods/smuggled?gracePeriodSeconds=0")
    world.cluster.server.call(
        lambda: world.cluster.server.app.faults.arm(faults.Fault("POST", "/binding$", 100_000, refuse_with=500))
    )
    for number in range(8):
        world.create(f"unlucky-{number}", {"gpu": "1", "gpumem": "500"})
    world.wait_alert("ScheduleFailureRate")
    world.cluster.server.call(world.cluster.server.app.faults.disarm)
    world.runs(*(f"unlucky-{number}" for number in range(8)))

    # A GPU is hot, one falls ill and recovers, one does not answer the monitor.
    node_2.driver.gpus[0].temperature_celsius = 85
    node_2.driver.write()
    world.wait_alert("GPUTemperatureCritical")
    world.wait_alert("GPUTemperatureHigh")
    node_2.driver.gpus[0].temperature_celsius = 45
    node_2.driver.gpus[1].recovery_action = 1
    node_2.driver.report_xid(1, 95)
    world.wait_alert("GPUUnhealthy")
    node_2.driver.gpus[1].recovery_action = 0
    node_2.driver.write()
    node_1.driver.rules = ["hang nvmlDeviceGetPowerUsage 0"]
    node_1.driver.write()
    world.wait_alert("MonitorGPUStale")
    node_1.driver.rules = []
    node_1.driver.write()
    world.wait_quiet("GPUUnhealthy", "MonitorGPUStale", "GPUTemperatureHigh", "GPUTemperatureCritical")

    _check_promised_series(world)
    _check_dashboards(world)

    # The extender dies, and comes back.
    world.cluster.extender.kill()
    world.wait_alert("SchedulerExtenderDown")
    world.wait_alert("HamiTargetDown")
    world.cluster.extender.start()
    world.wait_quiet("SchedulerExtenderDown", "HamiTargetDown")
    world.create("after", {"gpu": "1", "gpumem": "1000"})
    world.runs("after")

    assert world.seen == {
        "GPUFullyAllocated", "GPUNoAvailableMemory", "GPUMemoryUsageElevated", "GPUMemoryUsageHigh",
        "GPUAllocationFailures", "GPUTemperatureCritical",
        "ScheduleFailureRate", "GPUTemperatureHigh", "GPUUnhealthy", "MonitorGPUStale", "SchedulerExtenderDown",
        "HamiTargetDown",
    }  # fmt: skip
    assert world.seen <= {one.name for one in alerts.ALERTS}


def _place(world: watched_cluster.WatchedCluster, pod: Any) -> tuple[node_processes.NodeProcesses, int]:
    """The node of a pod, and which of its GPUs it has."""
    node = world.node(pod["spec"]["nodeName"])
    record = pod["metadata"]["annotations"]["hami.io/vgpu-devices-allocated"]
    return node, next(index for index, gpu in enumerate(node.driver.gpus) if gpu.uuid in record)


def _value(world: watched_cluster.WatchedCluster, expression: str) -> float | None:
    found = world.prometheus.query(expression)
    return float(found[0]["value"][1]) if found else None


def _check_promised_series(world: watched_cluster.WatchedCluster) -> None:
    """What the contract names is there, with its labels, those of the target and no others."""
    for name, kind, labels, _ in test_metrics.promised():
        if kind == "histogram":
            found = world.prometheus.query(f"{name}_bucket")
            labels = labels | {"le"}
        else:
            found = world.prometheus.query(name)
        assert found, name
        for one in found:
            own = set(one["metric"]) - {"__name__"} - (set(prometheus_process.TARGET_LABELS) - labels)
            assert own == labels, (name, one["metric"])


def _check_dashboards(world: watched_cluster.WatchedCluster) -> None:
    """Every query of every panel finds something."""
    asked = 0
    for board in dashboards.DASHBOARDS:
        for title, query in dashboards.queries(board):
            text = query.replace("$__rate_interval", WINDOW)
            text = re.sub(r"\$(cluster|node|namespace|device)\b", ".*", text)
            assert world.prometheus.query(text), f"{board.title}: {title}: {text}"
            asked += 1
    print(f"{asked} queries of {len(dashboards.DASHBOARDS)} dashboards found something", flush=True)


def test_the_webui_shows_what_monitors_and_prometheus_say(
    world: watched_cluster.WatchedCluster, tmp_path: pathlib.Path
) -> None:
    """The same numbers as they, by either way; a node whose monitor it does not find is unknown, never zero."""
    running, node = world.cluster, world.node("node-1")
    address, _, port = node.monitor.addresses["health"].rpartition(":")
    running.create(
        kinds.BY_PATH["discovery.k8s.io", "v1", "endpointslices"],
        {
            "metadata": {"name": "m", "namespace": "default", "labels": {"kubernetes.io/service-name": "hami-monitor"}},
            "addressType": "IPv4",
            "endpoints": [{"addresses": [address], "nodeName": "node-1"}],
            "ports": [{"port": int(port)}],
        },
    )
    extender, service = f"http://{running.extender.api}", f"default/hami-monitor:{port}"
    ways = {
        "monitors": ("--monitor-service", service, "--kubeconfig", str(running.kubeconfig)),
        "prometheus": ("--prometheus", world.prometheus.url),
    }
    for way, flags in ways.items():
        (tmp_path / way).mkdir()
        with webui_process.running(webui_process.WebUIProcess(tmp_path / way, extender, *flags)) as webui:
            # Ready to show a page is not the same as having read the extender.
            world.wait("the first data", lambda url=webui.url: _answers(f"{url}/api/v1/nodes/node-1"))  # type: ignore[misc]

            def told(path: str, url: str = webui.url) -> Any:
                with urllib.request.urlopen(f"{url}/api/v1/{path}", timeout=10) as answer:
                    return json.load(answer)

            def used(node: str) -> dict[str, int | None]:
                return {one["uuid"]: one["used_mib"] for one in told(f"nodes/{node}")["gpus"]}

            def scraped(node: str) -> dict[str, int]:
                found = world.prometheus.query(f'hami_gpu_memory_used_bytes{{node="{node}"}}')
                return {one["metric"]["device"]: int(float(one["value"][1])) >> 20 for one in found}

            world.wait(f"use by {way}", lambda: used("node-1") == scraped("node-1") != {})
            if way == "monitors":
                assert set(used("node-2").values()) == {None}
                assert told("overview")["used_mib"] is None
            else:
                assert used("node-2") == scraped("node-2")
                assert told("overview")["used_mib"] == sum((scraped("node-1") | scraped("node-2")).values())
                assert any(told("history?window=6h&node=node-1")["allocated_mib"])


def _answers(url: str) -> bool:
    """Whether there is an answer yet; only "no data yet" is waited for."""
    try:
        with urllib.request.urlopen(url, timeout=10):
            return True
    except urllib.error.HTTPError as refused:
        assert refused.code == 503, refused
        return False
