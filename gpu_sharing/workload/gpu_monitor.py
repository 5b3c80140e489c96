"""Samples the GPUs of this container in a thread, keeps a bounded history, and summarizes a window of it."""

import math
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from gpu_sharing.core import error_codes
from gpu_sharing.workload import instruments, metric_names, nvml_reader, sampling, slices, summaries, usage
from gpu_sharing.workload.errors import Problem, WorkloadError, require_range

if TYPE_CHECKING:
    from prometheus_client import CollectorRegistry

QUANTITIES = {
    "utilization_percent": "gpu_utilization_percent",
    "memory_controller_percent": "gpu_memory_controller_utilization_percent",
    "memory_used_bytes": "gpu_memory_used_bytes",
    "memory_total_bytes": "gpu_memory_total_bytes",
    "temperature_celsius": "gpu_temperature_celsius",
    "power_watts": "gpu_power_watts",
}
"""What is sampled, and the metric of each."""
_STALE_INTERVALS = 3
"""A sample that is older is not exported: an old number looks like a quiet GPU."""


@dataclass(frozen=True, slots=True)
class Sample:
    """All GPUs at one time."""

    taken_at: float
    """Monotonic seconds."""
    by_index: dict[int, nvml_reader.GpuReading]
    used: usage.Usage


class GPUMonitor:
    """Samples the GPUs of the slice.

    Without a driver it goes on, its summaries are empty, and `problems` has why.

    Args:
        interval_seconds: Time between two samples.
        most_samples: The history: older samples are dropped.
        my: The slice; without it the one of this container.
        driver: Reads the driver.
        clock: Monotonic seconds.

    Raises:
        WorkloadError: A number is out of range.
    """

    def __init__(
        self,
        *,
        interval_seconds: float = 1.0,
        most_samples: int = 600,
        my: slices.Slice | None = None,
        driver: nvml_reader.Driver | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        require_range("most_samples", most_samples, 1, 100_000)
        self._thread = sampling.Periodic(self.sample, interval_seconds=interval_seconds, name="gpu-monitor")
        self._stale_seconds = interval_seconds * _STALE_INTERVALS
        self._slice = my or slices.my_slice()
        self._driver = driver or nvml_reader.Driver()
        self._clock = clock
        self._history: deque[Sample] = deque(maxlen=most_samples)

    def __enter__(self) -> "GPUMonitor":
        """Start the thread; the block runs beside it."""
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        """Stop the thread, and wait for its end."""
        self.stop()

    @property
    def is_running(self) -> bool:
        """Whether its thread lives, in this process: after a fork it is false in the child until `start`."""
        return self._thread.is_running

    @property
    def problems(self) -> tuple[Problem, ...]:
        """What the latest sample does not know; without a sample, what the slice does not."""
        return self._history[-1].used.problems if self._history else self._slice.problems

    def start(self) -> None:
        """Start the thread, unless it runs."""
        self._thread.start()

    def stop(self, timeout_seconds: float = 10.0) -> bool:
        """Stop the thread. Returns whether it has ended; it has not while the driver does not answer."""
        return self._thread.stop(timeout_seconds)

    def sample(self) -> Sample:
        """Take one sample now, and return it."""
        caught = _Remembered(self._driver)
        used = usage.read(self._slice, caught)
        readings = {gpu.index: caught.readings[gpu.uuid] for gpu in self._slice.gpus if gpu.uuid in caught.readings}
        taken = Sample(self._clock(), readings, used)
        self._history.append(taken)
        return taken

    def history(self, window_seconds: float = math.inf) -> list[Sample]:
        """Return the samples of the last seconds, oldest first."""
        since = self._clock() - window_seconds
        return [one for one in self._history.copy() if one.taken_at >= since]

    def summary(self, quantity: str, gpu: int = 0, window_seconds: float = math.inf) -> summaries.Summary | None:
        """Return mean, maximum and percentiles of a quantity; None where no sample has it.

        Args:
            quantity: One of `QUANTITIES`.
            gpu: Index of the GPU in the container.
            window_seconds: Only samples of the last seconds.

        Raises:
            WorkloadError: There is no such quantity.
        """
        if quantity not in QUANTITIES:
            sentence = f"{quantity!r} is not sampled; there are {', '.join(QUANTITIES)}"
            raise WorkloadError(error_codes.WORKLOAD_BAD_SETTING, sentence)
        readings = (one.by_index.get(gpu) for one in self.history(window_seconds))
        values = [getattr(reading, quantity) for reading in readings if reading is not None]
        return summaries.summarize([value for value in values if value is not None])

    def export(self, registry: "CollectorRegistry | None" = None) -> instruments.ScrapedGauges:
        """Export the latest sample, and the slice; `unregister()` of what is returned ends it.

        Where no thread runs, each scrape takes a sample.

        Raises:
            WorkloadError: prometheus_client is missing, or the registry has these metrics already.
        """
        names = {**metric_names.GPU, **metric_names.SLICE}
        return instruments.ScrapedGauges(names, self._values, registry, self._slice)

    def _values(self) -> Iterator[tuple[str, tuple[str, ...], float | None]]:
        latest = self._latest()
        for gpu in self._slice.gpus:
            labels = (str(gpu.index), gpu.uuid)
            info = (self._slice.node or "", self._slice.isolation or "", self._slice.decision_id or "")
            yield "slice_info", (*labels, *info), 1
            yield "slice_memory_limit_bytes", labels, _bytes(gpu.memory_mib)
            yield "slice_cores_limit_percent", labels, gpu.cores_percent or None
            reading = latest.by_index.get(gpu.index) if latest else None
            for quantity, name in QUANTITIES.items():
                yield name, labels, None if reading is None else getattr(reading, quantity)
        for used in latest.used.gpus if latest else ():
            labels = (str(used.index), used.uuid)
            yield "slice_memory_used_bytes", labels, _bytes(used.used_mib)
            yield "slice_memory_headroom_bytes", labels, _bytes(used.headroom_mib)
            yield "slice_utilization_percent", labels, used.own_utilization_percent

    def _latest(self) -> Sample | None:
        if not self.is_running:
            return self.sample()
        history = self.history(self._stale_seconds)
        return history[-1] if history else None


class _Remembered(nvml_reader.Driver):
    """Reads a driver, and remembers the readings: a sample needs both them and the usage."""

    def __init__(self, driver: nvml_reader.Driver) -> None:
        super().__init__()
        self._inner = driver
        self.readings: dict[str, nvml_reader.GpuReading] = {}

    def read(self, uuids: Sequence[str]) -> dict[str, nvml_reader.GpuReading]:
        """See `Driver.read`."""
        self.readings = self._inner.read(uuids)
        return self.readings


def _bytes(mib: int | None) -> int | None:
    return None if mib is None else mib << 20
