"""MPS as the chart runs it, on a real kubelet and containerd; a program is in the place of NVIDIA's control daemon."""

import json
import pathlib
from collections.abc import Iterator
from typing import Any

import pytest

from gpu_sharing.core import records
from lab.real import control_plane
from tests.e2e import gpu_node, installed_chart
from tests.e2e import site as sites

DAEMON, PLUGIN = "hami-mps-0", "hami-device-plugin-0"
# What the control daemon's commands do to its folder; the images have Python and no shell.
CONTROL = """#!/usr/bin/python3
import os, pathlib, sys, time
folder = pathlib.Path(os.environ["CUDA_MPS_PIPE_DIRECTORY"])
if sys.argv[1:] == ["-f"]:
    (folder / "control").write_text(str(time.time()))
    while (folder / "control").exists():
        time.sleep(0.1)
    sys.exit(0)
if not (folder / "control").exists():
    sys.exit("cannot find the daemon")
for line in sys.stdin:
    with (folder / "commands").open("a") as commands:
        commands.write(line)
    if line.startswith("get_default"):
        print("100.0")
    elif line.startswith("quit"):
        (folder / "control").unlink()
"""


@pytest.fixture(scope="module")
def world(programs: pathlib.Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[installed_chart.World]:
    folder = tmp_path_factory.mktemp("node")
    control = folder / "nvidia-cuda-mps-control"
    control.write_text(CONTROL)
    control.chmod(0o755)
    values = f"devicePlugin.isolation=mps,devicePlugin.mps.root={folder}/mps,devicePlugin.mps.sharedMemory=64"
    tools = {"/usr/bin/nvidia-cuda-mps-control": control}
    with installed_chart.installed(programs, folder, values, tools) as found:
        found.start("hami-scheduler-0", found.workload("deployments", "hami-scheduler"))
        found.start(PLUGIN, found.workload("daemonsets", "hami-device-plugin"))
        for name in ("hami-scheduler-0", PLUGIN):
            found.wait_ready(name)
        yield found


def gpus(world: installed_chart.World) -> set[tuple[str, bool]]:
    """How the node's GPUs are shared, and whether they can be used."""
    node = world.plane.api("GET", f"/api/v1/nodes/{control_plane.NODE_NAME}")
    text = node["metadata"]["annotations"].get(records.INVENTORY, "[]")
    return {(gpu.mode, gpu.healthy) for gpu in records.decode_inventory(text)}


def compute_modes(world: installed_chart.World) -> bytes:
    """The compute mode of each GPU, as the driver has it."""
    path = pathlib.Path(f"{world.driver.path}.modes")
    return path.read_bytes() if path.exists() else b""


def pod(world: installed_chart.World, name: str) -> Any:
    return world.plane.api("GET", f"{gpu_node.PODS}/{name}")


def status(world: installed_chart.World, name: str) -> Any:
    return pod(world, name)["status"]


def test_clients_are_served_as_long_as_the_daemon_lives_whatever_happens_to_the_plugin(
    world: installed_chart.World,
) -> None:
    """With the daemon every client ends: nothing but its own pod may end it."""
    sites.wait_for(lambda: gpus(world) == {("mps", False)}, 60, lambda: str(gpus(world)))

    world.start(DAEMON, world.workload("daemonsets", "hami-mps"))
    world.wait_ready(DAEMON)
    sites.wait_for(
        lambda: gpus(world) == {("mps", True)}, 60, lambda: world.kubectl("logs", "-n", "hami-system", DAEMON)
    )
    assert compute_modes(world) == bytes([3, 3])  # EXCLUSIVE_PROCESS
    pipe = world.folder / "mps" / "pipe"
    started = (pipe / "control").read_text()

    body = gpu_node.pod("client", gpu_node.container("c", 4000, 30, command=gpu_node.SHOW))
    world.plane.api("POST", gpu_node.PODS, body)
    sites.wait_for(
        lambda: status(world, "client")["phase"] == "Running", 60, lambda: json.dumps(status(world, "client"))
    )
    sites.wait_for(lambda: "==end" in world.node.log(pod(world, "client"), "c"), 60)
    shown = world.node.log(pod(world, "client"), "c")
    assert f"CUDA_MPS_PIPE_DIRECTORY={pipe}" in shown
    assert "CUDA_MPS_PINNED_DEVICE_MEM_LIMIT=0=4000M" in shown
    memory = next(line for line in shown.splitlines() if " /dev/shm " in line and " - tmpfs " in line)
    assert "size=65536k" in memory

    world.kubectl("delete", "pod", "-n", "hami-system", PLUGIN, "--wait")
    world.start(PLUGIN, world.workload("daemonsets", "hami-device-plugin"))
    world.wait_ready(PLUGIN)
    sites.wait_for(lambda: gpus(world) == {("mps", True)}, 60, lambda: str(gpus(world)))
    assert (pipe / "control").read_text() == started
    assert status(world, "client")["containerStatuses"][0]["restartCount"] == 0


def test_the_end_of_the_daemon_gives_the_gpus_back_as_they_were(world: installed_chart.World) -> None:
    """Exclusive GPUs without a daemon would serve one process each."""
    world.kubectl("delete", "pod", "-n", "hami-system", DAEMON, "--wait")

    assert compute_modes(world) == bytes([0, 0])
    sites.wait_for(lambda: gpus(world) == {("mps", False)}, 60, lambda: str(gpus(world)))
