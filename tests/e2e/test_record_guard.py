"""Nobody forges a promise of GPUs: the chart's ValidatingAdmissionPolicy on a real kube-apiserver."""

import pathlib
import re
from typing import Any

import pytest
import yaml

from gpu_sharing.core import records
from lab import gpus
from tests.e2e import site as sites

POLICY = pathlib.Path(__file__).parents[2] / "charts" / "hami" / "files" / "record-guard.yaml"
GROUP = "/apis/admissionregistration.k8s.io/v1"
A100 = gpus.Model("NVIDIA A100-SXM4-80GB", 16_000)
FORGED = {records.ALLOCATED: "GPU-x,NVIDIA,1,0:;", records.NODE: "elsewhere"}
USERS = {"scheduler": "hami-scheduler-extender", "plugin": "hami-device-plugin"}
"""The accounts of the control plane that the tests run on."""
MERGE = "application/merge-patch+json"
DENIED = "403: SCHED_RECORD_GUARDED"


def test_the_policy_names_every_key_that_is_guarded() -> None:
    """It goes through names of its own, because a loop over what a tenant writes costs the API server too much."""
    policy = next(yaml.safe_load_all(POLICY.read_text()))
    changed = next(one["expression"] for one in policy["spec"]["variables"] if one["name"] == "changed")

    assert set(re.findall(r"'(hami\.io/[^']+)'", changed)) == records.OF_PODS


@pytest.fixture
def guarded(own_site: sites.Site) -> sites.Site:
    """With the policy in force, and a pod `bound` with a record, and one that is not bound."""
    policy, binding = yaml.safe_load_all(POLICY.read_text())
    for variable in policy["spec"]["variables"]:
        if variable["name"] in USERS:
            variable["expression"] = repr(USERS[variable["name"]])
    own_site.api("POST", f"{GROUP}/validatingadmissionpolicies", policy)
    own_site.api("POST", f"{GROUP}/validatingadmissionpolicybindings", binding)
    own_site.add_nodes(gpus.gpu_node("a100", A100, 2), gpus.gpu_node("other", A100, 2))
    probe = own_site.pod_body("probe", {"cpu": "1"}, annotations=FORGED)
    sites.wait_for(lambda: DENIED in call(own_site, "POST", pods(own_site, "?dryRun=All"), probe), 60)
    limits = {"nvidia.com/gpu": "1", "nvidia.com/gpumem": "4000"}
    own_site.create(own_site.pod_body("bound", limits), own_site.pod_body("unbound", limits, schedulerName="nobody"))
    own_site.wait_bound("bound")
    return own_site


def pods(site: sites.Site, rest: str = "") -> str:
    return f"/api/v1/namespaces/{site.namespace}/pods{rest}"


def call(
    site: sites.Site, method: str, path: str, body: Any, content_type: str = "application/json", **impersonated: str
) -> str:
    """Call as administrator, or as whom the administrator takes the part of. Returns an empty string, or why not."""
    assert site.plane is not None
    refused = sites.refusal(site.plane, method, path, body, content_type, **impersonated)
    status, _, message = refused.partition(": ")
    return f"{status}: {message[message.find('SCHED_') :]}" if refused else ""


def annotations(values: dict[str, str | None]) -> dict[str, Any]:
    return {"metadata": {"annotations": values}}


def test_no_user_writes_changes_or_removes_a_record(guarded: sites.Site) -> None:
    """Neither at creation nor later, by any of the ways that lead to a pod's metadata."""
    site = guarded
    binding = {"target": {"kind": "Node", "name": "a100"}, "metadata": {"name": "unbound", "annotations": FORGED}}
    label = {"metadata": {"labels": {records.NODE: "other"}}}
    attempts = {
        "create": call(site, "POST", pods(site), site.pod_body("new", {"cpu": "1"}, annotations=FORGED)),
        "annotate": call(site, "PATCH", pods(site, "/bound"), annotations({records.ALLOCATED: "x;"}), MERGE),
        "remove": call(site, "PATCH", pods(site, "/bound"), annotations({records.ALLOCATED: None}), MERGE),
        "phase": call(site, "PATCH", pods(site, "/bound"), annotations({records.BIND_PHASE: "success"}), MERGE),
        "decision": call(site, "PATCH", pods(site, "/bound"), annotations({records.DECISION: "0"}), MERGE),
        "label": call(site, "PATCH", pods(site, "/bound"), label, MERGE),
        "status": call(site, "PATCH", pods(site, "/bound/status"), annotations({records.ALLOCATED: "x;"}), MERGE),
        "binding": call(site, "POST", pods(site, "/unbound/binding"), binding),
        "old binding": call(site, "POST", f"/api/v1/namespaces/{site.namespace}/bindings", binding),
    }

    assert {name: answer[: len(DENIED)] for name, answer in attempts.items()} == dict.fromkeys(attempts, DENIED)
    assert "label hami.io/vgpu-node is written by" in attempts["label"]
    assert f"{records.BIND_PHASE} is written by" in attempts["phase"]


def test_the_plugin_says_the_phase_of_its_own_nodes_pods_and_nothing_else(guarded: sites.Site) -> None:
    site, user = guarded, USERS["plugin"]
    node = site.pod("bound")["spec"]["nodeName"]
    elsewhere = "other" if node == "a100" else "a100"
    success = annotations({records.BIND_PHASE: records.PHASE_SUCCESS})
    record = annotations({records.ALLOCATED: "x;"})

    assert DENIED in call(site, "PATCH", pods(site, "/bound"), success, MERGE, user=user, node=elsewhere)
    assert DENIED in call(site, "PATCH", pods(site, "/bound"), record, MERGE, user=user, node=node)
    assert call(site, "PATCH", pods(site, "/bound"), success, MERGE, user=user, node=node) == ""
    assert site.pod("bound")["metadata"]["annotations"][records.BIND_PHASE] == records.PHASE_SUCCESS


def test_everything_legitimate_goes_on(guarded: sites.Site) -> None:
    """The extender bound a pod already; users and kubelets do what they always do with pods that have records."""
    site = guarded
    before = site.pod("bound")["metadata"]["annotations"]
    running = {"status": {"phase": "Running", "conditions": [{"type": "Ready", "status": "True"}]}}
    binding = {"target": {"kind": "Node", "name": "a100"}, "metadata": {"name": "unbound"}}
    own = annotations({"team": "a", "hami.io/gpu-scheduler-policy": "spread"})

    assert call(site, "PATCH", pods(site, "/bound"), own, MERGE) == ""
    assert call(site, "PATCH", pods(site, "/bound/status"), running, MERGE) == ""
    assert call(site, "POST", pods(site, "/unbound/binding"), binding) == ""
    assert site.pod("bound")["metadata"]["annotations"] == before | own["metadata"]["annotations"]
    site.delete_pod("bound")
