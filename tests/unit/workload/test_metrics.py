"""The metrics of training and of inference, the monitor, and the middleware."""

import asyncio
import contextlib
import gc
import math
import pathlib
import random
import re
import string
import subprocess
import sys
import textwrap
import threading
import time
import urllib.request
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import prometheus_client
import pytest

from gpu_sharing.workload import (
    GPUMonitor,
    InferenceMetricsCollector,
    MetricsASGIMiddleware,
    MetricsWSGIMiddleware,
    PerformanceAnalyzer,
    Slice,
    TrainingMetricsCollector,
    WorkloadError,
    exporter,
    label_values,
    metric_names,
    nvml_reader,
    sampling,
    slices,
    summaries,
)
from tests.unit.workload import test_slices

ROOT = pathlib.Path(__file__).parents[3]
MINE = slices.slice_from(test_slices.ONE)
LABELS = {"namespace": "team", "pod": "train", "container": "main"}
MIB = 1 << 20


@pytest.fixture
def registry() -> prometheus_client.CollectorRegistry:
    return prometheus_client.CollectorRegistry()


def value(registry: prometheus_client.CollectorRegistry, name: str, **labels: str) -> float | None:
    return registry.get_sample_value(name, {**LABELS, **labels})


def wait(condition: Callable[[], object]) -> None:
    deadline = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.005)


def test_a_training_loop_is_recorded_with_the_labels_of_its_slice(
    registry: prometheus_client.CollectorRegistry,
) -> None:
    """Its loss lies beside the memory that the monitor measures of it."""
    metrics = TrainingMetricsCollector(registry, MINE)
    for number in range(3):
        with metrics.data_loading():
            pass
        metrics.record_batch(0.2, loss=1.5 - number / 2, samples=32, learning_rate=0.01, batch=number)
    metrics.record_epoch(7, accuracy=0.9)

    assert value(registry, "training_loss") == 0.5
    assert value(registry, "training_accuracy") == 0.9
    assert value(registry, "learning_rate") == 0.01
    assert (value(registry, "training_epoch"), value(registry, "training_batch")) == (7, 2)
    assert value(registry, "training_batches_total") == 3
    assert value(registry, "training_samples_total") == 96
    assert value(registry, "batch_processing_seconds_count") == 3
    assert value(registry, "data_loading_seconds_count") == 3
    assert value(registry, "training_last_batch_timestamp_seconds") == pytest.approx(time.time(), abs=60)


def test_a_batch_that_fails_is_not_recorded(registry: prometheus_client.CollectorRegistry) -> None:
    metrics = TrainingMetricsCollector(registry, MINE)

    with contextlib.suppress(ZeroDivisionError), metrics.batch(samples=4):
        raise ZeroDivisionError
    with metrics.batch(samples=4):
        pass

    assert value(registry, "training_batches_total") == 1
    assert value(registry, "training_samples_total") == 4


def test_requests_tokens_and_cache_by_model(registry: prometheus_client.CollectorRegistry) -> None:
    metrics = InferenceMetricsCollector(registry, MINE)
    metrics.record_request("llama", "200", 0.3, tokens=12)
    metrics.record_request("llama", "200", 0.1)
    metrics.record_tokens("llama", 3)
    metrics.record_cache("llama", hit=True)
    metrics.record_cache("llama", hit=False)
    with contextlib.suppress(ValueError), metrics.request("llama"):
        assert value(registry, "inference_active_connections") == 1
        raise ValueError

    assert value(registry, "inference_requests_total", model="llama", status="200") == 2
    assert value(registry, "inference_requests_total", model="llama", status="error") == 1
    assert value(registry, "inference_request_duration_seconds_count", model="llama", status="200") == 2
    assert value(registry, "inference_tokens_generated_total", model="llama") == 15
    assert value(registry, "model_cache_hits_total", model="llama") == 1
    assert value(registry, "model_cache_misses_total", model="llama") == 1
    assert value(registry, "inference_active_connections") == 0
    assert (value(registry, "inference_memory_usage_bytes") or 0) > 1 * MIB
    assert value(registry, "inference_cpu_usage_percent") is not None


@pytest.mark.parametrize("seconds", [math.nan, math.inf, -1.0])
def test_a_number_that_is_no_duration_does_not_spoil_the_sum(
    seconds: float, registry: prometheus_client.CollectorRegistry
) -> None:
    """One NaN in a histogram stays until the process ends."""
    inference, training = InferenceMetricsCollector(registry, MINE), TrainingMetricsCollector(registry, MINE)
    inference.record_request("m", "200", seconds)
    training.record_batch(seconds)
    training.record_data_loading(seconds)

    assert value(registry, "inference_requests_total", model="m", status="200") == 1
    assert value(registry, "inference_request_duration_seconds_sum", model="m", status="200") == 0
    assert value(registry, "batch_processing_seconds_sum") == 0
    assert value(registry, "data_loading_seconds_count") == 0


