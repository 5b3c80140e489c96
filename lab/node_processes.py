"""Nodes of the lab with device plugin and monitor as processes, on a fake driver that tests change."""

import asyncio
import contextlib
import pathlib
import threading
from collections.abc import Sequence

from gpu_sharing.core import gpus
from lab import fake_driver, kubelet, monitor_process, plugin_process, service_process, simple_kubelets, store

_START_SECONDS = 60.0


class NodeProcesses:
    """One node.

    Attributes:
        driver: Its GPUs; change them and `write`.
        plugin: Its device plugin.
        monitor: Its monitor.
        kubelet: Its fake kubelet.
    """

    def __init__(
        self, folder: pathlib.Path, kubeconfig: pathlib.Path, node: store.Object, inventory: Sequence[gpus.Gpu]
    ) -> None:
        self.name: str = node["metadata"]["name"]
        folder.mkdir(parents=True)
        self._proc = folder / "proc"
        (self._proc / "self").mkdir(parents=True)
        (self._proc / "self" / "status").write_text("NSpid:\t4711\n")  # As in the host's PID namespace.
        self._started = threading.Event()
        first = inventory[0]
        self.driver = fake_driver.FakeDriver(path=folder / "gpus.txt", gpus=[_fake_gpu(gpu) for gpu in inventory])
        self.driver.write()
        kubelet_dir = folder / "k"  # A unix socket's path has at most 107 characters.
        self.kubelet = kubelet.Kubelet(kubelet_dir, folder / "cdi")
        both = ["--kubeconfig", str(kubeconfig), "--node-name", self.name, "--kubelet-dir", str(kubelet_dir)]
        self.plugin = plugin_process.PluginProcess(
            folder, self.driver,
            [
                *both, "--cdi-dir", str(folder / "cdi"), "--host-cdi-dirs", str(folder / "none"),
                "--delivery", "envvar", "--runtime-class-check", "off", "--device-split-count", str(first.slots),
                "--health-interval", "0.5", "--health-hold", "2", "--proc-dir", str(self._proc),
            ],
        )  # fmt: skip
        self.monitor = monitor_process.MonitorProcess(
            folder, self.driver,
            [
                *both, "--proc-dir", str(self._proc), "--interval", "0.5", "--nvml-timeout", "0.5",
                "--stale-after", "2",
            ],
        )  # fmt: skip

    def use(self, pod: store.Object, container: str, gpu: int, pid: int, memory_bytes: int, percent: int) -> None:
        """Let a process of a container use a GPU."""
        (self._proc / str(pid)).mkdir()
        owner = f"pod{pod['metadata']['uid']}/{simple_kubelets.container_id(pod, container)}"
        (self._proc / str(pid) / "cgroup").write_text(f"0::/kubepods/{owner}\n")
        self.driver.processes.append(f"process {gpu} {pid} {memory_bytes} {percent}")
        self.driver.write()

    def wait_ready(self) -> None:
        """Wait until both processes are ready."""
        if not self._started.wait(_START_SECONDS):
            raise service_process.ServiceFailed(f"the processes of {self.name} do not start")
        for process in (self.plugin, self.monitor):
            process.wait_ready()

    async def run(self, keep: store.Store) -> None:
        """See `cluster.ServedNode`."""
        agent = asyncio.create_task(kubelet.NodeAgent(keep, self.name, self.kubelet).run())
        try:
            await asyncio.to_thread(self.plugin.start)
            await asyncio.to_thread(self.monitor.start)
            self._started.set()
            await agent
        finally:
            agent.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await agent
            for process in (self.monitor, self.plugin):
                process.kill()


def _fake_gpu(gpu: gpus.Gpu) -> fake_driver.Gpu:
    return fake_driver.Gpu(
        uuid=gpu.uuid,
        name=gpu.type,
        memory_mib=gpu.memory_mib,
        bus_id=f"00000000:{0x10 + gpu.index:02X}:00.0",
        minor=gpu.index,
    )
