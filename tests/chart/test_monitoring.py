"""Alerts and dashboards as the chart's values change them."""

import json
import pathlib
import subprocess
from typing import Any

import pytest
import yaml

from observability import dashboards, files, rules
from tests import tools
from tests.chart import rendering


def rendered(*values: str, major: int = 4) -> dict[str, Any]:
    """The rule file in the chart's PrometheusRule."""
    found = rendering.objects(major, *values, apis=rendering.OPERATOR)
    spec: dict[str, Any] = rendering.one(found, "PrometheusRule", "hami")["spec"]
    return spec


def by_name(spec: dict[str, Any]) -> dict[str, Any]:
    return {rule["alert"]: rule for group in spec["groups"] for rule in group["rules"]}


@pytest.mark.parametrize("major", rendering.HELMS)
def test_without_values_the_alerts_are_those_of_the_rule_file(major: int) -> None:
    """What promtool tests is what is installed."""
    assert rendered(major=major) == rules.rule_file()


@pytest.mark.parametrize("major", rendering.HELMS)
def test_limits_and_durations_of_alerts_are_values(major: int, tmp_path: pathlib.Path) -> None:
    """Sites differ in what is hot, full or long; before, a changed limit needed a copy of all rules."""
    wanted = {
        "GPUMemoryUsageElevated": {"limit": 0.85},
        "GPUTemperatureCritical": {"limit": 90, "for": "30s"},
        "GPUNoAvailableMemory": {"limit": 2147483648},
        "GPUFragmentationHigh": {"limit": 0.6},
        "WatchStalled": {"for": "1m"},
    }
    (tmp_path / "values.yaml").write_text(yaml.safe_dump({"prometheusRule": {"thresholds": wanted}}))
    spec = rendered("--values", str(tmp_path / "values.yaml"), major=major)
    found, before = by_name(spec), by_name(rules.rule_file())

    assert found["GPUMemoryUsageElevated"]["expr"].endswith("> 0.85")
    assert found["GPUTemperatureCritical"]["expr"].endswith("> 90")
    assert found["GPUTemperatureCritical"]["for"] == "30s"
    assert found["GPUNoAvailableMemory"]["expr"].endswith("< 2147483648")
    assert "hami_scheduler_fragmentation_ratio > 0.6 and" in found["GPUFragmentationHigh"]["expr"]
    assert found["WatchStalled"] == before["WatchStalled"] | {"for": "1m"}
    assert {name for name in found if found[name] != before[name]} == set(wanted)
    (tmp_path / "rules.yaml").write_text(yaml.safe_dump(spec))
    command = [tools.find("promtool"), "check", "rules", str(tmp_path / "rules.yaml")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize(
    ("value", "sentence"),
    [
        ("GPUMemoryUsageHihg.limit=0.9", "there is no such alert; docs/reference/alerts.md lists them"),
        ("GPUUnhealthy.limit=0.9", "this alert has no limit, only a duration"),
        ("GPUMemoryUsageHigh.limit=0.9 or vector(1)", "/prometheusRule/thresholds/GPUMemoryUsageHigh/limit"),
        ("GPUUnhealthy.for=soon", "/prometheusRule/thresholds/GPUUnhealthy/for"),
        ("GPUUnhealthy.wait=5m", "wait"),
    ],
)
def test_a_threshold_that_would_change_nothing_is_refused(value: str, sentence: str) -> None:
    """A limit with a mistyped name must not leave the site without the alert it believes in."""
    with pytest.raises(rendering.Refused) as refused:
        rendered("--set", f"prometheusRule.thresholds.{value}")
    assert sentence in str(refused.value).replace("'/", "/")


@pytest.mark.parametrize("major", rendering.HELMS)
def test_alerts_about_workloads_are_an_option(major: int) -> None:
    """They are about what tenants run: the teams that operate the cluster choose whether they want them."""
    spec = rendered(
        "--set", "prometheusRule.workloads=true,prometheusRule.thresholds.WorkloadLossHigh.limit=3", major=major
    )
    assert [group["name"] for group in spec["groups"]] == [rules.GROUP, rules.WORKLOAD_GROUP]
    before = by_name(rules.workload_rule_file())
    found = {name: rule for name, rule in by_name(spec).items() if name in before}
    assert found["WorkloadLossHigh"]["expr"] == "training_loss > 3"
    assert {name for name in before if found[name] != before[name]} == {"WorkloadLossHigh"}
    with pytest.raises(rendering.Refused) as refused:
        rendered("--set", "prometheusRule.thresholds.WorkloadLossHigh.limit=3", major=major)
    assert "prometheusRule.workloads: true" in str(refused.value)


def test_the_runbooks_have_the_address_of_the_site() -> None:
    """Who is woken at night opens the page by one click; a path in a repository is no link."""
    found = by_name(rendered("--set", "prometheusRule.runbookUrl=https://gpus.example/docs/"))
    for name, rule in found.items():
        assert rule["annotations"]["runbook_url"] == f"https://gpus.example/docs/runbooks/{name}.html"
        assert "runbook" not in rule["annotations"]


def test_dashboards_link_to_the_sites_own_addresses() -> None:
    """Without values they are the files that people import by hand."""

    def boards(*values: str) -> dict[str, Any]:
        found = rendering.objects(4, "--set", "dashboards.enabled=true", *values)
        maps = [one for one in found if one["metadata"]["name"].startswith("hami-dashboard-")]
        return {name: json.loads(text) for one in maps for name, text in one["data"].items()}

    plain = boards()
    assert plain == {f"{one.name}.json": dashboards.render(one) for one in dashboards.DASHBOARDS}
    with_workloads = boards("--set", "dashboards.workloads=true")
    assert with_workloads == {f"{one.name}.json": dashboards.render(one) for one in files.BOARDS}
    changed = boards(
        "--set", "dashboards.webuiUrl=https://gpus.example/,prometheusRule.runbookUrl=https://docs.example"
    )
    for name, board in changed.items():
        variables = {one["name"]: one for one in board["templating"]["list"]}
        assert variables["webui"]["query"] == variables["webui"]["current"]["value"] == "https://gpus.example"
        assert variables["runbooks"]["query"] == "https://docs.example"
        assert board["panels"] == plain[name]["panels"]
