"""What the extender counts. Names that dashboards know are fixed by the contract; the rest are in base units."""

from gpu_sharing.adapters import metrics_registry
from gpu_sharing.core import error_codes

_PENDING_SECONDS = (
    1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0, 300.0, 600.0, 1_800.0, 3_600.0, 7_200.0, 14_400.0, 43_200.0, 86_400.0
)  # fmt: skip
NEVER_REJECTED = "NONE"
"""The reason of a bound pod that was never rejected."""
_CANCELLED = "cancelled"
_VERBS = ("filter", "prioritize", "preempt", "bind")


class Metrics(metrics_registry.Series):
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
        self.pending_seconds = self.seconds(
            "hami_scheduler_pod_pending_duration_seconds",
            "Time from a pod's creation, or from when its gates were seen open, until it was bound, by its last "
            "rejection; NONE if it was never rejected.",
            ("error_code",),
            buckets=_PENDING_SECONDS,
        )
        self.pending_seconds.labels(error_code=NEVER_REJECTED)
        self.preempt_seconds = self.seconds("hami_scheduler_preempt_duration_seconds", "Time to answer a preempt call.")
        self.webhook_seconds = self.seconds("hami_scheduler_webhook_duration_seconds", "Time to answer the API server.")
        self.calls = counter(
            "hami_scheduler_calls_total",
            "Calls of kube-scheduler: answered, refused, shed because too many were under way, or cancelled by it.",
            ("verb", "outcome"),
        )
        for verb in _VERBS:  # An alert on an increase needs the zero before it.
            self.calls.labels(verb=verb, outcome=_CANCELLED)
        self.admissions = counter(
            "hami_scheduler_admissions_total",
            "Pods that the webhook allowed, completed with defaults, or denied.",
            ("outcome",),
        )
        self.refusals = counter(
            "hami_scheduler_filter_refusals_total",
            "Filter calls that no offered node could serve, by main reason.",
            ("error_code",),
        )
        self.drift = counter(
            "hami_scheduler_drift_total", "Pods in which a new list differed from what the watch had shown."
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
        self.set_aside = counter(
            "hami_scheduler_objects_set_aside_total", "Objects that could not be handled, each by itself."
        )
        self.retries = counter("hami_scheduler_pod_retries_total", "Refused pods woken because they fit now.")
        self.preemptions = counter(
            "hami_scheduler_preemptions_total", "Pods for which others of lower priority were evicted."
        )
        self.evictions = counter("hami_scheduler_evictions_total", "Pods evicted for others of higher priority.")
        self.gangs_planned = counter("hami_scheduler_gangs_planned_total", "Gangs whose members all got a reservation.")
        self.gangs_aborted = counter(
            "hami_scheduler_gangs_aborted_total", "Gangs whose members were not all bound in time."
        )
        self.in_flight = gauge("hami_scheduler_in_flight_calls", "Calls being answered now.")
        self.queued = gauge("hami_scheduler_queued_calls", "Calls that wait until others are computed.")
        self.predicted_wait = gauge(
            "hami_scheduler_predicted_wait_seconds", "How long the queued calls will take, by how long such calls took."
        )
        self.shed_from = gauge(
            "hami_scheduler_shed_threshold",
            "From which number of queued calls, and from which predicted wait in seconds, new calls are shed: both "
            "must be reached.",
            ("threshold",),
        )
        self.leading = gauge("hami_scheduler_leading", "1 while this replica may bind, else 0.")
        self.ready = gauge("hami_scheduler_ready", "1 once the cluster has been read, else 0.")
        self.certificate_expiry = gauge(
            "hami_scheduler_certificate_expiry_timestamp_seconds",
            "When the certificate of webhook and read API ends, in Unix time; 0 without one.",
        )

    def pod_bound(self, pending_seconds: float, last_code: error_codes.Code | None) -> None:
        """Observe how long a bound pod was pending, by its last rejection."""
        self.pending_seconds.labels(error_code=last_code or NEVER_REJECTED).observe(max(pending_seconds, 0.0))

    def bind_failed(self, code: error_codes.Code) -> None:
        """Count a failed bind, in total and by code."""
        self.bind_failure.inc()
        self.bind_failures_by_code.labels(error_code=code).inc()
