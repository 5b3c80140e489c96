"""The Grafana dashboards: each answers the question in its description, with a unit on every panel.

Variables: `cluster` (only where Prometheus adds this label), `node`, `namespace`, `device`, and the addresses of WebUI
and runbooks. A node in a panel links to the dashboard of the node, a GPU to its pods, a pod to its page in the WebUI. A
test runs every query on a real Prometheus.
"""

import re
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
SLICE = f'{NAMESPACE}, device=~"$device"'
GPU = f'{NODE}, device=~"$device"'
WEBUI, RUNBOOKS = "webui", "runbooks"
"""Variables that hold an address; the chart's values replace them."""
_ADDRESSES = {WEBUI: ("WebUI", "http://localhost:8088"), RUNBOOKS: ("Runbooks", "http://localhost:8000")}
"""Label and address of each: where the documents' `kubectl port-forward` and `mkdocs serve` serve them."""


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
    links: Sequence[str] = ()
    """Where a value of the panel leads; see `LINKS`."""
    alerts: Sequence[str] = ()
    """Alerts about what it shows; it links to their runbooks."""


@dataclass(frozen=True, slots=True)
class Link:
    """Where a value of a panel leads, by one label of its series."""

    title: str
    url: str
    """With `{label}` for the value of a label."""


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


def _pending_quantile(part: float) -> str:
    buckets = f"rate(hami_scheduler_pod_pending_duration_seconds_bucket{{{CLUSTER}}}[$__rate_interval])"
    return f"histogram_quantile({part}, sum by (le) ({buckets}))"


def _quantiles(phase: str) -> tuple[str, str]:
    buckets = f"rate(hami_scheduler_{phase}_duration_seconds_bucket{{{CLUSTER}}}[$__rate_interval])"
    return f"histogram_quantile(0.99, sum by (le) ({buckets}))", f"{phase} p99"


_ALLOCATED = f"hami_scheduler_gpu_memory_allocated_bytes{{{CLUSTER}}}"
_ALLOCATABLE = f"hami_scheduler_gpu_memory_bytes{{{CLUSTER}}}"

_KEEP = "${__url_time_range}&${datasource:queryparam}&${cluster:queryparam}"
LINKS = {
    "node": Link("GPUs of the node", f"/d/hami-node?var-node={{node}}&{_KEEP}"),
    "node health": Link("Health of the node's GPUs", f"/d/hami-device-health?var-node={{node}}&{_KEEP}"),
    "node page": Link("The node in the WebUI", f"${{{WEBUI}}}/nodes/{{node}}"),
    "device": Link("Pods on the GPU", f"/d/hami-pods-and-slices?var-device={{device}}&{_KEEP}"),
    "pod page": Link("The pod in the WebUI", f"${{{WEBUI}}}/pods/{{namespace}}/{{pod}}"),
}
_NODE_LINKS = ("node", "node health", "node page")
_GPU_LINKS = ("device", "node page")
_POD_LINKS = ("pod page",)

