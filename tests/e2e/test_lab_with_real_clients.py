"""The lab's API server is good enough for the programs that people use on it: a real kube-scheduler and kubectl."""

import contextlib
import json
import pathlib
import subprocess
from collections.abc import Callable, Iterator

import pytest

from lab import api_server, extender_process, gpus, kinds
from lab.real import client, components, kube_scheduler
from tests.e2e import site as sites
from tests.support import accounting

A100 = gpus.Model("NVIDIA A100-SXM4-80GB", 16_000)
MANIFEST = {
    "apiVersion": "v1",
    "kind": "Pod",
    "metadata": {"name": "train", "labels": {"app": "train"}},
    "spec": {
        "schedulerName": sites.SCHEDULER,
        "containers": [
            {
                "name": "main",
                "image": "train:1",
                "resources": {"limits": {"nvidia.com/gpu": "1", "nvidia.com/gpumem": "4000"}},
            }
        ],
    },
}

Kubectl = Callable[..., str]


@pytest.fixture
def server() -> Iterator[api_server.Running]:
    with api_server.running() as running:
        nodes = [gpus.gpu_node(name, A100, 2) for name in ("node-01", "node-02")]
        running.call(lambda: [running.app.store.create(kinds.NODES, "", node) for node in nodes])
        yield running


@pytest.fixture
def api(server: api_server.Running) -> Iterator[client.Api]:
    with contextlib.closing(client.Api(server.url, server.token)) as api:
        yield api


@pytest.fixture
def kubectl(server: api_server.Running, programs: pathlib.Path, tmp_path: pathlib.Path) -> Kubectl:
    kubeconfig = server.write_kubeconfig(tmp_path / "kubectl.kubeconfig")
    command = [str(programs / "kubectl"), "--kubeconfig", str(kubeconfig), "--cache-dir", str(tmp_path / "cache")]

    def run(*arguments: str, stdin: str = "") -> str:
        done = subprocess.run([*command, *arguments], input=stdin, capture_output=True, text=True, timeout=60)
        assert done.returncode == 0, done.stderr
        return done.stdout

    return run


def test_a_real_kube_scheduler_places_pods_in_the_lab(
    server: api_server.Running, api: client.Api, programs: pathlib.Path, tmp_path: pathlib.Path
) -> None:
    """It lists and watches some twenty kinds of objects, patches statuses, writes events, and asks our extender."""
    kubeconfig = server.write_kubeconfig(tmp_path / "kubeconfig")
    parts = components.Components(tmp_path, programs)
    names = [f"p{index}" for index in range(8)]
    with contextlib.ExitStack() as stack:
        extender = stack.enter_context(extender_process.running(kubeconfig, tmp_path / "extender.log"))
        url = f"http://{extender.verbs}"
        scheduler = stack.enter_context(kube_scheduler.running(parts, kubeconfig, url, "application/json"))
        for name in names:
            limits = {"nvidia.com/gpu": "1", "nvidia.com/gpumem": "4000"}
            containers = [{"name": "c", "image": "i", "resources": {"limits": limits}}]
            spec = {"schedulerName": sites.SCHEDULER, "containers": containers}
            api("POST", "/api/v1/namespaces/default/pods", {"metadata": {"name": name}, "spec": spec})
        sites.wait_for(
            lambda: all(pod["spec"].get("nodeName") for pod in api.pages("/api/v1/pods")), 30, scheduler_log(tmp_path)
        )
        assert scheduler.attempts() == {"scheduled": 8}
        pods = api.pages("/api/v1/pods")
        assert accounting.violations(api.pages("/api/v1/nodes"), pods) == []
        assert all(accounting.devices(pod) for pod in pods)

        body = {**MANIFEST, "metadata": {"name": "large"}, "spec": json.loads(json.dumps(MANIFEST["spec"]))}
        body["spec"]["containers"][0]["resources"]["limits"]["nvidia.com/gpumem"] = "17000"
        api("POST", "/api/v1/namespaces/default/pods", body)

        def stopped() -> bool:
            conditions = api("GET", "/api/v1/namespaces/default/pods/large")["status"].get("conditions", ())
            return any(one["type"] == "PodScheduled" and one["status"] == "False" for one in conditions)

        sites.wait_for(stopped, 20, scheduler_log(tmp_path))


def scheduler_log(folder: pathlib.Path) -> Callable[[], str]:
    return lambda: (folder / "kube-scheduler.log").read_text()[-4000:]


def test_kubectl_gets_describes_applies_labels_watches_and_deletes(
    server: api_server.Running, kubectl: Kubectl
) -> None:
    """What the demo invites people to do."""
    assert "train created" in kubectl("apply", "-f", "-", stdin=json.dumps(MANIFEST))
    changed = {**MANIFEST, "metadata": {"name": "train", "labels": {"app": "serve"}}}
    assert "train configured" in kubectl("apply", "-f", "-", stdin=json.dumps(changed))
    assert "train unchanged" in kubectl("apply", "-f", "-", stdin=json.dumps(changed))

    assert kubectl("get", "nodes", "-o", "name").split() == ["node/node-01", "node/node-02"]
    table = kubectl("get", "pods", "-l", "app=serve").splitlines()
    assert table[0].split()[:3] == ["NAME", "READY", "STATUS"]
    assert table[1].split()[:3] == ["train", "0/1", "Pending"]

    assert "labeled" in kubectl("label", "pod", "train", "team=blue")
    assert "annotated" in kubectl("annotate", "node", "node-01", "note=here")
    uid = kubectl("get", "pod", "train", "-o", "jsonpath={.metadata.uid}")
    event = {
        "apiVersion": "v1", "kind": "Event", "metadata": {"name": "train.1", "namespace": "default"},
        "involvedObject": {"kind": "Pod", "name": "train", "namespace": "default", "uid": uid},
        "reason": "FailedScheduling",
        "message": "0/2 nodes available: 2 GPU memory insufficient", "type": "Warning",
    }  # fmt: skip
    kubectl("create", "-f", "-", stdin=json.dumps(event))
    described = kubectl("describe", "pod", "train")
    assert "team=blue" in described
    assert "0/2 nodes available: 2 GPU memory insufficient" in described

    assert kubectl("wait", "pod/train", "--for=jsonpath={.metadata.labels.team}=blue", "--timeout=10s")
    assert "deleted" in kubectl("delete", "pod", "train", "--wait=true", "--timeout=20s")
    assert kubectl("get", "pods", "-o", "name") == ""


def test_kubectl_watches_until_it_is_stopped(
    server: api_server.Running, programs: pathlib.Path, api: client.Api, tmp_path: pathlib.Path
) -> None:
    """A line for each change, as it happens."""
    kubeconfig = server.write_kubeconfig(tmp_path / "kubeconfig")
    command = [str(programs / "kubectl"), "--kubeconfig", str(kubeconfig), "get", "pods", "--watch", "-o", "name"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as watching:
        assert watching.stdout is not None
        try:
            path = "/api/v1/namespaces/default/pods"
            api("POST", path, MANIFEST)
            assert watching.stdout.readline() == "pod/train\n"
            api("PATCH", f"{path}/train", {"metadata": {"labels": {"a": "1"}}}, "application/merge-patch+json")
            assert watching.stdout.readline() == "pod/train\n"
        finally:
            watching.kill()