def test_names_out_of_a_users_prompt_make_no_series_without_end(
    registry: prometheus_client.CollectorRegistry, caplog: pytest.LogCaptureFixture
) -> None:
    """A tenant's prompt as the model would fill the memory of the server and of Prometheus."""
    metrics = InferenceMetricsCollector(registry, MINE, most_models=5)
    chooser = random.Random(3)
    for _ in range(400):
        prompt = "".join(chooser.choices(string.printable + "😀\u202e\ud800", k=chooser.randrange(300)))
        metrics.record_request(prompt, prompt[:5], 0.1, tokens=1)
        metrics.record_cache(prompt, hit=True)

    text = prometheus_client.generate_latest(registry).decode()
    models = set(re.findall(r'[{,]model="((?:\\.|[^"\\])*)"', text))
    statuses = set(re.findall(r'[{,]status="((?:\\.|[^"\\])*)"', text))
    assert len(models) <= 6
    assert "other" in models
    assert len(statuses) <= 33
    assert all(len(one) <= 2 * label_values.LONGEST for one in models | statuses)
    assert value(registry, "model_cache_hits_total", model="other") == pytest.approx(395, abs=5)
    assert [one.getMessage()[:20] for one in caplog.records].count("WORKLOAD_LABELS_FULL") == 2
    assert len(metrics._requests) <= 6 * 33


def test_two_collectors_in_one_registry_are_refused_with_what_to_do(
    registry: prometheus_client.CollectorRegistry,
) -> None:
    """And nothing of the second one stays behind."""
    first = TrainingMetricsCollector(registry, MINE)
    with pytest.raises(WorkloadError, match="WORKLOAD_METRICS_TWICE"):
        TrainingMetricsCollector(registry, MINE)
    first.unregister()

    TrainingMetricsCollector(registry, MINE).record_epoch(1)
    assert value(registry, "training_epoch") == 1


def test_every_metric_has_the_labels_of_the_slice_and_neither_epoch_nor_batch() -> None:
    """They join the monitor's series, and no loop makes a series of each of its steps."""
    for name, metric in metric_names.METRICS.items():
        assert not {"epoch", "batch", "step", "request", "user"} & set(metric.labels), name
    registry = prometheus_client.CollectorRegistry()
    TrainingMetricsCollector(registry, MINE)
    InferenceMetricsCollector(registry, MINE).record_request("m", "200", 0.1)
    GPUMonitor(my=MINE, driver=test_slices.StubDriver(test_slices.reading())).export(registry)
    for family in registry.collect():
        for sample in family.samples:
            assert LABELS.items() <= sample.labels.items(), sample


def monitor(*readings: nvml_reader.GpuReading, **settings: Any) -> tuple[GPUMonitor, list[float]]:
    """A monitor whose clock goes a second with each sample."""
    now = [0.0]
    driver = test_slices.StubDriver(*readings, missing=not readings)
    return GPUMonitor(my=MINE, driver=driver, clock=lambda: now[0], **settings), now


def test_a_window_of_the_history_is_summarized() -> None:
    """Mean, maximum and percentiles of the last seconds, of a history that does not grow."""
    found, now = monitor(test_slices.reading(), most_samples=50)
    for percent in range(1, 101):
        now[0] += 1
        found._driver.readings["GPU-a"] = test_slices.reading(utilization_percent=float(percent))  # type: ignore[attr-defined]
        found.sample()

    whole, last = found.summary("utilization_percent"), found.summary("utilization_percent", window_seconds=9)
    assert whole == summaries.Summary(count=50, mean=75.5, max=100, p50=75, p95=98, p99=100)
    assert last is not None
    assert (last.count, last.mean) == (10, 95.5)
    assert found.summary("power_watts") is None
    assert found.summary("utilization_percent", gpu=5) is None
    with pytest.raises(WorkloadError, match="WORKLOAD_BAD_SETTING: 'fan'"):
        found.summary("fan")


