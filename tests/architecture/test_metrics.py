"""The series that dashboards of others know, as the contract names them."""

import pathlib
import re
import types

import pytest

from device_plugin import metrics as plugin_metrics
from device_plugin.monitor import collector
from docs import generate
from scheduler_extender.metrics import Metrics
from scheduler_extender.report import cluster_gauges

PAGE = pathlib.Path(__file__).parents[2] / "docs" / "reference" / "metrics-contract.md"


def promised() -> list[tuple[str, str, set[str], str]]:
    """Name, type, labels and process of each row of the page."""
    rows = re.findall(r"^\| `(\w+)` \| (\w+) \| ([^|]*) \| (\w[\w ]*) \|$", PAGE.read_text(), re.M)
    return [(name, kind, set(re.findall(r"\w+", labels)), process) for name, kind, labels, process in rows]


def cluster_series() -> list[str]:
    """Those that only the leader has."""
    return list(cluster_gauges.GAUGES)


def test_the_page_promises_something() -> None:
    """Else the next test could not fail."""
    assert len(promised()) == 16 + len(collector.COMPATIBLE)


@pytest.mark.parametrize(("name", "kind", "labels", "process"), promised())
def test_every_promised_series_is_declared_with_just_its_labels(
    name: str, kind: str, labels: set[str], process: str
) -> None:
    """Dashboards break on one label more or less."""
    found = generate.processes()[process]
    types_by_name = {
        f"{one.name}_total" if one.type == "counter" else one.name: one.type for one in found.registry.collect()
    }
    assert (types_by_name[name], set(found.labels[name])) == (kind, labels)


def test_counters_without_labels_are_there_at_zero_from_the_start() -> None:
    """An alert over an absent series never fires."""
    text = Metrics().exposition()[0].decode()
    assert "hami_scheduler_bind_success_total 0.0" in text
    assert "hami_scheduler_bind_failure_total 0.0" in text
    assert "_created" not in text


def test_a_scraper_that_asks_for_openmetrics_gets_exemplars() -> None:
    """They lead from a slow bind to its log lines."""
    metrics = Metrics()
    metrics.bind_seconds.observe(0.3, {"decision_id": "abc"})

    text, content_type = metrics.exposition("application/openmetrics-text; version=1.0.0")

    assert content_type.startswith("application/openmetrics-text")
    assert 'hami_scheduler_bind_duration_seconds_bucket{le="0.5"} 1.0 # {decision_id="abc"} 0.3' in text.decode()
    assert "decision_id" not in metrics.exposition()[0].decode()


def test_watches_and_events_are_counted_where_they_are_kept() -> None:
    """Under the same names in every process."""
    metrics = plugin_metrics.Metrics()
    metrics.follow({"pods": types.SimpleNamespace(last_heard=1.0, lists=2, failures=3)})
    metrics.count_events("hami_device_plugin", types.SimpleNamespace(written=4, dropped=5))
    metrics.api_call("GET", 200, 0.1)

    text = metrics.exposition()[0].decode()

    for line in (
        'hami_watch_lists_total{watch="pods"} 2.0',
        'hami_watch_failures_total{watch="pods"} 3.0',
        "hami_device_plugin_events_written_total 4.0",
        "hami_device_plugin_events_dropped_total 5.0",
        'hami_api_call_duration_seconds_count{method="GET",status="200"} 1.0',
    ):
        assert line in text.splitlines()
