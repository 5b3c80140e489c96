"""A node for tests: our plugin as a real process on a fake driver, between stand-ins of kubelet and API server."""

import asyncio
import contextlib
import pathlib
import tempfile
import time
from collections.abc import Callable, Coroutine, Iterator, Sequence
from typing import Any, TypeVar

from gpu_sharing.core import records
from lab import api_server, fake_driver, gpu_nodes, gpus, kinds, kubelet, plugin_process
from protos.deviceplugin.v1beta1 import api_pb2_grpc

T = TypeVar("T")

NODE = "node-01"
COUNT, MEMORY = "nvidia.com/gpu", "nvidia.com/gpumem"


class GpuNode:
    """One node; the test plays the kubelet's part step by step."""

    def __init__(
        self,
        folder: pathlib.Path,
        server: api_server.Running,
        count: int,
        arguments: Sequence[str],
        runtime: str = gpu_nodes.RUNTIME,
        prepare: Callable[["GpuNode"], None] = lambda node: None,
    ) -> None:
        self.server = server
        self.folder = folder
        self.cdi_dir = folder / "cdi"
        self.kubelet = kubelet.Kubelet(folder / "kubelet", self.cdi_dir, runtime=runtime)
        self.driver = fake_driver.make(folder, NODE, count)
        self.host_cdi_dir = folder / "host-cdi"
        self.proc_dir = folder / "proc"
        (self.proc_dir / "self").mkdir(parents=True)
        (self.proc_dir / "self" / "status").write_text("NSpid:\t4711\n")
        prepare(self)
        self.kubeconfig = server.write_kubeconfig(folder / "kubeconfig")
        flags = [
            "--kubeconfig", str(self.kubeconfig), "--node-name", NODE, "--kubelet-dir", str(folder / "kubelet"),
            "--cdi-dir", str(self.cdi_dir), "--host-cdi-dirs", str(self.host_cdi_dir), "--delivery", "envvar",
            "--health-interval", "0.2", "--runtime-class-check", "off", "--proc-dir", str(self.proc_dir), *arguments,
        ]  # fmt: skip
        self.plugin = plugin_process.PluginProcess(folder, self.driver, flags)

    def do(self, work: Coroutine[Any, Any, T], seconds: float = 60.0) -> T:
        """Something on the loop of the stand-ins."""
        return asyncio.run_coroutine_threadsafe(work, self.server.loop).result(seconds)

    def uuid(self, index: int) -> str:
        return self.driver.gpus[index].uuid

    def create(self, name: str, *shares: str, **how: Any) -> dict[str, Any]:
        """A pod that was bound here; see `body`."""
        body = self.body(name, *shares, **how)
        created: dict[str, Any] = self.server.request("POST", "/api/v1/namespaces/default/pods", body)
        return created

    def body(
        self,
        name: str,
        *shares: str,
        init: Sequence[str] = (),
        sidecar: bool = False,
        annotations: dict[str, str] | None = None,
        bound_at: int = 100,
        record: str | None = None,
        init_name: str = "init0",
    ) -> dict[str, Any]:
        """A pod that was bound here, with shares `<index>:<MiB>:<cores>` of each container (`+` between GPUs)."""

        def container(kind: str, index: int, text: str) -> dict[str, Any]:
            gpus_wanted = text.split("+")
            limits = {COUNT: str(len(gpus_wanted)), MEMORY: gpus_wanted[0].split(":")[1]}
            return {"name": f"{kind}{index}", "image": "x", "resources": {"limits": limits}}

        def entry(text: str) -> str:
            parts = [one.split(":") for one in text.split("+")]
            return "".join(f"{self.uuid(int(gpu))},NVIDIA,{mib},{cores}:" for gpu, mib, cores in parts) + ";"

        written = {
            records.ALLOCATED: "".join(entry(one) for one in (*init, *shares)) if record is None else record,
            records.NODE: NODE, records.TIME: str(bound_at), records.BIND_PHASE: "allocating", **(annotations or {}),
        }  # fmt: skip
        inits = [container("init", index, one) for index, one in enumerate(init)]
        if inits:
            inits[0]["name"] = init_name
        return {
            "metadata": {"name": name, "annotations": {key: value for key, value in written.items() if value}},
            "spec": {
                "nodeName": NODE,
                "initContainers": [{**one, **({"restartPolicy": "Always"} if sidecar else {})} for one in inits],
                "containers": [container("c", index, one) for index, one in enumerate(shares)],
            },
            "status": {"phase": "Pending"},
        }

    def admit(self, pod: dict[str, Any]) -> None:
        self.do(self.kubelet.admit(pod))

    def start(self, pod: dict[str, Any], name: str = "c0") -> kubelet.Started:
        """Start a container; `NotStarted` is the kubelet's message."""
        containers = [*(pod["spec"].get("initContainers") or ()), *pod["spec"]["containers"]]
        found = next(one for one in containers if one["name"] == name)
        return self.do(self.kubelet.start_container(pod, found))

    def run(self, pod: dict[str, Any], name: str = "c0") -> kubelet.Started:
        self.admit(pod)
        return self.start(pod, name)

    def delete(self, pod: dict[str, Any]) -> None:
        self.server.call(lambda: self.kubelet.release(pod["metadata"]["uid"]))
        key = ("default", pod["metadata"]["name"])
        keep = self.server.app.store
        self.server.call(lambda: keep.remove(kinds.PODS, key, keep.get(kinds.PODS, *key)))

    def stub(self) -> "api_pb2_grpc.DevicePluginAsyncStub":
        """The plugin, as the kubelet dials it."""
        return api_pb2_grpc.DevicePluginStub(self.kubelet.channel())

    def pod(self, name: str) -> dict[str, Any]:
        found: dict[str, Any] = self.server.request("GET", f"/api/v1/namespaces/default/pods/{name}")
        return found

    def node(self) -> dict[str, Any]:
        found: dict[str, Any] = self.server.request("GET", f"/api/v1/nodes/{NODE}")
        return found

    def notes(self, reason: str) -> list[str]:
        found = self.server.request("GET", "/apis/events.k8s.io/v1/events")["items"]
        return [event["note"] for event in found if event["reason"] == reason]

    def allocatable(self) -> int:
        return sum(self.kubelet.devices.values())

    def wait(self, what: str, condition: Callable[[], Any], seconds: float = 60.0) -> Any:
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            found = condition()
            if found:
                return found
            time.sleep(0.02)
        raise AssertionError(f"not within {seconds:g} s: {what}; {self.plugin.log_file.read_text()[-2000:]}")


