"""What a page costs at 5,000 nodes and 50,000 pods, beside a static file of its size, alone and with 100 viewers.

The extender, its API server and the WebUI are real processes of this machine. A viewer asks every three seconds, as the
page does, and says which version it has.
"""

import concurrent.futures
import http.client
import json
import pathlib
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.parse

from bench import report
from lab import extender_process, webui_process

VIEWERS, EVERY_SECONDS = 100, 3.0
TARGET_RATIO = 5.0
_STATIC = "/static/vendor/htmx-4.0.1.min.js"
_PAGES = ("/", "/nodes", "/pods", "/api/v1/nodes")


def run(quick: bool) -> report.Report:
    """Measure each page, and all of them with viewers."""
    nodes, pods, repeats, seconds = (50, 500, 10, 4) if quick else (5_000, 50_000, 100, 20)
    with tempfile.TemporaryDirectory(prefix="bench-") as text:
        folder = pathlib.Path(text)
        command = [sys.executable, "-m", "lab", "--nodes", str(nodes), "--pods", str(pods), "--kubeconfig-out"]
        lab = subprocess.Popen([*command, str(folder / "kubeconfig")], stdout=subprocess.PIPE, text=True)
        try:
            assert lab.stdout is not None
            json.loads(lab.stdout.readline())
            with extender_process.running(folder / "kubeconfig", folder / "extender.log") as extender:
                process = webui_process.WebUIProcess(folder, f"http://{extender.api}")
                started = time.monotonic()
                with webui_process.running(process) as webui:
                    url = webui.url
                    _wait_for_data(url, nodes)
                    first = time.monotonic() - started
                    alone = {path: _times(url, path, repeats) for path in (_STATIC, *_PAGES)}
                    memory, cpu = _resident_mib(webui.pid), _cpu_seconds(webui.pid)
                    seen = _viewers(url, seconds)
                    busy = (_cpu_seconds(webui.pid) - cpu) / seconds
                    grown = _resident_mib(webui.pid)
        finally:
            lab.terminate()
            lab.wait()
    floor = statistics.median(alone[_STATIC])
    measured = {**alone, f"/nodes, {VIEWERS} viewers": seen}
    ratios = {name: statistics.median(times) / floor for name, times in measured.items()}
    rows = [[name, *_quantiles(times), ratios[name]] for name, times in measured.items()]
    missed = [
        f"{name} takes {ratio:.1f} times as long as a static file, and {TARGET_RATIO:g} were wanted"
        for name, ratio in ratios.items()
        if ratio > TARGET_RATIO
    ]
    return report.Report(
        f"pages at {nodes} nodes and {pods} pods, in ms",
        ["page", "p50", "p95", "beside a static file"],
        rows,
        {
            "start to first data, s": round(first, 1), "resident MiB": round(memory), "with viewers": round(grown),
            "cores busy with viewers": round(busy, 2), "answers to viewers": len(seen),
        },
        missed,
    )  # fmt: skip


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


def _viewers(url: str, seconds: float) -> list[float]:
    end = time.monotonic() + seconds

    def view(number: int) -> list[float]:
        time.sleep(EVERY_SECONDS * number / VIEWERS)
        found, etag = [], ""
        while time.monotonic() < end:
            started = time.perf_counter()
            status, _, etag = _get(url, "/nodes", etag)
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
    ticks = 0
    for one in (pid, *_children(pid)):
        fields = pathlib.Path(f"/proc/{one}/stat").read_text().rpartition(")")[2].split()
        ticks += int(fields[11]) + int(fields[12])
    return ticks / 100
