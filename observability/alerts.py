"""Every alert: when it fires, what it means, how to check and what to do, and a firing and a quiet case.

The rule files, the runbooks and promtool's tests are generated from this table, so that all have every alert.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field

Values = Mapping[str, str]
"""Series to values in promtool's notation, one a minute: `0+1x30` counts from 0 by 1, 30 times."""

GPU = '{node="n1", device="GPU-a"}'
_EXTENDER = 'job="hami-scheduler", instance="e1"'


@dataclass(frozen=True, slots=True)
class Alert:
    """One alerting rule and its runbook."""

    name: str
    expression: str
    wait: str
    """How long the expression must hold, as Prometheus writes it."""
    severity: str
    """`critical`: act at once; `warning`: act in working hours; `none`: only silences others."""
    summary: str
    """A sentence with the labels that help."""
    meaning: str
    check: str
    action: str
    fires: Values
    """Series with which it fires once `wait` and its windows have passed."""
    quiet: Values
    """Series with which it does not."""
    at: str = "30m"
    """The time at which the two cases are evaluated."""
    labels: Mapping[str, str] = field(default_factory=dict)
    limit: str = ""
    """The number after `<` or `>` in the expression that the chart's values may replace, as it is written there."""


def _memory(used_gib: int, total_gib: int = 80) -> dict[str, str]:
    gib = 1 << 30
    return {
        f"hami_gpu_memory_used_bytes{GPU}": f"{used_gib * gib}x60",
        f"hami_gpu_memory_total_bytes{GPU}": f"{total_gib * gib}x60",
    }


def _slowest(verb: str, series: str) -> str:
    """Return the duration of the slowest call in a hundred, with the verb as a label."""
    rate = f"rate(hami_scheduler_{series}_duration_seconds_bucket[5m])"
    return f'label_replace(histogram_quantile(0.99, sum by (le) ({rate})), "verb", "{verb}", "", "")'


_ALLOCATED = "sum by (model) (hami_scheduler_gpu_memory_allocated_bytes)"
_ALLOCATABLE = "sum by (model) (hami_scheduler_gpu_memory_bytes)"
_ON = "{{ $labels.device }} on {{ $labels.node }}"