@contextlib.contextmanager
def running(
    count: int = 2,
    *arguments: str,
    runtime: str = gpu_nodes.RUNTIME,
    mig: bool = False,
    labels: dict[str, str] | None = None,
    start: bool = True,
    prepare: Callable[[GpuNode], None] = lambda node: None,
    offered: int | None = None,
) -> Iterator[GpuNode]:
    """A registered node for as long as the context lasts; `offered` of its GPUs are usable, all unless given.

    Without `start` the test starts its plugin.
    """
    with contextlib.ExitStack() as stack:
        # Not pytest's folder: the path of a unix socket has at most 107 characters.
        folder = pathlib.Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="gpu-node-")))
        server = stack.enter_context(api_server.running())
        node = GpuNode(folder, server, count, arguments, runtime, prepare)
        for gpu in node.driver.gpus:
            gpu.mig_mode = int(mig)
        node.driver.write()
        slots = 7 if mig else 10
        body = gpu_nodes.unserved(gpus.gpu_node(NODE, gpus.A100, count))
        body["status"]["nodeInfo"]["containerRuntimeVersion"] = runtime
        body["metadata"]["labels"] |= labels or {}
        server.call(lambda: server.app.store.create(kinds.NODES, "", body))
        node.do(node.kubelet.start())
        try:
            if not start:
                yield node
                return
            with plugin_process.running(node.plugin):
                node.wait(
                    "slots are offered", lambda: node.allocatable() == slots * (count if offered is None else offered)
                )
                yield node
        finally:
            node.plugin.stop()
            node.do(node.kubelet.stop())
