"""Makes the metrics of `metric_names` in a registry of Prometheus, each with the labels of the slice."""

import math
from collections.abc import Callable, Iterable, Mapping
from typing import TYPE_CHECKING, Any

from gpu_sharing.core import error_codes
from gpu_sharing.workload import metric_names, slices
from gpu_sharing.workload.errors import WorkloadError

if TYPE_CHECKING:
    from prometheus_client import CollectorRegistry, Metric

SECONDS_BUCKETS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0)
Values = Iterable[tuple[str, tuple[str, ...], float | None]]
"""Name of a metric, values of its own labels, and its value; None is left out."""


def client() -> Any:
    """Return the package prometheus_client.

    Raises:
        WorkloadError: It is not installed.
    """
    try:
        import prometheus_client
    except ImportError as cause:
        raise WorkloadError(error_codes.WORKLOAD_NO_PROMETHEUS, "install hami-py[workload]") from cause
    return prometheus_client


class Instruments:
    """The metrics of one table in one registry.

    Args:
        names: The metrics to make.
        registry: Where; without it the default one of prometheus_client.
        my: The slice whose labels they have; without it the one of this container.

    Attributes:
        by_name: Each metric, with the labels of the slice set where it has no others.

    Raises:
        WorkloadError: prometheus_client is missing, or the registry has these metrics already.
    """

    def __init__(
        self,
        names: Mapping[str, metric_names.MetricName],
        registry: "CollectorRegistry | None" = None,
        my: slices.Slice | None = None,
    ) -> None:
        prometheus = client()
        self.registry: CollectorRegistry = prometheus.REGISTRY if registry is None else registry
        self.slice_values = (my or slices.my_slice()).label_values
        self.by_name: dict[str, Any] = {}
        self._whole: dict[str, Any] = {}
        try:
            for name, metric in names.items():
                self._make(prometheus, name, metric)
        except ValueError as cause:
            self.unregister()
            raise WorkloadError(error_codes.WORKLOAD_METRICS_TWICE, str(cause)) from cause

    def _make(self, prometheus: Any, name: str, metric: metric_names.MetricName) -> None:
        labels = (*metric_names.SLICE_LABELS, *metric.labels)
        if metric.kind == metric_names.HISTOGRAM:
            made = prometheus.Histogram(name, metric.text, labels, registry=self.registry, buckets=SECONDS_BUCKETS)
        else:
            kind = prometheus.Counter if metric.kind == metric_names.COUNTER else prometheus.Gauge
            made = kind(name, metric.text, labels, registry=self.registry)
        self._whole[name] = made
        self.by_name[name] = made if metric.labels else made.labels(*self.slice_values)

    def child(self, name: str, *values: str) -> Any:
        """Return the series of a metric with these values of its own labels."""
        return self._whole[name].labels(*self.slice_values, *values)

    def unregister(self) -> None:
        """Remove the metrics from the registry."""
        for made in self._whole.values():
            self.registry.unregister(made)
        self._whole = {}


class ScrapedGauges:
    """Gauges whose values are read at each scrape; a value that is not known has no series."""

    def __init__(
        self,
        names: Mapping[str, metric_names.MetricName],
        read: Callable[[], Values],
        registry: "CollectorRegistry | None" = None,
        my: slices.Slice | None = None,
    ) -> None:
        """Register the gauges.

        Args:
            names: The gauges.
            read: Returns their values.
            registry: Where; without it the default one of prometheus_client.
            my: The slice whose labels they have; without it the one of this container.

        Raises:
            WorkloadError: prometheus_client is missing, or the registry has these metrics already.
        """
        self._names = names
        self._read = read
        self._slice_values = (my or slices.my_slice()).label_values
        prometheus = client()
        self._registry = prometheus.REGISTRY if registry is None else registry
        try:
            self._registry.register(self)
        except ValueError as cause:
            raise WorkloadError(error_codes.WORKLOAD_METRICS_TWICE, str(cause)) from cause

    def describe(self) -> "Iterable[Metric]":
        """Return the families without samples: the registry compares names without a read."""
        return self._families().values()

    def collect(self) -> "Iterable[Metric]":
        """Return the families with their values now."""
        families = self._families()
        for name, values, value in self._read():
            if value is not None:
                families[name].add_metric((*self._slice_values, *values), value)
        return families.values()

    def unregister(self) -> None:
        """Remove the gauges from the registry."""
        self._registry.unregister(self)

    def _families(self) -> dict[str, Any]:
        from prometheus_client.core import GaugeMetricFamily

        return {
            name: GaugeMetricFamily(name, metric.text, labels=(*metric_names.SLICE_LABELS, *metric.labels))
            for name, metric in self._names.items()
        }


def is_duration(seconds: float) -> bool:
    """Return whether a number can be a duration: a NaN in a histogram would spoil its sum for ever."""
    return 0.0 <= seconds < math.inf
