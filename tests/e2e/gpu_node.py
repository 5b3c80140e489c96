"""One real node with fake GPUs: control plane, scheduler, extender, kubelet, containerd and our device plugin."""

import collections
import contextlib
import dataclasses
import os
import pathlib
import stat
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from gpu_sharing.core import records, requests
from lab import extender_process, fake_driver, plugin_process
from lab.real import control_plane, images, kube_scheduler
from lab.real import node as real_nodes
from tests.e2e import secrecy

NODE = control_plane.NODE_NAME
NAMES = requests.ResourceNames()
PODS = "/api/v1/namespaces/default/pods"
SHOW = (
    "env; echo ==mounts; cat /proc/self/mountinfo; echo ==devices; ls /dev; "
    "echo ==caps; ls /dev/nvidia-caps 2>/dev/null; echo ==end; "
    "while [ ! -e /tmp/crash ]; do sleep 0.2; done"
)
SHOW_ONCE = "env; echo ==mounts; cat /proc/self/mountinfo; echo ==devices; ls /dev; echo ==end"


@dataclasses.dataclass
class GpuNode:
    """A running site."""

    plane: control_plane.ControlPlane
    node: real_nodes.Node
    driver: fake_driver.FakeDriver
    plugin: plugin_process.PluginProcess
    extender: extender_process.ExtenderProcess
    scheduler: kube_scheduler.KubeScheduler
    plugin_flags: Sequence[str]

    def create(self, *bodies: dict[str, Any]) -> None:
        self.plane.api.many(("POST", PODS, body) for body in bodies)

    def delete(self, *names: str) -> None:
        for name in names:
            self.plane.api("DELETE", f"{PODS}/{name}?gracePeriodSeconds=1")

    def delete_and_wait(self, *names: str) -> None:
        self.delete(*names)
        self.wait("they are gone", lambda: not {pod["metadata"]["name"] for pod in self.pods()} & set(names), 90)

    def delete_all(self) -> None:
        self.delete(*(pod["metadata"]["name"] for pod in self.pods()))
        self.wait("all pods are gone", lambda: not self.pods(), 90)

    def pods(self) -> list[Any]:
        return self.plane.api.pages(PODS)

    def pod(self, name: str) -> Any:
        return self.plane.api("GET", f"{PODS}/{name}")

    def node_object(self) -> Any:
        return self.plane.api("GET", f"/api/v1/nodes/{NODE}")

    def events(self, reason: str) -> list[Any]:
        found = self.plane.api("GET", "/apis/events.k8s.io/v1/events")["items"]
        return [event for event in found if event["reason"] == reason]

    def wait(self, what: str, condition: Callable[[], Any], seconds: float = 60.0) -> Any:
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            found = condition()
            if found:
                return found
            time.sleep(0.1)
        states = collections.Counter(
            (pod["status"]["phase"], pod["status"].get("reason"), _not_scheduled(pod), *_waiting(pod))
            for pod in self.pods()
        )
        node = self.node_object()
        parts = [self.plane.parts.folder / f"{name}.log" for name in ("kubelet", "containerd", "kube-scheduler")]
        logs = [
            f"{path.name} ends:\n{path.read_text(errors='replace')[-6000:]}"
            for path in (self.plugin.log_file, self.extender.log_file, *parts)
        ]
        facts = (
            f"pods: {states}; taints: {node['spec'].get('taints')}; allocatable: {node['status'].get('allocatable')}"
        )
        raise AssertionError("\n".join([f"not within {seconds:g} s: {what}; {facts}", *logs]))

    def wait_running(self, *names: str, seconds: float = 120.0) -> None:
        self.wait(f"{len(names)} pods run", lambda: all(_runs(pod) for pod in self._named(names)), seconds)

    def wait_settled(self, *names: str, seconds: float = 240.0, restarted: bool = False) -> set[str]:
        """Wait until all run (again) or have failed. Returns those that have failed."""
        self.wait(
            f"{len(names)} pods run or have failed",
            lambda: all(
                _runs(pod, restarted=restarted) or pod["status"]["phase"] == "Failed" for pod in self._named(names)
            ),
            seconds,
        )
        return {pod["metadata"]["name"] for pod in self._named(names) if pod["status"]["phase"] == "Failed"}

    def _named(self, names: Sequence[str]) -> list[Any]:
        found = {pod["metadata"]["name"]: pod for pod in self.pods()}
        return [found[name] for name in names]

    def allocatable(self) -> int:
        return int(self.node_object()["status"]["allocatable"].get("nvidia.com/gpu", "0"))

    def token_health(self, pod_name: str) -> set[str]:
        """What the kubelet says of the pod's ids in `allocatedResourcesStatus`."""
        return {
            resource["health"]
            for one in self.pod(pod_name)["status"].get("containerStatuses", ())
            for status in one.get("allocatedResourcesStatus", ())
            for resource in status["resources"]
        }

    def mismatches(self, *, folders: bool = True) -> list[str]:
        """Every container whose environment, mounts or devices are not its own record's.

        Without CDI (`folders=False`) devices come by no specification, and cache folders bear the allocation's name.
        """
        found = []
        for pod in self.pods():
            text = pod["metadata"]["annotations"][records.ALLOCATED]
            containers = [*pod["spec"].get("initContainers", ()), *pod["spec"]["containers"]]
            for container, shares in zip(
                containers, records.decode_shares(text, [True] * len(containers)), strict=True
            ):
                log = self.node.log(pod, container["name"])
                found += [
                    f"{pod['metadata']['name']}/{container['name']}: {what}"
                    for what in self._differences(pod, container["name"], shares, log, folders=folders)
                ]
        return found

    def _differences(
        self, pod: Any, container: str, shares: Sequence[Any], log: str, *, folders: bool
    ) -> Iterator[str]:
        if "==end" not in log:
            yield f"has written nothing: {log[:200]!r}"
            return
        variables, rest = log.split("==mounts", 1)
        mounts, devices = rest.split("==devices", 1)
        environment = dict(line.split("=", 1) for line in variables.strip().splitlines() if "=" in line)
        wanted = {
            "HAMI_GPUS": ",".join(share.uuid for share in shares),
            "HAMI_SLICE_MEMORY_MIB": ",".join(str(share.memory_mib) for share in shares),
            "HAMI_SLICE_CORES_PERCENT": ",".join(str(share.cores_percent) for share in shares),
        }
        wanted |= {f"CUDA_DEVICE_MEMORY_LIMIT_{i}": f"{share.memory_mib}m" for i, share in enumerate(shares)}
        if any(share.cores_percent for share in shares):
            wanted |= {f"CUDA_DEVICE_SM_LIMIT_{i}": str(share.cores_percent) for i, share in enumerate(shares)}
        yield from (
            f"{key} is {environment.get(key)}, not {value}"
            for key, value in wanted.items()
            if environment.get(key) != value
        )
        extra = [key for key in environment if key.startswith("CUDA_DEVICE_MEMORY_LIMIT_") and key not in wanted]
        yield from (f"{key} is set" for key in extra)
        if not folders:
            return
        own = f"containers/{pod['metadata']['uid']}_{container}"
        caches = {part for line in mounts.splitlines() for part in line.split() if "/vgpu/containers/" in part}
        if len(caches) != 2 or not all(cache.removesuffix("/lock").endswith(own) for cache in caches):
            yield "another container's folder is mounted"
        minors = {gpu.uuid: gpu.minor for gpu in self.driver.gpus}
        there = {name for name in devices.split() if name.startswith("nvidia") and name[6:].isdigit()}
        if there != {f"nvidia{minors[share.uuid]}" for share in shares}:
            yield f"has the devices {sorted(there)}"


