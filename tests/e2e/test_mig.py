"""Pods that request MIG instances, on a real kubelet: placed by slices, made, given to one container and taken away."""

import json
import pathlib
from collections.abc import Iterator
from typing import Any

import pytest

from gpu_sharing.core import records
from tests.e2e import gpu_node

MIG = {"nvidia.com/vgpu-mode": "mig"}


@pytest.fixture(scope="module")
def node(programs: pathlib.Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[gpu_node.GpuNode]:
    with gpu_node.running(
        tmp_path_factory.mktemp("node"), 2, "--isolation", "mig", "--forget-after", "1", mig=True
    ) as site:
        yield site


def divided(name: str, memory_mib: int, **more: Any) -> dict[str, Any]:
    body = gpu_node.pod(name, gpu_node.container("c", memory_mib, **more))
    return {**body, "metadata": {"name": name, "annotations": MIG}}


def instances(node: gpu_node.GpuNode, *names: str) -> list[tuple[str, str, set[int]]]:
    """GPU, profile and slices of every instance that a pod's record names."""
    return [
        (item["gpuUUID"], item["profile"], set(range(item["placement"]["start"], sum(item["placement"].values()))))
        for name in names
        for item in json.loads(node.pod(name)["metadata"]["annotations"][records.MIG_ALLOCATIONS])
    ]


def seen(node: gpu_node.GpuNode, name: str) -> list[str]:
    """What the container was shown, from its own environment."""
    log = node.node.log(node.pod(name), "c")
    variables = dict(line.split("=", 1) for line in log.partition("==mounts")[0].splitlines() if "=" in line)
    return variables.get("HAMI_GPUS", "").split(",")


def capability_nodes(node: gpu_node.GpuNode, name: str) -> list[str]:
    """The nodes below /dev/nvidia-caps that the container has."""
    log = node.node.log(node.pod(name), "c")
    return [line for line in log.partition("==caps")[2].split() if line.startswith("nvidia-cap")]


def test_each_container_gets_instances_of_its_own_that_do_not_overlap(node: gpu_node.GpuNode) -> None:
    """Two GPUs are filled to the last slice that anybody can use; one more waits, and says why, until one is freed."""
    bodies = [divided("large-0", 30_000), divided("pair", 15_000, count=2), divided("large-1", 30_000, cores=50)]
    bodies += [divided(f"small-{number}", 5_000) for number in range(3)]
    names = [body["metadata"]["name"] for body in bodies]
    for body in bodies:
        node.create(body)  # In this order: with the small ones first the pair would find no room.
    node.wait_running(*names)

    held = instances(node, *names)
    assert sorted(profile for _, profile, _ in held) == (["1g.10gb"] * 3 + ["2g.20gb"] * 2 + ["3g.40gb", "4g.40gb"]), (
        held
    )
    for gpu in {uuid for uuid, _, _ in held}:
        slices = [taken for uuid, _, taken in held if uuid == gpu]
        assert len(set().union(*slices)) == sum(map(len, slices)), held
    # Without its two capability nodes an instance cannot be used.
    assert all(len(capability_nodes(node, name)) == 2 * len(seen(node, name)) for name in names)
    assert len({one for name in names for one in capability_nodes(node, name)}) == 2 * len(held)
    shown = [uuid for name in names for uuid in seen(node, name)]
    assert len(set(shown)) == len(shown) == len(held)
    assert all(uuid.startswith("MIG-made-") for uuid in shown)

    node.create(divided("late", 30_000))
    node.wait("the late one is told why", lambda: _told(node, "late"))
    assert "no MIG instance free (requested 30000MB, available " in _told(node, "late")
    node.delete("large-0")
    node.wait_running("late")
    assert seen(node, "late")[0].startswith("MIG-made-")


def test_a_pod_that_does_not_ask_for_mig_is_not_placed_there(node: gpu_node.GpuNode) -> None:
    """It would see no GPU at all, or all of them."""
    node.create(gpu_node.pod("plain", gpu_node.container("c", 1_000)))

    node.wait("it is told why", lambda: _told(node, "plain"))
    assert "GPU mode mismatch (requested sharing, has mig)" in _told(node, "plain")


def _told(node: gpu_node.GpuNode, name: str) -> str:
    notes = [
        event["note"]
        for event in node.events("FailedScheduling")
        if event["regarding"].get("name") == name and event.get("action") == "GPUScheduling"
    ]
    return notes[-1] if notes else ""