def test_the_monitor_exports_the_gpus_of_its_slice(registry: prometheus_client.CollectorRegistry) -> None:
    """`device` is the label by which the monitor of the node has them."""
    found, _ = monitor(test_slices.reading(used_mib=100, utilization_percent=40.0, process_bytes={}))
    exported = found.export(registry)
    gpu = {"gpu_id": "0", "device": "GPU-a"}

    assert value(registry, "gpu_utilization_percent", **gpu) == 40
    assert value(registry, "gpu_memory_used_bytes", **gpu) == 100 * MIB
    assert value(registry, "slice_memory_limit_bytes", **gpu) == 4000 * MIB
    assert value(registry, "slice_memory_headroom_bytes", **gpu) == 4000 * MIB
    assert value(registry, "slice_cores_limit_percent", **gpu) == 30
    info = {"node": "node-01", "isolation": "hami-core", "decision_id": "4e89f4b82e97303b"}
    assert value(registry, "slice_info", **gpu, **info) == 1
    assert value(registry, "gpu_temperature_celsius", **gpu) is None, "not known is not 0"
    exported.unregister()
    assert value(registry, "gpu_utilization_percent", **gpu) is None


def test_without_a_driver_the_monitor_goes_on_and_says_so(registry: prometheus_client.CollectorRegistry) -> None:
    """A laptop runs the same program."""
    found, _ = monitor()
    found.export(registry)
    found.sample()

    assert found.summary("utilization_percent") is None
    assert {one.code for one in found.problems} >= {"WORKLOAD_NO_NVML"}
    assert value(registry, "gpu_utilization_percent", gpu_id="0", device="GPU-a") is None
    assert value(registry, "slice_memory_limit_bytes", gpu_id="0", device="GPU-a") == 4000 * MIB
    nowhere = GPUMonitor(my=Slice(), driver=test_slices.StubDriver(missing=True))
    assert nowhere.sample().by_index == {}


