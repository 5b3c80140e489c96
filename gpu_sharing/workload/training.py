"""Metrics of a training job: loss, accuracy, learning rate, and the time of batches and of their data."""

import time
from collections.abc import Callable
from typing import TYPE_CHECKING

from gpu_sharing.workload import instruments, metric_names, slices

if TYPE_CHECKING:
    from prometheus_client import CollectorRegistry


class TrainingMetricsCollector:
    """Records what a training loop does. Epoch and batch are gauges, so that no loop makes series without end.

    Args:
        registry: Where the metrics are; without it the default registry of prometheus_client.
        my: The slice whose labels they have; without it the one of this container.

    Raises:
        WorkloadError: prometheus_client is missing, or the registry has these metrics already.
    """

    def __init__(self, registry: "CollectorRegistry | None" = None, my: slices.Slice | None = None) -> None:
        self._instruments = instruments.Instruments(metric_names.TRAINING, registry, my)
        self.registry = self._instruments.registry
        series = self._instruments.by_name
        self._loss, self._accuracy = series["training_loss"], series["training_accuracy"]
        self._learning_rate = series["learning_rate"]
        self._epoch, self._batch = series["training_epoch"], series["training_batch"]
        self._batches, self._samples = series["training_batches_total"], series["training_samples_total"]
        self._last = series["training_last_batch_timestamp_seconds"]
        self._batch_seconds, self._data_seconds = series["batch_processing_seconds"], series["data_loading_seconds"]

    def record_batch(
        self,
        seconds: float,
        *,
        loss: float | None = None,
        samples: int = 0,
        learning_rate: float | None = None,
        batch: int | None = None,
    ) -> None:
        """Record a batch that was processed; a duration that is none is left out of the histogram."""
        self._batches.inc()
        self._last.set(time.time())
        if instruments.is_duration(seconds):
            self._batch_seconds.observe(seconds)
        if samples > 0:
            self._samples.inc(samples)
        if loss is not None:
            self._loss.set(loss)
        if learning_rate is not None:
            self._learning_rate.set(learning_rate)
        if batch is not None:
            self._batch.set(batch)

    def record_data_loading(self, seconds: float) -> None:
        """Record the time to load the data of a batch."""
        if instruments.is_duration(seconds):
            self._data_seconds.observe(seconds)

    def record_epoch(self, epoch: int, *, accuracy: float | None = None, loss: float | None = None) -> None:
        """Record the number of the epoch, and what an evaluation found."""
        self._epoch.set(epoch)
        if accuracy is not None:
            self._accuracy.set(accuracy)
        if loss is not None:
            self._loss.set(loss)

    def batch(self, *, samples: int = 0, batch: int | None = None) -> "Timed":
        """Return a context manager that measures a batch; one that raises an exception is not recorded."""
        return Timed(lambda seconds: self.record_batch(seconds, samples=samples, batch=batch))

    def data_loading(self) -> "Timed":
        """Return a context manager that measures the time to load the data of a batch."""
        return Timed(self.record_data_loading)

    def unregister(self) -> None:
        """Remove the metrics from the registry."""
        self._instruments.unregister()


class Timed:
    """Measures a block, and records the seconds unless it raises an exception."""

    __slots__ = ("_record", "_start")

    def __init__(self, record: Callable[[float], None]) -> None:
        self._record = record

    def __enter__(self) -> None:
        """Read the clock before the block."""
        self._start = time.perf_counter()

    def __exit__(self, kind: object, *_: object) -> None:
        """Record the seconds of the block."""
        if kind is None:
            self._record(time.perf_counter() - self._start)
