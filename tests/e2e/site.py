"""A cluster to test on: a real control plane of our own, or one that is there already."""

import contextlib
import dataclasses
import os
import pathlib
import ssl
import subprocess
import time
import urllib.error
import urllib.request
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import orjson
import yaml

from lab import extender_process
from lab.real import client, control_plane, kube_scheduler
from tests.e2e import secrecy

SCHEDULER = "hami-scheduler"


@dataclasses.dataclass
class Site:
    """Where pods are placed.

    Attributes:
        api: The API server, with all rights.
        namespace: Where this test's pods live.
        run: The value of the label that keeps this test's pods on this test's nodes.
        kubectl: The program and its kubeconfig.
        plane: The control plane, where it is ours.
        extender: The extender, where it is ours.
        scheduler: The kube-scheduler, where it is ours.
    """

    api: client.Api
    namespace: str
    run: str
    kubectl_command: Sequence[str]
    plane: control_plane.ControlPlane | None = None
    extender: extender_process.ExtenderProcess | None = None
    scheduler: kube_scheduler.KubeScheduler | None = None

    def node_name(self, name: str) -> str:
        return name if self.plane else f"{self.run}-{name}"

    def add_nodes(self, *nodes: dict[str, Any]) -> None:
        for node in nodes:
            node["metadata"]["labels"]["gpu-sharing-test"] = self.run
        control_plane.add_nodes(self.api, nodes)

    def pod_body(
        self, name: str, *limits: Mapping[str, Any], annotations: Mapping[str, str] | None = None, **spec: Any
    ) -> dict[str, Any]:
        """A pod with one app container per set of limits."""
        containers = [
            {"name": f"c{index}", "image": "train:1", "resources": {"limits": dict(one)}}
            for index, one in enumerate(limits)
        ]
        return {
            "metadata": {"name": name, "annotations": dict(annotations or {})},
            "spec": {
                "schedulerName": SCHEDULER,
                "nodeSelector": {"gpu-sharing-test": self.run},
                "tolerations": [{"operator": "Exists"}],
                "containers": containers,
                **spec,
            },
        }

    def add_priority_class(self, name: str, **more: Any) -> None:
        """A priority class of 1000, known to the admission of pods: that lags behind what is written."""
        with contextlib.suppress(client.Refused):  # It may be there already.
            body = {"metadata": {"name": name}, "value": 1000, **more}
            self.api("POST", "/apis/scheduling.k8s.io/v1/priorityclasses", body)

        def is_known() -> bool:
            body = self.pod_body("asks", {"nvidia.com/gpu": "1"}, priorityClassName=name)
            try:
                self.api("POST", f"/api/v1/namespaces/{self.namespace}/pods?dryRun=All", body)
            except client.Refused:
                return False
            return True

        wait_for(is_known, 60)

    def create(self, *bodies: dict[str, Any]) -> None:
        self.api.many(("POST", f"/api/v1/namespaces/{self.namespace}/pods", body) for body in bodies)

    def pod(self, name: str) -> Any:
        return self.api("GET", f"/api/v1/namespaces/{self.namespace}/pods/{name}")

    def pods(self) -> list[Any]:
        return self.api.pages(f"/api/v1/namespaces/{self.namespace}/pods")

    def nodes(self) -> list[Any]:
        return self.api.pages(f"/api/v1/nodes?labelSelector=gpu-sharing-test%3D{self.run}")

    def delete_pod(self, name: str) -> None:
        body = {"gracePeriodSeconds": 0}
        self.api("DELETE", f"/api/v1/namespaces/{self.namespace}/pods/{name}", body)

    def events(self, name: str, reason: str) -> list[str]:
        """Notes of the events that our extender wrote about a pod; some of Kubernetes' own name no object."""
        found = self.api.pages(f"/apis/events.k8s.io/v1/namespaces/{self.namespace}/events")
        return [
            event["note"]
            for event in found
            if event["regarding"].get("name") == name
            and event["reason"] == reason
            and event["reportingController"] == SCHEDULER
            and event.get("action") in ("GPUScheduling", "GPUBinding")
        ]

    def wait_bound(self, *names: str, seconds: float = 60) -> dict[str, Any]:
        """The pods once all are bound."""
        bound: dict[str, Any] = {}

        def all_bound() -> bool:
            for name in names:
                if name not in bound and (pod := self.pod(name))["spec"].get("nodeName"):
                    bound[name] = pod
            return len(bound) == len(names)

        wait_for(all_bound, seconds, lambda: f"unbound: {[self.pod(n) for n in names if n not in bound]}")
        return bound

    def kubectl(self, *arguments: str) -> str:
        done = subprocess.run(
            [*self.kubectl_command, "--namespace", self.namespace, *arguments],
            capture_output=True,
            text=True,
            timeout=60,
            check=True,
        )
        return done.stdout


