"""An installation on the lab's API server: the chart's Deployments and DaemonSets, and what plays their controllers.

There is no controller-manager and no kubelet: a thread writes the status of workloads and of image checks as they
would, by the rules that a test sets. `tests/e2e/test_ops.py` has a real API server.
"""

import contextlib
import io
import pathlib
import sys
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import pytest
import structlog

from hamictl import __main__ as command
from lab import api_server, gpus, kinds
from tests.component.conftest import SMALL

NAMESPACE = "hami-system"
APPS = f"/apis/apps/v1/namespaces/{NAMESPACE}"
PODS = f"/api/v1/namespaces/{NAMESPACE}/pods"
IMAGE, NODE_IMAGE = "ghcr.io/hami-py/hami", "ghcr.io/hami-py/hami-node"
BROKEN = "broken"
"""A rollout with this tag makes no progress."""
UNPULLABLE = "unpullable"
"""An image with this tag cannot be pulled."""
STUCK = [{"type": "Progressing", "status": "False", "reason": "ProgressDeadlineExceeded"}]


def labels(component: str) -> dict[str, str]:
    return {
        "app.kubernetes.io/name": "hami", "app.kubernetes.io/component": component,
        "app.kubernetes.io/instance": "hami", "helm.sh/chart": "hami-0.1.0",
    }  # fmt: skip


def workload(name: str, component: str, containers: list[dict[str, Any]], **spec: Any) -> dict[str, Any]:
    selector = {"app.kubernetes.io/name": "hami", "app.kubernetes.io/component": component}
    template = {
        "metadata": {"labels": selector},
        "spec": {"containers": containers, **spec.pop("pod", {})},
    }
    return {
        "metadata": {"name": name, "labels": labels(component)},
        "spec": {"selector": {"matchLabels": selector}, "template": template, **spec},
    }


def container(name: str, image: str, *args: str, **more: Any) -> dict[str, Any]:
    return {"name": name, "image": image, **({"args": list(args)} if args else {}), **more}


DEPLOYMENTS = (
    workload(
        "hami-scheduler", "scheduler",
        [
            container("extender", f"{IMAGE}:0.1.0", "scheduler_extender", "--leader-lease=hami-system/hami-scheduler"),
            container("kube-scheduler", "registry.k8s.io/kube-scheduler:v1.36.0", command=["kube-scheduler"]),
        ],
        replicas=1, pod={"volumes": [{"name": "config", "configMap": {"name": "hami-scheduler"}}]},
    ),
    workload("hami-webui", "webui", [container("webui", f"{IMAGE}:0.1.0", "webui")], replicas=1),
)  # fmt: skip
DAEMON_SETS = (
    workload(
        "hami-device-plugin", "device-plugin",
        [
            container("nvidia", f"{NODE_IMAGE}:0.1.0", "device_plugin"),
            container("monitor", f"{NODE_IMAGE}:0.1.0", "device_plugin.monitor"),
        ],
        pod={"nodeSelector": {"gpu": "on"}}, updateStrategy={"type": "RollingUpdate"},
    ),
    workload(
        "hami-core", "hami-core", [container("copy", "docker.io/projecthami/hami:v2.10.0", "x", command=["/bin/sh"])],
        pod={"nodeSelector": {"gpu": "on"}}, updateStrategy={"type": "RollingUpdate"},
    ),
    workload(
        "hami-mps", "mps", [container("mps", f"{NODE_IMAGE}:0.1.0", "device_plugin.mps_daemon")],
        pod={"nodeSelector": {"gpu": "on"}}, updateStrategy={"type": "OnDelete"},
    ),
)  # fmt: skip


class Controllers:
    """The controllers and the kubelet, as far as `hamictl ops` sees them.

    Attributes:
        idle: Whether nothing progresses any more, as without a controller-manager.
        pods_seen: The bodies of image checks.
    """

    def __init__(self, server: api_server.Running) -> None:
        self.idle = False
        self.pods_seen: list[dict[str, Any]] = []
        self._server = server
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)

    @contextlib.contextmanager
    def running(self) -> Iterator["Controllers"]:
        self._thread.start()
        try:
            yield self
        finally:
            self._ended.set()
            self._thread.join(timeout=60)

    def _run(self) -> None:
        while not self._ended.wait(0.02):
            if not self.idle:
                self._server.call(self._act)

    def _act(self) -> None:
        """On the loop of the server: one turn for every object."""
        store = self._server.app.store
        for plural in ("deployments", "daemonsets"):
            resource = kinds.BY_PATH["apps", "v1", plural]
            for key, value in list(store.all(resource, NAMESPACE)):
                status = status_of(value, plural)
                if value.get("status") != status:
                    store.replace(resource, key, value, {**value, "status": status})
        for key, pod in list(store.all(kinds.PODS, NAMESPACE)):
            if key[1].startswith("hami-image-check-") and not pod["status"].get("containerStatuses"):
                self.pods_seen.append(pod)
                store.replace(kinds.PODS, key, pod, {**pod, "status": check_status(pod)})


