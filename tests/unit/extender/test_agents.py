"""Who is there: registered nodes, device plugins and monitors, as `/healthz` of the extender lists them."""

import msgspec

from gpu_sharing.adapters import objects
from lab import gpus
from scheduler_extender.cluster.agents import LABELS, MOST_NAMES
from tests.support.extender_world import World

STARTED = "2026-01-01T00:00:00Z"


def agent_pod(name: str, node: str, *, namespace: str = "hami-system", **ready: bool) -> objects.Pod:
    """A pod of the agents whose containers run, each ready or not."""
    statuses = [
        {"name": name, "ready": is_ready, "state": {"running": {"startedAt": STARTED}}}
        for name, is_ready in ready.items()
    ]
    body = {
        "metadata": {"name": name, "namespace": namespace, "uid": f"uid-{name}", "labels": {**LABELS, "x": "y"}},
        "spec": {"nodeName": node, "containers": [{"name": "nvidia"}, {"name": "monitor"}, {"name": "mps"}]},
        "status": {"phase": "Running", "containerStatuses": statuses},
    }
    return msgspec.convert(body, objects.Pod)


def test_nodes_plugins_and_monitors_are_listed_with_their_ages_what_is_not_ready_first() -> None:
    """One look shows which node lacks its plugin."""
    world = World(*(gpus.gpu_node(name, gpus.A100, 1) for name in ("n1", "n2")), gpus.gpu_node("cpu", gpus.A100, 0))
    mirror = world.mirror
    mirror.pods.changed(agent_pod("p1", "n1", nvidia=True, monitor=True))
    mirror.pods.changed(agent_pod("p2", "n2", nvidia=False, monitor=True))

    found = mirror.agents.summary()

    assert found["registeredNodes"]["count"] == 2
    assert [one["name"] for one in found["registeredNodes"]["names"]] == ["n1", "n2"]
    assert all(one["ageSeconds"] >= 0 for one in found["registeredNodes"]["names"])
    plugins, monitors = found["plugins"], found["monitors"]
    assert (plugins["count"], plugins["ready"], monitors["count"], monitors["ready"]) == (2, 1, 2, 2)
    assert [(one["node"], one["pod"], one["ready"]) for one in plugins["names"]] == [
        ("n2", "hami-system/p2", False), ("n1", "hami-system/p1", True),
    ]  # fmt: skip
    assert all(one["ageSeconds"] is not None for one in plugins["names"])


def test_a_container_that_does_not_run_is_listed_without_an_age() -> None:
    """A plugin that crashes is there, and not ready."""
    world = World()
    world.mirror.pods.changed(agent_pod("p1", "n1", monitor=True))
    (plugin,) = world.mirror.agents.summary()["plugins"]["names"]
    assert (plugin["ready"], plugin["ageSeconds"]) == (False, None)


def test_what_is_gone_is_listed_no_more() -> None:
    """By a deletion, by a list that lacks it, and by the end of the pod."""
    world = World(gpus.gpu_node("n1", gpus.A100, 1))
    mirror = world.mirror

    def counts() -> list[int]:
        return [one["count"] for one in mirror.agents.summary().values()]

    pod = agent_pod("p1", "n1", nvidia=True, monitor=True)
    mirror.pods.changed(pod)
    assert counts() == [1, 1, 1]
    mirror.pods.deleted(pod)
    assert counts() == [1, 0, 0]
    mirror.pods.changed(pod)
    list(mirror.pods.replaced([], 0.0))
    assert counts() == [1, 0, 0]
    mirror.pods.changed(pod)
    pod.status = objects.PodStatus(phase="Failed")
    mirror.pods.changed(pod)
    assert counts() == [1, 0, 0]
    list(mirror.nodes.replaced([], 0.0))
    assert counts() == [0, 0, 0]


def test_a_tenants_pod_with_our_labels_is_no_agent() -> None:
    """Where our namespace is known, labels of others have no effect."""
    world = World(leader_lease="hami-system/hami-scheduler")
    world.mirror.pods.changed(agent_pod("p1", "n1", namespace="tenant", nvidia=True))
    world.mirror.pods.changed(agent_pod("p2", "n1", nvidia=True))
    assert [one["pod"] for one in world.mirror.agents.summary()["plugins"]["names"]] == ["hami-system/p2"]


def test_names_are_capped_and_the_count_is_not() -> None:
    """A probe of a cluster of thousands of nodes answers with a page, not with a list of all."""
    world = World(*(gpus.gpu_node(f"n{number}", gpus.A100, 1) for number in range(MOST_NAMES + 5)))
    for number in range(MOST_NAMES + 5):
        world.mirror.pods.changed(agent_pod(f"p{number}", f"n{number}", nvidia=True, monitor=True))
    for one in world.mirror.agents.summary().values():
        assert (one["count"], len(one["names"])) == (MOST_NAMES + 5, MOST_NAMES)
