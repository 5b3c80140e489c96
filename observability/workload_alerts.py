"""Alerts about the programs in containers, from the metrics of `gpu_sharing.workload`; the chart has them as an option.

They are about what tenants run, so that the teams that operate the cluster do not get them unless they ask.
"""

from observability.alerts import Alert

SLICE = '{namespace="ml", pod="p", container="c", gpu_id="0", device="GPU-a"}'
POD = '{namespace="ml", pod="p", container="c"}'
_WHERE = "{{ $labels.namespace }}/{{ $labels.pod }}"
_SLOW = 'namespace="ml", pod="p", container="c", model="m", status="ok"'


def _latency(slow_each_minute: int) -> dict[str, str]:
    """Return a histogram of ten requests a minute, so many of them slower than 2 s."""
    fast = 10 - slow_each_minute
    sizes = {"1.0": fast, "2.0": fast, "5.0": 10, "+Inf": 10}
    name = "inference_request_duration_seconds_bucket"
    return {f'{name}{{{_SLOW}, le="{limit}"}}': f"0+{size}x60" for limit, size in sizes.items()}


def _memory(used_mib: int) -> dict[str, str]:
    return {
        f"slice_memory_used_bytes{SLICE}": f"{used_mib << 20}x60",
        f"slice_memory_limit_bytes{SLICE}": f"{4000 << 20}x60",
    }


ALERTS = (
    Alert(
        "WorkloadLatencyHigh",
        "histogram_quantile(0.95, sum by (namespace, pod, model, le) "
        "(rate(inference_request_duration_seconds_bucket[5m]))) > 2",
        "5m", "warning",
        f"{_WHERE} needs {{{{ $value | humanizeDuration }}}} or more for 5 of 100 requests to {{{{ $labels.model }}}}.",
        "An inference server is slow for its users.",
        "`inference_active_connections`, and `hami_vgpu_utilization_percent` of all containers on the GPU.",
        "Add replicas, or raise `nvidia.com/gpucores`; if a neighbour uses the GPU fully, limit the neighbour.",
        _latency(3), _latency(0), limit="2",
    ),
    Alert(
        "WorkloadLossHigh",
        "training_loss > 10",
        "15m", "warning",
        f"The training in {_WHERE} has a loss of {{{{ $value | humanize }}}}.",
        "The loss of a training stays above the limit: it diverged, or the limit does not suit its loss function.",
        "`training_loss` and `learning_rate` over time.",
        "Continue from an earlier checkpoint with a smaller learning rate, or set `limit` for your loss function.",
        {f"training_loss{POD}": "50x60"}, {f"training_loss{POD}": "2x60"}, limit="10",
    ),
    Alert(
        "WorkloadTrainingStalled",
        "time() - training_last_batch_timestamp_seconds > 900",
        "5m", "warning",
        f"The training in {_WHERE} has completed no batch for {{{{ $value | humanizeDuration }}}}.",
        "A training runs and does not progress: it waits for data, for another worker, or for a GPU that hangs.",
        "`data_loading_seconds`, the log of the pod, and `hami_vgpu_utilization_percent`.",
        "Stop the pod and continue from the last checkpoint; raise `limit` if a batch takes longer than that.",
        {f"training_last_batch_timestamp_seconds{POD}": "0x60"},
        {f"training_last_batch_timestamp_seconds{POD}": "0+60x60"}, limit="900",
    ),
    Alert(
        "WorkloadAccuracyLow",
        "training_accuracy < 0.5",
        "30m", "warning",
        f"The training in {_WHERE} has an accuracy of {{{{ $value | humanizePercentage }}}}.",
        "The accuracy of a training stays below the limit half an hour after its first evaluation.",
        "`training_accuracy`, `training_loss` and `training_epoch` over time.",
        "Check data and labels; set `limit` to what the task can reach.",
        {f"training_accuracy{POD}": "0.1x60"}, {f"training_accuracy{POD}": "0.1x20 0.9x40"}, at="45m", limit="0.5",
    ),
    Alert(
        "WorkloadGPUMemoryHigh",
        "slice_memory_used_bytes / slice_memory_limit_bytes > 0.9",
        "5m", "warning",
        f"{_WHERE} uses {{{{ $value | humanizePercentage }}}} of its slice of GPU {{{{ $labels.gpu_id }}}}.",
        "A container uses nearly all of its slice: its next allocation of memory may fail.",
        "`slice_memory_headroom_bytes`, or `python -m gpu_sharing.workload top` in the container.",
        "Nothing for a server that reserves its memory at the start, such as vLLM: raise `limit`. Else raise "
        "`nvidia.com/gpumem` or reduce the batch.",
        _memory(3900), _memory(3000), limit="0.9",
    ),
    Alert(
        "WorkloadGPUTemperatureHigh",
        "gpu_temperature_celsius > 80",
        "5m", "warning",
        f"GPU {{{{ $labels.gpu_id }}}} of {_WHERE} has {{{{ $value }}}} °C.",
        "A GPU of this container is hot, and may lower its clock.",
        "`gpu_temperature_celsius` and `gpu_power_watts`; other containers of the GPU heat it too.",
        "Expect longer batches and slower answers until it is cooler. Ask an operator of the cluster to check cooling.",
        {f"gpu_temperature_celsius{SLICE}": "88x60"}, {f"gpu_temperature_celsius{SLICE}": "70x60"}, limit="80",
    ),
)  # fmt: skip
