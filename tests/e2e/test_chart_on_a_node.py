"""Everything that runs was rendered by the chart: images, flags, roles and probes, on a real kubelet and containerd.

What a cluster has and this machine has not is put in by hand, and nothing else: the pods that controllers would make,
the service accounts' tokens that admission would mount, the addresses that DNS and kube-proxy would give, and NVIDIA's
library.
"""

import asyncio
import contextlib
import json
import os
import pathlib
import shutil
import subprocess
import sys
import threading
import urllib.request
from collections.abc import Iterator
from typing import Any

import pytest

from lab import fake_driver, plugin_process
from lab.real import control_plane, helm, images, nvidia_runtime
from lab.real import node as real_nodes
from tests.chart import rendering
from tests.e2e import gpu_node
from tests.e2e import site as sites

NAMESPACE = rendering.NAMESPACE
PODS = f"/api/v1/namespaces/{NAMESPACE}/pods"
ARCHIVES = pathlib.Path(__file__).parents[2] / "build" / "images"
GATEWAY = "10.213.0.1"
"""This machine, as pods of the lab's network see it."""


@contextlib.contextmanager
def forwarding(port: int) -> Iterator[int]:
    """A port on all addresses that leads to one on loopback."""

    async def pump(source: asyncio.StreamReader, target: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError):
            while data := await source.read(65_536):
                target.write(data)
                await target.drain()
        target.close()

    async def meet(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        far_reader, far_writer = await asyncio.open_connection("127.0.0.1", port)
        await asyncio.gather(pump(reader, far_writer), pump(far_reader, writer))

    async def serve() -> asyncio.Server:
        return await asyncio.start_server(meet, "0.0.0.0", 0)  # pods come from another network

    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever)
    thread.start()
    server = asyncio.run_coroutine_threadsafe(serve(), loop).result()
    try:
        yield server.sockets[0].getsockname()[1]
    finally:

        async def end() -> None:
            server.close()
            mine = [task for task in asyncio.all_tasks() if task is not asyncio.current_task()]
            for task in mine:
                task.cancel()
            await asyncio.gather(*mine, return_exceptions=True)

        asyncio.run_coroutine_threadsafe(end(), loop).result()
        loop.call_soon_threadsafe(loop.stop)
        thread.join()
        loop.close()


HAMI_IMAGE = "docker.io/projecthami/hami:v2.10.0"
CORE_POD = "hami-core-0"
_LIBRARY = """
#include <stdio.h>
#include <stdlib.h>
static __attribute__((constructor)) void mark(void) {
    const char *memory = getenv("CUDA_DEVICE_MEMORY_LIMIT_0"), *cores = getenv("CUDA_DEVICE_SM_LIMIT");
    const char *region = getenv("CUDA_DEVICE_MEMORY_SHARED_CACHE");
    FILE *file = fopen("/tmp/mark", "w");
    if (!file) return;
    fprintf(file, "memory %s cores %s region %s", memory ? memory : "-", cores ? cores : "-",
            region && fopen(region, "r+") ? "writable" : "-");
    fclose(file);
}
"""


def preloaded_library(folder: pathlib.Path) -> pathlib.Path:
    """A library in the place of HAMi-core: its constructor leaves a mark with the limits that it read."""
    source, library = folder / "mark.c", folder / "mark.so"
    source.write_text(_LIBRARY)
    subprocess.run(["cc", "-shared", "-fPIC", "-o", str(library), str(source)], check=True)
    return library


@contextlib.contextmanager
def driver_runtime(
    folder: pathlib.Path, plane: control_plane.ControlPlane
) -> Iterator[tuple[fake_driver.FakeDriver, real_nodes.Node]]:
    """A node whose runtime handler `nvidia` brings the fake driver, as NVIDIA's runtime brings the real one."""
    driver = fake_driver.make(folder, control_plane.NODE_NAME, 2)
    runc = shutil.which("runc")
    assert runc is not None
    program = nvidia_runtime.write(folder / "nvidia-container-runtime", runc, driver.environment())
    with real_nodes.running(plane, nvidia_runtime=program) as node:
        yield driver, node


