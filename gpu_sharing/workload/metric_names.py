"""Names, types, help texts and labels of all metrics of a workload, in one table that docs and dashboards read.

Every series has `SLICE_LABELS` besides its own, with the same names and values as the monitor's `hami_vgpu_*`, so that
both join: `* on (namespace, pod, container, device) group_left hami_vgpu_allocated_memory_bytes`.

Epoch and batch are gauges, not labels: a label would make a new series of each.
"""

from collections.abc import Mapping
from typing import NamedTuple

SLICE_LABELS = ("namespace", "pod", "container")
"""Labels of every series; empty where they are not known."""
GPU_LABELS = ("gpu_id", "device")
"""`gpu_id` is the index of the GPU in this container, `device` its UUID as in the monitor's series."""
REQUEST_LABELS = ("model", "status")

GAUGE, COUNTER, HISTOGRAM = "gauge", "counter", "histogram"


class MetricName(NamedTuple):
    """Type, help text and labels of one metric."""

    kind: str
    text: str
    labels: tuple[str, ...] = ()
    """Labels besides `SLICE_LABELS`."""


TRAINING: Mapping[str, MetricName] = {
    "training_loss": MetricName(GAUGE, "Loss of the latest step."),
    "training_accuracy": MetricName(GAUGE, "Accuracy of the latest evaluation, 0 to 1."),
    "learning_rate": MetricName(GAUGE, "Learning rate of the latest step."),
    "training_epoch": MetricName(GAUGE, "Number of the epoch that runs."),
    "training_batch": MetricName(GAUGE, "Number of the latest batch in its epoch."),
    "training_batches_total": MetricName(COUNTER, "Batches that were processed."),
    "training_samples_total": MetricName(COUNTER, "Samples in those batches."),
    "training_last_batch_timestamp_seconds": MetricName(GAUGE, "When the latest batch ended, in Unix seconds."),
    "batch_processing_seconds": MetricName(HISTOGRAM, "Time to process a batch."),
    "data_loading_seconds": MetricName(HISTOGRAM, "Time to load the data of a batch."),
}
INFERENCE: Mapping[str, MetricName] = {
    "inference_requests_total": MetricName(COUNTER, "Requests that ended.", REQUEST_LABELS),
    "inference_request_duration_seconds": MetricName(HISTOGRAM, "Time from request to answer.", REQUEST_LABELS),
    "inference_tokens_generated_total": MetricName(COUNTER, "Tokens that were generated.", ("model",)),
    "inference_active_connections": MetricName(GAUGE, "Requests that are being served."),
    "inference_cpu_usage_percent": MetricName(GAUGE, "CPU of this process since the last scrape; 100 is one core."),
    "inference_memory_usage_bytes": MetricName(GAUGE, "Resident memory of this process."),
    "model_cache_hits_total": MetricName(COUNTER, "Look-ups that the cache answered.", ("model",)),
    "model_cache_misses_total": MetricName(COUNTER, "Look-ups that the cache could not answer.", ("model",)),
}
GPU: Mapping[str, MetricName] = {
    "gpu_utilization_percent": MetricName(
        GAUGE, "Time in which kernels ran on the GPU, of all containers.", GPU_LABELS
    ),
    "gpu_memory_controller_utilization_percent": MetricName(
        GAUGE, "Time in which the memory of the GPU was read or written.", GPU_LABELS
    ),
    "gpu_memory_used_bytes": MetricName(
        GAUGE, "Used memory as the driver reports it here: of all containers, under HAMi-core of this one.", GPU_LABELS
    ),
    "gpu_memory_total_bytes": MetricName(
        GAUGE, "Memory as the driver reports it here: of the GPU, under HAMi-core this container's limit.", GPU_LABELS
    ),
    "gpu_temperature_celsius": MetricName(GAUGE, "Temperature of the GPU.", GPU_LABELS),
    "gpu_power_watts": MetricName(GAUGE, "Power that the GPU draws.", GPU_LABELS),
}
SLICE: Mapping[str, MetricName] = {
    "slice_info": MetricName(
        GAUGE, "1; what is known of the slice.", (*GPU_LABELS, "node", "isolation", "decision_id")
    ),
    "slice_memory_limit_bytes": MetricName(GAUGE, "Memory of the GPU that is allocated to the container.", GPU_LABELS),
    "slice_memory_used_bytes": MetricName(GAUGE, "Memory of it that the container uses.", GPU_LABELS),
    "slice_memory_headroom_bytes": MetricName(GAUGE, "Memory of it that is left.", GPU_LABELS),
    "slice_utilization_percent": MetricName(
        GAUGE, "Utilization of the GPU by this container, as its HAMi-core library counts it.", GPU_LABELS
    ),
    "slice_cores_limit_percent": MetricName(GAUGE, "Compute that is allocated; absent without a limit.", GPU_LABELS),
}

METRICS: Mapping[str, MetricName] = {**TRAINING, **INFERENCE, **GPU, **SLICE}
