"""The Grafana dashboards: each answers the question in its description, with a unit on every panel.

Variables: `cluster` (only where Prometheus adds this label), `node`, `namespace`. A test runs every query on a real
Prometheus.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

_COLUMNS = 24
_HEIGHT = 8
_SCHEMA = 39
_SOURCE = {"type": "prometheus", "uid": "${datasource}"}

CLUSTER = 'cluster=~"$cluster"'
NODE = f'{CLUSTER}, node=~"$node"'
NAMESPACE = f'{CLUSTER}, namespace=~"$namespace"'


@dataclass(frozen=True, slots=True)
class Panel:
    """One panel of a dashboard."""

    title: str
    kind: str
    """As Grafana names it: `timeseries`, `stat`, `gauge`, `bargauge`, `table`, `heatmap`."""
    unit: str
    """As Grafana names it: `bytes`, `percent`, `percentunit`, `s`, `short`, …"""
    queries: Sequence[tuple[str, str]]
    """PromQL and legend."""
    description: str
    width: int = 8


@dataclass(frozen=True, slots=True)
class Dashboard:
    """One Grafana dashboard and its panels."""

    name: str
    title: str
    question: str
    variables: Sequence[str]
    panels: Sequence[Panel]


def _latency(phase: str) -> Panel:
    query = f"sum by (le) (rate(hami_scheduler_{phase}_duration_seconds_bucket{{{CLUSTER}}}[$__rate_interval]))"
    return Panel(
        f"{phase.capitalize()}: duration of calls",
        "heatmap",
        "s",
        [(query, "{{le}}")],
        f"Distribution of the time to answer a {phase} call.",
    )


def _quantiles(phase: str) -> tuple[str, str]:
    buckets = f"rate(hami_scheduler_{phase}_duration_seconds_bucket{{{CLUSTER}}}[$__rate_interval])"
    return f"histogram_quantile(0.99, sum by (le) ({buckets}))", f"{phase} p99"


_ALLOCATED = f"hami_scheduler_gpu_memory_allocated_bytes{{{CLUSTER}}}"
_ALLOCATABLE = f"hami_scheduler_gpu_memory_bytes{{{CLUSTER}}}"

DASHBOARDS = (
    Dashboard(
        "cluster-overview", "GPU cluster overview", "How much is allocated, what would still fit, and which pods are pending?",
        ("node",),
        (
            Panel("GPUs", "stat", "short", [(f"sum(hami_scheduler_gpus{{{CLUSTER}}})", "GPUs"), (f"sum(hami_scheduler_gpus_usable{{{CLUSTER}}})", "usable")], "All GPUs, and those that new pods may be placed on.", 4),
            Panel("Memory allocated", "gauge", "percentunit", [(f"sum({_ALLOCATED}) / sum({_ALLOCATABLE})", "allocated")], "Allocated over allocatable memory.", 4),
            Panel("Slots allocated", "gauge", "percentunit", [(f"sum(hami_scheduler_gpu_slots_allocated{{{CLUSTER}}}) / sum(hami_scheduler_gpu_slots{{{CLUSTER}}})", "allocated")], "Containers that share GPUs, over the maximum.", 4),
            Panel("Pods with GPUs", "stat", "short", [(f"sum(hami_scheduler_pods_bound{{{CLUSTER}}})", "bound"), (f"sum(hami_scheduler_pods_pending{{{CLUSTER}}})", "pending")], "Pods that hold GPUs, and pods that request GPUs and have no node.", 4),
            Panel("Largest share that still fits", "bargauge", "bytes", [(f"max by (model) (hami_scheduler_largest_free_bytes{{{CLUSTER}}})", "{{model}}")], "Of one GPU, by model.", 8),
            Panel("Memory by model", "timeseries", "bytes", [(f"sum by (model) ({_ALLOCATED})", "{{model}} allocated"), (f"sum by (model) ({_ALLOCATABLE})", "{{model}} allocatable")], "Allocated and allocatable memory."),
            Panel("Fragmentation", "timeseries", "percentunit", [(f"max by (model) (hami_scheduler_fragmentation_ratio{{{CLUSTER}}})", "{{model}}")], "Part of the free memory that is too small for pods like those bound last."),
            Panel("Why pods are pending", "timeseries", "short", [(f"sum by (error_code) (hami_scheduler_pods_pending{{{CLUSTER}}})", "{{error_code}}")], "Pending pods by the code of their last rejection."),
            Panel("Memory used by node", "timeseries", "percentunit", [(f"sum by (node) (hami_gpu_memory_used_bytes{{{NODE}}}) / sum by (node) (hami_gpu_memory_total_bytes{{{NODE}}})", "{{node}}")], "Measured, not allocated."),
            Panel("Utilization by node", "timeseries", "percent", [(f"avg by (node) (hami_gpu_utilization_percent{{{NODE}}})", "{{node}}")], "Mean over the node's GPUs."),
            Panel("Quota", "bargauge", "percentunit", [(f"hami_scheduler_quota_used{{{CLUSTER}}} / hami_scheduler_quota_limit{{{CLUSTER}}}", "{{namespace}} {{resource}}")], "Allocation of each namespace over its limit."),
        ),
    ),
    Dashboard(
        "pods-and-slices", "GPU pods and slices", "Which pod holds which part of which GPU, and how much of it does the pod use?",
        ("namespace",),
        (
            Panel("Memory allocated", "table", "bytes", [(f"hami_vgpu_allocated_memory_bytes{{{NAMESPACE}}}", "")], "Every container and its GPUs.", 12),
            Panel("Allocated and not used", "table", "bytes", [(f"sort_desc(hami_vgpu_allocated_memory_bytes{{{NAMESPACE}}} - hami_vgpu_memory_usage_bytes)", "")], "Allocated memory that is not used.", 12),
            Panel("Memory used", "timeseries", "bytes", [(f"hami_vgpu_memory_usage_bytes{{{NAMESPACE}}}", "{{namespace}}/{{pod}} {{container}}")], "By container.", 12),
            Panel("Used of what was allocated", "timeseries", "percentunit", [(f"hami_vgpu_memory_usage_bytes{{{NAMESPACE}}} / hami_vgpu_allocated_memory_bytes", "{{namespace}}/{{pod}} {{container}}")], "Above 100 % a container exceeds its allocation.", 12),
            Panel("Utilization", "timeseries", "percent", [(f"hami_vgpu_utilization_percent{{{NAMESPACE}}}", "{{namespace}}/{{pod}} {{container}}")], "Time in which kernels of each container ran.", 12),
            Panel("Allocated by namespace", "timeseries", "bytes", [(f"sum by (namespace) (hami_vgpu_allocated_memory_bytes{{{NAMESPACE}}})", "{{namespace}}")], "Allocation of each namespace.", 12),
        ),
    ),
    Dashboard(
        "scheduler-performance", "GPU scheduler performance", "How fast are pods with GPUs placed, and what fails?",
        (),
        (
            _latency("filter"), _latency("score"), _latency("bind"),
            Panel("Slowest calls", "timeseries", "s", [_quantiles("filter"), _quantiles("score"), _quantiles("bind")], "99 of 100 calls are faster."),
            Panel("Calls", "timeseries", "reqps", [(f"sum by (verb, outcome) (rate(hami_scheduler_calls_total{{{CLUSTER}}}[$__rate_interval]))", "{{verb}} {{outcome}}")], "By verb and outcome."),
            Panel("Binds", "timeseries", "reqps", [(f"sum(rate(hami_scheduler_bind_success_total{{{CLUSTER}}}[$__rate_interval]))", "bound"), (f"sum by (error_code) (rate(hami_scheduler_bind_failures_by_code_total{{{CLUSTER}}}[$__rate_interval]))", "{{error_code}}")], "Pods bound, and binds that failed, by code."),
            Panel("Rejections", "timeseries", "reqps", [(f"sum by (error_code) (rate(hami_scheduler_filter_refusals_total{{{CLUSTER}}}[$__rate_interval]))", "{{error_code}}")], "Pods that fit on no node, by main reason."),
            Panel("API server", "timeseries", "s", [(f"histogram_quantile(0.99, sum by (method, le) (rate(hami_api_call_duration_seconds_bucket{{{CLUSTER}}}[$__rate_interval])))", "{{method}} p99")], "Response time of the API server."),
            Panel("Watches", "timeseries", "s", [(f"max by (watch) (hami_watch_age_seconds{{{CLUSTER}}})", "{{watch}}")], "Time since the last message; bookmarks come every minute."),
            Panel("Calls in flight", "timeseries", "short", [(f"sum(hami_scheduler_in_flight_calls{{{CLUSTER}}})", "calls"), (f"sum(hami_scheduler_nominations{{{CLUSTER}}})", "nominations"), (f"sum(hami_scheduler_pods_assumed{{{CLUSTER}}})", "assumed pods")], "Calls, nominations and assumed pods at the moment."),
            Panel("Events", "timeseries", "reqps", [(f"sum(rate(hami_scheduler_events_written_total{{{CLUSTER}}}[$__rate_interval]))", "written"), (f"sum(rate(hami_scheduler_events_dropped_total{{{CLUSTER}}}[$__rate_interval]))", "dropped")], "Pod events."),
            Panel("Leader", "timeseries", "short", [(f"hami_scheduler_leading{{{CLUSTER}}}", "{{instance}}")], "1 for the extender that may bind."),
        ),
    ),
    Dashboard(
        "device-health", "GPU health and faults", "Which GPUs are unhealthy, hot or not answering, and which containers were refused because of it?",
        ("node",),
        (
            Panel("Healthy", "stat", "short", [(f"sum(hami_device_plugin_healthy_status{{{NODE}}})", "healthy"), (f"count(hami_device_plugin_healthy_status{{{NODE}}})", "all")], "GPUs that may be used, and all.", 6),
            Panel("Unhealthy GPUs", "table", "short", [(f"hami_device_plugin_healthy_status{{{NODE}}} < bool 1", "")], "1 for a GPU that must not be used.", 10),
            Panel("XIDs", "bargauge", "short", [(f"sum by (device, xid) (hami_device_plugin_xids_total{{{CLUSTER}}})", "{{device}} XID {{xid}}")], "Faults that the driver reported since the plugin started.", 8),
            Panel("Temperature", "timeseries", "celsius", [(f"hami_gpu_temperature_celsius{{{NODE}}}", "{{node}} {{device}}")], "Above 80 °C the alert GPUTemperatureHigh fires."),
            Panel("Power", "timeseries", "watt", [(f"hami_gpu_power_watts{{{NODE}}}", "{{node}} {{device}}")], "Power that each GPU draws."),
            Panel("Memory used", "timeseries", "percentunit", [(f"hami_gpu_memory_used_bytes{{{NODE}}} / hami_gpu_memory_total_bytes{{{NODE}}}", "{{node}} {{device}}")], "By all processes."),
            Panel("Age of the last sample", "timeseries", "s", [(f"hami_monitor_sample_age_seconds{{{NODE}}}", "{{node}} {{device}}")], "A rising line is a GPU that does not answer."),
            Panel("Unattributed memory", "timeseries", "bytes", [(f"hami_monitor_unattributed_bytes{{{NODE}}}", "{{node}} {{device}}")], "Used by processes of no container with the GPU."),
            Panel("Containers refused", "timeseries", "short", [(f"sum by (error_code) (increase(hami_device_plugin_allocation_failures_total{{{CLUSTER}}}[$__rate_interval]))", "{{error_code}}")], "Not started, by code."),
        ),
    ),
)  # fmt: skip


def queries(dashboard: Dashboard) -> Iterator[tuple[str, str]]:
    """Yield each query with the title of its panel."""
    for panel in dashboard.panels:
        for query, _ in panel.queries:
            yield panel.title, query


def render(dashboard: Dashboard) -> dict[str, Any]:
    """Return the JSON that Grafana imports."""
    panels = []
    x = y = 0
    for number, panel in enumerate(dashboard.panels, start=1):
        if x + panel.width > _COLUMNS:
            x, y = 0, y + _HEIGHT
        panels.append(_panel(panel, number, {"h": _HEIGHT, "w": panel.width, "x": x, "y": y}))
        x += panel.width
    return {
        "uid": f"hami-{dashboard.name}",
        "title": dashboard.title,
        "description": dashboard.question,
        "tags": ["gpu", "hami"],
        "schemaVersion": _SCHEMA,
        "editable": True,
        "refresh": "30s",
        "time": {"from": "now-1h", "to": "now"},
        "templating": {"list": list(_variables(dashboard))},
        "panels": panels,
    }


def _panel(panel: Panel, number: int, place: dict[str, int]) -> dict[str, Any]:
    is_table, is_heatmap = panel.kind == "table", panel.kind == "heatmap"
    now_only = panel.kind in ("stat", "gauge", "bargauge", "table")
    options: dict[str, Any] = {}
    if is_heatmap:
        options = {"calculate": False, "yAxis": {"unit": panel.unit}, "color": {"scheme": "Oranges", "mode": "scheme"}}
    defaults: dict[str, Any] = {"unit": panel.unit}
    if panel.unit == "percentunit" and panel.kind in ("gauge", "bargauge"):
        defaults |= {"min": 0, "max": 1}
    return {
        "id": number,
        "title": panel.title,
        "description": panel.description,
        "type": panel.kind,
        "datasource": _SOURCE,
        "gridPos": place,
        "fieldConfig": {"defaults": defaults, "overrides": []},
        "options": options,
        "targets": [
            {
                "refId": chr(ord("A") + index),
                "expr": query,
                "legendFormat": legend,
                "datasource": _SOURCE,
                "instant": now_only,
                "range": not now_only,
                "format": "table" if is_table else "heatmap" if is_heatmap else "time_series",
            }
            for index, (query, legend) in enumerate(panel.queries)
        ],
    }


def _variables(dashboard: Dashboard) -> Iterator[dict[str, Any]]:
    yield {"name": "datasource", "label": "Prometheus", "type": "datasource", "query": "prometheus"}
    sources = {
        "cluster": "label_values(hami_build_info, cluster)",
        "node": "label_values(hami_gpu_memory_total_bytes, node)",
        "namespace": "label_values(hami_vgpu_allocated_memory_bytes, namespace)",
    }
    for name in ("cluster", *dashboard.variables):
        yield {
            "name": name, "label": name.capitalize(), "type": "query", "datasource": _SOURCE, "query": sources[name],
            "refresh": 2, "includeAll": True, "allValue": ".*", "multi": True,
            "current": {"text": "All", "value": "$__all"},
        }  # fmt: skip
