"""The chart on a real API server: installed, changed and removed by real helms; its processes with just its rights."""

import base64
import datetime
import functools
import json
import pathlib
import re
import ssl
import subprocess
import time
import urllib.error
import urllib.request
from typing import Any

import orjson
import pytest

from lab import extender_process, gpus, webui_process
from lab.real import client, control_plane
from scheduler_extender import certificate_keeper
from tests.chart import rendering
from tests.e2e import site as sites

NAMESPACE = "hami-system"


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
        changed = site.install("--set", "scheduler.replicas=2,webui.auth=kubernetes")
        assert changed.returncode == 0, changed.stderr
        assert site.get(hooks)["webhooks"][0]["clientConfig"]["caBundle"] == _authority()
        assert site.get(secret)["data"] == {"tls.crt": bundle}
        deployment = site.get(f"/apis/apps/v1/namespaces/{NAMESPACE}/deployments/hami-scheduler")
        assert deployment["spec"]["replicas"] == 2
        assert site.exists(f"/apis/policy/v1/namespaces/{NAMESPACE}/poddisruptionbudgets/hami-scheduler")

        second = site.install(namespace="other", name="again")
        assert second.returncode != 0
        assert "another installation's webhook is there" in second.stderr

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
        plane.api("PATCH", f"{leases}/hami-scheduler", {"spec": {"renewTime": "2020-01-01T00:00:00.000000Z"}},
                  "application/merge-patch+json")  # fmt: skip
        assert site.install().returncode == 0


def test_its_processes_run_with_its_flags_and_its_rights(programs: pathlib.Path, tmp_path: pathlib.Path) -> None:
    """By its service accounts: the extender makes its certificate known, the WebUI reads with it and a token."""
    with control_plane.running(tmp_path) as plane:
        site = Installation(plane, 4)
        values = ("--set", "webui.auth=kubernetes")
        done = site.install(*values)
        assert done.returncode == 0, done.stderr
        control_plane.add_nodes(plane.api, [gpus.gpu_node("one", gpus.A100, 1)])
        rendered = rendering.objects(4, *values)
        arguments = {
            name: rendering.container(rendering.one(rendered, "Deployment", deployment), name)["args"]
            for deployment, name in (("hami-scheduler", "extender"), ("hami-webui", "webui"))
        }
        binds = re.compile(r"--(http|api|webhook|health)?-?bind=")
        flags = [one for one in arguments["extender"][1:] if not binds.match(one) and "--tls-names" not in one]
        flags = [one.replace("/run/hami/tls", str(tmp_path)) for one in flags if "--leader-lease" not in one]
        flags += ["--tls-names=localhost,hami-scheduler.hami-system.svc"]
        scheduler = account(plane, "hami-scheduler", tmp_path)
        extender = extender_process.ExtenderProcess(scheduler, tmp_path / "extender.log", *flags)
        extender.addresses["api"] = "0.0.0.0:0"
        extender.start()
        try:
            extender.wait_ready()
            hooks = "/apis/admissionregistration.k8s.io/v1/mutatingwebhookconfigurations/hami-webhook"

            def known() -> bool:
                return bool(site.get(hooks)["webhooks"][0]["clientConfig"].get("caBundle"))

            sites.wait_for(known, 30, extender.log_file.read_text)
            secret = site.get(f"/api/v1/namespaces/{NAMESPACE}/secrets/hami-scheduler-tls")["data"]
            (tmp_path / "ca.crt").write_bytes(base64.b64decode(secret["ca.crt"]))
            webui_account = account(plane, "hami-webui", tmp_path)
            token = json.loads(webui_account.read_text())["users"][0]["user"]["token"]
            (tmp_path / "token").write_text(token)
            more = [one for one in arguments["webui"][1:] if not binds.match(one) and "--extender" not in one]
            process = webui_process.WebUIProcess(
                tmp_path, f"https://localhost:{extender.api.rpartition(':')[2]}", "--extender-ca",
                str(tmp_path / "ca.crt"), "--extender-token-file", str(tmp_path / "token"), "--kubeconfig",
                str(webui_account), *more,
            )  # fmt: skip
            with webui_process.running(process):
                sites.wait_for(lambda: '"data"' in process.log_file.read_text(), 30, process.log_file.read_text)
                sites.wait_for(lambda: "there are no monitors" in process.log_file.read_text(), 30)
        finally:
            extender.kill()
        assert "SCHED_CERTIFICATE_NOT_KEPT" not in extender.log_file.read_text()
        assert "forbidden" not in extender.log_file.read_text() + process.log_file.read_text()


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


def test_a_plugin_writes_about_its_own_node_alone(programs: pathlib.Path, tmp_path: pathlib.Path) -> None:
    """By the node's name in its token: neither another node, nor another node's pod, nor anything but metadata."""
    with control_plane.running(tmp_path) as plane:
        done = Installation(plane, 4).install()
        assert done.returncode == 0, done.stderr
        control_plane.add_nodes(plane.api, [gpus.gpu_node(name, gpus.A100, 1) for name in ("one", "two")])
        containers = [{"name": "c", "image": "x"}]
        for node in ("one", "two"):
            body = {"metadata": {"name": f"on-{node}"}, "spec": {"nodeName": node, "containers": containers}}
            plane.api("POST", "/api/v1/namespaces/default/pods", body)

        def patched(path: str, body: Any, node: str = "one") -> str:
            """As the plugin of a node. Returns an empty string, or why not."""
            headers = {
                "Authorization": f"Bearer {plane.token('admin')}",
                "Content-Type": "application/merge-patch+json",
                "Impersonate-User": f"system:serviceaccount:{NAMESPACE}:hami-device-plugin",
                "Impersonate-Extra-authentication.kubernetes.io%2fnode-name": node,
            }
            request = urllib.request.Request(f"{plane.server}{path}", orjson.dumps(body), headers, method="PATCH")
            try:
                with urllib.request.urlopen(request, context=ssl._create_unverified_context(), timeout=20):
                    return ""
            except urllib.error.HTTPError as refused:
                return str(orjson.loads(refused.read())["message"])

        note: Any = {"metadata": {"annotations": {"hami.io/agent": "x"}, "labels": {"accelerator": "nvidia"}}}
        pod = "/api/v1/namespaces/default/pods/on-"
        sites.wait_for(lambda: "PLUGIN_OTHER_NODE" in patched("/api/v1/nodes/two", note), 20)
        assert patched("/api/v1/nodes/one", note) == ""
        assert "PLUGIN_OTHER_NODE" in patched("/api/v1/nodes/one", {"spec": {"unschedulable": True}})
        assert patched(f"{pod}one", {"metadata": {"annotations": {"x": "y"}}}) == ""
        assert "PLUGIN_OTHER_NODE" in patched(f"{pod}two", {"metadata": {"annotations": {"x": "y"}}})
        assert "PLUGIN_OTHER_NODE" in patched("/api/v1/nodes/one", note, node="")
