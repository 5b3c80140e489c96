"""Wrong values fail at install, in a sentence that says what to do."""

from collections.abc import Callable
from typing import Any

import pytest

from device_plugin import mps_daemon
from device_plugin import settings as plugin_settings
from device_plugin.monitor import settings as monitor_settings
from gpu_sharing.adapters import health_endpoint
from scheduler_extender import settings as extender_settings
from tests.chart import rendering
from webui import settings as webui_settings

BAD = {
    "scheduler.certManager.enabled=true,scheduler.existingSecret=x": "contradict each other",
    "scheduler.existingSecret=x": "needs scheduler.caBundle",
    "scheduler.certManager.enabled=true": "this cluster has no cert-manager",
    "scheduler.allowHamiNodes=true": "needs scheduler.recordGuard=false",
    "scheduler.usageWeight=1": "scheduler.usageWeight needs scheduler.prometheusUrl",
    "webui.auth=proxy": "webui.auth: proxy needs webui.trustedProxies",
    "webui.service.type=NodePort": "use kubectl port-forward",
    "webui.auth=magic": "one of 'none', 'kubernetes', 'proxy'",
    "scheduler.replicas=10": "/scheduler/replicas",
    "scheduler.verbosity=9": "/scheduler/verbosity",
    "devicePlugin.isolation=strong": "/devicePlugin/isolation",
    "devicePlugin.driver=cdi": "/devicePlugin/driver",
    "devicePlugin.isolation=mps": "isolation mps needs devicePlugin.driver=runtimeClass",
    "devicePlugin.deviceSplitCount=0": "/devicePlugin/deviceSplitCount",
    "devicePlugin.deviceSplitCont=3": "deviceSplitCont",
    "image.tag=latest": "/image/tag",
    "image.digest=abc": "/image/digest",
    "resourceName=gpu": "/resourceName",
    "monitor.service.port=http": "/monitor/service/port",
    "scheduler.defaultSchedulerPolicy.gpuSchedulerPolicy=best": "gpuSchedulerPolicy",
}
GOOD = (
    "scheduler.existingSecret=x,scheduler.caBundle=AAAA",
    "scheduler.usageWeight=1,scheduler.prometheusUrl=http://p:9090",
    "webui.auth=proxy,webui.trustedProxies={10.0.0.0/8},webui.service.type=NodePort",
    "webui.auth=kubernetes,webui.hosts={gpus.example}",
    "scheduler.defaultSchedulerPolicy.gpuSchedulerPolicy=numa\\,binpack",
    "devicePlugin.disablecorelimit=true",
    "devicePlugin.nvidianodeSelector.pool=gpus",
)


@pytest.mark.parametrize("values", BAD)
def test_bad_values_are_refused_in_a_sentence(values: str) -> None:
    """By the schema or by a check."""
    with pytest.raises(rendering.Refused) as refused:
        rendering.text(4, "--set", values)
    assert BAD[values] in str(refused.value).replace("'/", "/")


@pytest.mark.parametrize("values", GOOD)
def test_good_values_render(values: str) -> None:
    """By both helms."""
    for major in rendering.HELMS:
        assert rendering.objects(major, "--set", values)


def test_the_flags_are_those_of_the_processes() -> None:
    """Each process parses what the chart starts it with."""
    found = rendering.objects(
        4,
        "--set",
        "webui.auth=kubernetes,scheduler.prometheusUrl=http://p,scheduler.usageWeight=1,"
        "devicePlugin.isolation=mps,devicePlugin.driver=none",
    )
    workloads = [one for one in found if one["kind"] in ("Deployment", "DaemonSet")]
    pods = [one["spec"]["template"]["spec"] for one in workloads]
    containers = [one for pod in pods for one in (*pod.get("initContainers", ()), *pod["containers"])]
    ours = [one["args"] for one in containers if one["name"] not in ("kube-scheduler", "copy")]
    assert len(ours) == 6
    parsers = {
        "scheduler_extender": extender_settings.parse, "device_plugin": plugin_settings.parse,
        "device_plugin.monitor": monitor_settings.parse, "webui": webui_settings.parse,
        "device_plugin.mps_daemon": mps_daemon.parse,
    }  # fmt: skip
    for module, *arguments in ours:
        assert parsers[module](arguments, {"NODE_NAME": "n"})


@pytest.mark.parametrize("paths", [False, True])
def test_every_probe_of_the_chart_is_answered_by_its_process(paths: bool) -> None:
    """A liveness probe at a path that the process does not answer restarts it for ever."""
    values = [
        f"{part}.probes.{kind}.{field}"
        for part in ("scheduler", "devicePlugin", "monitor", "webui")
        for kind in ("startup", "liveness", "readiness")
        for field in (f"path=/own/{kind}", "periodSeconds=7", "initialDelaySeconds=1", "failureThreshold=9")
    ]
    found = rendering.objects(4, *(["--set", ",".join(values)] if paths else []))
    parsers: dict[str, Callable[..., Any]] = {
        "extender": extender_settings.parse, "nvidia": plugin_settings.parse, "monitor": monitor_settings.parse,
        "webui": webui_settings.parse,
    }  # fmt: skip
    seen = set()
    for workload in found:
        if workload["kind"] not in ("Deployment", "DaemonSet"):
            continue
        for container in workload["spec"]["template"]["spec"]["containers"]:
            if container["name"] not in parsers:
                continue
            settings = parsers[container["name"]](container["args"][1:], {"NODE_NAME": "n"})
            endpoint = health_endpoint.HealthEndpoint(settings.health, dict, lambda accept: (b"", ""), dict)
            for kind in ("startup", "liveness", "readiness"):
                probe = container[f"{kind}Probe"]
                assert endpoint.answer(probe["httpGet"]["path"])[0] == 200
                if paths:
                    assert probe["httpGet"]["path"] == f"/own/{kind}"
                    assert (probe["periodSeconds"], probe["initialDelaySeconds"], probe["failureThreshold"]) == (
                        7,
                        1,
                        9,
                    )
            seen.add(container["name"])
    assert seen == set(parsers)


def test_the_probes_of_kube_scheduler_are_values_too() -> None:
    """On a slow API server it needs more time."""
    found = rendering.objects(4, "--set", "scheduler.kubeScheduler.probes.liveness.failureThreshold=12")
    container = rendering.container(rendering.one(found, "Deployment", "hami-scheduler"), "kube-scheduler")
    assert container["livenessProbe"]["failureThreshold"] == 12
    assert container["readinessProbe"]["httpGet"]["scheme"] == "HTTPS"


@pytest.mark.parametrize(("policy", "is_kept"), [("binpack", False), ("fragmentation-aware", True)])
def test_what_a_policy_learns_is_kept_where_it_is_used(policy: str, is_kept: bool) -> None:
    """The extender may read and write that one ConfigMap, and may create one; with other policies it may not."""
    text = rendering.text(4, "--set", f"scheduler.defaultSchedulerPolicy.nodeSchedulerPolicy={policy}")
    assert ("--request-mix=hami-system/hami-request-mix" in text) is is_kept
    assert ("resourceNames: [hami-request-mix]" in text) is is_kept