def _runs(pod: Any, *, restarted: bool = False) -> bool:
    statuses = pod["status"].get("containerStatuses", ())
    again = all(one["restartCount"] > 0 for one in statuses) or not restarted
    return bool(statuses) and again and all(one.get("started") for one in statuses)


def _not_scheduled(pod: Any) -> str:
    """What kube-scheduler says of a pod that it does not place."""
    said = (one for one in pod["status"].get("conditions", ()) if one["type"] == "PodScheduled")
    return next((str(one.get("message")) for one in said if one["status"] == "False"), "")


def _waiting(pod: Any) -> list[str]:
    statuses = [*pod["status"].get("initContainerStatuses", ()), *pod["status"].get("containerStatuses", ())]
    return [
        f"{one['state']['waiting'].get('reason')}: {one['state']['waiting'].get('message', '')[:300]}"
        for one in statuses
        if "waiting" in one.get("state", {})
    ]


def container(name: str, memory_mib: int, cores: int = 0, command: str = SHOW, count: int = 1) -> dict[str, Any]:
    limits = {"nvidia.com/gpu": str(count), "nvidia.com/gpumem": str(memory_mib)}
    if cores:
        limits["nvidia.com/gpucores"] = str(cores)
    return {
        "name": name,
        "image": images.BUSYBOX,
        "imagePullPolicy": "Never",
        "command": ["sh", "-c", command],
        "resources": {"limits": limits},
    }


