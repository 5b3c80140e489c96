"""Series of the plugin. Names that dashboards know are fixed by the contract; the others are in base units."""

from gpu_sharing.adapters import metrics_registry
from gpu_sharing.core import error_codes

LEFTOVERS = CDI, FOLDER, MIG = ("cdi", "folder", "mig")
"""Kinds of what ended containers leave behind."""


class Metrics(metrics_registry.Series):
    """All series of the process."""

    def __init__(self) -> None:
        super().__init__("device-plugin")
        counter, gauge = self.counter, self.gauge
        self.allocate_seconds = self.seconds(
            "hami_device_plugin_allocate_duration_seconds", "Time to answer an Allocate call."
        )
        self.confirm_seconds = self.seconds(
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
        self.xids_received = gauge(
            "hami_device_plugin_xids_received",
            "1 while the driver reports XIDs of the GPU to the plugin, else 0.",
            ("node", "device"),
        )
        self.registered = gauge(
            "hami_device_plugin_registered", "1 while the plugin is registered with the kubelet, else 0."
        )
        self.registrations = gauge(
            "hami_device_plugin_registrations", "Registrations with the kubelet since the process started."
        )
        self.isolation = gauge(
            "hami_device_plugin_gpu_isolation",
            "1; the isolation of containers that share the GPU.",
            ("node", "device", "isolation"),
        )
        self.problems = gauge(
            "hami_device_plugin_problem", "1 for each problem of the node's setup.", ("node", "error_code", "device")
        )
        self.device_ids = gauge(
            "hami_device_plugin_device_ids", "Device ids listed for the kubelet, by health.", ("health",)
        )

        self.leftovers = counter(
            "hami_device_plugin_leftovers_deleted_total",
            "What ended containers left behind and was deleted: CDI specifications, folders, MIG instances.",
            ("kind",),
        )
        for kind in LEFTOVERS:
            self.leftovers.labels(kind=kind)

    def failed(self, code: error_codes.Code) -> None:
        """Count a container that was refused."""
        self.failures.labels(error_code=code).inc()
