"""Scrapes while very many pods come and go."""

import pathlib
import tempfile
import threading
import time
from collections.abc import Callable

from prometheus_client import parser

from lab import cluster, gpus, kinds, node_processes, service_process

PODS = 500


def scrape(process: service_process.ServiceProcess) -> str:
    """One scrape, in which no series occurs twice."""
    status, body = process.get("health", "/metrics")
    assert status == 200
    text = body.decode()
    seen = set()
    for family in parser.text_string_to_metric_families(text):
        for one in family.samples:
            key = (one.name, tuple(sorted(one.labels.items())))
            assert key not in seen, key
            seen.add(key)
    return text


def test_no_scrape_fails_while_500_pods_start_and_none_of_them_stays_behind() -> None:
    """On one node of eight GPUs, scraped all the time."""
    with tempfile.TemporaryDirectory(prefix="gpu-") as text:
        node = gpus.gpu_node("node-1", gpus.A100, 8, slots=100, most_pods=1000)
        with cluster.running(
            [node], folder=pathlib.Path(text), plugins=True, make_node=node_processes.NodeProcesses
        ) as running:
            served = running.gpu_nodes["node-1"]
            assert isinstance(served, node_processes.NodeProcesses)
            served.wait_ready()
            processes = (running.extender, served.plugin, served.monitor)
            stop, scrapes, troubles = threading.Event(), [0], list[BaseException]()

            def scraper() -> None:
                while not stop.is_set():
                    try:
                        for one in processes:
                            scrape(one)
                            scrapes[0] += 1
                    except AssertionError as trouble:
                        troubles.append(trouble)
                        return

            thread = threading.Thread(target=scraper)
            thread.start()
            try:
                limits = {"nvidia.com/gpu": "1", "nvidia.com/gpumem": "1000"}
                for number in range(PODS):
                    containers = [{"name": "main", "image": "x", "resources": {"limits": limits}}]
                    running.create(
                        kinds.PODS,
                        {
                            "metadata": {"name": f"many-{number}", "namespace": "default"},
                            "spec": {"schedulerName": "hami-scheduler", "containers": containers},
                        },
                    )
                _wait(lambda: sum(one["status"]["phase"] == "Running" for one in running.all(kinds.PODS)) == PODS)
                _wait(lambda: scrape(served.monitor).count("\nhami_vgpu_info{") == PODS)
                for number in range(PODS):
                    running.server.request(
                        "DELETE", f"/api/v1/namespaces/default/pods/many-{number}?gracePeriodSeconds=0"
                    )
                _wait(lambda: "many-" not in scrape(served.monitor))
                _wait(lambda: running.extender.metric("hami_scheduler_pods_bound") == 0)
            finally:
                stop.set()
                thread.join()
            print(f"{scrapes[0]} scrapes", flush=True)
            assert troubles == []
            assert scrapes[0] > 50


def _wait(condition: Callable[[], bool], seconds: float = 180.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "not in time"
        time.sleep(0.2)