class World:
    """The cluster, and the pods that controllers would have made."""

    def __init__(
        self,
        plane: control_plane.ControlPlane,
        folder: pathlib.Path,
        node: real_nodes.Node,
        driver: fake_driver.FakeDriver,
        api_port: int,
    ) -> None:
        self.plane = plane
        self.api_port = api_port
        self.folder = folder
        self.node = node
        self.driver = driver
        self.aliases = {GATEWAY: ["kubernetes.default.svc"]}

    def kubectl(self, *arguments: str) -> str:
        command = [str(self.plane.parts.binaries / "kubectl"), "--kubeconfig", str(self.plane.kubeconfig("admin"))]
        done = subprocess.run([*command, *arguments], capture_output=True, text=True, timeout=60)
        assert done.returncode == 0, f"{arguments}: {done.stderr}"
        return done.stdout

    def workload(self, kind: str, name: str) -> Any:
        """One that helm made on this cluster, having looked at it."""
        return self.plane.api("GET", f"/apis/apps/v1/namespaces/{NAMESPACE}/{kind}/{name}")

    def pod(self, name: str) -> Any:
        return self.plane.api("GET", f"{PODS}/{name}")

    def start(self, name: str, workload: dict[str, Any]) -> None:
        """The pod that the workload's controller would make."""
        template = json.loads(json.dumps(workload["spec"]["template"]))
        spec = template["spec"]
        spec |= {
            "nodeName": control_plane.NODE_NAME, "tolerations": [{"operator": "Exists"}],
            "hostAliases": [{"ip": ip, "hostnames": names} for ip, names in self.aliases.items()],
        }  # fmt: skip
        token = [
            {"serviceAccountToken": {"path": "token", "expirationSeconds": 3600}},
            {"configMap": {"name": "kube-root-ca.crt", "items": [{"key": "ca.crt", "path": "ca.crt"}]}},
        ]
        mounts = []
        if spec.get("automountServiceAccountToken", True):
            spec["volumes"].append({"name": "account", "projected": {"sources": token, "defaultMode": 0o440}})
            path = "/var/run/secrets/kubernetes.io/serviceaccount"
            mounts = [{"name": "account", "mountPath": path, "readOnly": True}]
        environment = [
            {"name": "KUBERNETES_SERVICE_HOST", "value": "kubernetes.default.svc"},
            {"name": "KUBERNETES_SERVICE_PORT", "value": str(self.api_port)},
        ]
        places = {"cdi": self.folder / "cdi", "host-cdi": self.folder / "host-cdi"}
        for volume in spec["volumes"]:
            if volume["name"] in places:
                volume["hostPath"]["path"] = str(places[volume["name"]])
        for container in spec["containers"]:
            container["imagePullPolicy"] = "Never"
            # From the Service's port to the pod's, as kube-proxy would lead.
            container["args"] = [one.replace(".svc:9446", ".svc:9447") for one in container["args"]]
            container["env"] = [*container.get("env", []), *environment]
            container["volumeMounts"] = [*container.get("volumeMounts", []), *mounts]
        body = {"metadata": {"name": name, **template["metadata"]}, "spec": spec}
        self.plane.api("POST", PODS, body)

    def wait_ready(self, name: str, seconds: float = 120.0) -> None:
        def ready() -> bool:
            statuses = self.pod(name)["status"].get("containerStatuses") or []
            return bool(statuses) and all(one["ready"] for one in statuses)

        sites.wait_for(ready, seconds, lambda: self._story(name))

    def _story(self, name: str) -> str:
        found = [json.dumps(self.pod(name)["status"].get("containerStatuses"))[:3000]]
        events = self.plane.api("GET", f"/api/v1/namespaces/{NAMESPACE}/events")["items"]
        found += [f"{one['reason']}: {one['message']}" for one in events if one["involvedObject"]["name"] == name][-8:]
        found += [path.read_text(errors="replace")[-2500:] for path in (self.folder / "logs").rglob("*.log")]
        return "\n".join(found)


