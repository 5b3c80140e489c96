"""Metrics of a training job: loss, accuracy, learning rate, and the time of batches and of their data."""

import contextlib
import time
from collections.abc import Iterator
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

    @contextlib.contextmanager
    def batch(self, *, samples: int = 0, batch: int | None = None) -> Iterator[None]:
        """Measure a batch; one that raises an exception is not recorded."""
        start = time.perf_counter()
        yield
        self.record_batch(time.perf_counter() - start, samples=samples, batch=batch)

    @contextlib.contextmanager
    def data_loading(self) -> Iterator[None]:
        """Measure the time to load the data of a batch."""
        start = time.perf_counter()
        yield
        self.record_data_loading(time.perf_counter() - start)

    def unregister(self) -> None:
        """Remove the metrics from the registry."""
        self._instruments.unregister()
