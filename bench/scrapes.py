"""The cost of scrapes for decisions: filter calls to a real extender of 5,000 nodes, with and without a scraper.

Quiet and scraped rounds alternate. The scraper is a separate process that requests the metrics ten times a second,
150 times as often as Prometheus does.
"""

import http.client
import multiprocessing
import pathlib
import random
import tempfile
import time
from multiprocessing.synchronize import Event

import orjson

from bench import report
from lab import api_server, extender_process, gpus, kinds

SCRAPES_PER_SECOND = 10
TARGET_RATIO = 2.0


def run(quick: bool) -> report.Report:
    """Measure both in alternating rounds."""
    nodes, rounds, calls = (50, 2, 20) if quick else (5000, 5, 100)
    names = [f"node-{index:05d}" for index in range(nodes)]
    with tempfile.TemporaryDirectory(prefix="bench-") as text, api_server.running() as server:
        folder = pathlib.Path(text)
        server.call(lambda: [server.app.store.create(kinds.NODES, "", gpus.gpu_node(n, gpus.A100, 8)) for n in names])
        kubeconfig = server.write_kubeconfig(folder / "kubeconfig")
        with extender_process.running(kubeconfig, folder / "log") as extender:
            quiet, scraped = [], []
            for _ in range(rounds):
                quiet += _calls(extender.verbs, names, calls)
                stop = multiprocessing.Event()
                scraper = multiprocessing.Process(target=_scrape, args=(extender.health, stop))
                scraper.start()
                time.sleep(0.5)
                scraped += _calls(extender.verbs, names, calls)
                stop.set()
                scraper.join()
            body = extender.get("health", "/metrics")[1]
    alone, beside = _quantiles(quiet), _quantiles(scraped)
    ratio = beside[1] / alone[1]
    return report.Report(
        f"filter over HTTP at {nodes} nodes, in ms",
        ["", "p50", "p99"],
        [["quiet", *alone], ["while it is scraped", *beside]],
        {"calls": len(quiet), "scrapes per second": SCRAPES_PER_SECOND, "bytes per scrape": len(body)},
        [] if ratio <= TARGET_RATIO else [f"p99 is {ratio:.1f} times as long, and {TARGET_RATIO:g} were wanted"],
    )


def _calls(address: str, names: list[str], count: int) -> list[float]:
    connection = http.client.HTTPConnection(address, timeout=30)
    limits = {"nvidia.com/gpu": "1", "nvidia.com/gpumem": "4k"}
    seconds = []
    for _ in range(count):
        uid = f"uid-{random.randrange(10**12)}"
        pod = {
            "metadata": {"name": uid, "namespace": "default", "uid": uid},
            "spec": {"containers": [{"name": "main", "resources": {"limits": limits}}]},
        }
        body = orjson.dumps({"Pod": pod, "Nodes": None, "NodeNames": names})
        started = time.perf_counter()
        connection.request("POST", "/filter", body)
        answer = orjson.loads(connection.getresponse().read())
        seconds.append(time.perf_counter() - started)
        if len(answer["NodeNames"]) != len(names):
            raise RuntimeError(f"not every node takes the pod: {answer.get('Error')}")
        time.sleep(0.005)
    return seconds


def _scrape(address: str, stop: Event) -> None:
    connection = http.client.HTTPConnection(address, timeout=30)
    while not stop.is_set():
        connection.request("GET", "/metrics")
        connection.getresponse().read()
        time.sleep(1 / SCRAPES_PER_SECOND)


def _quantiles(seconds: list[float]) -> tuple[float, float]:
    ordered = sorted(seconds)
    return 1000 * ordered[len(ordered) // 2], 1000 * ordered[int(len(ordered) * 0.99) - 1]
