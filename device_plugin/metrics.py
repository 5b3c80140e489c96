"""What the plugin counts. Names that dashboards know are fixed by the contract; the rest are in base units."""

import prometheus_client
from prometheus_client import core as prometheus_core

from gpu_sharing.core import error_codes

prometheus_client.disable_created_metrics()  # type: ignore[no-untyped-call]

_SECONDS = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)


class Metrics:
    """All series of the process, in a registry of their own so that tests can have several."""

    def __init__(self) -> None:
        self.registry = prometheus_core.CollectorRegistry()

        def histogram(name: str, text: str) -> prometheus_client.Histogram:
            return prometheus_client.Histogram(name, text, buckets=_SECONDS, registry=self.registry)

        def counter(name: str, text: str, labels: tuple[str, ...] = ()) -> prometheus_client.Counter:
            return prometheus_client.Counter(name, text, labels, registry=self.registry)

        def gauge(name: str, text: str, labels: tuple[str, ...] = ()) -> prometheus_client.Gauge:
            return prometheus_client.Gauge(name, text, labels, registry=self.registry)

        self.allocate_seconds = histogram(
            "hami_device_plugin_allocate_duration_seconds", "Time to answer an Allocate call."
        )
        self.confirm_seconds = histogram(
            "hami_device_plugin_confirm_duration_seconds", "Time to confirm a container in PreStartContainer."
        )
        self.device_count = gauge("hami_device_plugin_device_count", "GPUs that the node offers.", ("node",))
        self.healthy_status = gauge(
            "hami_device_plugin_healthy_status", "1 while the GPU may be used, else 0.", ("node", "device")
        )
        self.failures = counter(
            "hami_device_plugin_allocation_failures_total", "Containers that were refused, by code.", ("error_code",)
        )
        self.xids = counter("hami_device_plugin_xids_total", "XIDs that the driver reported.", ("device", "xid"))
        self.registered = gauge("hami_device_plugin_registered", "1 while the kubelet knows the plugin, else 0.")
        self.registrations = gauge("hami_device_plugin_registrations", "Registrations since the process started.")
        self.tokens = gauge("hami_device_plugin_tokens", "Device ids told to the kubelet, by health.", ("health",))
        self.events_dropped = gauge("hami_device_plugin_events_dropped", "Events given up since the process started.")

    def failed(self, code: error_codes.Code) -> None:
        """Count a container that was refused."""
        self.failures.labels(error_code=code).inc()

    def exposition(self) -> bytes:
        """The text that Prometheus scrapes."""
        return prometheus_client.generate_latest(self.registry)
