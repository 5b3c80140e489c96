"""Every file that is generated from the tables, by its path from the root of the project; `make docs` writes them."""

import json
from collections.abc import Iterator
from typing import Any

import yaml

from observability import dashboards, operator, rules, targets, workload_dashboard

RULES = "charts/hami/files/rules.yaml"
WORKLOAD_RULES = "charts/hami/files/workload-rules.yaml"
LIMITS = "charts/hami/files/rule-limits.yaml"
DASHBOARDS = "charts/hami/files/dashboards"
BOARDS = (*dashboards.DASHBOARDS, workload_dashboard.WORKLOADS)
EXAMPLES = "examples/observability"
_HEAD = "# Generated from observability/alerts.py by `make docs`; do not edit.\n"


def made() -> dict[str, str]:
    """Return every generated file: path to content."""
    return dict(_made())


def _made() -> Iterator[tuple[str, str]]:
    yield RULES, _HEAD + _yaml(rules.rule_file())
    yield WORKLOAD_RULES, _HEAD.replace("alerts.py", "workload_alerts.py") + _yaml(rules.workload_rule_file())
    yield LIMITS, _HEAD + _yaml(rules.limits_file())
    yield f"{EXAMPLES}/prometheus-rule.yaml", _HEAD + _yaml(rules.prometheus_rule())
    yield f"{EXAMPLES}/prometheus.yml", targets.scrape_config_file()
    yield f"{EXAMPLES}/prometheus-operator.yaml", operator.example()
    yield "docs/reference/alerts.md", rules.overview()
    for alert in rules.ALL:
        yield rules.runbook_path(alert), rules.runbook(alert)
    for dashboard in BOARDS:
        text = json.dumps(dashboards.render(dashboard), indent=1, ensure_ascii=False) + "\n"
        yield f"{DASHBOARDS}/{dashboard.name}.json", text


def _yaml(value: dict[str, Any]) -> str:
    text: str = yaml.safe_dump(value, sort_keys=False, width=1000, allow_unicode=True)
    return text
