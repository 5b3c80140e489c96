"""The objects that the how-to pages show for running parts by hand: valid, and with the rights that the tests use."""

import pathlib
from collections.abc import Sequence
from typing import Any

import kubernetes_validate
import pytest
import yaml

from lab.real import control_plane, kube_scheduler
from tests.chart import rendering
from tests.support import manuals

PAGES = sorted(path.stem for path in manuals.PAGES.glob("*.md"))
ROLES = {
    "run-the-extender": control_plane.EXTENDER_RULES,
    "run-the-device-plugin": control_plane.PLUGIN_RULES,
    "run-the-webui": control_plane.WEBUI_RULES,
}


def rights(rules: Sequence[Any]) -> set[tuple[str, str, str, str]]:
    return {
        (group, resource, verb, ",".join(rule.get("resourceNames", [])))
        for rule in rules
        for group in rule["apiGroups"]
        for resource in rule["resources"]
        for verb in rule["verbs"]
    }


def own(page: str, kind: str) -> set[tuple[str, str, str, str]]:
    return rights([rule for one in manuals.objects(page) if one["kind"] == kind for rule in one["rules"]])


@pytest.mark.parametrize("page", PAGES)
def test_every_shown_object_is_valid(page: str) -> None:
    """A reader copies it into kubectl apply."""
    for one in manuals.objects(page):
        group = one["apiVersion"].partition("/")[0]
        if "kubescheduler" not in group and ("." not in group or group.endswith(".k8s.io")):
            kubernetes_validate.validate(one, "1.36", strict=True)


@pytest.mark.parametrize("page", ROLES)
def test_the_shown_role_has_exactly_the_rights_that_the_tests_run_with(page: str) -> None:
    """Fewer would not work, and more would be a gift to an attacker."""
    shown = own(page, "ClusterRole")
    if page == "run-the-webui":
        shown |= own(page, "Role")
    assert shown == rights(ROLES[page])


def test_the_shown_webhook_is_that_of_the_chart() -> None:
    """The same rules, selectors and policies."""
    shown = manuals.one("run-the-webhook", "MutatingWebhookConfiguration", "hami-webhook")
    rendered = rendering.one(rendering.objects(4), "MutatingWebhookConfiguration", "hami-webhook")

    assert shown["webhooks"] == rendered["webhooks"]


def ignored(config: Any) -> list[str]:
    """The resources that a scheduler configuration ignores."""
    (plugin,) = config["profiles"][0]["pluginConfig"]
    assert plugin["name"] == "NodeResourcesFit"
    found: list[str] = plugin["args"]["ignoredResources"]
    return found


def test_the_autoscaler_ignores_exactly_what_the_extender_decides_alone() -> None:
    """In the page and in the ConfigMap, with the names of the resources that the values give."""
    scheduler = yaml.safe_load(kube_scheduler.CONFIG.read_text())["extenders"][0]["managedResources"]
    names = [one["name"] for one in scheduler if one["ignoredByScheduler"]]
    (shown,) = (one for one in manuals.objects("autoscaling") if one["kind"] == "KubeSchedulerConfiguration")

    def rendered(*more: str) -> list[str]:
        found = rendering.objects(4, "--set", ",".join(("clusterAutoscaler.enabled=true", *more)))
        mapped = rendering.one(found, "ConfigMap", "hami-cluster-autoscaler")
        assert mapped["metadata"]["namespace"] == "kube-system"
        return ignored(yaml.safe_load(mapped["data"]["config.yaml"]))

    assert sorted(rendered()) == sorted(ignored(shown)) == sorted(names)
    other = ("resourceMem=x/m", "resourceMemPercentage=x/p", "resourceCores=x/c", "resourcePriority=x/r")
    assert sorted(rendered(*other)) == ["x/c", "x/m", "x/p", "x/r"]


@pytest.mark.parametrize("page", ["distributions"])
def test_every_values_file_of_the_page_renders(page: str, tmp_path: pathlib.Path) -> None:
    """A misspelt value would stop the reader at the installation."""
    files = manuals.values_files(page)
    assert len(files) == 7
    for number, values in enumerate(files):
        path = tmp_path / f"{number}.yaml"
        path.write_text(values)
        assert rendering.objects(4, "--values", str(path))


def test_the_shown_rights_on_lease_and_certificate_are_those_of_the_chart() -> None:
    """They are limited to the names in use."""
    found = rendering.objects(4)
    chart = rights(rendering.one(found, "Role", "hami-scheduler")["rules"])
    certificate = own("run-the-webhook", "ClusterRole")

    assert own("run-the-extender", "Role") == {one for one in chart if one[1] == "leases"}
    assert {one for one in certificate if one[1] == "secrets"} == {one for one in chart if one[1] == "secrets"}
    extender = rights(rendering.one(found, "ClusterRole", "hami-scheduler-extender")["rules"])
    assert {one for one in certificate if one[1] != "secrets"} == extender - own("run-the-extender", "ClusterRole")
