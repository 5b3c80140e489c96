"""What the chart's admission policies cost the API server does not grow with what a tenant writes into a pod."""

import pathlib
from typing import Any

import pytest

from gpu_sharing.core import records
from lab import gpus
from lab.real import control_plane
from tests.e2e import site as sites
from tests.e2e import test_chart

MERGE = "application/merge-patch+json"
MANY = {f"{number:05x}": "" for number in range(30_000)}
"""Annotations of five letters."""
PODS = "/api/v1/namespaces/default/pods"
POD = f"{PODS}/large"
PLUGIN, SCHEDULER = (
    f"system:serviceaccount:{test_chart.NAMESPACE}:{name}" for name in ("hami-device-plugin", "hami-scheduler")
)
MOST_CPU_SECONDS = 6.0
"""Of the API server for one call. It takes 1 s, on a busy machine 2 s; a loop over the annotations took it 20 s."""


@pytest.fixture(scope="module")
def plane(programs: pathlib.Path, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """With the policies of the chart in force, and a bound pod with very many annotations and labels."""
    with control_plane.running(tmp_path_factory.mktemp("plane")) as plane:
        control_plane.add_nodes(plane.api, [gpus.gpu_node("one", gpus.A100, 1)])
        done = test_chart.Installation(plane, 4).install("--set", "scheduler.admissionWebhook.enabled=false")
        assert done.returncode == 0, done.stderr
        forged = {"metadata": {"name": "x", "annotations": {records.NODE: "one"}}, "spec": spec()}
        sites.wait_for(
            lambda: "SCHED_RECORD_GUARDED" in call(plane, "POST", "/api/v1/namespaces/default/pods", forged)[0], 30
        )
        plane.api(
            "POST",
            PODS,
            {
                "metadata": {"name": "large", "annotations": MANY, "labels": dict(list(MANY.items())[:15_000])},
                "spec": {**spec(), "nodeName": "one"},
            },
        )
        yield plane


def spec() -> dict[str, Any]:
    return {"containers": [{"name": "c", "image": "x"}]}


def call(plane: control_plane.ControlPlane, method: str, path: str, body: Any, user: str = "") -> tuple[str, float]:
    """Return why a call was refused, if it was, and the CPU seconds that it cost the API server."""
    pid = plane.parts.pid("kube-apiserver")
    kind = MERGE if method == "PATCH" else "application/json"
    before = sites.cpu_seconds(pid)
    refused = sites.refusal(plane, method, path, body, kind, user, "one" if user else "")
    return refused, sites.cpu_seconds(pid) - before


def test_what_everybody_may_do_stays_cheap_and_forgery_refused(plane: control_plane.ControlPlane) -> None:
    """The kubelet's status patch cost the API server half a minute, and failed for ever."""
    running = {"status": {"phase": "Running", "conditions": [{"type": "Ready", "status": "True"}]}}
    refused, status = call(plane, "PATCH", f"{POD}/status", running)
    assert refused == ""
    refused, annotated = call(plane, "PATCH", POD, {"metadata": {"annotations": {"x.io/y": "z"}}})
    assert refused == ""
    refused, forged = call(
        plane, "PATCH", POD, {"metadata": {"annotations": {records.ALLOCATED: "GPU-x,NVIDIA,1,0:;"}}}
    )
    assert refused.startswith("403")
    assert "SCHED_RECORD_GUARDED" in refused
    assert max(status, annotated, forged) < MOST_CPU_SECONDS, (status, annotated, forged)


@pytest.mark.parametrize(
    ("user", "key", "refusal"),
    [(PLUGIN, records.BIND_PHASE, "PLUGIN_OTHER_NODE"), (SCHEDULER, records.HOLD, "SCHED_OTHER_WRITE")],
)
def test_what_our_accounts_write_stays_cheap(
    plane: control_plane.ControlPlane, user: str, key: str, refusal: str
) -> None:
    """A pod whose metadata is too large to be compared key by key goes without what we write; nothing else does."""
    refused, ours = call(plane, "PATCH", POD, {"metadata": {"annotations": {key: "x"}}}, user)
    assert refusal in refused
    refused, strange = call(plane, "PATCH", POD, {"metadata": {"labels": {"app": "payments"}}}, user)
    assert refusal in refused
    assert max(ours, strange) < MOST_CPU_SECONDS, (ours, strange)
