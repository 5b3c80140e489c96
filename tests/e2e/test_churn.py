"""A day in the life of a device plugin, in minutes: nothing grows, nothing is left behind."""

import asyncio
import pathlib
import sys

import pytest

from lab import kinds
from tests.component import gpu_node

HOURS, PODS_AN_HOUR, AT_ONCE = 24, 417, 30
FORGET_SECONDS = 3
MOST_GROWTH_MIB = 4.0


def resident_mib(pid: int) -> float:
    return int(pathlib.Path(f"/proc/{pid}/statm").read_text().split()[1]) * 4096 / 2**20


def open_files(pid: int) -> int:
    return len(list(pathlib.Path(f"/proc/{pid}/fd").iterdir()))


async def an_hour(node: gpu_node.GpuNode, hour: int) -> int:
    """Pods come, run and go, as many at a time as the GPUs hold. Returns how many ran with their own slice."""
    slots = asyncio.Semaphore(AT_ONCE)
    keep = node.server.app.store
    right = 0

    async def live(number: int) -> None:
        nonlocal right
        async with slots:
            name, memory = f"pod-{hour}-{number}", 100 + number
            pod = keep.create(kinds.PODS, "default", node.body(name, f"{number % 4}:{memory}:1"))
            await node.kubelet.admit(pod)
            started = await node.kubelet.start_container(pod, pod["spec"]["containers"][0])
            right += started.environment["CUDA_DEVICE_MEMORY_LIMIT_0"] == f"{memory}m"
            key = ("default", name)
            node.kubelet.release(pod["metadata"]["uid"])
            keep.remove(kinds.PODS, key, keep.get(kinds.PODS, *key))

    await asyncio.gather(*(live(number) for number in range(PODS_AN_HOUR)))
    return right


def test_a_day_of_churn_leaves_nothing_behind(capsys: pytest.CaptureFixture[str]) -> None:
    """10,000 pods, a fault and a restart of the kubelet an hour: flat memory, no leaked file, socket or directory."""
    with gpu_node.running(4, "--forget-after", str(FORGET_SECONDS), "--health-hold", "0") as node:
        memory, files = [], []
        for hour in range(HOURS):
            assert node.do(an_hour(node, hour), 300) == PODS_AN_HOUR
            node.driver.report_xid(hour % 4, 31)
            node.do(node.kubelet.restart())
            node.wait("the plugin serves again", lambda: node.allocatable() == 40)
            memory.append(resident_mib(node.plugin.pid))
            files.append(open_files(node.plugin.pid))
        containers = node.plugin.hook_path / "vgpu" / "containers"
        node.wait("nothing is left", lambda: not [*node.cdi_dir.iterdir(), *containers.iterdir()], 60)

        assert memory[-1] - memory[HOURS // 4] < MOST_GROWTH_MIB, memory
        # Connections to the API server come and go by the burst; a leak at each restart would be twice as much.
        assert min(files[-6:]) - files[HOURS // 4] < (HOURS - HOURS // 4) / 2, files
        sockets = list((node.folder / "kubelet" / "device-plugins").glob("hami-*"))
        assert len(sockets) == 1
        with capsys.disabled():
            sys.stdout.write(f"\nresident MiB by hour: {[round(one, 1) for one in memory]}; open files: {files}\n")
