"""`hamictl ops` on a real kube-apiserver, with exactly the chart's rights.

There is no controller-manager: a thread of the test writes the status of each rollout, as its controller would. The
dry runs, the patches by containers' names, the rights and the preconditions are the real server's.
"""

import contextlib
import json
import pathlib
import subprocess
import sys
import threading
from collections.abc import Iterator
from typing import Any

import pytest
import yaml

from gpu_sharing.core import records
from lab import gpus
from lab.real import client, helm
from tests.component import ops_world
from tests.component.ops_world import APPS, IMAGE, NAMESPACE
from tests.e2e import site as sites

CHART = pathlib.Path(__file__).parents[2] / "charts" / "hami"
MERGE = "application/merge-patch+json"
A100 = gpus.Model("NVIDIA A100-SXM4-80GB", 16_000)
ROLE = "webui"
"""A token whose account has no right of these operations beside those of the chart's role."""
USER = "hami-webui"
PLURALS = {
    "ClusterRole": "clusterroles", "ClusterRoleBinding": "clusterrolebindings",
    "Role": f"namespaces/{NAMESPACE}/roles", "RoleBinding": f"namespaces/{NAMESPACE}/rolebindings",
}  # fmt: skip


@pytest.fixture
def operated(own_site: sites.Site) -> Iterator[sites.Site]:
    """An installation whose rollouts progress, and an operator with the chart's role."""
    api = own_site.api
    with contextlib.suppress(client.Refused):
        api("POST", "/api/v1/namespaces", {"metadata": {"name": NAMESPACE}})
    for body in rendered():
        api("POST", f"/apis/rbac.authorization.k8s.io/v1/{PLURALS[body['kind']]}", body)
    for deployment in ops_world.DEPLOYMENTS:
        api("POST", f"{APPS}/deployments", deployment)
    for daemon_set in ops_world.DAEMON_SETS:
        api("POST", f"{APPS}/daemonsets", daemon_set)
    labels = ops_world.labels("scheduler")
    config = {"metadata": {"name": "hami-scheduler", "labels": labels}, "data": {"config.yaml": "a: 1"}}
    api("POST", f"/api/v1/namespaces/{NAMESPACE}/configmaps", config)
    ended = threading.Event()
    thread = threading.Thread(target=write_statuses, args=(api, ended))
    thread.start()
    yield own_site
    ended.set()
    thread.join(timeout=60)


def rendered() -> list[dict[str, Any]]:
    subject = "operator.subjects[0]"
    values = (
        f"operator.enabled=true,{subject}.kind=User,{subject}.name={USER},{subject}.apiGroup=rbac.authorization.k8s.io"
    )
    command = [
        str(helm.program(4)), "template", "hami", str(CHART), "--namespace", NAMESPACE, "--kube-version", "v1.36.3",
        "--set", values, "--show-only", "templates/operator.yaml",
    ]  # fmt: skip
    text = subprocess.run(command, capture_output=True, text=True, check=True, timeout=60).stdout
    return [one for one in yaml.safe_load_all(text) if one]


def write_statuses(api: client.Api, ended: threading.Event) -> None:
    """What the controllers of Deployments and DaemonSets write; an image with the tag `broken` never progresses."""
    while not ended.wait(0.1):
        for plural in ("deployments", "daemonsets"):
            for found in api("GET", f"{APPS}/{plural}")["items"]:
                status = ops_world.status_of(found, plural)
                if any(found.get("status", {}).get(key) != value for key, value in status.items()):
                    if plural == "daemonsets":
                        status |= {"numberMisscheduled": 0, "currentNumberScheduled": 2, "numberReady": 2}
                    path = f"{APPS}/{plural}/{found['metadata']['name']}/status"
                    api("PATCH", path, {"status": status}, MERGE)


def ops(site: sites.Site, *words: str) -> subprocess.CompletedProcess[str]:
    assert site.plane is not None
    command = [sys.executable, "-m", "hamictl", "ops", *words, "--kubeconfig", str(site.plane.kubeconfig(ROLE))]
    return subprocess.run(command, capture_output=True, text=True, timeout=120, input="")


def images(site: sites.Site) -> dict[str, str]:
    found = {}
    for plural in ("deployments", "daemonsets"):
        for one in site.api("GET", f"{APPS}/{plural}")["items"]:
            for each in one["spec"]["template"]["spec"]["containers"]:
                found[f"{one['metadata']['name']}/{each['name']}"] = each["image"]
    return found


