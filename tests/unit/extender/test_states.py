"""What pods and nodes are, by the status of their objects and not by one word of it."""

from typing import Any

import msgspec
import pytest

from gpu_sharing.adapters import objects
from gpu_sharing.core import identifiers, records
from hamictl import views
from lab import gpus
from scheduler_extender import cluster_gauges, explaining, facts, node_conditions, read_api, settings
from scheduler_extender.fleet import census
from tests import inputs
from tests.unit.extender.test_verbs import A100, World, held, pod

A10 = gpus.Model("NVIDIA A10", 23_028)


def with_status(**status: Any) -> objects.Pod:
    body = held("p", "a", 0, 1_000)
    return msgspec.convert({**body, "status": {"phase": "Running", **status}}, objects.Pod)


@pytest.mark.parametrize(
    ("status", "words"),
    [
        ({}, ""),
        ({"containerStatuses": [{"name": "c", "state": {"running": {}}}]}, ""),
        ({"containerStatuses": [{"name": "c", "state": {"waiting": {"reason": "ContainerCreating"}}}]}, ""),
        ({"containerStatuses": [{"name": "c", "state": {"waiting": {"reason": "CrashLoopBackOff"}}}]},
         "CrashLoopBackOff"),
        ({"initContainerStatuses": [{"name": "i", "state": {"waiting": {"reason": "ErrImagePull"}}}]}, "ErrImagePull"),
        ({"initContainerStatuses": [{"name": "i", "state": {"terminated": {"exitCode": 0}}}]}, ""),
        ({"containerStatuses": [{"name": "c", "state": {"terminated": {"exitCode": 137}}}]}, "exit code 137"),
    ],
)  # fmt: skip
def test_a_pod_that_does_not_run_is_not_called_running(status: dict[str, Any], words: str) -> None:
    """Its owner would look for the fault elsewhere."""
    assert facts.trouble(with_status(**status)) == words


def test_a_container_that_the_device_plugin_refuses_is_failing() -> None:
    """Read API, `hamictl` and pages say so, until a later start succeeds."""
    world, api = served(gpus.gpu_node("a", A100, 1))
    body = held("p", "a", 0, 1_000)
    body["metadata"]["annotations"][records.BIND_PHASE] = records.PHASE_FAILED
    world.see(body)

    (shown,) = api._pods()  # what the path `pods` answers

    assert shown["trouble"] == "refused by the device plugin"
    assert (views.pod_rows([shown])[0]["STATE"], views.pod_rows([shown])[0]["WHY"]) == ("failing", shown["trouble"])
    body["metadata"]["annotations"][records.BIND_PHASE] = records.PHASE_SUCCESS
    world.see(body)
    assert views.pod_rows(api._pods())[0]["STATE"] == "running"
    world.mirror.forget_pod(identifiers.PodUid("uid-p"))
    assert world.mirror.troubles == {}


def served(*nodes: dict[str, Any]) -> tuple[World, read_api.ReadApi]:
    world = World(*nodes)
    explainer = explaining.Explainer(world.mirror, world.placer, world.teller, settings.Settings())
    unused: Any = None
    return world, read_api.ReadApi(world.mirror, explainer, unused, read_api.OpenGate(), lambda: True)


def unready(name: str = "down") -> dict[str, Any]:
    node = gpus.gpu_node(name, A100, 1)
    node["status"]["conditions"] = [{"type": "Ready", "status": "Unknown"}]
    return node


def cordoned() -> dict[str, Any]:
    node = gpus.gpu_node("kept-out", A100, 1)
    node["spec"] = {"unschedulable": True}
    return node


def test_a_node_that_nothing_can_go_to_is_neither_ok_nor_free() -> None:
    """Not ready, cordoned, and there a second time under an old name."""
    (ghost,) = inputs.documents("25-renamed-node.json")
    alive = gpus.gpu_node("node-01", A10, 1)
    world, _ = served(alive, ghost, unready(), cordoned(), gpus.gpu_node("good", A100, 1))
    books = world.mirror.ledger
    words = node_conditions.conditions(books)

    assert words == {"node-old": "not ready", "down": "not ready", "kept-out": "cordoned"}
    counts = {
        one.model: one for one in census.count(books.settle(), {}, node_conditions.columns(books, books.settle()))
    }
    assert (counts["NVIDIA A10"].gpus, counts["NVIDIA A10"].usable) == (2, 1)
    assert (counts["NVIDIA A100"].gpus, counts["NVIDIA A100"].usable) == (3, 1)
    assert world.filter(pod("daemon"), "kept-out")["NodeNames"] == ["kept-out"]  # It may tolerate that.


def test_two_nodes_with_the_same_gpus_are_both_not_ok() -> None:
    """No one knows which of them has the GPU."""
    (ghost,) = inputs.documents("25-renamed-node.json")
    ghost["status"]["conditions"][0]["status"] = "True"
    twin = {**ghost, "metadata": {**ghost["metadata"], "name": "twin"}}
    world, _ = served(ghost, twin)

    assert node_conditions.conditions(world.mirror.ledger) == {
        "node-old": "has the GPUs of twin", "twin": "has the GPUs of node-old",
    }  # fmt: skip


def test_the_read_api_and_hamictl_say_the_condition() -> None:
    """The state of a node is its object's status."""
    world, api = served(unready(), gpus.gpu_node("good", A100, 1))
    words = node_conditions.conditions(world.mirror.ledger)
    nodes = [api._node(name, words) for name in sorted(world.mirror.ledger.node_names())]

    rows = {row["NODE"]: row for row in views.node_rows(nodes)}

    assert (rows["down"]["STATE"], rows["down"]["LARGEST FREE"]) == ("not ready", "0 MiB")
    assert (rows["good"]["STATE"], rows["good"]["LARGEST FREE"]) == ("ok", "16,000 MiB")
    assert {row["NODE"]: row["HEALTH"] for row in views.gpu_rows(nodes, [], {})} == {"down": "not ready", "good": "ok"}


def test_explain_does_not_say_that_gpus_of_a_dead_node_fit() -> None:
    """Its owner would wait for a place that no one can use."""
    world, _ = served(unready(), cordoned())
    world.see(pod("p"))
    explainer = explaining.Explainer(world.mirror, world.placer, world.teller, settings.Settings())

    verdicts = explainer.explain(world.mirror.waiting[identifiers.PodUid("uid-p")]).verdicts

    assert [(one.node, one.code) for one in verdicts] == [
        ("down", "SCHED_NOT_OFFERED"),
        ("kept-out", "SCHED_NOT_OFFERED"),
    ]
    assert "its GPUs fit, but the node is not ready" in verdicts[0].sentence


def test_gauges_count_nothing_free_on_a_node_that_is_not_ready() -> None:
    """Capacity alerts would stay silent while nothing can be placed."""
    world, _ = served(unready())
    gauges = cluster_gauges.ClusterGauges(
        world.mirror, settings.Settings().resource_names, lambda _: None, lambda: True, world.clock
    )
    values = {one.name: [sample.value for sample in one.samples] for one in gauges.collect()}

    assert values["hami_scheduler_gpus_usable"] == [0]
    assert values["hami_scheduler_largest_free_bytes"] == [0]