@pytest.fixture(scope="module")
def world(programs: pathlib.Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    """Installed by helm and running."""
    if not all((ARCHIVES / f"{name}.tar").exists() for name in ("hami", "hami-node")):
        if os.environ.get("REQUIRE_E2E") == "1":
            raise AssertionError("the images are not built: make images")
        pytest.skip("needs the images: make images")
    folder = tmp_path_factory.mktemp("node")
    with (
        control_plane.running(folder, audited=True) as plane,
        forwarding(int(plane.server.rpartition(":")[2])) as api_port,
        driver_runtime(folder, plane) as (driver, node),
    ):
        plugin_process.host_cdi(folder / "host-cdi", driver)
        node.import_image(images.of_library(
            folder / "hami.tar", HAMI_IMAGE, "k8s-vgpu/lib/nvidia/libvgpu.so.v2.10.0", preloaded_library(folder)
        ))  # fmt: skip
        for name in ("hami", "hami-node"):
            node.import_image(ARCHIVES / f"{name}.tar", f"ghcr.io/hami-py/{name}:0.1.0")
        scheduler = images.of_program(
            folder / "scheduler.tar", "registry.k8s.io/kube-scheduler:v1.36.3", programs / "kube-scheduler"
        )
        node.import_image(scheduler)
        values = ("--set", f"devicePlugin.libPath={folder}/vgpu")
        found = World(plane, folder, node, driver, api_port)
        runtime_class = {
            "apiVersion": "node.k8s.io/v1", "kind": "RuntimeClass", "metadata": {"name": "nvidia"}, "handler": "nvidia",
        }  # fmt: skip
        plane.api("POST", "/apis/node.k8s.io/v1/runtimeclasses", runtime_class)
        command = [
            str(helm.program(4)), "install", "hami", str(rendering.CHART), "--namespace", NAMESPACE,
            "--create-namespace", "--kubeconfig", str(plane.kubeconfig("admin")), *values,
        ]  # fmt: skip
        done = subprocess.run(command, capture_output=True, text=True, timeout=120)
        assert done.returncode == 0, done.stderr
        authority = (folder / "certs" / "apiserver.crt").read_text()
        body = {"metadata": {"name": "kube-root-ca.crt"}, "data": {"ca.crt": authority}}
        plane.api("POST", f"/api/v1/namespaces/{NAMESPACE}/configmaps", body)
        found.kubectl("label", "node", control_plane.NODE_NAME, "gpu=on")
        found.start("hami-scheduler-0", found.workload("deployments", "hami-scheduler"))
        found.start(CORE_POD, found.workload("daemonsets", "hami-core"))
        found.start("hami-device-plugin-0", found.workload("daemonsets", "hami-device-plugin"))
        found.wait_ready("hami-scheduler-0")
        found.aliases[found.pod("hami-scheduler-0")["status"]["podIP"]] = [f"hami-scheduler.{NAMESPACE}.svc"]
        found.start("hami-webui-0", found.workload("deployments", "hami-webui"))
        for name in (CORE_POD, "hami-device-plugin-0", "hami-webui-0"):
            found.wait_ready(name)
        yield found


def test_the_health_check_of_the_documentation_works(world: World) -> None:
    """Word by word, but for the names that a controller would give."""
    listed = world.kubectl("get", "pods", "-n", NAMESPACE)
    assert listed.count("Running") == 4
    where = ("-n", NAMESPACE, "deploy/hami-scheduler")
    health = world.kubectl("exec", *where, "--", "wget", "-qO-", "localhost:8080/healthz")
    assert json.loads(health)["components"]["nodes"]["healthy"] is True
    nodes = world.kubectl("get", "nodes", "-l", "accelerator=nvidia", "-o", "name")
    assert nodes.split() == [f"node/{control_plane.NODE_NAME}"]
    assert "nvidia.com/gpu" in world.kubectl("describe", "node", control_plane.NODE_NAME)


def test_a_pod_gets_its_slice(world: World) -> None:
    """Through kube-scheduler, extender, kubelet, device plugin and containerd; the webhook has its certificate."""
    hooks = "/apis/admissionregistration.k8s.io/v1/mutatingwebhookconfigurations/hami-webhook"
    sites.wait_for(lambda: world.plane.api("GET", hooks)["webhooks"][0]["clientConfig"].get("caBundle"), 30)
    body = gpu_node.pod("mine", gpu_node.container("main", 4000, 30))
    world.plane.api("POST", gpu_node.PODS, body)

    def runs() -> bool:
        return bool(world.plane.api("GET", f"{gpu_node.PODS}/mine")["status"]["phase"] == "Running")

    sites.wait_for(runs, 60, lambda: json.dumps(world.plane.api("GET", f"{gpu_node.PODS}/mine")["status"]))
    shown = world.kubectl("exec", "mine", "--", "env")
    assert "CUDA_DEVICE_MEMORY_LIMIT_0=4000m" in shown


def doctor(world: World) -> tuple[int, list[dict[str, str]]]:
    """The exit status and the findings of `hamictl doctor`."""
    command = [
        sys.executable,
        "-m",
        "hamictl",
        "doctor",
        "--kubeconfig",
        str(world.plane.kubeconfig("admin")),
        "-o",
        "json",
    ]
    environment = {**os.environ, "PATH": f"{world.plane.parts.binaries}:{os.environ['PATH']}"}
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, env=environment)
    return done.returncode, json.loads(done.stdout)["findings"]