def pod(name: str, *containers: dict[str, Any], init: Sequence[dict[str, Any]] = (), **spec: Any) -> dict[str, Any]:
    return {
        "metadata": {"name": name},
        "spec": {
            "schedulerName": "hami-scheduler",
            "terminationGracePeriodSeconds": 1,
            "initContainers": list(init),
            "containers": list(containers),
            **spec,
        },
    }


def with_capability_nodes(root: pathlib.Path, gpus: int) -> pathlib.Path:
    """Make a driver's root: device nodes, those of MIG instances too, and the table that numbers them.

    Source: NVIDIA's MIG user guide, device nodes and capabilities.
    """
    caps = root / "dev" / "nvidia-caps"
    caps.mkdir(parents=True)
    names = [f"gpu{gpu}/gi{gi}/{end}" for gpu in range(gpus) for gi in range(15) for end in ("access", "ci0/access")]
    table = "".join(f"{name} {number}\n" for number, name in enumerate(names, start=3))
    (root / "mig-minors").write_text(f"config 1\nmonitor 2\n{table}")
    nodes = [root / "dev" / f"nvidia{gpu}" for gpu in range(gpus)] + [root / "dev" / "nvidiactl"]
    nodes += [caps / f"nvidia-cap{number}" for number in range(1, len(names) + 3)]
    for path in nodes:
        os.mknod(path, 0o666 | stat.S_IFCHR, os.makedev(1, 3))  # /dev/null under another name
    return root


def seeing_capabilities(root: pathlib.Path) -> list[str]:
    """The command that starts a process to which the kernel shows that table, in a mount namespace of its own."""
    script = (
        "mount -t tmpfs none /proc/driver; mkdir /proc/driver/nvidia-caps; "
        f'cp {root}/mig-minors /proc/driver/nvidia-caps/; exec "$@"'
    )
    return ["unshare", "--mount", "--", "sh", "-ec", script, "sh"]


@contextlib.contextmanager
def running(
    folder: pathlib.Path,
    gpus: int = 4,
    *arguments: str,
    runc: pathlib.Path | None = None,
    mig: bool = False,
    has_cdi: bool = True,
) -> Iterator[GpuNode]:
    with contextlib.ExitStack() as stack:
        plane = stack.enter_context(control_plane.running(folder))
        stack.enter_context(secrecy.kept(plane, folder))
        node = stack.enter_context(real_nodes.running(plane, runc, has_cdi=has_cdi))
        driver = fake_driver.make(folder, NODE, gpus)
        for gpu in driver.gpus:
            gpu.mig_mode = int(mig)
        driver.write()
        root = with_capability_nodes(folder / "root", gpus) if mig else None
        host = plugin_process.host_cdi(folder / "host-cdi", driver, root)
        flags = [
            "--kubeconfig", str(plane.kubeconfig("plugin")), "--node-name", NODE,
            "--kubelet-dir", str(node.kubelet_dir), "--cdi-dir", str(node.cdi_dir), "--host-cdi-dirs", str(host),
            "--device-split-count", "20", "--health-interval", "0.5", *arguments,
        ]  # fmt: skip
        within = seeing_capabilities(root) if root else ()
        process = plugin_process.PluginProcess(folder, driver, flags, within=within)
        plugin = stack.enter_context(plugin_process.running(process))
        extender = stack.enter_context(extender_process.running(plane.kubeconfig("extender"), folder / "extender.log"))
        scheduler = stack.enter_context(plane.scheduler(f"http://{extender.verbs}"))
        site = GpuNode(plane, node, driver, plugin, extender, scheduler, flags)
        site.wait("the node offers its slots", lambda: site.allocatable() == (7 if mig else 20) * gpus)
        yield site