def test_the_charts_role_scales_restarts_updates_and_rolls_back(operated: sites.Site) -> None:
    """A right that is missing would show in the night in which it is needed."""
    dry = ops(operated, "scale", "2", "--dry-run")
    assert dry.returncode == 0, dry.stderr
    assert operated.api("GET", f"{APPS}/deployments/hami-scheduler")["spec"]["replicas"] == 1

    scaled = ops(operated, "scale", "2", "--yes")
    assert scaled.returncode == 0, scaled.stderr
    assert "2 of 2 pods available" in scaled.stdout
    assert operated.api("GET", f"{APPS}/deployments/hami-scheduler")["spec"]["replicas"] == 2

    restarted = ops(operated, "restart", "--yes")
    assert restarted.returncode == 0, restarted.stderr
    assert restarted.stdout.count("is restarted") == 4

    before = images(operated)
    updated = ops(operated, "update", f"{IMAGE}:0.2.0", "--yes", "--skip-image-check")
    assert updated.returncode == 0, updated.stderr
    changed = dict.fromkeys(("hami-scheduler/extender", "hami-webui/webui"), f"{IMAGE}:0.2.0")
    assert images(operated) == before | changed

    failed = ops(operated, "update", f"{IMAGE}:{ops_world.BROKEN}", "--yes", "--skip-image-check")
    assert failed.returncode == 1
    assert "OPS_ROLLED_BACK: deployment/hami-scheduler" in failed.stderr
    assert images(operated) == before | changed


def test_health_by_the_charts_role_lacks_no_right(operated: sites.Site) -> None:
    """Doctor reports each right that is missing."""
    operated.add_nodes(gpus.gpu_node("one", A100, 1))
    assert operated.extender is not None
    reach = ("--extender", f"http://{operated.extender.api}", "--health", f"http://{operated.extender.health}")

    def parts() -> dict[str, dict[str, str]]:
        done = ops(operated, "health", *reach, "-o", "json")
        assert done.returncode in (0, 1), done.stderr
        return {one["part"]: one for one in json.loads(done.stdout)["parts"]}

    sites.wait_for(lambda: parts()["deployment/hami-scheduler"]["state"] == "ok", 60)
    found = parts()
    assert "DOCTOR_RIGHTS" not in found["doctor"]["detail"], found
    assert found["nodes"]["detail"] == "1 registered, 1 ready"
    assert found["pods"]["detail"] == "there is none"


def test_the_image_check_is_a_pod_that_the_api_server_admits(operated: sites.Site) -> None:
    """No kubelet runs here, so that it ends by its time; nothing was changed, and the pod is gone."""
    before = images(operated)

    done = ops(operated, "update", f"{IMAGE}:0.2.0", "--yes", "--timeout", "2")

    assert done.returncode == 1
    assert "OPS_IMAGE_UNUSABLE" in done.stderr
    assert "not known within 2 s" in done.stderr
    assert images(operated) == before
    assert operated.api("GET", f"/api/v1/namespaces/{NAMESPACE}/pods")["items"] == []


def test_backup_restore_cleanup_and_disk_need_no_more_than_the_charts_role(
    operated: sites.Site, tmp_path: pathlib.Path
) -> None:
    """And what the role does not permit is a sentence with the right."""
    operated.add_nodes(gpus.gpu_node("one", A100, 1))
    gpu = gpus.gpu_uuid("one", 0)
    operated.api("PATCH", "/api/v1/nodes/one", {"metadata": {"annotations": {records.CORDON: gpu}}}, MERGE)
    quota = {"metadata": {"name": "gpus"}, "spec": {"hard": {"limits.nvidia.com/gpu": "4"}}}
    operated.api("POST", "/api/v1/namespaces/default/resourcequotas", quota)
    file = tmp_path / "hami.json"

    saved = ops(operated, "backup", str(file))
    assert saved.returncode == 0, saved.stderr
    secrets = ops(operated, "backup", str(tmp_path / "more.json"), "--with-secrets")
    assert (secrets.returncode, "you need to" in secrets.stderr) == (2, True)

    operated.api("PATCH", "/api/v1/nodes/one", {"metadata": {"annotations": {records.CORDON: None}}}, MERGE)
    operated.api("DELETE", "/api/v1/namespaces/default/resourcequotas/gpus")
    dry = ops(operated, "restore", str(file), "--dry-run")
    assert dry.returncode == 0, dry.stderr
    assert "the API server accepts 2 of 2 writes" in dry.stdout
    restored = ops(operated, "restore", str(file), "--yes")
    assert restored.returncode == 0, restored.stderr
    assert operated.api("GET", "/api/v1/nodes/one")["metadata"]["annotations"][records.CORDON] == gpu
    found = operated.api("GET", "/api/v1/namespaces/default/resourcequotas/gpus")
    assert found["spec"]["hard"] == {"limits.nvidia.com/gpu": "4"}

    operated.create(operated.pod_body("old", {"nvidia.com/gpu": "1"}))
    path = "/api/v1/namespaces/default/pods/old/status"
    operated.api("PATCH", path, {"status": {"phase": "Failed", "reason": "Evicted"}}, MERGE)
    cleaned = ops(operated, "cleanup", "--older-than", "1s", "--yes")
    sites.wait_for(lambda: "1 pods deleted" in ops_until(operated, cleaned), 60, lambda: str(cleaned))

    disk = ops(operated, "disk", "-o", "json")
    assert disk.returncode == 0, disk.stderr
    assert json.loads(disk.stdout)["disks"][0]["note"] == "not readable: it needs get on nodes/proxy"


def ops_until(site: sites.Site, first: subprocess.CompletedProcess[str]) -> str:
    """What cleanup printed: at once, or when the pod is a second old."""
    return first.stdout if "deleted" in first.stdout else ops(site, "cleanup", "--older-than", "1s", "--yes").stdout
