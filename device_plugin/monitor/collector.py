"""The monitor's series, families at each scrape from the latest samples, so that none can outlive its pod or its GPU.

Names that dashboards know are fixed by the contract. The series that HAMi v2.10's published dashboard queries are
exported unless they are switched off, in HAMi's scale: a `_ratio` goes to 100, but the one of allocated memory to 1.
"""

import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from prometheus_client import core as prometheus_core
from prometheus_client import registry

from device_plugin.driver import gpu_source
from device_plugin.monitor import share_usage
from gpu_sharing.adapters import metrics_registry
from gpu_sharing.core import allocations, gpus, identifiers

_GPU = ("node", "device")
_SLICE = ("pod", "namespace", "device", "container")
_HAMI_GPU = ("node", "device_uuid", "device_index", "device_type")
_HAMI_SLICE = ("namespace", "pod", "container", "vdevice_index", "device_uuid")

MEASURED = {
    "hami_gpu_memory_total_bytes": ("Memory of the GPU.", _GPU),
    "hami_gpu_memory_used_bytes": ("Used memory of the GPU, in total.", _GPU),
    "hami_gpu_utilization_percent": ("Time in which kernels ran on the GPU, 0 to 100.", _GPU),
    "hami_gpu_memory_controller_utilization_percent": (
        "Time in which the memory of the GPU was read or written, 0 to 100.", _GPU
    ),
    "hami_gpu_temperature_celsius": ("Temperature of the GPU.", _GPU),
    "hami_gpu_power_watts": ("Power that the GPU draws.", _GPU),
    "hami_gpu_allocatable_memory_bytes": ("Memory that may be allocated: the GPU's, times the scaling.", _GPU),
    "hami_gpu_allocated_memory_bytes": ("Memory allocated to containers.", _GPU),
    "hami_gpu_allocated_cores_percent": ("Compute allocated to containers, in percent of the GPU.", _GPU),
    "hami_gpu_containers": ("Containers that hold the GPU at the same time.", _GPU),
    "hami_vgpu_memory_usage_bytes": ("Memory of the GPU that the container uses.", _SLICE),
    "hami_vgpu_utilization_percent": ("Time in which kernels of the container ran, 0 to 100.", _SLICE),
    "hami_vgpu_allocated_memory_bytes": ("Memory of the GPU that is allocated to the container.", _SLICE),
    "hami_vgpu_allocated_cores_percent": ("Compute that is allocated to the container; 0 is no limit.", _SLICE),
    "hami_vgpu_info": ("1; joins with DCGM's series, which have the label UUID.", (*_SLICE, "UUID")),
    "hami_monitor_sample_age_seconds": ("Seconds since the latest sample of the GPU.", _GPU),
    "hami_monitor_gpu_stale": ("1 while the latest sample of the GPU is too old to be exported, else 0.", _GPU),
    "hami_monitor_unmeasured": ("Quantities that the driver does not report: series are missing.", (*_GPU, "quantity")),
    "hami_monitor_unattributed_bytes": ("Memory used by listed processes of no container with the GPU.", _GPU),
    "hami_monitor_shared_regions": ("Usage files of HAMi-core libraries, by state.", ("state",)),
    "hami_monitor_containers_without_record": (
        "Containers with GPUs by the kubelet, and without a record of their pod.", ("node",)
    ),
}  # fmt: skip
"""Every gauge: its help text, and its labels."""

COMPATIBLE = {
    "hami_gpu_memory_limit_bytes": ("As hami_gpu_allocatable_memory_bytes, for HAMi's dashboard.", _HAMI_GPU),
    "hami_gpu_memory_allocated_bytes": (
        "As hami_gpu_allocated_memory_bytes, for HAMi's dashboard.", (*_HAMI_GPU, "device_cores")
    ),
    "hami_gpu_shared_count": ("As hami_gpu_containers, for HAMi's dashboard.", _HAMI_GPU),
    "hami_gpu_core_allocated_ratio": ("hami_gpu_allocated_cores_percent for HAMi's dashboard; 0 to 100.", _HAMI_GPU),
    "hami_node_gpu_memory_allocated_ratio": ("Allocated over allocatable memory, 0 to 1.", _HAMI_GPU),
    "hami_host_gpu_memory_used_bytes": ("As hami_gpu_memory_used_bytes, for HAMi's dashboard.", _HAMI_GPU),
    "hami_host_gpu_utilization_ratio": ("As hami_gpu_utilization_percent, for HAMi's dashboard; 0 to 100.", _HAMI_GPU),
    "hami_vgpu_memory_used_bytes": ("As hami_vgpu_memory_usage_bytes, for HAMi's dashboard.", _HAMI_SLICE),
    "hami_vgpu_memory_limit_bytes": ("As hami_vgpu_allocated_memory_bytes, for HAMi's dashboard.", _HAMI_SLICE),
    "hami_container_device_utilization_ratio": (
        "As hami_vgpu_utilization_percent, for HAMi's dashboard; 0 to 100.", _HAMI_SLICE
    ),
}  # fmt: skip
"""Those of HAMi v2.10."""