ALERTS = (
    Alert(
        "GPUMemoryUsageElevated",
        "hami_gpu_memory_used_bytes / hami_gpu_memory_total_bytes > 0.9",
        "5m", "warning",
        f"{_ON} uses {{{{ $value | humanizePercentage }}}} of its memory.",
        "Programs on the GPU use most of its memory. GPUMemoryUsageHigh is the next tier.",
        "Compare `hami_vgpu_memory_usage_bytes` with `hami_vgpu_allocated_memory_bytes` of the containers on it.",
        "Nothing if each container stays within its allocation. Else limit it (`hami-core` or MIG), or move it.",
        _memory(74), _memory(70), limit="0.9",
    ),
    Alert(
        "GPUMemoryUsageHigh",
        "hami_gpu_memory_used_bytes / hami_gpu_memory_total_bytes > 0.95",
        "10m", "warning",
        f"{_ON} uses {{{{ $value | humanizePercentage }}}} of its memory.",
        "Programs on the GPU use nearly all of its memory; the next allocation may fail.",
        "Compare `hami_vgpu_memory_usage_bytes` with `hami_vgpu_allocated_memory_bytes` of the containers on it.",
        "Nothing if each container stays within its allocation. Else limit it (`hami-core` or MIG), or move it.",
        _memory(78), _memory(74), limit="0.95",
    ),
    Alert(
        "GPUNoAvailableMemory",
        "(hami_gpu_memory_total_bytes - hami_gpu_memory_used_bytes) < 1073741824",
        "5m", "critical",
        f"{_ON} has less than 1 GiB of memory left.",
        "The next allocation of memory on the GPU fails with an out-of-memory error. Where one container holds the "
        "whole GPU this is normal (inference servers use all memory): `GPUFullyAllocated` then silences this alert.",
        "`topk(5, hami_vgpu_memory_usage_bytes)`, and `hami_monitor_unattributed_bytes` for other processes.",
        "Stop or move containers that use more than their allocation.",
        _memory(80), _memory(78), limit="1073741824",
    ),
    Alert(
        "GPUFullyAllocated",
        "hami_gpu_containers == 1 and hami_gpu_allocated_memory_bytes >= hami_gpu_memory_total_bytes",
        "0m", "none",
        f"{_ON} is allocated to one container.",
        "One container holds the whole GPU. This is normal; the alert only silences alerts about used memory.",
        "`hami_vgpu_allocated_memory_bytes` names the container.",
        "Nothing.",
        {
            f"hami_gpu_containers{GPU}": "1x60", f"hami_gpu_allocated_memory_bytes{GPU}": "80x60",
            f"hami_gpu_memory_total_bytes{GPU}": "80x60",
        },
        {
            f"hami_gpu_containers{GPU}": "2x60", f"hami_gpu_allocated_memory_bytes{GPU}": "80x60",
            f"hami_gpu_memory_total_bytes{GPU}": "80x60",
        },
    ),
    Alert(
        "RemediationStopped",
        'max without (state) (hami_scheduler_remediation_breaker{state="open"}) == 1',
        "5m", "critical",
        "Remediation is stopped: too many nodes have faulty GPUs.",
        "More nodes have a fault than the breaker of remediation allows, so no GPU is cordoned and no pod evicted; one "
        "act is let through from time to time.",
        "`hami_scheduler_remediation_affected_nodes`, and `hamictl doctor` for the faults.",
        "Find the common cause, such as a driver update or cooling. Raise `breaker` in the rules if the "
        "faults are unrelated.",
        {f'hami_scheduler_remediation_breaker{{{_EXTENDER}, state="open"}}': "1x60"},
        {f'hami_scheduler_remediation_breaker{{{_EXTENDER}, state="open"}}': "0x60"},
    ),
    Alert(
        "ScheduleFailureRate",
        "sum(rate(hami_scheduler_bind_failure_total[5m])) / (sum(rate(hami_scheduler_bind_failure_total[5m])) + "
        "(sum(rate(hami_scheduler_bind_success_total[5m])) or vector(0))) > 0.0909",
        "10m", "warning",
        "{{ $value | humanizePercentage }} of all binds fail.",
        "More than one bind in eleven fails: failures over successes are above 0.1.",
        "`sum by (error_code) (rate(hami_scheduler_bind_failures_by_code_total[5m]))` shows the reasons.",
        "`hamictl explain-code CODE`. Conflicts end by themselves; for `SCHED_BIND_…` check the API server.",
        {f"hami_scheduler_bind_failure_total{{{_EXTENDER}}}": "0+1x60"},
        {
            f"hami_scheduler_bind_failure_total{{{_EXTENDER}}}": "0+1x60",
            f"hami_scheduler_bind_success_total{{{_EXTENDER}}}": "0+20x60",
        },
        limit="0.0909",
    ),
    Alert(
        "GPUUnhealthy",
        "hami_device_plugin_healthy_status == 0",
        "1m", "critical",
        f"{_ON} must not be used.",
        "The driver reported a fault of the GPU, or does not answer. New pods avoid it; its running pods continue.",
        "`kubectl describe node` shows the `DeviceUnhealthy` event with the XID and the required action.",
        "Follow the event: wait, reset the GPU, reboot the node, or replace hardware. The GPU then recovers by itself.",
        {f"hami_device_plugin_healthy_status{GPU}": "0x60"}, {f"hami_device_plugin_healthy_status{GPU}": "1x60"},
    ),
    Alert(
        "GPUTemperatureCritical",
        "hami_gpu_temperature_celsius > 80",
        "2m", "critical",
        f"{_ON} has {{{{ $value }}}} °C.",
        "The GPU stays hot; near its limit it reduces its clocks, above the limit it shuts down.",
        "Compare with the node's other GPUs: one hot GPU indicates its fan or heat sink, all of them the airflow.",
        "Check airflow and fans; drain the node if the temperature keeps rising. A model that runs hotter by design "
        "gets a higher limit (`prometheusRule.thresholds`).",
        {f"hami_gpu_temperature_celsius{GPU}": "85x60"}, {f"hami_gpu_temperature_celsius{GPU}": "80x60"}, limit="80",
    ),
    Alert(
        "GPUTemperatureHigh",
        "hami_gpu_temperature_celsius > 80",
        "5m", "warning",
        f"{_ON} has {{{{ $value }}}} °C.",
        "The GPU is hot; near its limit it reduces its clocks, above the limit it shuts down.",
        "Compare with the node's other GPUs: one hot GPU indicates its fan or heat sink, all of them the airflow.",
        "Check airflow and fans; drain the node if the temperature keeps rising.",
        {f"hami_gpu_temperature_celsius{GPU}": "85x60"}, {f"hami_gpu_temperature_celsius{GPU}": "80x60"}, limit="80",
    ),
    Alert(
        "GPUCapacityLow",
        f"{_ALLOCATED} / {_ALLOCATABLE} > 0.9",
        "15m", "warning",
        "{{ $value | humanizePercentage }} of the memory of all {{ $labels.model }} is allocated.",
        "Little memory is left to allocate; new pods will soon stay pending.",
        "`hami_scheduler_largest_free_bytes` is what would still fit; `hami_scheduler_pods_pending`.",
        "Add GPUs, lower what pods request (compare allocated with used memory), or set quotas and priorities.",
        {
            'hami_scheduler_gpu_memory_allocated_bytes{model="A100"}': "95x60",
            'hami_scheduler_gpu_memory_bytes{model="A100"}': "100x60",
        },
        {
            'hami_scheduler_gpu_memory_allocated_bytes{model="A100"}': "90x60",
            'hami_scheduler_gpu_memory_bytes{model="A100"}': "100x60",
        },
        limit="0.9",
    ),
    Alert(
        "GPUCapacityExhaustedSoon",
        "sum by (model) (predict_linear(hami_scheduler_gpu_memory_allocated_bytes[6h], 86400)) > "
        f"{_ALLOCATABLE} and {_ALLOCATED} / {_ALLOCATABLE} > 0.7",
        "1h", "warning",
        "All memory of {{ $labels.model }} will be allocated within a day, by the trend of the last six hours.",
        "Allocated memory grows so fast that nothing is free within a day.",
        "Check the trend on the dashboard GPU cluster overview.",
        "As for GPUCapacityLow, with more time.",
        {
            'hami_scheduler_gpu_memory_allocated_bytes{model="A100"}': "600+1x400",
            'hami_scheduler_gpu_memory_bytes{model="A100"}': "1000x400",
        },
        {
            'hami_scheduler_gpu_memory_allocated_bytes{model="A100"}': "800x400",
            'hami_scheduler_gpu_memory_bytes{model="A100"}': "1000x400",
        },
        at="6h",
        limit="0.7",
    ),
    Alert(
        "GPUFragmentationHigh",
        f"hami_scheduler_fragmentation_ratio > 0.5 and on (model) {_ALLOCATED} / {_ALLOCATABLE} < 0.8",
        "30m", "warning",
        "{{ $value | humanizePercentage }} of the free {{ $labels.model }} memory is in parts too small for most pods.",
        "Much memory is free, in parts that are too small for pods like the recent ones.",
        "`hami_scheduler_largest_free_bytes` is the largest share that still fits.",
        "Use the policy binpack for nodes and GPUs, request sizes that divide a GPU evenly, or move some small pods.",
        {
            'hami_scheduler_fragmentation_ratio{model="A100"}': "0.6x60",
            'hami_scheduler_gpu_memory_allocated_bytes{model="A100"}': "50x60",
            'hami_scheduler_gpu_memory_bytes{model="A100"}': "100x60",
        },
        {
            'hami_scheduler_fragmentation_ratio{model="A100"}': "0.9x60",
            'hami_scheduler_gpu_memory_allocated_bytes{model="A100"}': "95x60",
            'hami_scheduler_gpu_memory_bytes{model="A100"}': "100x60",
        },
        at="45m",
        limit="0.5",
    ),
    Alert(
        "GPUAllocationFailures",
        "sum by (instance, error_code) (increase(hami_device_plugin_allocation_failures_total[10m])) > 3",
        "5m", "warning",
        "{{ $labels.instance }} refuses containers with {{ $labels.error_code }}.",
        "The device plugin repeatedly refuses to start containers.",
        "`kubectl describe pod` of the pod shows the code, the cause and what to do.",
        "`hamictl explain-code CODE`.",
        {'hami_device_plugin_allocation_failures_total{instance="p1", error_code="ALLOC_NO_RECORD"}': "0+1x60"},
        {'hami_device_plugin_allocation_failures_total{instance="p1", error_code="ALLOC_NO_RECORD"}': "0 1x60"},
        limit="3",
    ),
    Alert(
        "GPUQuotaNearEnd",
        "hami_scheduler_quota_used / hami_scheduler_quota_limit > 0.9",
        "15m", "warning",
        "{{ $labels.namespace }} holds {{ $value | humanizePercentage }} of its {{ $labels.resource }}.",
        "The namespace will soon get no more GPUs: its pods will stay pending with `quota exceeded`.",
        "`kubectl get resourcequota -n NAMESPACE`, and `hami_scheduler_quota_used`.",
        "Raise the quota, or end pods that the namespace does not need.",
        {
            'hami_scheduler_quota_used{namespace="ai", resource="nvidia.com/gpu"}': "10x60",
            'hami_scheduler_quota_limit{namespace="ai", resource="nvidia.com/gpu"}': "10x60",
        },
        {
            'hami_scheduler_quota_used{namespace="ai", resource="nvidia.com/gpu"}': "9x60",
            'hami_scheduler_quota_limit{namespace="ai", resource="nvidia.com/gpu"}': "10x60",
        },
        limit="0.9",
    ),
    Alert(
        "SchedulerExtenderDown",
        "absent(hami_scheduler_ready == 1)",
        "2m", "critical",
        "No scheduler extender is ready.",
        "Pods with GPUs are not scheduled; running pods continue.",
        "`kubectl -n hami-system get pods`, then `/healthz` and the log of the extender.",
        "Restore it. It has no state of its own: a new one reads everything from the API server.",
        {f"hami_scheduler_ready{{{_EXTENDER}}}": "0x60"}, {f"hami_scheduler_ready{{{_EXTENDER}}}": "1x60"},
    ),
    Alert(
        "SchedulerExtenderNotLeading",
        "max(hami_scheduler_leading) == 0",
        "2m", "critical",
        "No scheduler extender leads.",
        "Every extender answers `not leader`, so no pod with GPUs is bound.",
        "`kubectl -n hami-system get lease`: its holder must be a kube-scheduler with an extender beside it.",
        "Check `--leader-lease` and `--identity` of the extender against kube-scheduler's settings.",
        {f"hami_scheduler_leading{{{_EXTENDER}}}": "0x60"}, {f"hami_scheduler_leading{{{_EXTENDER}}}": "1x60"},
    ),
    Alert(
        "SchedulerExtenderSlow",
        "histogram_quantile(0.99, sum by (le) (rate(hami_scheduler_filter_duration_seconds_bucket[5m]))) > 1",
        "10m", "warning",
        "One filter call in a hundred takes more than {{ $value | humanizeDuration }}.",
        "Scheduling of pods with GPUs is slow; kube-scheduler cancels a call after its `httpTimeout`.",
        "CPU throttling of the extender, and its exemplars, which carry the `decision_id` of slow calls.",
        "Give it more CPU; set `nodeCacheCapable: true` if kube-scheduler sends whole nodes.",
        {
            f'hami_scheduler_filter_duration_seconds_bucket{{{_EXTENDER}, le="1"}}': "0+1x60",
            f'hami_scheduler_filter_duration_seconds_bucket{{{_EXTENDER}, le="2.5"}}': "0+100x60",
            f'hami_scheduler_filter_duration_seconds_bucket{{{_EXTENDER}, le="+Inf"}}': "0+100x60",
        },
        {
            f'hami_scheduler_filter_duration_seconds_bucket{{{_EXTENDER}, le="1"}}': "0+100x60",
            f'hami_scheduler_filter_duration_seconds_bucket{{{_EXTENDER}, le="+Inf"}}': "0+100x60",
        },
        limit="1",
    ),
    Alert(
        "SchedulerExtenderShedding",
        'sum(rate(hami_scheduler_calls_total{outcome="shed"}[5m])) > 0',
        "5m", "warning",
        "The scheduler extender sheds calls: too many are in flight.",
        "Some calls are answered with `busy, retry` so that the others are answered in time.",
        "`hami_scheduler_in_flight_calls`, and the callers: only kube-scheduler should call.",
        "Give the extender more CPU, or find the client that floods it.",
        {f'hami_scheduler_calls_total{{{_EXTENDER}, verb="filter", outcome="shed"}}': "0+5x60"},
        {f'hami_scheduler_calls_total{{{_EXTENDER}, verb="filter", outcome="shed"}}': "7x60"},
    ),
    Alert(
        "SchedulerExtenderCallsCancelled",
        'sum by (verb) (increase(hami_scheduler_calls_total{outcome="cancelled"}[10m])) > 3',
        "1m", "warning",
        "kube-scheduler gave up {{ $value | humanize }} calls of {{ $labels.verb }} in ten minutes.",
        "kube-scheduler closed the connection before the answer: its `httpTimeout` was over. It tries those pods again "
        "later, so they stay pending for longer.",
        "`hami_scheduler_filter_duration_seconds`, `hami_api_call_duration_seconds`, CPU throttling of the extender, "
        "and its log (`caller gone`).",
        "Give the extender more CPU, check the API server's response time, or raise `httpTimeout` of the extender in "
        "kube-scheduler's configuration.",
        {f'hami_scheduler_calls_total{{{_EXTENDER}, verb="bind", outcome="cancelled"}}': "0+1x60"},
        {f'hami_scheduler_calls_total{{{_EXTENDER}, verb="bind", outcome="cancelled"}}': "0x10 2x50"},
        limit="3",
    ),
    Alert(
        "GPUPodsPendingMany",
        'sum(hami_scheduler_pods_pending{error_code!="SCHED_GATED"}) > 50',
        "10m", "warning",
        "{{ $value }} pods that request GPUs are pending.",
        "The queue is long: pods arrive faster than GPUs become free, or scheduling has stopped. Pods that another "
        "program keeps back by a scheduling gate do not count.",
        "`sum by (error_code) (hami_scheduler_pods_pending)` shows the reasons; `rate(hami_scheduler_bind_success_total"
        "[5m])` whether pods are still bound.",
        "`hamictl explain-code CODE` of the most frequent reason. Add GPUs, set quotas and priorities, or delete pods "
        "that can never run. A cluster with long queues by design gets a higher limit (`prometheusRule.thresholds`).",
        {'hami_scheduler_pods_pending{error_code="SCHED_INSUFFICIENT_GPU_MEMORY"}': "51x60"},
        {
            'hami_scheduler_pods_pending{error_code="SCHED_INSUFFICIENT_GPU_MEMORY"}': "50x60",
            'hami_scheduler_pods_pending{error_code="SCHED_GATED"}': "500x60",
        },
        limit="50",
    ),
    Alert(
        "GPUPodPendingLong",
        "max by (error_code) (hami_scheduler_oldest_pending_pod_age_seconds) > 1800",
        "5m", "warning",
        "A pod that requests GPUs is pending for {{ $value | humanizeDuration }}, by {{ $labels.error_code }}.",
        "The oldest pending pod is without a node for long. UNDECIDED: kube-scheduler has not asked about it, or "
        "GPUs are free and another rule keeps it off the nodes.",
        "`hamictl pods -A`, then `hamictl explain NAMESPACE/POD` of the oldest. The panel Time until bound "
        "of the dashboard GPU scheduler performance shows whether all pods wait.",
        "Follow the advice of the explanation. Delete a pod whose request can never be met.",
        {'hami_scheduler_oldest_pending_pod_age_seconds{error_code="SCHED_INSUFFICIENT_GPU_MEMORY"}': "1200+60x60"},
        {'hami_scheduler_oldest_pending_pod_age_seconds{error_code="SCHED_INSUFFICIENT_GPU_MEMORY"}': "1800x60"},
        limit="1800",
    ),
    Alert(
        "WatchStalled",
        "hami_watch_age_seconds > 180",
        "5m", "warning",
        "{{ $labels.instance }} has received nothing for {{ $labels.watch }} for {{ $value | humanizeDuration }}.",
        "The API server sends a bookmark every minute, so this watch is broken, and the process's data gets old.",
        "The process's log (`watch broke`), the API server's health, the network between them.",
        "Usually it recovers by itself; else restart the process.",
        {'hami_watch_age_seconds{instance="e1", watch="pods"}': "300x60"},
        {'hami_watch_age_seconds{instance="e1", watch="pods"}': "70x60"},
        limit="180",
    ),
    Alert(
        "DevicePluginMissing",
        'absent(hami_build_info{component="device-plugin"})',
        "5m", "critical",
        "Prometheus scrapes no device plugin.",
        "No node allocates GPUs, or Prometheus does not scrape the plugins.",
        "`kubectl -n hami-system get daemonset hami-device-plugin`, and Prometheus' page of targets.",
        "Restore the DaemonSet (nodes need the label `gpu=on`), or the ServiceMonitor.",
        {"up{job=\"hami-monitor\"}": "1x60"}, {'hami_build_info{component="device-plugin"}': "1x60"},
    ),
    Alert(
        "DevicePluginNotRegistered",
        "hami_device_plugin_registered == 0 and on (instance) hami_device_plugin_device_count > 0",
        "5m", "critical",
        "The device plugin {{ $labels.instance }} is not registered with its kubelet.",
        "New pods with GPUs fail on the node with `UnexpectedAdmissionError`.",
        "The plugin's `/healthz` and log (`PLUGIN_NOT_REGISTERED`), and that the kubelet runs.",
        "Check `--kubelet-dir` and its mount; the plugin retries by itself.",
        {
            'hami_device_plugin_registered{instance="p1"}': "0x60",
            'hami_device_plugin_device_count{instance="p1", node="n1"}': "8x60",
        },
        {
            'hami_device_plugin_registered{instance="p1"}': "0x60",
            'hami_device_plugin_device_count{instance="p1", node="n1"}': "0x60",
        },
    ),
    Alert(
        "MonitorMissing",
        'absent(hami_build_info{component="monitor"})',
        "5m", "warning",
        "Prometheus scrapes no monitor.",
        "Used memory and utilization of GPUs are unknown; scheduling continues.",
        "As for DevicePluginMissing.",
        "Restore the monitor container of the DaemonSet, or its ServiceMonitor.",
        {"up{job=\"hami-monitor\"}": "1x60"}, {'hami_build_info{component="monitor"}': "1x60"},
    ),
    Alert(
        "HamiTargetDown",
        'up{job=~"hami-.*"} == 0',
        "5m", "warning",
        "Prometheus cannot scrape {{ $labels.job }} at {{ $labels.instance }}.",
        "One of our processes is down, hangs, or cannot be reached.",
        "Its pod's state and log; `/healthz` of the process.",
        "Restore it; no state is lost.",
        {'up{job="hami-monitor", instance="m1"}': "0x60"}, {'up{job="hami-monitor", instance="m1"}': "1x60"},
    ),
    Alert(
        "MonitorGPUStale",
        "hami_monitor_gpu_stale == 1",
        "2m", "warning",
        f"{_ON} does not answer the monitor.",
        "The driver does not answer for the GPU; its series are omitted until it does.",
        "`nvidia-smi` on the node, and whether GPUUnhealthy fires too.",
        "If it stays so, drain and reboot the node: a hung driver seldom recovers.",
        {f"hami_monitor_gpu_stale{GPU}": "1x60"}, {f"hami_monitor_gpu_stale{GPU}": "0x60"},
    ),
    Alert(
        "HamiCertificateExpiresSoon",
        "hami_scheduler_certificate_expiry_timestamp_seconds - time() < 604800 and "
        "hami_scheduler_certificate_expiry_timestamp_seconds > 0",
        "1h", "warning",
        "The webhook's certificate of {{ $labels.instance }} ends in {{ $value | humanizeDuration }}.",
        "Without a valid certificate the API server cannot call the webhook, and the read API cannot be used.",
        "`kubectl -n hami-system get secret` with the certificate, or cert-manager's Certificate.",
        "Renew it; the extender reads the new file by itself.",
        {f"hami_scheduler_certificate_expiry_timestamp_seconds{{{_EXTENDER}}}": "86400x120"},
        {f"hami_scheduler_certificate_expiry_timestamp_seconds{{{_EXTENDER}}}": "8640000x120"},
        at="90m",
    ),
    Alert(
        "HamiEventsDropped",
        'increase({__name__=~"hami_(scheduler|device_plugin)_events_dropped_total"}[15m]) > 0',
        "0m", "warning",
        "{{ $labels.instance }} dropped events.",
        "Some pods or nodes lack an event, because too many were queued or the API server refused them.",
        "The process's log: `event not written` with the cause.",
        "Check the account's rights on `events.events.k8s.io`; raise `--event-rate` if the cluster is that busy.",
        {f"hami_scheduler_events_dropped_total{{{_EXTENDER}}}": "0+1x60"},
        {f"hami_scheduler_events_dropped_total{{{_EXTENDER}}}": "5x60"},
    ),
    Alert(
        "SchedulerExtenderVerbSlow",
        f"{_slowest('prioritize', 'score')} > 1 or {_slowest('bind', 'bind')} > 2.5 "
        f"or {_slowest('preempt', 'preempt')} > 5",
        "10m", "warning",
        "One {{ $labels.verb }} call in a hundred takes more than {{ $value | humanizeDuration }}.",
        "Scheduling of pods with GPUs is slow. Limits are 1 s for prioritize, 2.5 s for bind and 5 s for preempt; "
        "SchedulerExtenderSlow is the same for filter.",
        "For bind `hami_api_call_duration_seconds` of the extender, which waits for the API server; else its CPU.",
        "Give the extender or the API server more CPU. kube-scheduler cancels a call after its `httpTimeout`.",
        {
            f'hami_scheduler_bind_duration_seconds_bucket{{{_EXTENDER}, le="2.5"}}': "0+1x60",
            f'hami_scheduler_bind_duration_seconds_bucket{{{_EXTENDER}, le="5"}}': "0+100x60",
            f'hami_scheduler_bind_duration_seconds_bucket{{{_EXTENDER}, le="+Inf"}}': "0+100x60",
        },
        {
            f'hami_scheduler_bind_duration_seconds_bucket{{{_EXTENDER}, le="1"}}': "0+100x60",
            f'hami_scheduler_bind_duration_seconds_bucket{{{_EXTENDER}, le="+Inf"}}': "0+100x60",
        },
    ),
    Alert(
        "SchedulerExtenderErrors",
        'sum by (verb) (rate(hami_scheduler_calls_total{outcome="refused"}[5m])) '
        "/ sum by (verb) (rate(hami_scheduler_calls_total[5m])) > 0.05",
        "10m", "warning",
        "{{ $value | humanizePercentage }} of all {{ $labels.verb }} calls are refused.",
        "The extender cannot serve calls of kube-scheduler: it is not ready, does not lead, or calls are malformed. "
        "Pods that do not fit are no errors.",
        "`sum by (error_code) (rate(hami_scheduler_bad_requests_total[5m]))`, and `/healthz` of the extender.",
        "`hamictl explain-code CODE`.",
        {
            f'hami_scheduler_calls_total{{{_EXTENDER}, verb="filter", outcome="refused"}}': "0+1x60",
            f'hami_scheduler_calls_total{{{_EXTENDER}, verb="filter", outcome="answered"}}': "0+10x60",
        },
        {
            f'hami_scheduler_calls_total{{{_EXTENDER}, verb="filter", outcome="refused"}}': "0+1x60",
            f'hami_scheduler_calls_total{{{_EXTENDER}, verb="filter", outcome="answered"}}': "0+100x60",
        },
    ),
    Alert(
        "WebUISlow",
        "histogram_quantile(0.95, sum by (page, le) (rate(hami_webui_request_duration_seconds_bucket[5m]))) > 2",
        "10m", "warning",
        "One request in twenty of {{ $labels.page }} takes more than {{ $value | humanizeDuration }}.",
        "Pages of the WebUI are slow for users. Scheduling is not affected.",
        "CPU throttling and memory of the WebUI; `hami_webui_viewers`. Pages of one pod or node wait for the extender.",
        "Raise `webui.resources`; check SchedulerExtenderSlow and `hami_api_call_duration_seconds`.",
        {
            'hami_webui_request_duration_seconds_bucket{page="pages.nodes", le="2.5"}': "0+1x60",
            'hami_webui_request_duration_seconds_bucket{page="pages.nodes", le="5"}': "0+100x60",
            'hami_webui_request_duration_seconds_bucket{page="pages.nodes", le="+Inf"}': "0+100x60",
        },
        {
            'hami_webui_request_duration_seconds_bucket{page="pages.nodes", le="1"}': "0+100x60",
            'hami_webui_request_duration_seconds_bucket{page="pages.nodes", le="+Inf"}': "0+100x60",
        },
    ),
    Alert(
        "WebUIErrors",
        'sum(rate(hami_webui_requests_total{status=~"5.."}[5m])) / sum(rate(hami_webui_requests_total[5m])) > 0.05',
        "5m", "warning",
        "{{ $value | humanizePercentage }} of all requests of the WebUI fail.",
        "Users see error pages: the WebUI has no data yet, the API server reviews no tokens, or a page has a defect.",
        '`sum by (page, status) (rate(hami_webui_requests_total{status=~"5.."}[5m]))`, and the log of the WebUI.',
        "503: make the extender or the API server reachable for it. 500: report the defect with the line of the log.",
        {
            'hami_webui_requests_total{page="pages.nodes", status="500"}': "0+1x60",
            'hami_webui_requests_total{page="pages.nodes", status="200"}': "0+10x60",
        },
        {
            'hami_webui_requests_total{page="pages.nodes", status="404"}': "0+10x60",
            'hami_webui_requests_total{page="pages.nodes", status="200"}': "0+10x60",
        },
    ),
    Alert(
        "WebUIDataOld",
        "hami_webui_data_age_seconds > 120",
        "5m", "warning",
        "{{ $labels.instance }} shows data that is {{ $value | humanizeDuration }} old.",
        "The WebUI receives nothing new from the extender, and marks its pages as old.",
        "`/healthz` of the WebUI has the cause in the component `extender`.",
        "Restore the extender, or correct `--extender`, `--extender-ca` and the rights of the WebUI's account.",
        {'hami_webui_data_age_seconds{instance="w1"}': "300x60"},
        {'hami_webui_data_age_seconds{instance="w1"}': "8x60"},
    ),
    Alert(
        "HamiCanaryFails",
        "hami_canary_success == 0",
        "5m", "warning",
        "{{ $labels.job }} at {{ $labels.instance }} does not answer its own calls.",
        "The process runs, and does not answer its callers within `--canary-timeout`: kube-scheduler, the kubelet, "
        "Prometheus or users.",
        "`/healthz` of the process: the component `verbs`, `socket`, `scrape` or `pages` has the cause.",
        "Check its CPU limit and connections; restart it if it stays so. No state is lost.",
        {'hami_canary_success{job="hami-scheduler", instance="e1"}': "0x60"},
        {'hami_canary_success{job="hami-scheduler", instance="e1"}': "1x60"},
    ),
)  # fmt: skip
