"""The chart installed by helm on a real control plane, kubelet and containerd.

What a cluster has and this machine has not is put in by hand, and nothing else: the pods that controllers would make,
the service accounts' tokens that admission would mount, the addresses that DNS and kube-proxy would give, and NVIDIA's
container runtime.
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
from collections.abc import Iterator, Mapping
from typing import Any

import pytest

from lab import c_compiler, fake_driver, plugin_process
from lab.real import control_plane, controllers, helm, images, nvidia_runtime
from lab.real import node as real_nodes
from tests.chart import rendering
from tests.e2e import site as sites

NAMESPACE = rendering.NAMESPACE
PODS = f"/api/v1/namespaces/{NAMESPACE}/pods"
ARCHIVES = pathlib.Path(__file__).parents[2] / "build" / "images"
GATEWAY = "10.213.0.1"
"""This machine, as pods of the lab's network see it."""
ALIASES = {GATEWAY: ["kubernetes.default.svc"]}


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
    c_compiler.build_library(source, library)
    return library


@contextlib.contextmanager
def driver_runtime(
    folder: pathlib.Path, plane: control_plane.ControlPlane, tools: Mapping[str, pathlib.Path]
) -> Iterator[tuple[fake_driver.FakeDriver, real_nodes.Node]]:
    """A node whose runtime handler `nvidia` brings the fake driver, as NVIDIA's runtime brings the real one."""
    driver = fake_driver.make(folder, control_plane.NODE_NAME, 2)
    runc = shutil.which("runc")
    assert runc is not None
    program = nvidia_runtime.write(folder / "nvidia-container-runtime", runc, driver.environment(), tools)
    with real_nodes.running(plane, nvidia_runtime=program) as node:
        yield driver, node


def fitted(
    template: dict[str, Any], folder: pathlib.Path, api_port: int, aliases: Mapping[str, list[str]]
) -> dict[str, Any]:
    """A copy of the template of a workload's pods, with what this machine has not put in by hand."""
    template = json.loads(json.dumps(template))
    spec = template["spec"]
    spec |= {
        "nodeName": control_plane.NODE_NAME,
        "tolerations": [{"operator": "Exists"}],
        "hostAliases": [{"ip": ip, "hostnames": names} for ip, names in aliases.items()],
    }
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
        {"name": "KUBERNETES_SERVICE_PORT", "value": str(api_port)},
    ]
    places = {"cdi": folder / "cdi", "host-cdi": folder / "host-cdi"}
    for volume in spec["volumes"]:
        if volume["name"] in places:
            volume["hostPath"]["path"] = str(places[volume["name"]])
    for container in spec["containers"]:
        container["imagePullPolicy"] = "Never"
        # From the Service's port to the pod's, as kube-proxy would lead.
        container["args"] = [one.replace(".svc:9446", ".svc:9447") for one in container["args"]]
        container["env"] = [*container.get("env", []), *environment]
        container["volumeMounts"] = [*container.get("volumeMounts", []), *mounts]
    return template


def _through_renderer(folder: pathlib.Path, api_port: int) -> tuple[str, ...]:
    """Arguments by which helm 3 puts what this machine has not into the templates; see `fitted`."""
    arguments = ("-m", "tests.e2e.post_renderer", str(folder), str(api_port))
    return "--post-renderer", sys.executable, *(f"--post-renderer-args={one}" for one in arguments)


def _run_helm(plane: control_plane.ControlPlane, major: int, verb: str, *arguments: str) -> None:
    where = ("--namespace", NAMESPACE, "--kubeconfig", str(plane.kubeconfig("admin")))
    command = [str(helm.program(major)), verb, "hami", str(rendering.CHART), *where, *arguments]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr


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
        self.aliases = dict(ALIASES)

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
        template = fitted(workload["spec"]["template"], self.folder, self.api_port, self.aliases)
        self.plane.api("POST", PODS, {"metadata": {"name": name, **template["metadata"]}, "spec": template["spec"]})

    def upgrade(self, values: str) -> None:
        """Upgrade the chart, and wait until Kubernetes' controllers have replaced every pod of the scheduler."""
        arguments = ("--reuse-values", "--set", values, *_through_renderer(self.folder, self.api_port))
        _run_helm(self.plane, 3, "upgrade", *arguments)
        self.kubectl("rollout", "status", "-n", NAMESPACE, "deploy/hami-scheduler", "--timeout=50s")

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


@contextlib.contextmanager
def installed(
    programs: pathlib.Path,
    folder: pathlib.Path,
    values: str = "",
    tools: Mapping[str, pathlib.Path] | None = None,
    *,
    by_controllers: bool = False,
) -> Iterator[World]:
    """The chart installed; its pods are the caller's to start.

    Args:
        programs: The folder of Kubernetes' programs.
        folder: Where everything lies.
        values: More values of the chart.
        tools: Programs of NVIDIA's that the container runtime brings, by their paths in containers.
        by_controllers: Whether Kubernetes' own controllers of Deployments and ReplicaSets make the pods instead.
    """
    if not all((ARCHIVES / f"{name}.tar").exists() for name in ("hami", "hami-node")):
        if os.environ.get("REQUIRE_E2E") == "1":
            raise AssertionError("the images are not built: make images")
        pytest.skip("needs the images: make images")
    with (
        contextlib.ExitStack() as stack,
        control_plane.running(folder, audited=True) as plane,
        forwarding(int(plane.server.rpartition(":")[2])) as api_port,
        driver_runtime(folder, plane, tools or {}) as (driver, node),
    ):
        plugin_process.host_cdi(folder / "host-cdi", driver)
        node.import_image(
            images.of_library(
                folder / "hami.tar", HAMI_IMAGE, "k8s-vgpu/lib/nvidia/libvgpu.so.v2.10.0", preloaded_library(folder)
            )
        )
        for name in ("hami", "hami-node"):
            node.import_image(ARCHIVES / f"{name}.tar", f"ghcr.io/hami-py/{name}:0.1.0")
        scheduler = images.of_program(
            folder / "scheduler.tar", "registry.k8s.io/kube-scheduler:v1.36.3", programs / "kube-scheduler"
        )
        node.import_image(scheduler)
        found = World(plane, folder, node, driver, api_port)
        runtime_class = {
            "apiVersion": "node.k8s.io/v1", "kind": "RuntimeClass", "metadata": {"name": "nvidia"}, "handler": "nvidia",
        }  # fmt: skip
        plane.api("POST", "/apis/node.k8s.io/v1/runtimeclasses", runtime_class)
        plane.api("POST", "/api/v1/namespaces", {"metadata": {"name": NAMESPACE}})
        authority = (folder / "certs" / "apiserver.crt").read_text()
        body = {"metadata": {"name": "kube-root-ca.crt"}, "data": {"ca.crt": authority}}
        plane.api("POST", f"/api/v1/namespaces/{NAMESPACE}/configmaps", body)
        if by_controllers:
            stack.enter_context(controllers.running(plane))
        given = ("--set", ",".join(filter(None, [f"devicePlugin.libPath={folder}/vgpu", values])))
        through = _through_renderer(folder, api_port) if by_controllers else ()
        _run_helm(plane, 3 if by_controllers else 4, "install", *given, *through)
        found.kubectl("label", "node", control_plane.NODE_NAME, "gpu=on")
        yield found