Families = Mapping[str, prometheus_core.GaugeMetricFamily]


@dataclass(frozen=True, slots=True, kw_only=True)
class MonitorView:
    """The values of one scrape."""

    node: str
    devices: Sequence[gpu_source.Device] = ()
    offered: Mapping[identifiers.GpuUuid, gpus.Gpu] = field(default_factory=dict)
    """GPUs as the node's annotation offers them."""
    samples: Mapping[identifiers.GpuUuid, share_usage.Sample] = field(default_factory=dict)
    """Latest sample of each GPU."""
    stale: frozenset[identifiers.GpuUuid] = frozenset()
    """GPUs whose latest sample is too old, or that never had one."""
    usage: share_usage.NodeUsage = field(default_factory=lambda: share_usage.NodeUsage((), {}))
    region_states: Mapping[str, int] = field(default_factory=dict)
    without_record: int | None = None
    """None while the kubelet does not answer."""
    started_at: float = 0.0
    """Monotonic seconds; the age of a missing sample counts from there."""


class Gauges(registry.Collector):
    """The series of the node, read at each scrape."""

    def __init__(
        self, view: Callable[[], MonitorView], *, compatible: bool, clock: Callable[[], float] = time.monotonic
    ):
        self._view = view
        self._compatible = compatible
        self._clock = clock

    def collect(self) -> Iterable[prometheus_core.Metric]:
        """Yield the series; see `Collector`."""
        families = {
            name: prometheus_core.GaugeMetricFamily(name, text, labels=labels)
            for name, (text, labels) in (MEASURED | (COMPATIBLE if self._compatible else {})).items()
        }
        view = self._view()
        for device in view.devices:
            self._gpu(families, view, device)
        by_device: dict[tuple[str, ...], list[share_usage.ShareUsage]] = {}
        for share in view.usage.shares:
            by_device.setdefault((share.pod, share.namespace, share.gpu, share.container), []).append(share)
        for labels, parts in by_device.items():
            self._share(families, labels, parts)
        for state, count in view.region_states.items():
            families["hami_monitor_shared_regions"].add_metric([state], count)
        if view.without_record is not None:
            families["hami_monitor_containers_without_record"].add_metric([view.node], view.without_record)
        return families.values()

    def _gpu(self, families: Families, view: MonitorView, device: gpu_source.Device) -> None:
        """Add the series of one GPU."""
        labels = (view.node, device.uuid)
        sample = None if device.uuid in view.stale else view.samples.get(device.uuid)
        measured: dict[str, float | None] = {}
        if sample:
            usage, unattributed = sample.usage, view.usage.unattributed_bytes.get(device.uuid)
            measured = {
                "hami_gpu_memory_used_bytes": usage.memory_used_bytes,
                "hami_gpu_utilization_percent": usage.utilization_percent,
                "hami_gpu_memory_controller_utilization_percent": usage.memory_controller_percent,
                "hami_gpu_temperature_celsius": usage.temperature_celsius,
                "hami_gpu_power_watts": usage.power_watts,
                "hami_monitor_unattributed_bytes": unattributed,
            }
            shares = [share for share in view.usage.shares if share.gpu == device.uuid]
            for quantity, missing in _unmeasured(usage, shares, unattributed).items():
                families["hami_monitor_unmeasured"].add_metric((*labels, quantity), missing)
        known = self._known(view, device)
        if sample and sample.usage.memory_total_bytes:
            known["hami_gpu_memory_total_bytes"] = sample.usage.memory_total_bytes
        _add(families, labels, known | measured)
        if self._compatible:
            _add_compatible_gpu(families, view.node, device, known | measured)

    def _known(self, view: MonitorView, device: gpu_source.Device) -> dict[str, float | None]:
        """Return the values of a GPU that need no sample."""
        total = None if device.memory_mib is None else device.memory_mib << 20
        offered, sample = view.offered.get(device.uuid), view.samples.get(device.uuid)
        allocated = view.usage.allocated.get(device.uuid, allocations.NOTHING)
        return {
            "hami_gpu_memory_total_bytes": total,
            "hami_gpu_allocatable_memory_bytes": offered.memory_mib << 20 if offered else total,
            "hami_gpu_allocated_memory_bytes": allocated.memory_mib << 20,
            "hami_gpu_allocated_cores_percent": allocated.cores_percent,
            "hami_gpu_containers": allocated.slots,
            "hami_monitor_gpu_stale": device.uuid in view.stale,
            "hami_monitor_sample_age_seconds": self._clock() - (sample.taken_at if sample else view.started_at),
        }

    def _share(
        self,
        families: Families,
        labels: tuple[str, ...],
        parts: Sequence[share_usage.ShareUsage],
    ) -> None:
        """Add the series of a container's share of one GPU; of several MIG instances of it the sum."""
        used = _sum(one.used_bytes for one in parts)
        busy = _sum(one.utilization_percent for one in parts)
        families["hami_vgpu_allocated_memory_bytes"].add_metric(labels, sum(one.memory_bytes for one in parts))
        families["hami_vgpu_allocated_cores_percent"].add_metric(labels, sum(one.cores_percent for one in parts))
        families["hami_vgpu_info"].add_metric((*labels, labels[2]), 1)
        if used is not None:
            families["hami_vgpu_memory_usage_bytes"].add_metric(labels, used)
        if busy is not None:
            families["hami_vgpu_utilization_percent"].add_metric(labels, busy)
        if not self._compatible:
            return
        for part in parts:
            known = (part.namespace, part.pod, part.container, str(part.position), part.gpu)
            families["hami_vgpu_memory_limit_bytes"].add_metric(known, part.memory_bytes)
            if part.used_bytes is not None:
                families["hami_vgpu_memory_used_bytes"].add_metric(known, part.used_bytes)
            if part.utilization_percent is not None:
                families["hami_container_device_utilization_ratio"].add_metric(known, part.utilization_percent)


