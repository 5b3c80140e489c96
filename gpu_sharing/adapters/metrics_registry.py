"""The Prometheus series of one process, in a separate registry, so that tests can have several."""

import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Protocol

import prometheus_client
from prometheus_client import core as prometheus_core
from prometheus_client import exposition, registry

from gpu_sharing.core import version

prometheus_client.disable_created_metrics()  # type: ignore[no-untyped-call]

_SECONDS = (
    0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0
)  # fmt: skip

WATCHES = {
    "hami_watch_age_seconds": "Seconds since the last message of the API server about this kind, bookmarks included.",
    "hami_watch_lists_total": "Whole lists read: one at start, one more whenever a watch could not go on.",
    "hami_watch_failures_total": "Lists and watches that broke.",
}
"""The series of `follow`, with the label `watch`."""


PROGRESS = "hami_progress_ratio"
"""The series of `show_progress`, with the label `work`."""


class Work(Protocol):
    """One kind of long work."""

    @property
    def work(self) -> str:
        """The name of the work, as its label."""

    @property
    def ratio(self) -> float:
        """Part that is done, 0 to 1."""


class Watch(Protocol):
    """The statistics of one list and watch."""

    last_heard: float
    lists: int
    failures: int


CANARY = {
    "hami_canary_success": "1 if the last call was answered, its own or another's, else 0; absent if it is off.",
    "hami_canary_duration_seconds": "Time of the last call of the process to itself; absent before the first.",
}
"""The series of `watch_canary`."""


class Canary(Protocol):
    """The result of the process's calls to itself."""

    seconds: float | None

    @property
    def success(self) -> bool | None:
        """Return whether the last call was answered; None while it is switched off."""


class Recorder(Protocol):
    """Counts written and dropped events."""

    written: int
    dropped: int


class Series:
    """Creates series and prints them.

    Attributes:
        registry: The registry of the series.
        labels: The labels of each series, by its name as declared.
    """

    def __init__(self, component: str) -> None:
        """Start with the series that every process has.

        Args:
            component: The name of the process.
        """
        self.registry = prometheus_core.CollectorRegistry()
        self.labels: dict[str, Sequence[str]] = {}
        build = self.gauge("hami_build_info", "1; the component and its version are labels.", ("component", "version"))
        build.labels(component=component, version=version.VERSION).set(1)
        self._api_seconds = self.seconds(
            "hami_api_call_duration_seconds",
            "Time of a call to the API server; status 0 is no answer.",
            ("method", "status"),
        )

    def seconds(
        self, name: str, text: str, labels: Sequence[str] = (), *, buckets: Sequence[float] = _SECONDS
    ) -> prometheus_client.Histogram:
        """Return a new histogram of durations; its buckets end at some seconds, those of a call by default."""
        self.labels[name] = labels
        return prometheus_client.Histogram(name, text, labels, buckets=buckets, registry=self.registry)

    def counter(self, name: str, text: str, labels: Sequence[str] = ()) -> prometheus_client.Counter:
        """Return a new counter of the registry."""
        self.labels[name] = labels
        return prometheus_client.Counter(name, text, labels, registry=self.registry)

    def gauge(self, name: str, text: str, labels: Sequence[str] = ()) -> prometheus_client.Gauge:
        """Return a new gauge of the registry."""
        self.labels[name] = labels
        return prometheus_client.Gauge(name, text, labels, registry=self.registry)

    def count_events(self, prefix: str, recorder: Recorder) -> None:
        """Export the numbers of written and dropped events."""
        texts = {
            "written": "Events written.",
            "dropped": "Events dropped: too many were queued, or the API server refused them.",
        }
        names = {word: f"{prefix}_events_{word}_total" for word in texts}
        self.labels |= dict.fromkeys(names.values(), ())
        self.registry.register(
            _Live(
                lambda: [
                    prometheus_core.CounterMetricFamily(names[word], text, value=getattr(recorder, word))
                    for word, text in texts.items()
                ]
            )
        )

    def follow(self, watches: Mapping[str, Watch]) -> None:
        """Export the statistics of lists and watches; the mapping may grow later."""
        self.labels |= dict.fromkeys(WATCHES, ("watch",))
        started_at = time.monotonic()

        def collect() -> list[prometheus_core.Metric]:
            age = prometheus_core.GaugeMetricFamily(*next(iter(WATCHES.items())), labels=("watch",))
            lists, failures = (
                prometheus_core.CounterMetricFamily(name, text, labels=("watch",))
                for name, text in list(WATCHES.items())[1:]
            )
            for name, watch in watches.items():
                age.add_metric([name], time.monotonic() - (watch.last_heard or started_at))
                lists.add_metric([name], watch.lists)
                failures.add_metric([name], watch.failures)
            return [age, lists, failures]

        self.registry.register(_Live(collect))

    def watch_canary(self, canary: Canary | None) -> None:
        """Export the result of the process's calls to itself."""
        self.labels |= dict.fromkeys(CANARY, ())

        def collect() -> list[prometheus_core.Metric]:
            success, duration = (prometheus_core.GaugeMetricFamily(name, text) for name, text in CANARY.items())
            if canary is not None and canary.success is not None:
                success.add_metric([], canary.success)
            if canary is not None and canary.seconds is not None:
                duration.add_metric([], canary.seconds)
            return [success, duration]

        self.registry.register(_Live(collect))

    def show_progress(self, *works: Work) -> None:
        """Export how far long work is."""
        self.labels[PROGRESS] = ("work",)
        text = "Part of long work that is done, 0 to 1; 1 where none is under way."

        def collect() -> list[prometheus_core.Metric]:
            ratio = prometheus_core.GaugeMetricFamily(PROGRESS, text, labels=("work",))
            for one in works:
                ratio.add_metric([one.work], one.ratio)
            return [ratio]

        self.registry.register(_Live(collect))

    def api_call(self, method: str, status: int, seconds: float) -> None:
        """Observe a finished call to the API server; see `kubernetes.Client.observe`."""
        self._api_seconds.labels(method=method, status=status).observe(seconds)

    def exposition(self, accept: str = "") -> tuple[bytes, str]:
        """Return the text for a scrape in the requested format, and its content type."""
        encode, content_type = exposition.choose_encoder(accept)
        return encode(self.registry), content_type


class _Live(registry.Collector):
    """Families that are computed when they are scraped."""

    def __init__(self, collect: Callable[[], Iterable[prometheus_core.Metric]]) -> None:
        self._made = collect

    def collect(self) -> Iterable[Any]:
        return self._made()