def test_an_old_sample_of_a_thread_that_hangs_is_not_exported(
    registry: prometheus_client.CollectorRegistry, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A number of an hour ago looks like a quiet GPU."""
    found, now = monitor(test_slices.reading(utilization_percent=40.0), interval_seconds=1)
    found.sample()
    found.export(registry)
    monkeypatch.setattr(sampling.Periodic, "is_running", True)

    now[0] += 2
    assert value(registry, "gpu_utilization_percent", gpu_id="0", device="GPU-a") == 40
    now[0] += 2
    assert value(registry, "gpu_utilization_percent", gpu_id="0", device="GPU-a") is None


def test_the_thread_starts_when_asked_and_stops_cleanly() -> None:
    found = GPUMonitor(my=MINE, driver=test_slices.StubDriver(test_slices.reading()), interval_seconds=0.01)
    assert threading.active_count() == 1 or not found.is_running

    with found:
        wait(lambda: len(found.history()) >= 3)
        found.start()  # A second start is none.
        assert [one.name for one in threading.enumerate()].count("gpu-monitor") == 1
    assert not found.is_running
    assert "gpu-monitor" not in [one.name for one in threading.enumerate()]
    found.start()
    assert found.is_running
    assert found.stop()


def test_a_sample_that_fails_does_not_end_the_thread(caplog: pytest.LogCaptureFixture) -> None:
    """The hundredth failure is not the hundredth line of the log."""
    calls: list[int] = []

    def act() -> None:
        calls.append(1)
        raise OSError("gone")

    thread = sampling.Periodic(act, interval_seconds=0.01, name="fails")
    thread.start()
    wait(lambda: thread.failures >= 9)
    assert thread.is_running
    assert thread.stop()
    lines = [one for one in caplog.records if "WORKLOAD_SAMPLE_FAILED" in one.getMessage()]
    assert len(lines) <= thread.failures.bit_length()


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_a_thread_that_exits_within_its_callback_is_seen_and_can_be_started_again() -> None:
    """`sys.exit` in a callback ends the thread alone; the program is not left with one that it believes to run."""
    calls: list[int] = []

    def act() -> None:
        calls.append(1)
        if len(calls) == 1:
            raise SystemExit

    thread = sampling.Periodic(act, interval_seconds=0.01, name="exits")
    thread.start()
    wait(lambda: not thread.is_running)
    thread.start()
    wait(lambda: len(calls) >= 3)
    assert thread.stop()


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_threads_that_exit_leave_no_connection_and_lose_no_count(
    registry: prometheus_client.CollectorRegistry,
) -> None:
    """A worker thread may end in the middle of its request."""
    metrics, analyzer = InferenceMetricsCollector(registry, MINE), PerformanceAnalyzer()

    def work(number: int) -> None:
        with metrics.request(f"m{number % 3}"), analyzer.step("work"):
            if number % 2:
                raise SystemExit

    threads = [threading.Thread(target=work, args=(number,)) for number in range(40)]
    for one in threads:
        one.start()
    for one in threads:
        one.join()

    assert value(registry, "inference_active_connections") == 0
    assert (analyzer.report().steps[0].count, analyzer.report().steps[0].failures) == (40, 20)


def test_an_interval_out_of_range_is_refused_with_the_range() -> None:
    with pytest.raises(WorkloadError, match=r"WORKLOAD_BAD_SETTING: interval_seconds is 0; .+ from 0.01 to 3600"):
        GPUMonitor(interval_seconds=0)
    with pytest.raises(WorkloadError, match="most_samples"):
        GPUMonitor(most_samples=10**9)
    with pytest.raises(WorkloadError, match="interval_seconds is nan"):
        GPUMonitor(interval_seconds=math.nan)


def test_the_child_of_a_fork_has_free_locks_and_no_thread_that_it_believes_to_run() -> None:
    """Servers such as gunicorn fork workers after the import; a lock that was held at that instant stays held."""
    program = """
    import os, sys, threading, time, faulthandler
    import prometheus_client
    from gpu_sharing import workload
    from gpu_sharing.workload import headroom
    faulthandler.dump_traceback_later(50, exit=True)
    metrics = workload.InferenceMetricsCollector(prometheus_client.CollectorRegistry())
    analyzer, monitor = workload.PerformanceAnalyzer(), workload.GPUMonitor(interval_seconds=0.01)
    watch = workload.on_low_headroom(print, below_mib=10)
    monitor.start()
    while not monitor.history():
        time.sleep(0.001)
    # The instant at which every lock of ours is held.
    with metrics._models._lock, metrics._statuses._lock, analyzer._lock, monitor._thread._lock, watch._thread._lock:
        child = os.fork()
    if child == 0:
        assert not monitor.is_running and not watch.is_running, "the child has no such thread"
        metrics.record_request("new", "new", 0.1)
        with analyzer.step("new"):
            pass
        assert analyzer.report().slowest.count == 1
        count = len(monitor.history())
        monitor.start()
        while len(monitor.history()) <= count:
            time.sleep(0.001)
        assert monitor.stop() and watch.stop()
        os._exit(0)
    _, status = os.waitpid(child, 0)
    assert monitor.is_running and watch.is_running, "the parent goes on"
    assert monitor.stop() and watch.stop()
    sys.exit(os.waitstatus_to_exitcode(status))
    """
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", textwrap.dedent(program)], cwd=ROOT, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr


def test_steps_are_measured_as_decorator_and_context_manager_and_the_slowest_is_named() -> None:
    memory = [0]
    analyzer = PerformanceAnalyzer(read_memory_bytes=lambda: memory[0], memory_interval_seconds=0)

    @analyzer.step("load")
    def load(size: int) -> int:
        memory[0] += size
        return size

    @analyzer.step("wait")
    async def wait_for_it() -> str:
        await asyncio.sleep(0)
        return "done"

    assert load(5 * MIB) + load(7 * MIB) == 12 * MIB
    assert asyncio.run(wait_for_it()) == "done"
    analyzer.record("train", 500.0)
    analyzer.record("train", 700.0)
    with contextlib.suppress(ValueError), analyzer.step("train"):
        raise ValueError

    report = analyzer.report()
    by_name = {one.name: one for one in report.steps}
    assert by_name["load"].memory_growth_bytes == 12 * MIB
    assert (by_name["train"].count, by_name["train"].failures, by_name["train"].p95_seconds) == (3, 1, 700)
    assert report.slowest == by_name["train"]
    assert "slowest: train, 100 % of the measured time" in str(report)
    assert report.as_json()["slowest"] == "train"
    assert str(PerformanceAnalyzer().report()) == "no step was measured"


def test_the_memory_is_not_read_for_each_of_many_short_steps() -> None:
    """A read is a call of the system; a loop of a million steps would pay for it twice a step."""
    reads: list[int] = []

    def read() -> int:
        reads.append(1)
        return 0

    analyzer = PerformanceAnalyzer(read_memory_bytes=read, memory_interval_seconds=3600)
    for _ in range(100):
        with analyzer.step("short"):
            pass

    assert len(reads) == 1


def test_steps_with_names_without_end_are_bounded() -> None:
    analyzer = PerformanceAnalyzer(most_steps=3)
    for number in range(1000):
        analyzer.record(f"step {number}", 0.1)

    assert len(analyzer.report().steps) == 4
    assert sum(one.count for one in analyzer.report().steps) == 1000


def test_the_exporter_serves_what_was_recorded_until_it_is_stopped(
    registry: prometheus_client.CollectorRegistry,
) -> None:
    TrainingMetricsCollector(registry, MINE).record_epoch(3)
    server = exporter.Exporter(0, "127.0.0.1", registry)
    with urllib.request.urlopen(f"http://127.0.0.1:{server.port}/metrics", timeout=60) as answer:
        assert b"training_epoch{" in answer.read()
    with pytest.raises(WorkloadError, match=f"port {server.port} cannot be used"):
        exporter.Exporter(server.port, "127.0.0.1", registry)
    server.stop()
    with pytest.raises(OSError, match="refused"):
        urllib.request.urlopen(f"http://127.0.0.1:{server.port}/metrics", timeout=60)


def scope(path: str = "/", **headers: str) -> dict[str, Any]:
    return {"type": "http", "path": path, "headers": [(name.encode(), text.encode()) for name, text in headers.items()]}


async def _nothing(*_: object) -> dict[str, Any]:
    return {}


def test_asgi_requests_are_recorded_however_they_end(registry: prometheus_client.CollectorRegistry) -> None:
    metrics = InferenceMetricsCollector(registry, MINE)

    async def app(request: Mapping[str, Any], receive: object, send: Callable[..., Any]) -> None:
        assert value(registry, "inference_active_connections") == 1
        if request["path"] == "/fails":
            raise ZeroDivisionError
        if request["path"] == "/hangs":
            await asyncio.sleep(3600)
        await send({"type": "http.response.start", "status": 404 if request["path"] == "/absent" else 200})
        await send({"type": "http.response.body", "body": b""})

    served = MetricsASGIMiddleware(app, metrics, lambda request: request["headers"][0][1].decode())

    async def all_of_them() -> None:
        for path in ("/", "/absent"):
            await served(scope(path, model="llama"), _nothing, _nothing)  # type: ignore[arg-type]
        with contextlib.suppress(ZeroDivisionError):
            await served(scope("/fails", model="llama"), _nothing, _nothing)  # type: ignore[arg-type]
        hanging = asyncio.ensure_future(served(scope("/hangs", model="llama"), _nothing, _nothing))  # type: ignore[arg-type]
        await asyncio.sleep(0)
        hanging.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await hanging
        await served(scope("/"), _nothing, _nothing)  # type: ignore[arg-type]  # The function of the model fails.

    asyncio.run(all_of_them())

    for status in ("200", "404", "500", "cancelled"):
        assert value(registry, "inference_requests_total", model="llama", status=status) == 1, status
    assert value(registry, "inference_requests_total", model="unknown", status="200") == 1
    assert value(registry, "inference_active_connections") == 0


def test_asgi_scopes_that_are_no_request_pass(registry: prometheus_client.CollectorRegistry) -> None:
    seen: list[object] = []

    async def app(request: Mapping[str, Any], *_: object) -> None:
        seen.append(request["type"])

    served = MetricsASGIMiddleware(app, InferenceMetricsCollector(registry, MINE))
    for kind in ("lifespan", "websocket"):
        asyncio.run(served({"type": kind}, _nothing, _nothing))  # type: ignore[arg-type]

    assert seen == ["lifespan", "websocket"]


def test_wsgi_requests_are_recorded_when_their_body_was_sent(registry: prometheus_client.CollectorRegistry) -> None:
    """Also where the client goes in the middle of it, and the server only closes."""
    metrics = InferenceMetricsCollector(registry, MINE)

    def app(environ: Mapping[str, Any], start_response: Callable[..., object]) -> Iterable[bytes]:
        if environ["PATH_INFO"] == "/fails":
            raise ZeroDivisionError
        start_response("201 Created", [])
        return iter([b"a", b"b"])

    served = MetricsWSGIMiddleware(app, metrics, "llama")

    assert list(served({"PATH_INFO": "/"}, lambda *_: None)) == [b"a", b"b"]
    body = served({"PATH_INFO": "/"}, lambda *_: None)
    sending = iter(body)
    assert next(sending) == b"a"
    assert value(registry, "inference_active_connections") == 1
    body.close()  # type: ignore[attr-defined]
    with pytest.raises(ZeroDivisionError):
        served({"PATH_INFO": "/fails"}, lambda *_: None)
    gc.collect()

    assert value(registry, "inference_requests_total", model="llama", status="201") == 2
    assert value(registry, "inference_requests_total", model="llama", status="500") == 1
    assert value(registry, "inference_active_connections") == 0
