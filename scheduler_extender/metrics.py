"""What the extender counts. Names that dashboards know are fixed by the contract; the rest are in base units."""

from collections.abc import Callable, Iterable

from prometheus_client import core as prometheus_core
from prometheus_client import registry

from gpu_sharing.adapters import series
from gpu_sharing.core import error_codes

LIVE = {
    "events_written": "Pod events written.",
    "events_dropped": "Pod events given up.",
    "watch_failures": "Lists and watches that broke.",
}
"""Counters that other objects keep: name without prefix and suffix, and help."""


class _Live(registry.Collector):
    """A counter that is read when it is scraped."""

    def __init__(self, name: str, text: str, value: Callable[[], float]) -> None:
        self._name, self._text, self._value = name, text, value

    def collect(self) -> Iterable[prometheus_core.Metric]:
        yield prometheus_core.CounterMetricFamily(self._name, self._text, value=self._value())


class Metrics(series.Series):
    """All series of the process."""

    def __init__(self) -> None:
        super().__init__("extender")
        counter, gauge = self.counter, self.gauge
        self.filter_seconds = self.seconds("hami_scheduler_filter_duration_seconds", "Time to answer a filter call.")
        self.score_seconds = self.seconds("hami_scheduler_score_duration_seconds", "Time to answer a prioritize call.")
        self.bind_seconds = self.seconds("hami_scheduler_bind_duration_seconds", "Time to answer a bind call.")
        self.bind_success = counter("hami_scheduler_bind_success_total", "Pods bound with their record.")
        self.bind_failure = counter("hami_scheduler_bind_failure_total", "Bind calls answered with an error.")
        self.bind_failures_by_code = counter(
            "hami_scheduler_bind_failures_by_code_total", "Bind calls answered with an error, by code.", ("error_code",)
        )
        self.refusals = counter(
            "hami_scheduler_filter_refusals_total", "Filter calls that no offered node could serve."
        )
        self.bad_requests = counter(
            "hami_scheduler_bad_requests_total", "Calls that could not be served, by code.", ("error_code",)
        )
        self.corrupt_records = counter(
            "hami_scheduler_corrupt_records_total", "Node and pod records that did not decode."
        )
        self.undecodable_objects = counter(
            "hami_scheduler_undecodable_objects_total", "Objects of the API server that are not of their kind."
        )
        self.retries = counter("hami_scheduler_pod_retries_total", "Refused pods woken because room was made for them.")
        self.preemptions = counter(
            "hami_scheduler_preemptions_total", "Pods for which others of lower priority had to go."
        )
        self.evictions = counter("hami_scheduler_evictions_total", "Pods evicted for others of higher priority.")
        self.gangs_planned = counter("hami_scheduler_gangs_planned_total", "Gangs for which a place for all was found.")
        self.gangs_torn = counter("hami_scheduler_gangs_torn_total", "Gangs of which not all were bound in time.")
        self.in_flight = gauge("hami_scheduler_in_flight_calls", "Calls being answered now.")
        self.leading = gauge("hami_scheduler_leading", "1 while this replica may bind, else 0.")
        self.ready = gauge("hami_scheduler_ready", "1 once the cluster has been read, else 0.")
        self.nodes = gauge("hami_scheduler_nodes", "Nodes known.")
        self.gpus = gauge("hami_scheduler_gpus", "GPUs known.")
        self.pods_holding = gauge("hami_scheduler_pods_holding_gpus", "Pods that hold GPUs.")
        self.pods_waiting = gauge("hami_scheduler_pods_waiting", "Pods that ask for GPUs and are not bound.")

    def count_live(self, name: str, value: Callable[[], float]) -> None:
        """Export a number of `LIVE` that some other object counts."""
        self.registry.register(_Live(f"hami_scheduler_{name}_total", LIVE[name], value))

    def bind_failed(self, code: error_codes.Code) -> None:
        """Count a failed bind, in total and by code."""
        self.bind_failure.inc()
        self.bind_failures_by_code.labels(error_code=code).inc()
