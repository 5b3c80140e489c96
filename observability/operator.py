"""Objects of the Prometheus operator for those who have it: monitors, a Prometheus and an Alertmanager of their own."""

from typing import Any

from observability import targets

NAMESPACE = "monitoring"
NAME = "gpus"
SERVICE_ACCOUNT = "prometheus-gpus"
ALERTMANAGER_CONFIG = "alertmanager-gpus"
"""The Secret with Alertmanager's configuration."""
RECEIVER_FILES = "alertmanager-notification"
"""The Secret with what its receivers need; the operator mounts it as files."""
_RBAC = "rbac.authorization.k8s.io"
SECRET_FOLDER = f"/etc/alertmanager/secrets/{RECEIVER_FILES}"


def documents() -> list[dict[str, Any]]:
    """Return every object of the example."""
    return [*targets.service_monitors(NAMESPACE), *_prometheus_rights(), prometheus(), alertmanager()]


def prometheus() -> dict[str, Any]:
    """Return a Prometheus that selects the chart's monitors and rules, and keeps 30 days."""
    selected = {"matchLabels": targets.CHART_LABEL}
    return {
        "apiVersion": "monitoring.coreos.com/v1",
        "kind": "Prometheus",
        "metadata": {"name": NAME, "namespace": NAMESPACE},
        "spec": {
            "replicas": 2,
            "serviceAccountName": SERVICE_ACCOUNT,
            "retention": "30d",
            "retentionSize": "45GB",
            "storage": _storage("50Gi"),
            "resources": {"requests": {"cpu": "250m", "memory": "1Gi"}, "limits": {"memory": "4Gi"}},
            "securityContext": {"runAsNonRoot": True, "runAsUser": 1000, "fsGroup": 2000},
            # Of every namespace: the chart creates rules in its own, and monitors where its values say.
            "serviceMonitorSelector": selected,
            "serviceMonitorNamespaceSelector": {},
            "ruleSelector": selected,
            "ruleNamespaceSelector": {},
            "alerting": {
                "alertmanagers": [{"namespace": NAMESPACE, "name": "alertmanager-operated", "port": "web"}],
            },
        },
    }


def alertmanager() -> dict[str, Any]:
    """Return an Alertmanager of three replicas, which agree on what was sent."""
    return {
        "apiVersion": "monitoring.coreos.com/v1",
        "kind": "Alertmanager",
        "metadata": {"name": NAME, "namespace": NAMESPACE},
        "spec": {
            "replicas": 3,
            "retention": "120h",
            "storage": _storage("2Gi"),
            # The key alertmanager.yaml: alertmanager.yml beside this file.
            "configSecret": ALERTMANAGER_CONFIG,
            "secrets": [RECEIVER_FILES],
            "resources": {"requests": {"cpu": "20m", "memory": "64Mi"}, "limits": {"memory": "256Mi"}},
            "securityContext": {"runAsNonRoot": True, "runAsUser": 1000, "fsGroup": 2000},
        },
    }


def _storage(size: str) -> dict[str, Any]:
    return {
        "volumeClaimTemplate": {
            "spec": {"accessModes": ["ReadWriteOnce"], "resources": {"requests": {"storage": size}}},
        }
    }


def _prometheus_rights() -> list[dict[str, Any]]:
    """Return the account of Prometheus, with what its discovery reads: our namespace, and that of Alertmanager."""
    account = {"name": SERVICE_ACCOUNT, "namespace": NAMESPACE}
    verbs = ["get", "list", "watch"]
    rights = [
        {"apiGroups": [""], "resources": ["services", "endpoints", "pods"], "verbs": verbs},
        {"apiGroups": ["discovery.k8s.io"], "resources": ["endpointslices"], "verbs": verbs},
    ]
    found: list[dict[str, Any]] = [{"apiVersion": "v1", "kind": "ServiceAccount", "metadata": account}]
    for namespace in (targets.NAMESPACE, NAMESPACE):
        where = {"name": SERVICE_ACCOUNT, "namespace": namespace}
        found += [
            {"apiVersion": f"{_RBAC}/v1", "kind": "Role", "metadata": where, "rules": rights},
            {
                "apiVersion": f"{_RBAC}/v1",
                "kind": "RoleBinding",
                "metadata": where,
                "roleRef": {"apiGroup": _RBAC, "kind": "Role", "name": SERVICE_ACCOUNT},
                "subjects": [{"kind": "ServiceAccount", **account}],
            },
        ]
    return found


def example() -> str:
    """Return the file of the example."""
    head = (
        "# Generated from observability/operator.py by `make docs`; do not edit.\n"
        "# For a cluster with the Prometheus operator. Where you have a Prometheus and an Alertmanager, use only the\n"
        "# ServiceMonitors; the chart creates the same ones by monitor.serviceMonitor. This Prometheus selects by a\n"
        "# label that the chart gives to all of them; for kube-prometheus-stack set monitor.serviceMonitor.labels and\n"
        "# prometheusRule.labels to its own, `release: prometheus`.\n"
        f"# alertmanager.yml beside this file describes the Secrets {ALERTMANAGER_CONFIG} and {RECEIVER_FILES}.\n"
    )
    return head + "---\n".join(targets.yaml_of(one) for one in documents())