DASHBOARDS = (
    Dashboard(
        "cluster-overview", "GPU cluster overview", "How much is allocated, what would still fit, and which pods are pending?",
        ("node",),
        (
            Panel("GPUs", "stat", "short", [(f"sum(hami_scheduler_gpus{{{CLUSTER}}})", "GPUs"), (f"sum(hami_scheduler_gpus_usable{{{CLUSTER}}})", "usable")], "All GPUs, and those that new pods may be placed on.", 4),
            Panel("Memory allocated", "gauge", "percentunit", [(f"sum({_ALLOCATED}) / sum({_ALLOCATABLE})", "allocated")], "Allocated over allocatable memory.", 4),
            Panel("Slots allocated", "gauge", "percentunit", [(f"sum(hami_scheduler_gpu_slots_allocated{{{CLUSTER}}}) / sum(hami_scheduler_gpu_slots{{{CLUSTER}}})", "allocated")], "Containers that share GPUs, over the maximum.", 4),
            Panel("Pods with GPUs", "stat", "short", [(f"sum(hami_scheduler_pods_bound{{{CLUSTER}}})", "bound"), (f"sum(hami_scheduler_pods_pending{{{CLUSTER}}})", "pending")], "Pods that hold GPUs, and pods that request GPUs and have no node.", 4),
            Panel("Largest share that still fits", "bargauge", "bytes", [(f"max by (model) (hami_scheduler_largest_free_bytes{{{CLUSTER}}})", "{{model}}")], "Of one GPU, by model.", 8, alerts=("GPUCapacityLow",)),
            Panel("Memory by model", "timeseries", "bytes", [(f"sum by (model) ({_ALLOCATED})", "{{model}} allocated"), (f"sum by (model) ({_ALLOCATABLE})", "{{model}} allocatable")], "Allocated and allocatable memory.", alerts=("GPUCapacityLow", "GPUCapacityExhaustedSoon")),
            Panel("Fragmentation", "timeseries", "percentunit", [(f"max by (model) (hami_scheduler_fragmentation_ratio{{{CLUSTER}}})", "{{model}}")], "Part of the free memory that is too small for pods like those bound last.", alerts=("GPUFragmentationHigh",)),
            Panel("Why pods are pending", "timeseries", "short", [(f"sum by (error_code) (hami_scheduler_pods_pending{{{CLUSTER}}})", "{{error_code}}")], "Pending pods by the code of their last rejection.", alerts=("GPUPodsPendingMany",)),
            Panel("Oldest pending pod", "timeseries", "s", [(f"max by (error_code) (hami_scheduler_oldest_pending_pod_age_seconds{{{CLUSTER}}})", "{{error_code}}")], "Time since its creation, by the code of its last rejection; without gated pods.", alerts=("GPUPodPendingLong",)),
            Panel("GPUs by node", "bargauge", "short", [(f"sum by (node) (hami_device_plugin_device_count{{{NODE}}})", "{{node}}"), (f"sum by (node) (hami_device_plugin_healthy_status{{{NODE}}})", "{{node}} healthy")], "GPUs that each node offers, and those that may be used.", links=_NODE_LINKS),
            Panel("Memory used by node", "timeseries", "percentunit", [(f"sum by (node) (hami_gpu_memory_used_bytes{{{NODE}}}) / sum by (node) (hami_gpu_memory_total_bytes{{{NODE}}})", "{{node}}")], "Measured, not allocated.", links=_NODE_LINKS),
            Panel("Utilization by node", "timeseries", "percent", [(f"avg by (node) (hami_gpu_utilization_percent{{{NODE}}})", "{{node}}")], "Mean over the node's GPUs.", links=_NODE_LINKS),
            Panel("Quota", "bargauge", "percentunit", [(f"hami_scheduler_quota_used{{{CLUSTER}}} / hami_scheduler_quota_limit{{{CLUSTER}}}", "{{namespace}} {{resource}}")], "Allocation of each namespace over its limit.", alerts=("GPUQuotaNearEnd",)),
        ),
    ),
    Dashboard(
        "pods-and-slices", "GPU pods and slices", "Which pod holds which part of which GPU, and how much of it does the pod use?",
        ("namespace", "device"),
        (
            Panel("Memory allocated", "table", "bytes", [(f"hami_vgpu_allocated_memory_bytes{{{SLICE}}}", "")], "Every container and its GPUs.", 12, links=_POD_LINKS),
            Panel("Allocated and not used", "table", "bytes", [(f"sort_desc(hami_vgpu_allocated_memory_bytes{{{SLICE}}} - hami_vgpu_memory_usage_bytes)", "")], "Allocated memory that is not used.", 12, links=_POD_LINKS),
            Panel("Memory used", "timeseries", "bytes", [(f"hami_vgpu_memory_usage_bytes{{{SLICE}}}", "{{namespace}}/{{pod}} {{container}}")], "By container.", 12, links=_POD_LINKS),
            Panel("Used of what was allocated", "timeseries", "percentunit", [(f"hami_vgpu_memory_usage_bytes{{{SLICE}}} / hami_vgpu_allocated_memory_bytes", "{{namespace}}/{{pod}} {{container}}")], "Above 100 % a container exceeds its allocation.", 12, links=_POD_LINKS),
            Panel("Utilization", "timeseries", "percent", [(f"hami_vgpu_utilization_percent{{{SLICE}}}", "{{namespace}}/{{pod}} {{container}}")], "Time in which kernels of each container ran.", 12, links=_POD_LINKS),
            Panel("Allocated by namespace", "timeseries", "bytes", [(f"sum by (namespace) (hami_vgpu_allocated_memory_bytes{{{SLICE}}})", "{{namespace}}")], "Allocation of each namespace.", 12),
        ),
    ),
    Dashboard(
        "node", "GPU node", "What do the GPUs of a node do, and which of them are allocated?",
        ("node", "device"),
        (
            Panel("GPUs of the node", "stat", "short", [(f"sum by (node) (hami_device_plugin_device_count{{{NODE}}})", "{{node}}")], "GPUs that the device plugin offers.", links=("node health", "node page")),
            Panel("Containers", "bargauge", "short", [(f"hami_gpu_containers{{{GPU}}}", "{{node}} {{device}}")], "Containers that share each GPU.", links=_GPU_LINKS),
            Panel("Memory allocated", "bargauge", "percentunit", [(f"hami_gpu_allocated_memory_bytes{{{GPU}}} / hami_gpu_allocatable_memory_bytes", "{{node}} {{device}}")], "Allocated over allocatable memory of each GPU.", links=_GPU_LINKS),
            Panel("Memory used", "timeseries", "percentunit", [(f"hami_gpu_memory_used_bytes{{{GPU}}} / hami_gpu_memory_total_bytes", "{{node}} {{device}}")], "By all processes.", links=_GPU_LINKS, alerts=("GPUMemoryUsageElevated", "GPUMemoryUsageHigh")),
            Panel("Utilization", "timeseries", "percent", [(f"hami_gpu_utilization_percent{{{GPU}}}", "{{node}} {{device}}")], "Time in which kernels ran on each GPU.", links=_GPU_LINKS),
            Panel("Memory controller", "timeseries", "percent", [(f"hami_gpu_memory_controller_utilization_percent{{{GPU}}}", "{{node}} {{device}}")], "Time in which the memory of each GPU was read or written: high with low utilization, its memory bandwidth is the limit.", links=_GPU_LINKS),
        ),
    ),
    Dashboard(
        "scheduler-performance", "GPU scheduler performance", "How fast are pods with GPUs placed, and what fails?",
        (),
        (
            _latency("filter"), _latency("score"), _latency("bind"),
            Panel("Slowest calls", "timeseries", "s", [_quantiles("filter"), _quantiles("score"), _quantiles("bind")], "99 of 100 calls are faster.", alerts=("SchedulerExtenderSlow",)),
            Panel("Calls", "timeseries", "reqps", [(f"sum by (verb, outcome) (rate(hami_scheduler_calls_total{{{CLUSTER}}}[$__rate_interval]))", "{{verb}} {{outcome}}")], "By verb and outcome.", alerts=("SchedulerExtenderCallsCancelled", "SchedulerExtenderShedding")),
            Panel("Binds", "timeseries", "reqps", [(f"sum(rate(hami_scheduler_bind_success_total{{{CLUSTER}}}[$__rate_interval]))", "bound"), (f"sum by (error_code) (rate(hami_scheduler_bind_failures_by_code_total{{{CLUSTER}}}[$__rate_interval]))", "{{error_code}}")], "Pods bound, and binds that failed, by code.", alerts=("ScheduleFailureRate",)),
            Panel("Time until bound", "timeseries", "s", [(_pending_quantile(0.5), "half of the pods"), (_pending_quantile(0.95), "95 of 100 pods")], "Time from a pod's creation until it was bound; a pod that is still pending is not in it.", alerts=("GPUPodPendingLong",)),
            Panel("Time until bound, by reason", "timeseries", "s", [(f"sum by (error_code) (rate(hami_scheduler_pod_pending_duration_seconds_sum{{{CLUSTER}}}[$__rate_interval])) / sum by (error_code) (rate(hami_scheduler_pod_pending_duration_seconds_count{{{CLUSTER}}}[$__rate_interval]))", "{{error_code}}")], "Mean by the last rejection of each pod; NONE was never rejected."),
            Panel("Calls given up", "timeseries", "reqps", [(f'sum by (verb) (rate(hami_scheduler_calls_total{{{CLUSTER}, outcome="cancelled"}}[$__rate_interval]))', "{{verb}}")], "Calls whose connection kube-scheduler closed before the answer.", alerts=("SchedulerExtenderCallsCancelled",)),
            Panel("Rejections", "timeseries", "reqps", [(f"sum by (error_code) (rate(hami_scheduler_filter_refusals_total{{{CLUSTER}}}[$__rate_interval]))", "{{error_code}}")], "Pods that fit on no node, by main reason."),
            Panel("API server", "timeseries", "s", [(f"histogram_quantile(0.99, sum by (method, le) (rate(hami_api_call_duration_seconds_bucket{{{CLUSTER}}}[$__rate_interval])))", "{{method}} p99")], "Response time of the API server."),
            Panel("Watches", "timeseries", "s", [(f"max by (watch) (hami_watch_age_seconds{{{CLUSTER}}})", "{{watch}}")], "Time since the last message; bookmarks come every minute.", alerts=("WatchStalled",)),
            Panel("Calls in flight", "timeseries", "short", [(f"sum(hami_scheduler_in_flight_calls{{{CLUSTER}}})", "calls"), (f"sum(hami_scheduler_nominations{{{CLUSTER}}})", "nominations"), (f"sum(hami_scheduler_pods_assumed{{{CLUSTER}}})", "assumed pods")], "Calls, nominations and assumed pods at the moment."),
            Panel("Events", "timeseries", "reqps", [(f"sum(rate(hami_scheduler_events_written_total{{{CLUSTER}}}[$__rate_interval]))", "written"), (f"sum(rate(hami_scheduler_events_dropped_total{{{CLUSTER}}}[$__rate_interval]))", "dropped")], "Pod events.", alerts=("HamiEventsDropped",)),
            Panel("Long work", "timeseries", "percentunit", [(f"min by (work) (hami_progress_ratio{{{CLUSTER}}})", "{{work}}")], "Least part that is done of first lists, counting, restored containers, MIG changes and the start of MPS; 100 % is all."),
            Panel("Leader", "timeseries", "short", [(f"hami_scheduler_leading{{{CLUSTER}}}", "{{instance}}")], "1 for the extender that may bind.", alerts=("SchedulerExtenderNotLeading", "SchedulerExtenderDown")),
        ),
    ),
    Dashboard(
        "device-health", "GPU health and faults", "Which GPUs are unhealthy, hot or not answering, and which containers were refused because of it?",
        ("node",),
        (
            Panel("Healthy", "stat", "short", [(f"sum(hami_device_plugin_healthy_status{{{NODE}}})", "healthy"), (f"count(hami_device_plugin_healthy_status{{{NODE}}})", "all")], "GPUs that may be used, and all.", 6),
            Panel("Unhealthy GPUs", "table", "short", [(f"hami_device_plugin_healthy_status{{{NODE}}} < bool 1", "")], "1 for a GPU that must not be used.", 10, links=_GPU_LINKS, alerts=("GPUUnhealthy",)),
            Panel("XIDs", "bargauge", "short", [(f"sum by (device, xid) (hami_device_plugin_xids_total{{{CLUSTER}}})", "{{device}} XID {{xid}}")], "Faults that the driver reported since the plugin started.", 8),
            Panel("Temperature", "timeseries", "celsius", [(f"hami_gpu_temperature_celsius{{{NODE}}}", "{{node}} {{device}}")], "Above 80 °C the alert GPUTemperatureHigh fires.", links=_GPU_LINKS, alerts=("GPUTemperatureHigh", "GPUTemperatureCritical")),
            Panel("Power", "timeseries", "watt", [(f"hami_gpu_power_watts{{{NODE}}}", "{{node}} {{device}}")], "Power that each GPU draws.", links=_GPU_LINKS),
            Panel("Memory used", "timeseries", "percentunit", [(f"hami_gpu_memory_used_bytes{{{NODE}}} / hami_gpu_memory_total_bytes{{{NODE}}}", "{{node}} {{device}}")], "By all processes.", links=_GPU_LINKS, alerts=("GPUMemoryUsageElevated", "GPUMemoryUsageHigh", "GPUNoAvailableMemory")),
            Panel("Age of the last sample", "timeseries", "s", [(f"hami_monitor_sample_age_seconds{{{NODE}}}", "{{node}} {{device}}")], "A rising line is a GPU that does not answer.", links=_GPU_LINKS, alerts=("MonitorGPUStale",)),
            Panel("Unattributed memory", "timeseries", "bytes", [(f"hami_monitor_unattributed_bytes{{{NODE}}}", "{{node}} {{device}}")], "Used by processes of no container with the GPU.", links=_GPU_LINKS),
            Panel("Containers refused", "timeseries", "short", [(f"sum by (error_code) (increase(hami_device_plugin_allocation_failures_total{{{CLUSTER}}}[$__rate_interval]))", "{{error_code}}")], "Not started, by code.", alerts=("GPUAllocationFailures",)),
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
        "links": list(_links()),
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
    if panel.links:
        defaults["links"] = [_data_link(LINKS[name], is_table=is_table) for name in panel.links]
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
        "links": [
            {"title": f"Runbook {name}", "url": f"${{{RUNBOOKS}}}/runbooks/{name}.html", "targetBlank": True}
            for name in panel.alerts
        ],
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


def _data_link(link: Link, *, is_table: bool) -> dict[str, Any]:
    """Return a link in Grafana's terms: labels are fields of a table's row, and labels of a series elsewhere."""
    label = r"${__data.fields.\1}" if is_table else r"${__field.labels.\1}"
    url = re.sub(r"(?<!\$)\{(\w+)\}", label, link.url)
    return {"title": link.title, "url": url, "targetBlank": link.url.startswith("$")}


def _links() -> Iterator[dict[str, Any]]:
    """Links at the head of a dashboard: to the others, with time and variables, to the WebUI and to the alerts."""
    yield {
        "type": "dashboards", "title": "GPU dashboards", "tags": ["hami"], "asDropdown": True, "includeVars": True,
        "keepTime": True, "icon": "external link",
    }  # fmt: skip
    for title, url in (("WebUI", f"${{{WEBUI}}}/"), ("Alerts and runbooks", f"${{{RUNBOOKS}}}/reference/alerts.html")):
        yield {"type": "link", "title": title, "url": url, "targetBlank": True, "icon": "external link"}


def _variables(dashboard: Dashboard) -> Iterator[dict[str, Any]]:
    yield {"name": "datasource", "label": "Prometheus", "type": "datasource", "query": "prometheus"}
    sources = {
        "cluster": "label_values(hami_build_info, cluster)",
        "node": "label_values(hami_gpu_memory_total_bytes, node)",
        "namespace": "label_values(hami_vgpu_allocated_memory_bytes, namespace)",
        "device": "label_values(hami_gpu_memory_total_bytes, device)",
    }
    for name in ("cluster", *dashboard.variables):
        yield {
            "name": name, "label": name.capitalize(), "type": "query", "datasource": _SOURCE, "query": sources[name],
            "refresh": 2, "includeAll": True, "allValue": ".*", "multi": True,
            "current": {"text": "All", "value": "$__all"},
        }  # fmt: skip
    for name, (label, address) in _ADDRESSES.items():
        yield {
            "name": name, "label": label, "type": "textbox", "query": address,
            "current": {"text": address, "value": address}, "options": [],
        }  # fmt: skip
