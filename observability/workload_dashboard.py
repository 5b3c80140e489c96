"""The Grafana dashboard of the programs in containers, from the metrics of `gpu_sharing.workload`; a chart option."""

from observability.dashboards import NAMESPACE, Dashboard, Panel

_POD = "{{namespace}}/{{pod}}"
_GPU = "{{namespace}}/{{pod}} GPU {{gpu_id}}"


def _rate(counter: str, labels: str = "") -> str:
    by = f"namespace, pod{labels}"
    return f"sum by ({by}) (rate({counter}{{{NAMESPACE}}}[$__rate_interval]))"


def _quantile(part: float, histogram: str, labels: str = "") -> str:
    return f"histogram_quantile({part}, {_rate(f'{histogram}_bucket', f'{labels}, le')})"


def _panel(title: str, unit: str, queries: list[tuple[str, str]], description: str, *alerts: str) -> Panel:
    return Panel(title, "timeseries", unit, queries, description, 8, ("pod page",), alerts)


def _gauge(series: str) -> str:
    return f"{series}{{{NAMESPACE}}}"


WORKLOADS = Dashboard(
    "workloads", "GPU workloads", "Do trainings progress, do inference servers answer fast, and do their slices suffice?",
    ("namespace",),
    (
        _panel("Duration of requests", "s", [(_quantile(0.5, "inference_request_duration_seconds", ", model"), f"{_POD} {{{{model}}}} half"), (_quantile(0.95, "inference_request_duration_seconds", ", model"), f"{_POD} {{{{model}}}} 95 of 100")], "Half of the requests, and 95 of 100, are answered faster.", "WorkloadLatencyHigh"),
        _panel("Requests", "reqps", [(_rate("inference_requests_total", ", model, status"), f"{_POD} {{{{model}}}} {{{{status}}}}")], "Requests that ended, by model and status."),
        _panel("Tokens generated", "short", [(_rate("inference_tokens_generated_total", ", model"), f"{_POD} {{{{model}}}}")], "Tokens a second."),
        _panel("Requests in work", "short", [(_gauge("inference_active_connections"), _POD)], "Requests that are being answered.", "WorkloadLatencyHigh"),
        _panel("Cache", "percentunit", [(f"{_rate('model_cache_hits_total')} / ({_rate('model_cache_hits_total')} + {_rate('model_cache_misses_total')})", _POD)], "Part of the look-ups that the cache answers."),
        _panel("CPU of servers", "percent", [(_gauge("inference_cpu_usage_percent"), _POD)], "100 % is one core."),
        _panel("Memory of servers", "bytes", [(_gauge("inference_memory_usage_bytes"), _POD)], "Resident memory of each process."),
        _panel("Loss", "short", [(_gauge("training_loss"), _POD)], "Loss of the latest step.", "WorkloadLossHigh"),
        _panel("Accuracy", "percentunit", [(_gauge("training_accuracy"), _POD)], "Accuracy of the latest evaluation.", "WorkloadAccuracyLow"),
        _panel("Learning rate", "short", [(_gauge("learning_rate"), _POD)], "Learning rate of the latest step."),
        _panel("Epoch", "short", [(_gauge("training_epoch"), _POD)], "Number of the epoch that runs."),
        _panel("Time since the last batch", "s", [(f"time() - {_gauge('training_last_batch_timestamp_seconds')}", _POD)], "A rising line is a training that does not progress.", "WorkloadTrainingStalled"),
        _panel("Duration of batches", "s", [(_quantile(0.95, "batch_processing_seconds"), f"{_POD} computing"), (_quantile(0.95, "data_loading_seconds"), f"{_POD} loading")], "95 of 100 are faster. Loading above computing: the GPU waits for data."),
        _panel("Slice used", "percentunit", [(f"{_gauge('slice_memory_used_bytes')} / {_gauge('slice_memory_limit_bytes')}", _GPU)], "Used memory over the memory of the slice.", "WorkloadGPUMemoryHigh"),
        _panel("Headroom", "bytes", [(_gauge("slice_memory_headroom_bytes"), _GPU)], "Memory of the slice that is left.", "WorkloadGPUMemoryHigh"),
        _panel("GPU utilization", "percent", [(_gauge("gpu_utilization_percent"), _GPU)], "Time in which kernels of any container ran on the GPU."),
        _panel("GPU memory used", "bytes", [(_gauge("gpu_memory_used_bytes"), _GPU)], "As the driver reports it in the container."),
        _panel("GPU temperature", "celsius", [(_gauge("gpu_temperature_celsius"), _GPU)], "Above 80 °C the alert WorkloadGPUTemperatureHigh fires.", "WorkloadGPUTemperatureHigh"),
    ),
)  # fmt: skip
