"""Pods per second that a real kube-scheduler binds with our extender, with none, and with a pass-through extender.

The pods exist before the scheduler starts; the time from the first tenth to the last bound pod is measured, by its own
metrics. Each round runs the three one after another, every other round in reverse order, and the ratio is computed
within each round, because the speed of a shared machine changes from minute to minute.
"""

import contextlib
import pathlib
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator

from bench import report
from lab import extender_process, gpus
from lab.real import components, control_plane, kube_scheduler

TARGET = 0.8
_POLL_SECONDS = 0.1
"""Each read costs kube-scheduler some milliseconds."""
_VARIANTS = ("bare", "pass-through", "ours")
_LIMITS = {"nvidia.com/gpu": "1", "nvidia.com/gpumem": "4000"}


def run(quick: bool) -> report.Report:
    sizes, pods, rounds = ((20,), 200, 1) if quick else ((100, 1000), 1000, 5)
    rows: list[list[object]] = []
    missed = []
    for nodes in sizes:
        rates: dict[str, list[float]] = {variant: [] for variant in _VARIANTS}
        with control_plane.running() as plane:
            control_plane.add_nodes(
                plane.api, (gpus.gpu_node(f"node-{index:04d}", gpus.A100, 8) for index in range(nodes))
            )
            for round_ in range(rounds):
                for variant in _VARIANTS if round_ % 2 else reversed(_VARIANTS):
                    rate = _rate(plane, variant, pods)
                    rates[variant].append(rate)
                    print(
                        f"{nodes} nodes, round {round_ + 1}: {variant} {rate:.0f} pods/s", file=sys.stderr, flush=True
                    )
        ratios = [ours / ceiling for ours, ceiling in zip(rates["ours"], rates["pass-through"], strict=True)]
        ratio = statistics.median(ratios)
        columns = [f"{statistics.median(rates[v]):.0f} ({min(rates[v]):.0f}-{max(rates[v]):.0f})" for v in _VARIANTS]
        rows.append([nodes, *columns, f"{ratio:.2f} ({min(ratios):.2f}-{max(ratios):.2f})"])
        if ratio < TARGET:
            missed.append(f"{nodes} nodes: {ratio:.2f} of the pass-through's pods/s, wanted at least {TARGET}")
    return report.Report(
        "pods/s bound by a real kube-scheduler, median (range) of all rounds",
        ["nodes", *_VARIANTS, "ours / pass-through"],
        rows,
        {"pods": pods, "rounds": rounds, "GPUs per node": 8, "kube-scheduler": "1.36.3, every node scored"},
        missed,
    )


def _rate(plane: control_plane.ControlPlane, variant: str, pods: int) -> float:
    # A kube-scheduler without extender does not know gpumem, so its pods request GPUs only.
    limits = {"nvidia.com/gpu": "1"} if variant == "bare" else _LIMITS
    container = {"name": "main", "image": "train:1", "resources": {"limits": limits}}
    spec = {"schedulerName": "hami-scheduler", "containers": [container]}
    bodies = ({"metadata": {"name": f"p{index}"}, "spec": spec} for index in range(pods))
    path = "/api/v1/namespaces/default/pods"
    plane.api.many(("POST", path, body) for body in bodies)
    try:
        with _extender(plane, variant) as url, plane.scheduler(url) as scheduler:
            seconds = _time(scheduler, pods)
    finally:
        plane.api("DELETE", path, {"gracePeriodSeconds": 0})
        while plane.api("GET", f"{path}?limit=1")["items"]:
            time.sleep(0.1)
    return pods / seconds


def _time(scheduler: kube_scheduler.KubeScheduler, pods: int) -> float:
    """Return the seconds for all pods, from the rate after the first tenth."""
    started, before, bound = 0.0, 0, 0
    deadline = time.monotonic() + 300
    while time.monotonic() < deadline:
        bound = scheduler.attempts().get("scheduled", 0)
        now = time.monotonic()
        if bound >= pods // 10 and not started:
            started, before = now, bound
        if bound >= pods:
            return (now - started) * pods / max(pods - before, 1)
        time.sleep(_POLL_SECONDS)
    raise TimeoutError(f"{bound} of {pods} pods bound after 300 s")


@contextlib.contextmanager
def _extender(plane: control_plane.ControlPlane, variant: str) -> Iterator[str | None]:
    if variant == "bare":
        yield None
    elif variant == "ours":
        with tempfile.TemporaryDirectory() as folder:
            log = pathlib.Path(folder) / "extender.log"
            with extender_process.running(plane.kubeconfig("extender"), log) as extender:
                yield f"http://{extender.verbs}"
    else:
        port = components.free_port()
        command = [sys.executable, "-m", "bench.passthrough", "--kubeconfig", str(plane.kubeconfig("extender"))]
        process = subprocess.Popen([*command, "--port", str(port)])
        time.sleep(1.5)
        try:
            yield f"http://127.0.0.1:{port}"
        finally:
            process.terminate()
            process.wait()
