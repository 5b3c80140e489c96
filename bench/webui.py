"""The cost of a page at 5,000 nodes and 50,000 pods, in time and CPU, compared with a static file of its size.

The extender, its API server and the WebUI are real processes of this machine. A viewer requests the page every three
seconds, as the page does, and sends the version that it has.
"""

import concurrent.futures
import contextlib
import functools
import http.client
import json
import pathlib
import socket
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.parse
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from bench import report
from lab import extender_process, webui_process

VIEWERS, EVERY_SECONDS = 100, 3.0
TARGET_RATIO = 5.0
_PAGES = ("/", "/nodes", "/pods", "/api/v1/nodes")
_IDLE_SECONDS = 40.0
_BATCHES = 11


@dataclass(frozen=True, slots=True)
class _Cost:
    """The cost of one request."""

    times: list[float]
    """Seconds of each request."""
    cpu_seconds: float
    """CPU seconds of one request."""


def run(quick: bool) -> report.Report:
    """Measure each page, and one of them with viewers, each compared with a file of its size."""
    nodes, pods, repeats, seconds = (50, 500, 5, 4) if quick else (5_000, 50_000, 30, 30)
    with contextlib.ExitStack() as stack:
        folder = pathlib.Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="bench-")))
        command = [sys.executable, "-m", "lab", "--nodes", str(nodes), "--pods", str(pods), "--kubeconfig-out"]
        lab = subprocess.Popen([*command, str(folder / "kubeconfig")], stdout=subprocess.PIPE, text=True)
        stack.callback(lab.wait)
        stack.callback(lab.terminate)
        assert lab.stdout is not None
        json.loads(lab.stdout.readline())
        extender = stack.enter_context(extender_process.running(folder / "kubeconfig", folder / "extender.log"))
        process = webui_process.WebUIProcess(folder, f"http://{extender.api}")
        started = time.monotonic()
        webui = stack.enter_context(webui_process.running(process))
        url = webui.url
        _wait_for_data(url, nodes)
        first = time.monotonic() - started
        files = folder / "files"
        files.mkdir()
        names = {path: f"/static/{number}.html" for number, path in enumerate(_PAGES)}
        for number, path in enumerate(_PAGES):
            (files / f"{number}.html").write_bytes(_get(url, path)[1])
        floor_pid, floor_url = stack.enter_context(_static_files(files))

        idle = _cpu_rate(webui.pid, _IDLE_SECONDS if not quick else 1.0)
        costs = {}
        for path, name in names.items():
            costs[path] = (
                _cost(webui.pid, functools.partial(_times, url, path, repeats)),
                _cost(floor_pid, functools.partial(_times, floor_url, name, repeats)),
            )
        memory = _resident_mib(webui.pid)
        costs[f"/nodes, {VIEWERS} viewers"] = (
            _cost_of_viewers(webui.pid, idle, url, "/nodes", seconds),
            _cost_of_viewers(floor_pid, 0.0, floor_url, names["/nodes"], seconds),
        )
        rows, missed = [], []
        for what, (ours, floor) in costs.items():
            ratio = statistics.median(ours.times) / statistics.median(floor.times)
            cpu_ratio = ours.cpu_seconds / max(floor.cpu_seconds, 1e-5)
            rows.append(
                [
                    what,
                    *_quantiles(ours.times),
                    _quantiles(floor.times)[0],
                    ratio,
                    1000 * ours.cpu_seconds,
                    1000 * floor.cpu_seconds,
                    cpu_ratio,
                ]
            )
            missed += [
                f"{what}: {name} is {found:.1f} times a static file's, and {TARGET_RATIO:g} were wanted"
                for name, found in (("p50", ratio), ("CPU", cpu_ratio))
                if found > TARGET_RATIO
            ]
        grown = _resident_mib(webui.pid)
    return report.Report(
        f"pages at {nodes} nodes and {pods} pods beside static files of their sizes, in ms",
        ["page", "p50", "p95", "file's p50", "ratio", "CPU", "file's CPU", "ratio"],
        rows,
        {
            "start to first data, s": round(first, 1), "resident MiB": round(memory), "after viewers": round(grown),
            "cores busy reading the source": round(idle, 2),
        },
        missed,
    )  # fmt: skip