def wait_for(condition: Callable[[], object], seconds: float, otherwise: Callable[[], str] = lambda: "") -> float:
    """Wait until a condition holds. Returns the seconds that took."""
    started = time.monotonic()
    while time.monotonic() - started < seconds:
        if condition():
            return time.monotonic() - started
        time.sleep(0.05)
    raise AssertionError(f"not within {seconds} s: {otherwise()}")


def cpu_seconds(pid: int) -> float:
    """Return the CPU time that a process has used so far, of all its threads."""
    fields = pathlib.Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def refusal(
    plane: control_plane.ControlPlane,
    method: str,
    path: str,
    body: Any,
    content_type: str,
    user: str = "",
    node: str = "",
) -> str:
    """Call as administrator, or as a user whose token names a node. Returns an empty string, or the status and why."""
    headers = {"Authorization": f"Bearer {plane.token('admin')}", "Content-Type": content_type}
    if user:
        headers["Impersonate-User"] = user
        headers["Impersonate-Extra-authentication.kubernetes.io%2fnode-name"] = node
    request = urllib.request.Request(f"{plane.server}{path}", orjson.dumps(body), headers, method=method)
    try:
        with urllib.request.urlopen(request, context=ssl._create_unverified_context(), timeout=20):
            return ""
    except urllib.error.HTTPError as refused:
        return f"{refused.code}: {orjson.loads(refused.read())['message']}"


@contextlib.contextmanager
def own(
    folder: pathlib.Path, *extender_flags: str, without: Sequence[str] = (), pod_groups: bool = False
) -> Iterator[Site]:
    """A fresh control plane with our extender and kube-scheduler."""
    with control_plane.running(folder, pod_groups=pod_groups) as plane, secrecy.kept(plane, folder):
        kubeconfig = plane.kubeconfig("extender")
        log = folder / "extender.log"
        with extender_process.running(kubeconfig, log, *extender_flags) as extender:
            kubectl = [str(plane.parts.binaries / "kubectl"), "--kubeconfig", str(plane.kubeconfig("admin"))]
            with plane.scheduler(f"http://{extender.verbs}", without) as scheduler:
                yield Site(plane.api, "default", "own", kubectl, plane, extender, scheduler)


@contextlib.contextmanager
def existing(kubeconfig: str) -> Iterator[Site]:
    """A cluster that is there, whose kube-scheduler asks an extender of ours for `schedulerName: hami-scheduler`.

    Fake nodes of this run's own are added to it, pods go to a namespace of this run's own, and all is taken away
    afterwards.
    """
    config = yaml.safe_load(pathlib.Path(kubeconfig).read_text())
    context = next(one["context"] for one in config["contexts"] if one["name"] == config["current-context"])
    server = next(one["cluster"]["server"] for one in config["clusters"] if one["name"] == context["cluster"])
    user = next(one["user"] for one in config["users"] if one["name"] == context["user"])
    if "token" not in user:
        raise AssertionError("E2E_KUBECONFIG must name a user with a token")
    run = f"e2e-{uuid.uuid4().hex[:8]}"
    api = client.Api(server, user["token"], ssl._create_unverified_context())
    api("POST", "/api/v1/namespaces", {"metadata": {"name": run}})
    site = Site(api, run, run, [os.environ.get("KUBECTL", "kubectl"), "--kubeconfig", kubeconfig])
    try:
        yield site
    finally:
        for pod in site.pods():
            site.delete_pod(pod["metadata"]["name"])
        for node in site.nodes():
            api("DELETE", f"/api/v1/nodes/{node['metadata']['name']}")
        api("DELETE", f"/api/v1/namespaces/{run}")
        api.close()
