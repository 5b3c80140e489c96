"""A small cluster of real processes under a real Prometheus, for tests that follow what is shown of it."""

import contextlib
import pathlib
import tempfile
import time
from collections.abc import Callable, Iterator
from typing import Any

from lab import cluster, gpus, kinds, node_processes, prometheus_process
from observability import alerts, rules

FASTER = 60
"""By what the durations of the shipped rule file are divided."""
NODES = ("node-1", "node-2")


class WatchedCluster:
    """A cluster in one process, its services as real ones, and the Prometheus that scrapes them."""

    def __init__(self, running: cluster.Cluster, prometheus: prometheus_process.Prometheus) -> None:
        self.cluster = running
        self.prometheus = prometheus
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
    """Start two nodes of two GPUs and Prometheus; ready once every target is scraped and no alert fires."""
    with tempfile.TemporaryDirectory(prefix="gpu-") as text:
        folder = pathlib.Path(text)
        nodes = [gpus.gpu_node(name, gpus.A100, 2) for name in NODES]
        with cluster.running(nodes, folder=folder, plugins=True, make_node=node_processes.NodeProcesses) as running:
            targets = [
                prometheus_process.Target("hami-scheduler", running.extender.health, "hami-scheduler-0", "extender")
            ]
            for name in NODES:
                node = running.gpu_nodes[name]
                assert isinstance(node, node_processes.NodeProcesses)
                node.wait_ready()
                pod = f"hami-device-plugin-{name}"
                targets += [
                    prometheus_process.Target("hami-monitor", node.plugin.addresses["health"], pod, "nvidia"),
                    prometheus_process.Target(
                        "hami-monitor", node.monitor.addresses["health"], pod, "monitor", "monitor"
                    ),
                ]
            with prometheus_process.running(
                program, folder / "prometheus", targets, rules.rule_file(FASTER), "500ms"
            ) as prometheus:
                found = WatchedCluster(running, prometheus)
                # Until it has found its targets, every process is missing.
                found.wait("targets are scraped", lambda: len(prometheus.query("up == 1")) == len(targets))
                found.wait_quiet(*(one.name for one in alerts.ALERTS))
                found.seen.clear()
                yield found
