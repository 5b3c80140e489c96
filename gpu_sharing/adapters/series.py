"""The Prometheus series of one process, in a registry of their own so that tests can have several."""

from collections.abc import Sequence

import prometheus_client
from prometheus_client import core as prometheus_core

from gpu_sharing.core import version

prometheus_client.disable_created_metrics()  # type: ignore[no-untyped-call]

_SECONDS = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)


class Series:
    """Makes series and prints them.

    Attributes:
        registry: Where they are.
    """

    def __init__(self, component: str) -> None:
        """Start with the series that every process has.

        Args:
            component: Which of our processes it is.
        """
        self.registry = prometheus_core.CollectorRegistry()
        build = self.gauge("hami_build_info", "1; which version of which component runs.", ("component", "version"))
        build.labels(component=component, version=version.VERSION).set(1)

    def seconds(self, name: str, text: str) -> prometheus_client.Histogram:
        """A histogram of durations."""
        return prometheus_client.Histogram(name, text, buckets=_SECONDS, registry=self.registry)

    def counter(self, name: str, text: str, labels: Sequence[str] = ()) -> prometheus_client.Counter:
        """A counter."""
        return prometheus_client.Counter(name, text, labels, registry=self.registry)

    def gauge(self, name: str, text: str, labels: Sequence[str] = ()) -> prometheus_client.Gauge:
        """A gauge."""
        return prometheus_client.Gauge(name, text, labels, registry=self.registry)

    def exposition(self) -> bytes:
        """The text that Prometheus scrapes."""
        return prometheus_client.generate_latest(self.registry)