def test_doctor_finds_what_is_not_as_it_should_be_and_no_more(world: World) -> None:
    """The last step of that health check, by one command."""
    assert doctor(world) == (0, [])


def run_limited(world: World, name: str) -> tuple[str, str]:
    """Run a dynamically linked program with a slice. Returns what the preloaded library wrote, and the event."""
    program = "import os; print(open('/tmp/mark').read() if os.path.exists('/tmp/mark') else 'no mark')"
    container = gpu_node.container("main", 4000, 30) | {
        "image": "ghcr.io/hami-py/hami-node:0.1.0", "imagePullPolicy": "Never", "command": ["python3", "-c", program],
    }  # fmt: skip
    body = gpu_node.pod(name, container)
    body["spec"]["restartPolicy"] = "Never"
    world.plane.api("POST", gpu_node.PODS, body)

    def ended() -> bool:
        return bool(world.plane.api("GET", f"{gpu_node.PODS}/{name}")["status"]["phase"] == "Succeeded")

    sites.wait_for(ended, 60, lambda: json.dumps(world.plane.api("GET", f"{gpu_node.PODS}/{name}")["status"]))
    told = world.plane.api("GET", "/apis/events.k8s.io/v1/namespaces/default/events")["items"]
    notes = [one["note"] for one in told if one["regarding"]["name"] == name and one["reason"] == "DeviceAllocated"]
    return world.node.log(world.plane.api("GET", f"{gpu_node.PODS}/{name}"), "main"), "".join(notes)


def test_the_library_that_the_chart_brings_is_preloaded_with_the_limits_of_the_pod(world: World) -> None:
    """From an image, by the pod of the chart, at the path that ld.so.preload names, in a program that never asked."""
    mark, note = run_limited(world, "limited")
    assert mark == "memory 4000m cores 30 region writable"
    assert note.endswith("isolation hami-core")


def hamictl(world: World, *arguments: str) -> str:
    command = [sys.executable, "-m", "hamictl", *arguments, "--kubeconfig", str(world.plane.kubeconfig("admin"))]
    environment = {**os.environ, "PATH": f"{world.plane.parts.binaries}:{os.environ['PATH']}"}
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, env=environment)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_without_the_library_everything_says_that_memory_is_not_limited(world: World) -> None:
    """The node, its event, doctor, the commands, the pages, the metric; and all is well once it is back."""
    world.kubectl("delete", "pod", "-n", NAMESPACE, CORE_POD, "--wait")
    for path in (world.folder / "vgpu").glob("libvgpu.so*"):
        path.unlink()

    def codes() -> set[str]:
        return {one["code"] for one in doctor(world)[1]}

    lost = {"PLUGIN_MEMORY_NOT_LIMITED", "PLUGIN_ISOLATION_LOST"}
    sites.wait_for(lambda: codes() == lost, 60, lambda: str(codes()))
    mark, note = run_limited(world, "free")
    assert (mark, note.endswith("isolation none")) == ("no mark", True)
    assert "none" in hamictl(world, "nodes")
    assert "PLUGIN_MEMORY_NOT_LIMITED" in hamictl(world, "nodes", "-o", "wide")
    assert "none" in hamictl(world, "top", "-o", "wide")
    (seen,) = json.loads(hamictl(world, "nodes", "-o", "json"))
    assert (seen["problems"].keys(), {gpu["mode"] for gpu in seen["gpus"]}) == (lost, {"none"})
    with forwarded(world, "hami-monitor", 8081) as url, urllib.request.urlopen(f"{url}/metrics", timeout=10) as answer:
        assert 'isolation="none"' in answer.read().decode()

    def page_says() -> bool:
        with (
            forwarded(world, "hami-webui", 80) as url,
            urllib.request.urlopen(f"{url}/nodes/{control_plane.NODE_NAME}", timeout=10) as answer,
        ):
            return "the memory of containers is not limited" in answer.read().decode()

    sites.wait_for(page_says, 30)

    world.start(CORE_POD, world.workload("daemonsets", "hami-core"))
    sites.wait_for(lambda: codes() == set(), 60, lambda: str(codes()))
    assert run_limited(world, "limited-again")[0].startswith("memory 4000m")


