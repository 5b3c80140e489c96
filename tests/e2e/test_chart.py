"""The chart on a real API server: installed, changed and removed by real helms; its processes with just its rights."""

import base64
import contextlib
import datetime
import functools
import json
import pathlib
import re
import subprocess
import time
from collections.abc import Iterator
from typing import Any

import orjson
import pytest

from gpu_sharing.core import records
from lab import extender_process, gpus, webui_process
from lab.real import build, client, control_plane
from scheduler_extender.act import certificate_keeper, waking
from tests.chart import rendering
from tests.e2e import site as sites

NAMESPACE = "hami-system"


BINDS = re.compile(r"--(http|api|secure-api|webhook|health)?-?bind=")


class Installation:
    """helm with a cluster."""

    def __init__(self, plane: control_plane.ControlPlane, major: int) -> None:
        self.plane = plane
        self._helm = rendering.program(major)

    def helm(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        command = [self._helm, *arguments, "--kubeconfig", str(self.plane.kubeconfig("admin"))]
        return subprocess.run(command, capture_output=True, text=True, timeout=120)

    def install(self, *values: str, namespace: str = NAMESPACE, name: str = "hami") -> subprocess.CompletedProcess[str]:
        return self.helm(
            "upgrade", "--install", name, str(rendering.CHART), "--namespace", namespace, "--create-namespace", *values
        )

    def get(self, path: str) -> Any:
        return self.plane.api("GET", path)

    def exists(self, path: str) -> bool:
        try:
            self.get(path)
        except client.Refused:
            return False
        return True


def paths(rendered: list[dict[str, Any]]) -> list[str]:
    """Where the API server keeps them."""
    found = []
    for one in rendered:
        group = one["apiVersion"] if "/" in one["apiVersion"] else ""
        base = f"/apis/{one['apiVersion']}" if group else f"/api/{one['apiVersion']}"
        kind = one["kind"].lower()
        plural = kind[:-1] + "ies" if kind.endswith("y") else kind if kind.endswith("s") else f"{kind}s"
        where = f"/namespaces/{one['metadata']['namespace']}" if one["metadata"].get("namespace") else ""
        found.append(f"{base}{where}/{plural}/{one['metadata']['name']}")
    return found


@pytest.mark.parametrize("major", rendering.HELMS)
def test_it_is_installed_changed_and_removed(major: int, programs: pathlib.Path, tmp_path: pathlib.Path) -> None:
    """The API server takes every object; what the extender wrote survives an upgrade; nothing stays behind."""
    with control_plane.running(tmp_path) as plane:
        site = Installation(plane, major)
        done = site.install()
        assert done.returncode == 0, done.stderr
        assert "Label the nodes with GPUs" in done.stdout
        assert "this cluster has no Prometheus operator" in done.stdout
        rendered = rendering.objects(major)
        missing = [path for path in paths(rendered) if not site.exists(path)]
        assert missing == []

        # As the extender does, beside what helm owns.
        hooks = "/apis/admissionregistration.k8s.io/v1/mutatingwebhookconfigurations/hami-webhook"
        bundle = base64.b64encode(b"x").decode()
        found = site.get(hooks)
        found["webhooks"][0]["clientConfig"]["caBundle"] = _authority()
        plane.api("PATCH", hooks, {"webhooks": found["webhooks"]}, "application/merge-patch+json")
        secret = f"/api/v1/namespaces/{NAMESPACE}/secrets/hami-scheduler-tls"
        plane.api("PATCH", secret, {"data": {"tls.crt": bundle}}, "application/merge-patch+json")
        # With a control plane that outlives the end of one machine, the scheduler does too.
        labels = {"node-role.kubernetes.io/control-plane": ""}
        control_plane.add_nodes(
            plane.api,
            [{"metadata": {"name": name, "labels": labels}, "status": {}} for name in ("master-1", "master-2")],
        )
        changed = site.install("--set", "webui.auth=kubernetes")
        assert changed.returncode == 0, changed.stderr
        assert site.get(hooks)["webhooks"][0]["clientConfig"]["caBundle"] == _authority()
        assert site.get(secret)["data"] == {"tls.crt": bundle}
        deployment = site.get(f"/apis/apps/v1/namespaces/{NAMESPACE}/deployments/hami-scheduler")
        assert deployment["spec"]["replicas"] == 2
        assert site.exists(f"/apis/policy/v1/namespaces/{NAMESPACE}/poddisruptionbudgets/hami-scheduler")

        second = site.install(namespace="other", name="again")
        assert second.returncode != 0
        assert "another installation's webhook exists" in second.stderr

        removed = site.helm("uninstall", "hami", "--namespace", NAMESPACE)
        assert removed.returncode == 0, removed.stderr
        left = [path for path in paths(rendered) if site.exists(path)]
        assert left == []


def test_it_is_not_installed_beside_an_active_scheduler(programs: pathlib.Path, tmp_path: pathlib.Path) -> None:
    """Two of them would promise the same GPUs; a Lease that nobody renews is what an old one left."""
    with control_plane.running(tmp_path) as plane:
        site = Installation(plane, 4)
        leases = "/apis/coordination.k8s.io/v1/namespaces/kube-system/leases"
        plane.api("POST", "/api/v1/namespaces", {"metadata": {"name": "old"}})
        spec = {"holderIdentity": "hami-scheduler-abc", "leaseDurationSeconds": 15, "renewTime": _now()}
        plane.api("POST", leases, {"metadata": {"name": "hami-scheduler"}, "spec": spec})
        refused = site.install()
        assert refused.returncode != 0
        assert "another GPU scheduler is active: the Lease hami-scheduler in namespace kube-system" in refused.stderr
        assert "--replicas 0" in refused.stderr
        assert not site.exists("/apis/rbac.authorization.k8s.io/v1/clusterroles/hami-scheduler-extender")
        plane.api(
            "PATCH",
            f"{leases}/hami-scheduler",
            {"spec": {"renewTime": "2020-01-01T00:00:00.000000Z"}},
            "application/merge-patch+json",
        )
        space = {"metadata": {"name": "strict", "labels": {"pod-security.kubernetes.io/enforce": "restricted"}}}
        plane.api("POST", "/api/v1/namespaces", space)
        strict = site.install(namespace="strict")
        assert strict.returncode != 0
        assert "namespace strict enforces pod security restricted" in strict.stderr
        assert site.install().returncode == 0


def test_its_processes_run_with_its_flags_and_its_rights(programs: pathlib.Path, tmp_path: pathlib.Path) -> None:
    """By its service accounts: the extender makes its certificate known, the WebUI reads with it and a token."""
    with control_plane.running(tmp_path) as plane:
        site = Installation(plane, 4)
        values = ("--set", "webui.auth=kubernetes")
        done = site.install(*values)
        assert done.returncode == 0, done.stderr
        control_plane.add_nodes(plane.api, [gpus.gpu_node("one", gpus.A100, 1)])
        with extender_of(plane, tmp_path, *values) as extender:
            hooks = "/apis/admissionregistration.k8s.io/v1/mutatingwebhookconfigurations/hami-webhook"

            def known() -> bool:
                return bool(site.get(hooks)["webhooks"][0]["clientConfig"].get("caBundle"))

            sites.wait_for(known, 60, extender.log_file.read_text)
            secret = site.get(f"/api/v1/namespaces/{NAMESPACE}/secrets/hami-scheduler-tls")["data"]
            (tmp_path / "ca.crt").write_bytes(base64.b64decode(secret["ca.crt"]))
            webui_account = account(plane, "hami-webui", tmp_path)
            token = json.loads(webui_account.read_text())["users"][0]["user"]["token"]
            (tmp_path / "token").write_text(token)
            webui = rendering.one(rendering.objects(4, *values), "Deployment", "hami-webui")
            arguments = rendering.container(webui, "webui")["args"]
            more = [one for one in arguments[1:] if not BINDS.match(one) and "--extender" not in one]
            process = webui_process.WebUIProcess(
                tmp_path,
                f"https://localhost:{extender.api.rpartition(':')[2]}",
                "--extender-ca",
                str(tmp_path / "ca.crt"),
                "--extender-token-file",
                str(tmp_path / "token"),
                "--kubeconfig",
                str(webui_account),
                *more,
            )
            with webui_process.running(process):
                sites.wait_for(lambda: '"data"' in process.log_file.read_text(), 30, process.log_file.read_text)
                sites.wait_for(lambda: "there are no monitors" in process.log_file.read_text(), 60)
        assert "SCHED_CERTIFICATE_NOT_KEPT" not in extender.log_file.read_text()
        assert "forbidden" not in extender.log_file.read_text() + process.log_file.read_text()


@contextlib.contextmanager
def extender_of(
    plane: control_plane.ControlPlane, folder: pathlib.Path, *values: str
) -> Iterator[extender_process.ExtenderProcess]:
    """The extender with the chart's flags, but those that say where, as its account."""
    scheduler = rendering.one(rendering.objects(4, *values), "Deployment", "hami-scheduler")
    arguments = rendering.container(scheduler, "extender")["args"][1:]
    flags = [one for one in arguments if not BINDS.match(one) and "--leader-lease" not in one and "-names" not in one]
    flags = [one.replace("/run/hami/tls", str(folder)) for one in flags]
    flags += ["--tls-names=localhost,hami-scheduler.hami-system.svc"]
    extender = extender_process.ExtenderProcess(
        account(plane, "hami-scheduler", folder), folder / "extender.log", *flags
    )
    extender.addresses["api"] = "0.0.0.0:0"
    extender.start()
    try:
        extender.wait_ready()
        yield extender
    finally:
        extender.kill()


def account(plane: control_plane.ControlPlane, name: str, folder: pathlib.Path) -> pathlib.Path:
    """A kubeconfig of a service account of the installation."""
    path = f"/api/v1/namespaces/{NAMESPACE}/serviceaccounts/{name}/token"
    token = plane.api("POST", path, {"spec": {"expirationSeconds": 3600}})["status"]["token"]
    config = json.loads(plane.kubeconfig("admin").read_text())
    config["users"][0]["user"] = {"token": token}
    found = folder / f"{name}.kubeconfig"
    found.touch(mode=0o600)
    found.write_bytes(orjson.dumps(config))
    return found


@functools.cache
def _authority() -> str:
    """Any that the API server takes for one: it reads a caBundle."""
    made = certificate_keeper.renewed({}, ("x",), time.time())
    assert made is not None
    return base64.b64encode(made["ca.crt"].encode()).decode()


def _now() -> str:
    return datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")


def test_a_plugin_writes_about_its_own_node_alone_and_the_scheduler_no_image(
    programs: pathlib.Path, tmp_path: pathlib.Path
) -> None:
    """By the node's name in its token: neither another node, nor another node's pod, nor anything but metadata."""
    with control_plane.running(tmp_path) as plane:
        done = Installation(plane, 4).install()
        assert done.returncode == 0, done.stderr
        control_plane.add_nodes(plane.api, [gpus.gpu_node(name, gpus.A100, 1) for name in ("one", "two")])
        containers = [{"name": "c", "image": "x"}]
        for node in ("one", "two"):
            body = {"metadata": {"name": f"on-{node}"}, "spec": {"nodeName": node, "containers": containers}}
            plane.api("POST", "/api/v1/namespaces/default/pods", body)

        def patched(path: str, body: Any, node: str = "one", account: str = "hami-device-plugin") -> str:
            """As the plugin of a node. Returns an empty string, or why not."""
            user = f"system:serviceaccount:{NAMESPACE}:{account}"
            return sites.refusal(plane, "PATCH", path, body, "application/merge-patch+json", user, node)

        note: Any = {"metadata": {"annotations": {"hami.io/agent": "x"}, "labels": {"accelerator": "nvidia"}}}
        pod = "/api/v1/namespaces/default/pods/on-"
        sites.wait_for(lambda: "PLUGIN_OTHER_NODE" in patched("/api/v1/nodes/two", note), 60)
        assert patched("/api/v1/nodes/one", note) == ""
        assert "PLUGIN_OTHER_NODE" in patched("/api/v1/nodes/one", {"spec": {"unschedulable": True}})
        phase = {"metadata": {"annotations": {records.BIND_PHASE: records.PHASE_SUCCESS}}}
        assert patched(f"{pod}one", phase) == ""
        assert "PLUGIN_OTHER_NODE" in patched(f"{pod}two", {"metadata": {"annotations": {"x": "y"}}})
        for strange in OF_OTHERS:
            for path in ("/api/v1/nodes/one", f"{pod}one"):
                assert "PLUGIN_OTHER_NODE" in patched(path, {"metadata": strange}), (path, strange)
        assert "PLUGIN_OTHER_NODE" in patched(f"{pod}one", {"metadata": {"labels": {"accelerator": "x"}}})
        status = "/api/v1/nodes/one/status"
        allow(plane, "hami-device-plugin", {"apiGroups": [""], "resources": ["nodes/status"], "verbs": ["patch"]})
        ours = {"capacity": {"nvidia.com/gpumem": "80Gi", "nvidia.com/gpucores": "100"}}
        sites.wait_for(lambda: patched(status, {"status": ours}) == "", 60)
        assert plane.api("GET", "/api/v1/nodes/one")["status"]["capacity"]["nvidia.com/gpucores"] == "100"
        for field in STATUS_OF_OTHERS:
            assert "PLUGIN_OTHER_NODE" in patched(status, {"status": field}), field
        assert "PLUGIN_OTHER_NODE" in patched(status, {"metadata": OF_OTHERS[0]})
        assert "PLUGIN_OTHER_NODE" in patched("/api/v1/nodes/one", note, node="")

        # And the scheduler changes no image.
        other = {"spec": {"containers": [{"name": "c", "image": "evil"}]}}
        sites.wait_for(lambda: "SCHED_OTHER_WRITE" in patched(f"{pod}one", other, account="hami-scheduler"), 60)
        hold = {"metadata": {"annotations": {records.HOLD: "x", waking.RETRY: "1"}}}
        assert patched(f"{pod}one", hold, account="hami-scheduler") == ""
        gone = {"metadata": {"annotations": {records.HOLD: None}}}
        assert patched(f"{pod}one", gone, account="hami-scheduler") == ""
        tolerations = [*plane.api("GET", f"{pod}one")["spec"]["tolerations"], {"operator": "Exists"}]
        tolerated = {"spec": {"tolerations": tolerations}}
        assert "SCHED_OTHER_WRITE" in patched(f"{pod}one", tolerated, account="hami-scheduler")
        for strange in OF_OTHERS:
            assert "SCHED_OTHER_WRITE" in patched(f"{pod}one", {"metadata": strange}, account="hami-scheduler"), strange
        by_status = patched(f"{pod}one/status", {"metadata": OF_OTHERS[0]}, account="hami-scheduler")
        assert "SCHED_OTHER_WRITE" in by_status
        told = {"status": {"message": "x"}}
        assert patched(f"{pod}one/status", told, account="hami-scheduler") == ""


OF_OTHERS: tuple[dict[str, Any], ...] = (
    {"labels": {"node-restriction.kubernetes.io/pool": "secret"}},
    {"labels": {"node-role.kubernetes.io/control-plane": ""}},
    {"labels": {"app": "payments"}},
    {"annotations": {"cluster-autoscaler.kubernetes.io/safe-to-evict": "false"}},
    {"finalizers": ["x.io/stays"]},
    {"ownerReferences": [{"apiVersion": "v1", "kind": "Pod", "name": "x", "uid": "x"}]},
)
"""Metadata by which others are told what to do."""
STATUS_OF_OTHERS: tuple[dict[str, Any], ...] = (
    {"capacity": {"cpu": "1000"}},
    {"capacity": {"nvidia.com/gpu": "99"}},
    {"phase": "Running"},
    {"conditions": [{"type": "Ready", "status": "True"}]},
    {"allocatable": {"x.io/y": "1"}},
)
"""What of a node's status is the kubelet's."""


def allow(plane: control_plane.ControlPlane, account: str, rule: dict[str, Any]) -> None:
    """Give one more rule to a service account of the installation."""
    rbac, group = "/apis/rbac.authorization.k8s.io/v1", "rbac.authorization.k8s.io"
    metadata = {"name": f"{account}-more"}
    plane.api("POST", f"{rbac}/clusterroles", {"metadata": metadata, "rules": [rule]})
    reference = {"apiGroup": group, "kind": "ClusterRole", "name": metadata["name"]}
    subject = {"kind": "ServiceAccount", "name": account, "namespace": NAMESPACE}
    body = {"metadata": metadata, "roleRef": reference, "subjects": [subject]}
    plane.api("POST", f"{rbac}/clusterrolebindings", body)


def test_a_cluster_moves_from_hami_and_back(programs: pathlib.Path, tmp_path: pathlib.Path) -> None:
    """Its pods go on and are counted, its nodes are taken over one by one; when it returns, our records are its own."""
    merge = "application/merge-patch+json"
    pods = "/api/v1/namespaces/default/pods"
    hooks = "/apis/admissionregistration.k8s.io/v1/mutatingwebhookconfigurations"
    leases = "/apis/coordination.k8s.io/v1/namespaces/kube-system/leases"
    with control_plane.running(tmp_path) as plane:
        site = Installation(plane, 4)
        uuid = gpus.gpu_uuid("one", 0)
        node = gpus.gpu_node("one", gpus.A100, 1)
        del node["metadata"]["annotations"][records.AGENT]
        control_plane.add_nodes(plane.api, [node])
        share = f"{uuid},NVIDIA,60000,50:;"
        theirs = {
            records.NODE: "one", records.TIME: "1700000000", records.ALLOCATED: share, records.TO_ALLOCATE: ";",
            records.BIND_PHASE: "success", records.BIND_TIME: "1700000000",
        }  # fmt: skip
        limits = {"nvidia.com/gpu": "1", "nvidia.com/gpumem": "60000", "nvidia.com/gpucores": "50"}

        def pod(name: str, memory: str = "60000", **more: Any) -> dict[str, Any]:
            container = {"name": "c", "image": "x", "resources": {"limits": {**limits, "nvidia.com/gpumem": memory}}}
            spec = {
                "schedulerName": "hami-scheduler",
                "containers": [container],
                "tolerations": [{"operator": "Exists"}],
            }
            return {"metadata": {"name": name, **more.pop("metadata", {})}, "spec": {**spec, **more}}

        running = pod("theirs", nodeName="one", metadata={"annotations": theirs, "labels": {records.NODE: "one"}})
        plane.api("POST", pods, running)
        hook = {
            "name": "vgpu.hami.io", "clientConfig": {"url": "https://localhost/webhook"}, "failurePolicy": "Ignore",
            "rules": [{"apiGroups": [""], "apiVersions": ["v1"], "operations": ["CREATE"], "resources": ["pods"]}],
            "sideEffects": "None", "admissionReviewVersions": ["v1"],
        }  # fmt: skip
        plane.api("POST", hooks, {"metadata": {"name": "hami-webhook-old"}, "webhooks": [hook]})
        spec = {"holderIdentity": "hami-scheduler-x", "leaseDurationSeconds": 15, "renewTime": _now()}
        plane.api("POST", leases, {"metadata": {"name": "hami-scheduler"}, "spec": spec})

        # In the documented order: its scheduler to 0, its webhook away, install, roll the plugins.
        assert "another GPU scheduler is active" in site.install().stderr
        plane.api("PATCH", f"{leases}/hami-scheduler", {"spec": {"renewTime": "2020-01-01T00:00:00.000000Z"}}, merge)
        assert "another installation's webhook exists" in site.install().stderr
        plane.api("DELETE", f"{hooks}/hami-webhook-old")
        done = site.install()
        assert done.returncode == 0, done.stderr
        with extender_of(plane, tmp_path) as extender, plane.scheduler(f"http://{extender.verbs}"):

            def bound(name: str) -> str:
                return str(plane.api("GET", f"{pods}/{name}")["spec"].get("nodeName", ""))

            def told(name: str, part: str) -> bool:
                events = plane.api("GET", "/api/v1/namespaces/default/events")["items"]
                return any(one["involvedObject"]["name"] == name and part in one["message"] for one in events)

            plane.api("POST", pods, pod("ours", "20000"))
            plane.api("POST", pods, pod("large"))
            sites.wait_for(lambda: told("ours", "0/1 nodes available"), 60, extender.log_file.read_text)
            assert bound("ours") == ""  # Nobody has rolled out our plugin there yet.
            agent = {"metadata": {"annotations": {records.AGENT: records.OUR_AGENT}}}
            plane.api("PATCH", "/api/v1/nodes/one", agent, merge)
            sites.wait_for(lambda: bound("ours") == "one", 60, extender.log_file.read_text)
            if build.MINOR > 30:  # 1.30's kube-scheduler does not try a pod again when an annotation of a node changes.
                sites.wait_for(lambda: told("large", "GPU memory insufficient"), 60)
            assert bound("large") == ""  # Theirs and ours are on that GPU: 1,920 MiB are left.

        # And back: nothing of ours stays in the way, and the records are in HAMi's words.
        assert site.helm("uninstall", "hami", "--namespace", NAMESPACE).returncode == 0
        mine = plane.api("GET", f"{pods}/ours")["metadata"]["annotations"]
        assert mine[records.ALLOCATED] == f"{uuid},NVIDIA,20000,50:;"
        assert mine[records.NODE] == "one"
        assert plane.api("GET", f"{pods}/theirs")["metadata"]["annotations"] == theirs
        forged = {"metadata": {"annotations": {records.BIND_PHASE: "success"}}}
        sites.wait_for(lambda: _allowed(plane, f"{pods}/ours", forged), 60)


def _allowed(plane: control_plane.ControlPlane, path: str, body: Any) -> bool:
    try:
        plane.api("PATCH", path, body, "application/merge-patch+json")
    except client.Refused:
        return False
    return True
