"""Rule files of the alerts, for Prometheus and for its operator; with shorter durations for tests."""

import re
from collections.abc import Mapping
from typing import Any

from observability import alerts, targets, workload_alerts

LIMIT = "%LIMIT%"
"""Stands for an alert's limit in `limits_file`."""
GROUP, WORKLOAD_GROUP = "hami.gpu-sharing", "hami.workloads"
ALL = (*alerts.ALERTS, *workload_alerts.ALERTS)
_SECONDS = {"s": 1, "m": 60, "h": 3600, "d": 86_400}


def rule_file(faster: float = 1.0) -> dict[str, Any]:
    """Return a rule file.

    Args:
        faster: The divisor of every duration: the time until an alert fires, and each window.
    """
    return {"groups": [{"name": GROUP, "rules": [_rule(one, faster) for one in alerts.ALERTS]}]}


def workload_rule_file(faster: float = 1.0) -> dict[str, Any]:
    """Return the rule file about programs in containers; `faster` as in `rule_file`."""
    return {"groups": [{"name": WORKLOAD_GROUP, "rules": [_rule(one, faster) for one in workload_alerts.ALERTS]}]}


def limits_file() -> dict[str, Any]:
    """Return the expressions whose limit the chart's values may replace, with `LIMIT` in its place, by alert."""
    return {one.name: {"expr": with_limit(one, LIMIT), "limit": float(one.limit)} for one in ALL if one.limit}


def with_limit(alert: alerts.Alert, limit: str) -> str:
    """Return the expression of an alert with another limit.

    Raises:
        ValueError: The expression does not have the alert's limit once.
    """
    text, count = re.subn(rf"([<>]) {re.escape(alert.limit)}(?![\d.])", rf"\g<1> {limit}", alert.expression)
    if count != 1:
        raise ValueError(f"{alert.name}: its limit {alert.limit} occurs {count} times in its expression")
    return text


def prometheus_rule() -> dict[str, Any]:
    """Return the same rules for the Prometheus operator."""
    return {
        "apiVersion": "monitoring.coreos.com/v1",
        "kind": "PrometheusRule",
        "metadata": {"name": "hami-gpu-sharing", "namespace": "hami-system", "labels": targets.OPERATOR_LABELS},
        "spec": rule_file(),
    }


def runbook_path(alert: alerts.Alert) -> str:
    """Return the path of its runbook, from the root of the project."""
    return f"docs/runbooks/{alert.name}.md"


def runbook(alert: alerts.Alert) -> str:
    """Return the page with the actions for one alert."""
    return "\n".join(
        [
            f"# {alert.name}", "<!-- Generated from observability/alerts.py; do not edit. -->", "",
            f"Severity `{alert.severity}`, after {alert.wait}:", "", "```promql", alert.expression, "```", "",
            "## What it means", "", alert.meaning, "", "## How to check", "", alert.check, "",
            "## What to do", "", alert.action, "",
        ]
    )  # fmt: skip


def overview() -> str:
    """Return the page that lists all alerts."""
    rows = [
        f"| [{one.name}](../runbooks/{one.name}.md) | {one.severity} | {one.limit} | {one.wait} | {one.meaning} |"
        for one in ALL
    ]
    return "\n".join(
        [
            "# Alerts", "<!-- Generated from observability/alerts.py; do not edit. -->", "",
            "The rules are `charts/hami/files/rules.yaml`; how to use them is in",
            "[monitor it with Prometheus and Grafana](../howto/watch-it.md). Alerts `Workload…` are",
            "in `charts/hami/files/workload-rules.yaml`; the chart creates them with `prometheusRule.workloads: true`.",
            "The chart's value `prometheusRule.thresholds` replaces limit and duration of each alert by its name.", "",
            "| alert | severity | limit | after | meaning |", "| --- | --- | --- | --- | --- |", *rows, "",
        ]
    )  # fmt: skip


def case_file(*rule_files: str) -> dict[str, Any]:
    """Return tests for promtool: for each alert one case in which it fires, and one in which it does not.

    Args:
        rule_files: The paths of all rule files.
    """
    return {
        "rule_files": list(rule_files),
        "evaluation_interval": "1m",
        "tests": [
            _case(one, series, fires) for one in ALL for series, fires in ((one.fires, True), (one.quiet, False))
        ],
    }


def _case(alert: alerts.Alert, series: Mapping[str, str], fires: bool) -> dict[str, Any]:
    expression = f'count(ALERTS{{alertname="{alert.name}", alertstate="firing"}})'
    return {
        "interval": "1m",
        "name": f"{alert.name} {'fires' if fires else 'does not fire'}",
        "input_series": [{"series": name, "values": values} for name, values in series.items()],
        "promql_expr_test": [
            {"expr": expression, "eval_time": alert.at, "exp_samples": [{"labels": "{}", "value": 1}] if fires else []}
        ],
    }


def _rule(alert: alerts.Alert, faster: float) -> dict[str, Any]:
    return {
        "alert": alert.name,
        "expr": re.sub(r"\[(\d+[smhd])\]", lambda window: f"[{_divided(window[1], faster)}]", alert.expression),
        "for": _divided(alert.wait, faster),
        "labels": {"severity": alert.severity, **alert.labels},
        "annotations": {"summary": alert.summary, "description": alert.meaning, "runbook": runbook_path(alert)},
    }


def _divided(duration: str, faster: float) -> str:
    if faster == 1:
        return duration
    return f"{max(round(int(duration[:-1]) * _SECONDS[duration[-1]] * 1000 / faster), 0)}ms"