def test_port_forward_leads_to_pages_and_metrics(world: World) -> None:
    """The pages listen on the pod's loopback alone, and say what the monitors measure where they find them."""
    for service, port, path, wanted in (
        ("hami-webui", 80, "/", "GPUs in use"),
        ("hami-monitor", 41991, "/metrics", "hami_gpu_memory_total_bytes"),
        ("hami-monitor", 8081, "/metrics", "hami_device_plugin_device_count"),
    ):
        with forwarded(world, service, port) as url:

            def shows(url: str = url, path: str = path, wanted: str = wanted) -> bool:
                with urllib.request.urlopen(f"{url}{path}", timeout=10) as answer:
                    return wanted in answer.read().decode()

            sites.wait_for(shows, 30)


ELSEWHERE: dict[str, dict[tuple[str, str], str]] = {
    "hami-scheduler": {
        ("pods", "get"): "a pod that the watch has not shown yet, a Binding whose answer was lost",
        ("pods", "patch"): "GPUs held for a pod that others leave for, gates of gangs",
        ("pods/eviction", "create"): "preemption",
        ("pods/status", "patch"): "nominations",
        ("podgroups", "list"): "where the cluster has them",
        ("podgroups", "watch"): "where the cluster has them",
        ("events", "list"): "the page of a pod",
        ("events", "patch"): "an event that is repeated",
    },
    "hami-device-plugin": {("events", "patch"): "an event that is repeated"},
    "hami-webui": {},
}
"""Rights that a healthy node with one pod does not need, and what needs them; other tests do."""


def test_no_call_was_denied_and_no_right_is_for_nothing(world: World) -> None:
    """By the API server's audit log: each account may do what it does, and does what it may."""
    accounts = {
        f"system:serviceaccount:{NAMESPACE}:{name}" for name in ("hami-scheduler", "hami-device-plugin", "hami-webui")
    }
    denied, done = set(), set()
    for event in world.plane.audit():
        if event["user"]["username"] not in accounts:
            continue
        asked = event.get("objectRef", {})
        resource = "/".join(filter(None, (asked.get("resource", ""), asked.get("subresource", ""))))
        agent = event.get("userAgent", "").partition("/")[0]
        code = event.get("responseStatus", {}).get("code", 0)
        # Of kube-scheduler, which has a role of Kubernetes' own, only what it was denied counts.
        if code in (401, 403):
            denied.add((event["user"]["username"], agent, resource, event["verb"], event["requestURI"]))
        elif agent != "kube-scheduler":
            done.add((event["user"]["username"].rpartition(":")[2], resource, event["verb"]))
    assert denied == set()
    for account, kind, role in (
        ("hami-scheduler", "ClusterRole", "hami-scheduler-extender"),
        ("hami-device-plugin", "ClusterRole", "hami-device-plugin"), ("hami-webui", "Role", "hami-webui"),
    ):  # fmt: skip
        rules = rendering.one(rendering.objects(4), kind, role)["rules"]
        granted = {(resource, verb) for rule in rules for resource in rule["resources"] for verb in rule["verbs"]}
        used = {(resource, verb) for who, resource, verb in done if who == account}
        assert granted - used - ELSEWHERE[account].keys() == set(), account


@contextlib.contextmanager
def forwarded(world: World, service: str, port: int) -> Iterator[str]:
    """A port of a Service by kubectl, for as long as the context lasts."""
    kubectl = [str(world.plane.parts.binaries / "kubectl"), "--kubeconfig", str(world.plane.kubeconfig("admin"))]
    process = subprocess.Popen(
        [*kubectl, "port-forward", "-n", NAMESPACE, f"service/{service}", f":{port}"], stdout=subprocess.PIPE, text=True
    )
    try:
        assert process.stdout is not None
        yield f"http://{process.stdout.readline().split()[2]}"
    finally:
        process.terminate()
        process.communicate()