def status_of(value: dict[str, Any], plural: str) -> dict[str, Any]:
    images = str(value["spec"]["template"]["spec"]["containers"])
    done = 0 if f":{BROKEN}" in images else 1
    generation = value["metadata"]["generation"]
    if plural == "daemonsets":
        numbers = {"desiredNumberScheduled": 2, "updatedNumberScheduled": 2 * done, "numberAvailable": 2}
        return {"observedGeneration": generation, **numbers}
    replicas = value["spec"].get("replicas", 1)
    numbers = {"replicas": replicas, "updatedReplicas": replicas * done, "readyReplicas": replicas}
    numbers["availableReplicas"] = replicas
    return {"observedGeneration": generation, **numbers, "conditions": [] if done else STUCK}


def check_status(pod: dict[str, Any]) -> dict[str, Any]:
    (one,) = pod["spec"]["containers"]
    if one["image"].endswith(f":{UNPULLABLE}"):
        state: dict[str, Any] = {"waiting": {"reason": "ImagePullBackOff", "message": "not found"}}
        return {"phase": "Pending", "containerStatuses": [{"name": "check", "state": state}]}
    state = {"terminated": {"exitCode": 0, "reason": "Completed"}}
    status = {"name": "check", "state": state, "imageID": f"{one['image']}@sha256:{'0' * 64}"}
    return {"phase": "Succeeded", "containerStatuses": [status]}


def install_chart(server: api_server.Running) -> None:
    """Create the objects of the chart."""
    for deployment in DEPLOYMENTS:
        server.request("POST", f"{APPS}/deployments", deployment)
    for daemon_set in DAEMON_SETS:
        server.request("POST", f"{APPS}/daemonsets", daemon_set)
    config = {"metadata": {"name": "hami-scheduler", "labels": labels("scheduler")}, "data": {"config.yaml": "a: 1"}}
    server.request("POST", f"/api/v1/namespaces/{NAMESPACE}/configmaps", config)


def write_statuses(server: api_server.Running) -> None:
    """Write the status of every workload once, as its controller does."""
    for plural in ("deployments", "daemonsets"):
        for found in server.request("GET", f"{APPS}/{plural}")["items"]:
            body = {**found, "status": status_of(found, plural)}
            server.request("PUT", f"{APPS}/{plural}/{found['metadata']['name']}/status", body)


def install(server: api_server.Running) -> None:
    """Create the objects of the chart, and a node that carries GPUs and a label."""
    install_chart(server)
    node = gpus.gpu_node("gpu-1", SMALL, 2)
    node["metadata"]["labels"] = {**node["metadata"].get("labels", {}), "gpu": "on"}
    server.request("POST", "/api/v1/nodes", node)


def images(server: api_server.Running) -> dict[str, str]:
    """The image of every container, by `workload/container`."""
    found = {}
    for plural in ("deployments", "daemonsets"):
        for one in server.request("GET", f"{APPS}/{plural}")["items"]:
            for each in one["spec"]["template"]["spec"]["containers"]:
                found[f"{one['metadata']['name']}/{each['name']}"] = each["image"]
    return found


@dataclass(frozen=True)
class Done:
    """The end of a command."""

    status: int
    out: str
    err: str


@dataclass
class World:
    """An installation, and the command line that operates it."""

    server: api_server.Running
    controllers: "Controllers"
    folder: pathlib.Path
    run: Callable[..., Done]

    def get(self, path: str) -> Any:
        return self.server.request("GET", path)

    def version(self, name: str = "hami-scheduler", plural: str = "deployments") -> str:
        """The generation: a write of the specification changes it, a status does not."""
        return str(self.get(f"{APPS}/{plural}/{name}")["metadata"]["generation"])

    def annotate(self, **annotations: str | None) -> None:
        body = {
            "metadata": {"annotations": {f"hami.io/{key.replace('_', '-')}": text for key, text in annotations.items()}}
        }
        self.server.request("PATCH", "/api/v1/nodes/gpu-1", body, "application/merge-patch+json")

    def annotations(self) -> dict[str, str]:
        found: dict[str, str] = self.get("/api/v1/nodes/gpu-1")["metadata"]["annotations"]
        return found


class Terminal(io.StringIO):
    """Standard input with a person at it."""

    def isatty(self) -> bool:
        return True


@contextlib.contextmanager
def running(
    folder: pathlib.Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Iterator[World]:
    """An installation, and commands that run in this process."""
    logs = structlog.get_config()
    with api_server.running() as server:
        install(server)
        kubeconfig = server.write_kubeconfig(folder / "kubeconfig")

        def run(*words: str, answer: str | None = None, cluster: bool = True) -> Done:
            where = ["--kubeconfig", str(kubeconfig)] if cluster else []
            monkeypatch.setattr(sys, "argv", ["hamictl", "ops", *words, *where])
            monkeypatch.setattr(sys, "stdin", Terminal(answer) if answer is not None else io.StringIO())
            capsys.readouterr()
            try:
                status = command.main()
            except SystemExit as ended:
                status = int(ended.code or 0)
            shown = capsys.readouterr()
            return Done(status, shown.out, shown.err)

        with Controllers(server).running() as controllers:
            yield World(server, controllers, folder, run)
    structlog.configure(**logs)
