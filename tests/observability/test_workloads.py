"""The example programs under a real Prometheus: every panel of their dashboard shows data, and their alerts fire.

Durations of the rules are divided as in the other scenarios; limits are those that the toys can reach.
"""

import contextlib
import json
import pathlib
import re
import time
import urllib.request
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from lab import fake_driver, prometheus_process
from observability import dashboards, rules, workload_alerts, workload_dashboard
from tests import tools
from tests.support import example_programs

FASTER = 600
SECONDS = 60.0
LIMITS = {
    "WorkloadLatencyHigh": "0.1", "WorkloadLossHigh": "-1", "WorkloadTrainingStalled": "3", "WorkloadAccuracyLow": "2",
}  # fmt: skip
"""Instead of 2 s, 10, 900 s and 0.5: the toy answers fast, and learns fast."""
SLICE = {
    "HAMI_SLICE_MEMORY_MIB": "4000", "HAMI_SLICE_CORES_PERCENT": "30", "HAMI_SLICE_ISOLATION": "none",
    "HAMI_SLICE_NODE": "node-1", "HAMI_SLICE_NAMESPACE": "ml", "HAMI_SLICE_CONTAINER": "main",
}  # fmt: skip


def workload_rules() -> dict[str, Any]:
    """The shipped rules with the limits above."""
    found = rules.workload_rule_file(FASTER)
    by_name = {one.name: one for one in workload_alerts.ALERTS}
    for rule in found["groups"][0]["rules"]:
        if rule["alert"] in LIMITS:
            changed = rules.with_limit(by_name[rule["alert"]], LIMITS[rule["alert"]])
            rule["expr"] = re.sub(r"\[\w+\]", "[5s]", changed)
    return found


def wait(what: str, condition: Callable[[], Any]) -> Any:
    deadline = time.monotonic() + SECONDS
    while True:
        found = condition()
        if found:
            return found
        assert time.monotonic() < deadline, what
        time.sleep(0.25)


def ask(port: int) -> None:
    request = urllib.request.Request(f"http://127.0.0.1:{port}/v1/completions", json.dumps({"prompt": "a"}).encode())
    with urllib.request.urlopen(request, timeout=SECONDS) as answer:
        answer.read()


@contextlib.contextmanager
def scraped(folder: pathlib.Path, ports: dict[str, int]) -> Iterator[prometheus_process.Prometheus]:
    """A Prometheus that scrapes pods as an operator's PodMonitor does: labels of the program come first."""
    targets = [
        {"targets": [f"127.0.0.1:{port}"], "labels": {"namespace": "ml", "pod": pod, "container": "main"}}
        for pod, port in ports.items()
    ]
    job = {"job_name": "workloads", "honor_labels": True, "static_configs": targets}
    with prometheus_process.running(
        tools.find("prometheus"), folder / "prometheus", [job], rules=workload_rules(), interval="500ms"
    ) as running:
        yield running


@pytest.fixture
def driver(tmp_path: pathlib.Path) -> fake_driver.FakeDriver:
    return fake_driver.make(tmp_path, "node-1", 1)


def test_every_panel_shows_data_and_every_alert_fires(tmp_path: pathlib.Path, driver: fake_driver.FakeDriver) -> None:
    """A board without data is found out at the worst time."""
    variables = SLICE | {"HAMI_GPUS": driver.gpus[0].uuid} | driver.environment()
    training_arguments = ("--port", "0", "--epochs", "3", "--linger-seconds", "600")
    server_arguments = ("--host", "127.0.0.1", "--port", "0", "--metrics-port", "0", "--delay-seconds", "0.3")
    with (
        example_programs.running(
            tmp_path, "tiny_training", *training_arguments, **variables, HAMI_SLICE_POD="t"
        ) as training,
        example_programs.running(tmp_path, "tiny_server", *server_arguments, **variables, HAMI_SLICE_POD="s") as server,
    ):
        ports = {"t": training.wait_line("training begins")["port"], "s": server.wait_line("serving")["metrics_port"]}
        api = server.wait_line("serving")["port"]
        with scraped(tmp_path, ports) as prometheus:
            wait("both are scraped", lambda: len(prometheus.query("up == 1")) == 2)
            quiet = {"WorkloadGPUMemoryHigh", "WorkloadGPUTemperatureHigh"}
            assert not prometheus.firing() & quiet

            driver.gpus[0].temperature_celsius = 88
            driver.gpus[0].used_mib = 3900
            driver.processes = [f"process 0 {training.process.pid} {3900 << 20} 50"]
            driver.write()

            def fires() -> bool:
                ask(api)
                return prometheus.firing() == {one.name for one in workload_alerts.ALERTS}

            wait("every alert fires", fires)
            ask(api)
            _check_panels(prometheus)
            assert {one["metric"]["pod"] for one in prometheus.query("slice_memory_limit_bytes")} == {"t", "s"}


def _check_panels(prometheus: prometheus_process.Prometheus) -> None:
    for title, query in dashboards.queries(workload_dashboard.WORKLOADS):
        text = re.sub(r"\$(cluster|namespace)\b", ".*", query.replace("$__rate_interval", "2m"))
        assert prometheus.query(text), f"{title}: {text}"
