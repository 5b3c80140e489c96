"""Every container starts with its own record's slice, on a real kubelet and containerd, whatever dies in between."""

import pathlib
import time
from collections.abc import Callable, Iterator

import pytest

from tests.contracts import kubelet as contract
from tests.e2e import gpu_node

PODS = 30


@pytest.fixture(scope="module")
def node(programs: pathlib.Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[gpu_node.GpuNode]:
    with gpu_node.running(tmp_path_factory.mktemp("node")) as site:
        yield site


def undisturbed(node: gpu_node.GpuNode) -> None:
    """Nothing happens."""


def plugin_killed(node: gpu_node.GpuNode) -> None:
    """A crash of the plugin, and its container's restart a moment later."""
    node.plugin.kill()
    time.sleep(1.0)
    node.plugin.start()


def kubelet_restarted(node: gpu_node.GpuNode) -> None:
    """A crash of the kubelet, and its service's restart."""
    node.node.kill_kubelet()
    node.node.start_kubelet()


@pytest.mark.parametrize("disturb", [undisturbed, plugin_killed, kubelet_restarted], ids=lambda one: one.__name__)
def test_thirty_pods_at_once_get_each_its_own(
    node: gpu_node.GpuNode, disturb: Callable[[gpu_node.GpuNode], None]
) -> None:
    """All of one shape, with different records, an init container and two containers each: no mix-up in 90 starts.

    The kubelet rejects for good a pod that it admits while the plugin is away. Such a pod is made again under its
    name, as its controller would, which must not confuse the two either.
    """
    bodies = {}
    for number in range(PODS):
        name = f"{disturb.__name__.replace('_', '-')}-{number}"
        bodies[name] = gpu_node.pod(
            name,
            gpu_node.container("c0", 200 + number),
            gpu_node.container("c1", 300 + number, cores=1),
            init=[gpu_node.container("prepare", 100 + number, command=gpu_node.SHOW_ONCE)],
        )

    node.create(*bodies.values())
    node.wait("some have started", lambda: sum("c0" in str(pod["status"]) for pod in node.pods()) > PODS // 3)
    disturb(node)
    rejected = set()
    while failed := node.wait_settled(*bodies):
        rejected |= failed
        node.delete_and_wait(*failed)
        node.create(*(bodies[name] for name in failed))

    node.wait("all have told", lambda: not any("written nothing" in one for one in node.mismatches()), 60)
    assert node.mismatches() == []
    assert rejected == set() or disturb is not undisturbed
    contract.check_books(node.node.kubelet_dir, node.pod(next(iter(bodies))))
    told = {event["regarding"]["name"] for event in node.events("DeviceAllocated")}
    assert set(bodies) <= told
    node.delete_all()
