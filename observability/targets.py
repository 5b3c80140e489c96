"""What Prometheus scrapes: every process under one job, by the names that the chart gives its pods and Services.

The scrape configuration, the ServiceMonitors of the examples and the table of the documentation are generated from this
table; tests hold the chart to it.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import yaml

NAMESPACE = "hami-system"
INTERVAL = "15s"
CHART_LABEL = {"app.kubernetes.io/name": "hami"}
"""A label that the chart gives to each of its monitors and rules."""
OPERATOR_LABELS = CHART_LABEL | {"release": "prometheus"}
"""Labels of the monitors and rules of the examples; by the second one kube-prometheus-stack selects."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Target:
    """One process that serves metrics."""

    job: str
    process: str
    """Its name in the documentation."""
    component: str
    """The value of `app.kubernetes.io/component` of its pod and of its Service."""
    port_name: str
    """The name of the port: of the container and of the Service alike."""
    port: int
    path: str = "/metrics"


TARGETS = (
    Target(job="hami-scheduler", process="scheduler extender", component="scheduler", port_name="metrics", port=8080),
    Target(job="hami-device-plugin", process="device plugin", component="device-plugin", port_name="health", port=8081),
    Target(job="hami-monitor", process="monitor", component="device-plugin", port_name="metrics", port=41991),
    Target(job="hami-webui", process="WebUI", component="webui", port_name="health", port=8081),
)


def scrape_config_file() -> str:
    """Return the example configuration of a Prometheus without operator."""
    head = (
        "# Generated from observability/targets.py by `make docs`; do not edit.\n"
        "# For a Prometheus without operator: one job for each process, found by labels and port names of its pods.\n"
    )
    config = {
        "global": {"scrape_interval": INTERVAL, "evaluation_interval": INTERVAL},
        # A copy of charts/hami/files/rules.yaml.
        "rule_files": ["rules.yaml"],
        "alerting": {"alertmanagers": [{"static_configs": [{"targets": ["alertmanager.monitoring:9093"]}]}]},
        "scrape_configs": [_scrape_config(one) for one in TARGETS],
    }
    text = yaml_of(config)
    return head + text.replace("- rules.yaml\n", "- rules.yaml # charts/hami/files/rules.yaml\n")


def _scrape_config(target: Target) -> dict[str, Any]:
    return {
        "job_name": target.job,
        # The labels pod and namespace of our series are the workload's; the target's must not replace them.
        "honor_labels": True,
        "metrics_path": target.path,
        "kubernetes_sd_configs": [{"role": "pod", "namespaces": {"names": [NAMESPACE]}}],
        "relabel_configs": [
            {
                "source_labels": [
                    "__meta_kubernetes_pod_label_app_kubernetes_io_name",
                    "__meta_kubernetes_pod_label_app_kubernetes_io_component",
                    "__meta_kubernetes_pod_container_port_name",
                ],
                "regex": f"hami;{target.component};{target.port_name}",
                "action": "keep",
            },
            # A pod that has ended serves nothing.
            {"source_labels": ["__meta_kubernetes_pod_phase"], "regex": "Succeeded|Failed", "action": "drop"},
            *(
                {"source_labels": [f"__meta_kubernetes_{source}"], "target_label": label}
                for source, label in (
                    ("pod_name", "pod"),
                    ("pod_container_name", "container"),
                    ("namespace", "namespace"),
                )
            ),
        ],
    }


def service_monitors(namespace: str = "monitoring", labels: Mapping[str, str] | None = None) -> list[dict[str, Any]]:
    """Return one ServiceMonitor for each process.

    Args:
        namespace: Where they are created.
        labels: By which a Prometheus resource selects them; None for those of the examples.
    """
    return [_service_monitor(one, namespace, OPERATOR_LABELS if labels is None else labels) for one in TARGETS]


def _service_monitor(target: Target, namespace: str, labels: Mapping[str, str]) -> dict[str, Any]:
    return {
        "apiVersion": "monitoring.coreos.com/v1",
        "kind": "ServiceMonitor",
        "metadata": {"name": target.job, "namespace": namespace, "labels": dict(labels)},
        "spec": {
            "namespaceSelector": {"matchNames": [NAMESPACE]},
            "selector": {"matchLabels": CHART_LABEL | {"app.kubernetes.io/component": target.component}},
            "endpoints": [
                {
                    "port": target.port_name,
                    "path": target.path,
                    "interval": INTERVAL,
                    "honorLabels": True,
                    # Plugin and monitor share a Service, whose name would be the job of both.
                    "relabelings": [{"targetLabel": "job", "replacement": target.job}],
                }
            ],
        },
    }


def table() -> Sequence[str]:
    """Return the lines of the documentation's table of jobs."""
    rows = [f"| {one.process} | {one.port} | `{one.port_name}` | `{one.job}` |" for one in TARGETS]
    return ["| process | port | name of the port | job |", "| --- | --- | --- | --- |", *rows]


def yaml_of(value: object) -> str:
    """Return YAML with keys in their order."""
    text: str = yaml.safe_dump(value, sort_keys=False, width=1000, allow_unicode=True)
    return text
