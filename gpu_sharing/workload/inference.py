"""Metrics of a model server: requests and their latency by model and status, tokens, cache, CPU and memory."""

import contextlib
import os
import pathlib
import time
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from gpu_sharing.workload import instruments, label_values, metric_names, slices

if TYPE_CHECKING:
    from prometheus_client import CollectorRegistry

_AT_SCRAPE = ("inference_cpu_usage_percent", "inference_memory_usage_bytes")
_MOST_STATUSES = 32
_PAGE_BYTES = os.sysconf("SC_PAGE_SIZE")


class InferenceMetricsCollector:
    """Records what a model server does.

    Args:
        registry: Where the metrics are; without it the default registry of prometheus_client.
        my: The slice whose labels they have; without it the one of this container.
        most_models: Number of models with series of their own; further ones are counted as `other`, so that a name out
            of a user's request cannot make series without end.

    Raises:
        WorkloadError: prometheus_client is missing, the registry has these metrics already, or a number is out of
            range.
    """

    def __init__(
        self,
        registry: "CollectorRegistry | None" = None,
        my: slices.Slice | None = None,
        *,
        most_models: int = 50,
    ) -> None:
        self._models = label_values.LabelValues("model", most_models)
        self._statuses = label_values.LabelValues("status", _MOST_STATUSES)
        names = {name: one for name, one in metric_names.INFERENCE.items() if name not in _AT_SCRAPE}
        self._instruments = instruments.Instruments(names, registry, my)
        self.registry = self._instruments.registry
        self._process = ProcessUsage()
        scraped = {name: metric_names.INFERENCE[name] for name in _AT_SCRAPE}
        self._scraped = instruments.ScrapedGauges(scraped, self._process.values, registry, my)
        self._requests: dict[tuple[str, str], tuple[Any, Any]] = {}
        """Series by model and status, as both were accepted."""
        self._by_model: dict[tuple[str, str], Any] = {}
        self._active = self._instruments.by_name["inference_active_connections"]

    def record_request(self, model: str, status: str, seconds: float, *, tokens: int = 0) -> None:
        """Record a request that ended.

        Args:
            model: Name of the model.
            status: How it ended, such as `200` or `error`.
            seconds: Time from request to answer; a number that is no duration is left out of the histogram.
            tokens: Tokens that were generated.
        """
        series = self._requests.get((model, status)) or self._request_series(model, status)
        series[0].inc()
        if instruments.is_duration(seconds):
            series[1].observe(seconds)
        if tokens > 0:
            self._series("inference_tokens_generated_total", model).inc(tokens)

    def record_tokens(self, model: str, tokens: int) -> None:
        """Record generated tokens, for example while an answer is streamed."""
        if tokens > 0:
            self._series("inference_tokens_generated_total", model).inc(tokens)

    def record_cache(self, model: str, *, hit: bool) -> None:
        """Record a look-up in the cache."""
        self._series("model_cache_hits_total" if hit else "model_cache_misses_total", model).inc()

    @contextlib.contextmanager
    def connection(self) -> Iterator[None]:
        """Count an active connection until the block ends, in whatever way."""
        self._active.inc()
        try:
            yield
        finally:
            self._active.dec()

    @contextlib.contextmanager
    def request(self, model: str) -> Iterator[None]:
        """Measure a request: its status is `success`, or `error` where it raises an exception."""
        start, status = time.perf_counter(), "error"
        with self.connection():
            try:
                yield
                status = "success"
            finally:
                self.record_request(model, status, time.perf_counter() - start)

    def unregister(self) -> None:
        """Remove the metrics from the registry."""
        self._instruments.unregister()
        self._scraped.unregister()

    def _request_series(self, model: str, status: str) -> tuple[Any, Any]:
        labels = (self._models.bounded(model), self._statuses.bounded(status))
        series = self._requests.get(labels)
        if series is None:
            made = self._instruments
            series = (
                made.child("inference_requests_total", *labels),
                made.child("inference_request_duration_seconds", *labels),
            )
            self._requests[labels] = series
        return series

    def _series(self, name: str, model: str) -> Any:
        series = self._by_model.get((name, model))
        if series is None:
            label = self._models.bounded(model)
            series = self._by_model.get((name, label))
            if series is None:
                series = self._by_model[name, label] = self._instruments.child(name, label)
        return series


class ProcessUsage:
    """CPU and memory of this process; CPU is the mean since the last read, and since the start at the first."""

    def __init__(self) -> None:
        self._read_at, self._cpu_seconds = time.monotonic(), time.process_time()

    def values(self) -> Iterator[tuple[str, tuple[str, ...], float | None]]:
        """Yield the gauges; see `instruments.ScrapedGauges`."""
        now, cpu = time.monotonic(), time.process_time()
        elapsed, used = now - self._read_at, max(cpu - self._cpu_seconds, 0.0)
        self._read_at, self._cpu_seconds = now, cpu
        yield "inference_cpu_usage_percent", (), 100 * used / elapsed if elapsed > 0 else None
        yield "inference_memory_usage_bytes", (), resident_bytes()


def resident_bytes() -> int | None:
    """Return the resident memory of this process; None where the system does not report it."""
    try:
        return int(pathlib.Path("/proc/self/statm").read_text().split()[1]) * _PAGE_BYTES
    except (OSError, ValueError, IndexError):
        return None
