"""What a recorded request, batch or step costs beside prometheus-client alone, and what importing costs.

Both sides record the same quantities, in turns of the same run, so that a busy machine slows both. The ratio is that of
the medians of the turns. Importing is the best turn: it reads many files, and waits for whatever else runs.
"""

import pathlib
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from typing import Any

import prometheus_client

from bench import report
from gpu_sharing.workload import InferenceMetricsCollector, PerformanceAnalyzer, TrainingMetricsCollector, slices

MOST_RATIO = 1.5
MOST_IMPORT_MS = 100.0
_IN_TURN = 500
_SLICE = slices.Slice(namespace="team", pod="train", container="main")
Act = Callable[[], object]


def pairs() -> dict[str, tuple[Act, Act]]:
    """Return what is compared: by name, prometheus-client alone and ours."""
    return {
        "request": (_plain_request(), _request()),
        "request, as a block": (_plain_request_block(), _request_block()),
        "batch": (_plain_batch(), _batch()),
        "batch, as a block": (_plain_batch_block(), _batch_block()),
        "step": (_plain_step(), _step()),
    }


def ratio(plain: Act, ours: Act, *, turns: int) -> tuple[float, float]:
    """Return the median seconds of one call of each, measured in turns."""
    seconds: tuple[list[float], list[float]] = ([], [])
    for act in (plain, ours):
        _turn(act)
    for _ in range(turns):
        for act, found in zip((plain, ours), seconds, strict=True):
            found.append(_turn(act))
    return statistics.median(seconds[0]), statistics.median(seconds[1])


def import_ms(turns: int) -> tuple[float, float]:
    """Return the milliseconds to import every public name, and the package alone, in the best of some interpreters."""
    every = "import gpu_sharing.workload as w; [getattr(w, name) for name in w.__all__]"
    return _import_ms(every, turns), _import_ms("import gpu_sharing.workload", turns)


def run(quick: bool) -> report.Report:
    turns = 20 if quick else 200
    rows: list[list[Any]] = []
    missed = []
    for name, (plain, ours) in pairs().items():
        one, other = ratio(plain, ours, turns=turns)
        rows.append([name, one * 1e6, other * 1e6, other / one])
        if other / one > MOST_RATIO:
            missed.append(f"{name}: {other / one:.2f} x prometheus-client alone, wanted {MOST_RATIO}")
    whole, alone = import_ms(5 if quick else 20)
    rows += [["import of every name, ms", "", whole, ""], ["import of the package, ms", "", alone, ""]]
    if whole > MOST_IMPORT_MS:
        missed.append(f"import takes {whole:.0f} ms, wanted {MOST_IMPORT_MS:.0f}")
    return report.Report(
        "metrics of a workload, median microseconds a call",
        ["what", "prometheus-client alone", "ours", "ratio"],
        rows,
        {"turns": turns, "calls in a turn": _IN_TURN},
        missed,
    )


def _turn(act: Act) -> float:
    start = time.perf_counter()
    for _ in range(_IN_TURN):
        act()
    return (time.perf_counter() - start) / _IN_TURN


def _import_ms(statement: str, turns: int) -> float:
    program = f"import time; start = time.perf_counter(); {statement}; print(time.perf_counter() - start)"
    found = [
        float(
            subprocess.run(
                [sys.executable, "-c", program],
                cwd=pathlib.Path(__file__).parents[1],
                capture_output=True,
                text=True,
                check=True,
            ).stdout
        )
        for _ in range(turns)
    ]
    return min(found) * 1000


def _plain_request() -> Act:
    registry = prometheus_client.CollectorRegistry()
    requests = prometheus_client.Counter("requests", "Requests.", ("model", "status"), registry=registry)
    seconds = prometheus_client.Histogram("seconds", "Time.", ("model", "status"), registry=registry)
    tokens = prometheus_client.Counter("tokens", "Tokens.", ("model",), registry=registry)

    def act() -> None:
        requests.labels("llama", "200").inc()
        seconds.labels("llama", "200").observe(0.2)
        tokens.labels("llama").inc(12)

    return act


def _request() -> Act:
    metrics = InferenceMetricsCollector(prometheus_client.CollectorRegistry(), _SLICE)
    return lambda: metrics.record_request("llama", "200", 0.2, tokens=12)


def _plain_request_block() -> Act:
    registry = prometheus_client.CollectorRegistry()
    requests = prometheus_client.Counter("requests", "Requests.", ("model", "status"), registry=registry)
    seconds = prometheus_client.Histogram("seconds", "Time.", ("model", "status"), registry=registry)
    active = prometheus_client.Gauge("active", "Requests.", registry=registry)

    def act() -> None:
        with active.track_inprogress(), seconds.labels("llama", "success").time():
            pass
        requests.labels("llama", "success").inc()

    return act


def _request_block() -> Act:
    metrics = InferenceMetricsCollector(prometheus_client.CollectorRegistry(), _SLICE)

    def act() -> None:
        with metrics.request("llama"):
            pass

    return act


def _plain_batch_block() -> Act:
    registry = prometheus_client.CollectorRegistry()
    seconds = prometheus_client.Histogram("seconds", "Time.", registry=registry)
    batches = prometheus_client.Counter("batches", "Batches.", registry=registry)
    samples = prometheus_client.Counter("samples", "Samples.", registry=registry)
    number, last = (prometheus_client.Gauge(name, name, registry=registry) for name in ("number", "last"))

    def act() -> None:
        with seconds.time():
            pass
        batches.inc()
        samples.inc(32)
        number.set(7)
        last.set_to_current_time()

    return act


def _batch_block() -> Act:
    metrics = TrainingMetricsCollector(prometheus_client.CollectorRegistry(), _SLICE)

    def act() -> None:
        with metrics.batch(samples=32, batch=7):
            pass

    return act


def _plain_batch() -> Act:
    registry = prometheus_client.CollectorRegistry()
    seconds = prometheus_client.Histogram("seconds", "Time.", registry=registry)
    batches = prometheus_client.Counter("batches", "Batches.", registry=registry)
    samples = prometheus_client.Counter("samples", "Samples.", registry=registry)
    loss, rate, number, last = (
        prometheus_client.Gauge(name, name, registry=registry) for name in ("loss", "rate", "number", "last")
    )

    def act() -> None:
        seconds.observe(0.2)
        batches.inc()
        samples.inc(32)
        loss.set(1.5)
        rate.set(0.01)
        number.set(7)
        last.set_to_current_time()

    return act


def _batch() -> Act:
    metrics = TrainingMetricsCollector(prometheus_client.CollectorRegistry(), _SLICE)
    return lambda: metrics.record_batch(0.2, loss=1.5, samples=32, learning_rate=0.01, batch=7)


def _plain_step() -> Act:
    seconds = prometheus_client.Histogram("seconds", "Time.", registry=prometheus_client.CollectorRegistry())

    def act() -> None:
        with seconds.time():
            pass

    return act


def _step() -> Act:
    analyzer = PerformanceAnalyzer()

    def act() -> None:
        with analyzer.step("forward"):
            pass

    return act
