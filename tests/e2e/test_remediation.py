"""Remediation on a real kube-apiserver: with exactly the chart's rights, under the chart's policy."""

import json
import pathlib
import subprocess
import uuid
from collections.abc import Iterator
from typing import Any

import pytest
import yaml

from gpu_sharing.core import records, remediation_history
from lab import gpus
from lab.real import helm
from tests.e2e import site as sites

CHART = pathlib.Path(__file__).parents[2] / "charts" / "hami"
A100 = gpus.Model("NVIDIA A100-SXM4-80GB", 16_000)
MERGE = "application/merge-patch+json"
STRATEGIC = "application/strategic-merge-patch+json"
USER = "hami-scheduler-extender"
ACCOUNT = "system:serviceaccount:hami-system:hami-scheduler"
PLURALS = {
    "ClusterRole": "clusterroles", "ClusterRoleBinding": "clusterrolebindings",
    "ValidatingAdmissionPolicy": "validatingadmissionpolicies",
    "ValidatingAdmissionPolicyBinding": "validatingadmissionpolicybindings",
}  # fmt: skip
RULES = {
    "rules": [
        {"name": "cordon", "when": {"need": ["reboot"]}, "do": "cordon-gpu", "priority": 100},
        {
            "name": "evict", "when": {"need": ["reboot"]}, "do": "evict-pods", "priority": 90,
            "attempts": 20, "coolDownSeconds": 1,
        },
        {"name": "reboot", "when": {"need": ["reboot"]}, "do": "request-reboot", "priority": 50},
        {"name": "taint", "when": {"need": ["reboot"]}, "do": "taint-node", "priority": 40},
        {"name": "cordon-node", "when": {"need": ["reboot"]}, "do": "cordon-node", "priority": 30},
        {"name": "release", "when": {"state": ["healthy"]}, "do": "release"},
    ],
}  # fmt: skip


@pytest.fixture
def remediated(programs: pathlib.Path, tmp_path: pathlib.Path) -> Iterator[sites.Site]:
    """A control plane whose extender has the chart's rights and policy of remediation, and no other."""
    del programs
    rules = tmp_path / "rules.json"
    rules.write_text(json.dumps(RULES))
    with sites.own(tmp_path, "--remediation", "on", "--remediation-rules", str(rules)) as site:
        for body in rendered():
            site.api("POST", f"/apis/{body['apiVersion']}/{PLURALS[body['kind']]}", body)
        yield site


def rendered() -> list[dict[str, Any]]:
    """The chart's objects of remediation, for the account of the tests' extender."""
    command = [
        str(helm.program(4)), "template", "hami", str(CHART), "--namespace", "hami-system", "--kube-version", "v1.36.3",
        "--set-string", "scheduler.remediation.mode=on", "--show-only", "templates/scheduler/remediation.yaml",
    ]  # fmt: skip
    text = subprocess.run(command, capture_output=True, text=True, check=True, timeout=60).stdout
    found = [one for one in yaml.safe_load_all(text.replace(ACCOUNT, USER)) if one]
    for one in found:
        if one["kind"] == "ClusterRoleBinding":
            one["subjects"] = [{"kind": "User", "name": USER, "apiGroup": "rbac.authorization.k8s.io"}]
    return found


