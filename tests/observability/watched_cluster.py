"""A small cluster of real processes under a real Prometheus, for tests that follow what is shown of it."""

import contextlib
import os
import pathlib
import tempfile
import time
from collections.abc import Callable, Iterator
from typing import Any
from unittest import mock

from lab import cluster, gpus, kinds, node_processes, prometheus_process, webui_process
from observability import alerts, rules
from tests.observability import discovered

FASTER = 60
"""By what the durations of the shipped rule file are divided."""
NODES = ("node-1", "node-2")


class WatchedCluster:
    """A cluster in one process, its services as real ones, and the Prometheus that scrapes them."""

    def __init__(
        self, running: cluster.Cluster, prometheus: prometheus_process.Prometheus, addresses: discovered.Addresses
    ) -> None:
        self.cluster = running
        self.prometheus = prometheus
        self.addresses = addresses
        self.seen: set[str] = set()
        """Alerts that have fired so far."""

    def node(self, name: str) -> node_processes.NodeProcesses:
        found = self.cluster.gpu_nodes[name]
        assert isinstance(found, node_processes.NodeProcesses)
        return found

    def create(self, name: str, limits: dict[str, str], **spec: Any) -> None:
        full = {f"nvidia.com/{key}": value for key, value in limits.items()}
        containers = [{"name": "main", "image": "x", "resources": {"limits": full}}]
        body = {
            "metadata": {"name": name, "namespace": "default"},
            "spec": {"schedulerName": "hami-scheduler", "containers": containers, **spec},
        }
        self.cluster.create(kinds.PODS, body)

    def pod(self, name: str) -> Any:
        return self.cluster.server.request("GET", f"/api/v1/namespaces/default/pods/{name}")

    def wait(self, what: str, condition: Callable[[], Any], seconds: float = 60.0) -> Any:
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            self.seen |= self.prometheus.firing()
            found = condition()
            if found:
                return found
            time.sleep(0.25)
        raise AssertionError(f"not within {seconds:g} s: {what}; alerts so far: {sorted(self.seen)}")

    def wait_alert(self, name: str) -> None:
        self.wait(f"{name} fires", lambda: name in self.prometheus.firing())
        print(f"{name} fires", flush=True)

    def wait_quiet(self, *names: str) -> None:
        self.wait(f"{names} are over", lambda: not self.prometheus.firing() & set(names))

    def runs(self, *names: str) -> None:
        for name in names:
            self.wait(f"{name} runs", lambda name=name: self.pod(name)["status"]["phase"] == "Running")  # type: ignore[misc]


@contextlib.contextmanager
def running(program: str) -> Iterator[WatchedCluster]:
    """Start two nodes of two GPUs, a WebUI and Prometheus; ready once every target is scraped and no alert fires."""
    with contextlib.ExitStack() as stack:
        # A canary that is late on a busy machine is no fault here.
        stack.enter_context(mock.patch.dict(os.environ, {"HAMI_CANARY_TIMEOUT": "60"}))
        folder = pathlib.Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="gpu-")))
        nodes = [gpus.gpu_node(name, gpus.A100, 2) for name in NODES]
        running = stack.enter_context(
            cluster.running(nodes, folder=folder, plugins=True, make_node=node_processes.NodeProcesses)
        )
        webui = webui_process.WebUIProcess(folder, f"http://{running.extender.api}")
        stack.enter_context(webui_process.running(webui))
        addresses = _addresses(running, webui)
        prometheus = stack.enter_context(
            prometheus_process.running(
                program,
                folder / "prometheus",
                discovered.example_jobs(folder, addresses),
                rules=rules.rule_file(FASTER),
                interval="500ms",
            )
        )
        found = WatchedCluster(running, prometheus, addresses)
        total = sum(len(one) for one in addresses.values())
        # Until it has found its targets, every process is missing.
        found.wait("targets are scraped", lambda: len(prometheus.query("up == 1")) == total)
        found.wait_quiet(*(one.name for one in alerts.ALERTS))
        found.seen.clear()
        yield found


def _addresses(running: cluster.Cluster, webui: webui_process.WebUIProcess) -> discovered.Addresses:
    nodes = [one for one in running.gpu_nodes.values() if isinstance(one, node_processes.NodeProcesses)]
    for node in nodes:
        node.wait_ready()
    return {
        "hami-scheduler": [running.extender.health],
        "hami-device-plugin": [one.plugin.addresses["health"] for one in nodes],
        "hami-monitor": [one.monitor.addresses["health"] for one in nodes],
        "hami-webui": [webui.addresses["health"]],
    }