def _add(families: Families, labels: Sequence[str], values: Mapping[str, float | None]) -> None:
    """Add the values that are known to series with these labels."""
    for name, value in values.items():
        if value is not None:
            families[name].add_metric(labels, value)


def _add_compatible_gpu(
    families: Families, node: str, device: gpu_source.Device, values: Mapping[str, float | None]
) -> None:
    """Add the series of one GPU that HAMi's dashboard queries."""
    labels = (node, device.uuid, str(device.index), device.name)
    allocated, allocatable = values["hami_gpu_allocated_memory_bytes"] or 0, values["hami_gpu_allocatable_memory_bytes"]
    cores = values["hami_gpu_allocated_cores_percent"]
    families["hami_gpu_memory_allocated_bytes"].add_metric((*labels, str(cores)), allocated)
    _add(
        families,
        labels,
        {
            "hami_gpu_memory_limit_bytes": allocatable,
            "hami_gpu_shared_count": values["hami_gpu_containers"],
            "hami_gpu_core_allocated_ratio": cores,
            "hami_node_gpu_memory_allocated_ratio": allocated / allocatable if allocatable else 0,
            "hami_host_gpu_memory_used_bytes": values.get("hami_gpu_memory_used_bytes"),
            "hami_host_gpu_utilization_ratio": values.get("hami_gpu_utilization_percent"),
        },
    )


class Metrics(metrics_registry.Series):
    """All series of the process."""

    def __init__(self, view: Callable[[], MonitorView], *, compatible: bool = True) -> None:
        super().__init__("monitor")
        self.sample_seconds = self.seconds("hami_monitor_sample_duration_seconds", "Time to sample all GPUs once.")
        self.failures = self.counter("hami_monitor_sample_failures_total", "Samples of a GPU that failed.")
        self.labels |= {name: labels for name, (_, labels) in (MEASURED | COMPATIBLE).items()}
        self.registry.register(Gauges(view, compatible=compatible))


def _sum(values: Iterable[float | None]) -> float | None:
    """Return the sum; None where one value is not known."""
    total = 0.0
    for value in values:
        if value is None:
            return None
        total += value
    return total


def _unmeasured(
    usage: gpu_source.Usage, mine: Sequence[share_usage.ShareUsage], unattributed_bytes: float | None
) -> dict[str, int]:
    """Return how many values of each quantity are missing because the driver does not report them."""
    return {
        "memory": usage.memory_used_bytes is None,
        "utilization": usage.utilization_percent is None,
        "memory_controller_utilization": usage.memory_controller_percent is None,
        "temperature": usage.temperature_celsius is None,
        "power": usage.power_watts is None,
        "unattributed_memory": unattributed_bytes is None,
        "container_memory": sum(one.used_bytes is None for one in mine),
        "container_utilization": sum(one.utilization_percent is None for one in mine),
    }