def test_a_dead_gpu_is_emptied_and_released_by_the_charts_rights_alone(remediated: sites.Site) -> None:
    """A missing right, or a policy that is too strict, would show in the night of the first fault."""
    site = remediated
    site.add_nodes(gpus.gpu_node("n", A100, 2))
    dead = gpus.gpu_uuid("n", 0)
    own = {"kind": "ReplicaSet", "apiVersion": "apps/v1", "name": "train", "uid": "1", "controller": True}
    for name, index in (("train", 0), ("neighbour", 1)):
        body = site.pod_body(
            name, {"nvidia.com/gpu": "1"}, annotations={"nvidia.com/use-gpuuuid": gpus.gpu_uuid("n", index)}
        )
        body["metadata"] |= {"ownerReferences": [own], "labels": {"app": name}}
        site.create(body)
    site.wait_bound("train", "neighbour")
    # The API server protects pods that are ready.
    ready = {"status": {"phase": "Running", "conditions": [{"type": "Ready", "status": "True"}]}}
    site.api("PATCH", f"/api/v1/namespaces/{site.namespace}/pods/train/status", ready, MERGE)
    budget = {"minAvailable": 1, "selector": {"matchLabels": {"app": "train"}}}
    budgets = f"/apis/policy/v1/namespaces/{site.namespace}/poddisruptionbudgets"
    site.api("POST", budgets, {"metadata": {"name": "train"}, "spec": budget})
    foreign = {"key": "team", "value": "a", "effect": "PreferNoSchedule"}
    site.api("PATCH", "/api/v1/nodes/n", {"spec": {"taints": [foreign]}}, MERGE)

    report(site, broken=True)
    sites.wait_for(lambda: node(site)["spec"].get("unschedulable"), 60, lambda: str(node(site)["metadata"]))
    found = node(site)
    assert found["metadata"]["annotations"][records.CORDON] == dead
    assert {taint["key"] for taint in found["spec"]["taints"]} >= {"team", remediation_history.TAINT}
    conditions = {one["type"]: one["status"] for one in found["status"]["conditions"]}
    assert (conditions["GPUNeedsReboot"], conditions["Ready"]) == ("True", "True")
    # The budget's controller does not run, so that no disruption is allowed until the budget is gone.
    assert "deletionTimestamp" not in site.pod("train")["metadata"]
    site.api("DELETE", f"{budgets}/train", None)
    sites.wait_for(lambda: "deletionTimestamp" in site.pod("train")["metadata"], 60)
    assert "deletionTimestamp" not in site.pod("neighbour")["metadata"]

    report(site, broken=False)
    sites.wait_for(lambda: not node(site)["spec"].get("unschedulable"), 60)
    sites.wait_for(lambda: records.CORDON not in node(site)["metadata"]["annotations"], 60)
    assert "team" in {taint["key"] for taint in node(site)["spec"]["taints"]}
    assert remediation_history.TAINT not in {taint["key"] for taint in node(site)["spec"]["taints"]}
    conditions = {one["type"]: one["status"] for one in node(site)["status"]["conditions"]}
    assert conditions["GPUNeedsReboot"] == "False"


def test_the_account_writes_nothing_else_of_a_node(remediated: sites.Site) -> None:
    """The right to patch nodes would otherwise let it label, empty or rename every node."""
    site = remediated
    site.add_nodes(gpus.gpu_node("n", A100, 2))
    assert site.plane is not None

    def patched(body: Any, path: str = "", kind: str = MERGE) -> str:
        assert site.plane is not None
        return sites.refusal(site.plane, "PATCH", f"/api/v1/nodes/n{path}", body, kind, USER)

    ready = {"status": {"conditions": [{"type": "Ready", "status": "False"}]}}
    evil: list[tuple[Any, str, str]] = [
        ({"metadata": {"labels": {"pool": "secret"}}}, "", MERGE),
        ({"metadata": {"annotations": {records.INVENTORY: "[]"}}}, "", MERGE),
        ({"metadata": {"finalizers": ["x.io/stays"]}}, "", MERGE),
        ({"spec": {"taints": [{"key": "x", "effect": "NoExecute"}]}}, "", MERGE),
        ({"spec": {"providerID": "x"}}, "", MERGE),
        (ready, "/status", STRATEGIC),
        ({"status": {"capacity": {"cpu": "1000"}}}, "/status", MERGE),
    ]

    def is_in_force() -> bool:
        """What is written before the policy is in force stays, so each try writes another value."""
        return "SCHED_OTHER_WRITE" in patched({"metadata": {"labels": {"probe": uuid.uuid4().hex}}})

    sites.wait_for(is_in_force, 60)
    for body, path, kind in evil:
        assert "SCHED_OTHER_WRITE" in patched(body, path, kind), body
    assert patched({"metadata": {"annotations": {records.CORDON: "GPU-x"}}}) == ""


def node(site: sites.Site) -> Any:
    return site.api("GET", "/api/v1/nodes/n")


def report(site: sites.Site, *, broken: bool) -> None:
    """The first GPU is dead, or all are healthy, as the node's device plugin writes it."""
    inventory = records.decode_inventory(node(site)["metadata"]["annotations"][records.INVENTORY])
    states = {gpus.gpu_uuid("n", 0): {"state": "unhealthy", "need": "reboot", "cause": "XID 79: lost", "boot": "b"}}
    listed = json.loads(records.encode_inventory(inventory))
    listed[0]["health"] = not broken
    changed = {records.INVENTORY: json.dumps(listed), records.HEALTH: json.dumps(states if broken else {})}
    site.api("PATCH", "/api/v1/nodes/n", {"metadata": {"annotations": changed}}, MERGE)