@contextlib.contextmanager
def _static_files(folder: pathlib.Path) -> Iterator[tuple[int, str]]:
    """The floor's process and URL."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{free.getsockname()[1]}"
    server = subprocess.Popen(
        [
            sys.executable,
            "-m",
            "gunicorn",
            "--worker-class",
            "gthread",
            "--threads",
            "32",
            "--bind",
            address,
            "--log-level",
            "error",
            f"bench.static_files:create({str(folder)!r})",
        ]
    )
    try:
        deadline = time.monotonic() + 30
        while True:
            try:
                _get(f"http://{address}", "/static/0.html")
                break
            except OSError:
                if time.monotonic() > deadline:
                    raise
                time.sleep(0.1)
        yield server.pid, f"http://{address}"
    finally:
        server.terminate()
        server.wait()


def _cpu_rate(pid: int, seconds: float) -> float:
    before = _cpu_seconds(pid)
    time.sleep(seconds)
    return (_cpu_seconds(pid) - before) / seconds


def _cost(pid: int, ask: Callable[[], list[float]]) -> _Cost:
    """Measure in batches and return the median, because the process reads the whole cluster from time to time."""
    times: list[float] = []
    batches: list[float] = []
    for _ in range(_BATCHES):
        before = _cpu_seconds(pid)
        found = ask()
        batches.append((_cpu_seconds(pid) - before) / len(found))
        times += found
    return _Cost(times, statistics.median(batches))


def _cost_of_viewers(pid: int, idle: float, url: str, path: str, seconds: float) -> _Cost:
    """Measure with viewers; the process's cost without them is subtracted."""
    started, before = time.monotonic(), _cpu_seconds(pid)
    times = _viewers(url, path, seconds)
    busy = _cpu_seconds(pid) - before - idle * (time.monotonic() - started)
    return _Cost(times, max(busy, 0.0) / len(times))


def _wait_for_data(url: str, nodes: int) -> None:
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline:
        _, body, _ = _get(url, "/api/v1/overview")
        if json.loads(body).get("nodes") == nodes:
            return
        time.sleep(0.2)
    raise RuntimeError("the WebUI has no data")


def _get(url: str, path: str, etag: str = "") -> tuple[int, bytes, str]:
    connection = http.client.HTTPConnection(urllib.parse.urlparse(url).netloc, timeout=60)
    connection.request("GET", path, headers={"If-None-Match": etag} if etag else {})
    answer = connection.getresponse()
    body = answer.read()
    connection.close()
    return answer.status, body, answer.headers.get("ETag", "")


def _times(url: str, path: str, repeats: int) -> list[float]:
    found = []
    for _ in range(repeats):
        started = time.perf_counter()
        status, _, _ = _get(url, path)
        found.append(time.perf_counter() - started)
        assert status == 200
    return found


def _viewers(url: str, path: str, seconds: float) -> list[float]:
    end = time.monotonic() + seconds

    def view(number: int) -> list[float]:
        time.sleep(EVERY_SECONDS * number / VIEWERS)
        found, etag = [], ""
        while time.monotonic() < end:
            started = time.perf_counter()
            status, _, etag = _get(url, path, etag)
            found.append(time.perf_counter() - started)
            assert status in (200, 304)
            time.sleep(max(EVERY_SECONDS - found[-1], 0))
        return found

    with concurrent.futures.ThreadPoolExecutor(VIEWERS) as pool:
        each = list(pool.map(view, range(VIEWERS)))
    assert all(each), "a viewer was starved"
    return [one for times in each for one in times]


def _quantiles(seconds: list[float]) -> tuple[float, float]:
    ordered = sorted(seconds)
    return 1000 * ordered[len(ordered) // 2], 1000 * ordered[int(len(ordered) * 0.95) - 1]


def _resident_mib(pid: int) -> float:
    return sum(_status(one, "VmRSS") for one in (pid, *_children(pid))) / 1024


def _status(pid: int, name: str) -> int:
    for line in pathlib.Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith(f"{name}:"):
            return int(line.split()[1])
    return 0


def _children(pid: int) -> list[int]:
    return [int(one) for one in pathlib.Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def _cpu_seconds(pid: int) -> float:
    """Return the CPU time of all threads of a process and its children.

    Source: proc(5), schedstat: nanoseconds on a CPU come first.
    """
    found = 0
    for one in (pid, *_children(pid)):
        for task in pathlib.Path(f"/proc/{one}/task").iterdir():
            with contextlib.suppress(OSError):
                found += int((task / "schedstat").read_text().split()[0])
    return found / 1e9
