"""Prometheus over the pods and Services of the rendered chart: what it finds by each of the documented ways."""

import collections
import pathlib
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import yaml

from lab import prometheus_process
from observability import rules, targets
from tests import tools
from tests.observability import discovered, watched_cluster

Jobs = Callable[[pathlib.Path, discovered.Addresses], list[dict[str, Any]]]


def _monitors(path: pathlib.Path) -> discovered.Objects:
    return [one for one in yaml.safe_load_all(path.read_text()) if one and one["kind"] == "ServiceMonitor"]


WAYS: dict[str, Jobs] = {
    "without operator": discovered.example_jobs,
    "example for the operator": lambda folder, addresses: discovered.operator_jobs(
        folder, addresses, _monitors(discovered.EXAMPLES / "prometheus-operator.yaml")
    ),
    "chart's ServiceMonitors": lambda folder, addresses: discovered.operator_jobs(
        folder, addresses, _monitors(discovered.CHART)
    ),
}


@pytest.fixture(scope="module")
def world() -> Iterator[watched_cluster.WatchedCluster]:
    with watched_cluster.running(tools.find("prometheus")) as found:
        yield found


@pytest.mark.parametrize("way", WAYS)
def test_every_process_is_up_under_its_documented_job_and_nothing_else_is_scraped(
    way: str, world: watched_cluster.WatchedCluster, tmp_path: pathlib.Path
) -> None:
    """A process that is not scraped has no alerts, and one alert says for ever that it is missing."""
    with prometheus_process.running(
        tools.find("prometheus"),
        tmp_path / "prometheus",
        WAYS[way](tmp_path, world.addresses),
        rules=rules.rule_file(watched_cluster.FASTER),
        interval="500ms",
    ) as prometheus:
        expected = {one.job: len(world.addresses[one.job]) for one in targets.TARGETS}
        total = sum(expected.values())
        world.wait("every process is up", lambda: len(prometheus.query("up == 1")) >= total)

        found = prometheus.active_targets()
        assert collections.Counter(one["labels"]["job"] for one in found) == expected
        assert [(one["labels"], one["lastError"]) for one in found if one["health"] != "up"] == []
        for job, component in (
            ("hami-scheduler", "extender"), ("hami-device-plugin", "device-plugin"), ("hami-monitor", "monitor"),
            ("hami-webui", "webui"),
        ):  # fmt: skip
            assert len(prometheus.query(f'hami_build_info{{job="{job}", component="{component}"}}')) == expected[job]
            assert {one["metric"]["namespace"] for one in prometheus.query(f'up{{job="{job}"}}')} == {"hami-system"}


def test_a_scraped_plugin_is_not_missing_and_its_sick_gpu_is_reported(world: watched_cluster.WatchedCluster) -> None:
    """A Prometheus that did not find the plugin would say the one for ever, and the other never."""
    driver = world.node("node-1").driver
    driver.gpus[0].recovery_action = 1
    driver.report_xid(0, 95)

    world.wait_alert("GPUUnhealthy")

    assert "DevicePluginMissing" not in world.seen
    driver.gpus[0].recovery_action = 0
    driver.write()
    world.wait_quiet("GPUUnhealthy")
