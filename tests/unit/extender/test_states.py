"""What a node and a pod are is said by their whole status, not by one bit of it."""

import asyncio
from typing import Any

import msgspec
import pytest

from gpu_sharing.adapters import objects
from gpu_sharing.core import allocations, identifiers, records
from hamictl import views
from lab import gpus
from scheduler_extender.cluster import from_objects
from scheduler_extender.decide import explaining
from scheduler_extender.fleet import facts, model_stats
from scheduler_extender.fleet.ledger import Ledger
from scheduler_extender.serve import read_api
from scheduler_extender.settings import Settings
from tests.support.extender_world import A100, World, held, pod

NOT_READY = {"conditions": [{"type": "Ready", "status": "Unknown"}]}


def node(name: str, **more: Any) -> dict[str, Any]:
    body = gpus.gpu_node(name, A100, 1)
    body["status"] |= more.pop("status", {})
    body["spec"] = more
    return body


@pytest.mark.parametrize(
    ("away", "phrase", "code"),
    [
        (node("b", status=NOT_READY), "node not ready", "SCHED_NODE_NOT_READY"),
        (node("b", unschedulable=True), "node cordoned", "SCHED_NODE_CORDONED"),
    ],
)
def test_a_node_that_takes_no_pods_does_not_count_as_free(away: dict[str, Any], phrase: str, code: str) -> None:
    """Its GPUs are there, and of no use to a pending pod."""
    world = World(node("a"), away)
    world.see(pod("p", {"nvidia.com/gpu": "1", "nvidia.com/gpumem": "16000"}))
    pending = world.listed("p")
    explainer = explaining.Explainer(world.core)

    (counted,) = model_stats.by_model(world.mirror.ledger.settle(), {})
    _, told = asyncio.run(explainer.explain(pending)).nodes

    assert (counted.gpus, counted.usable, counted.memory_mib, counted.largest_free_mib) == (2, 1, 16_000, 16_000)
    assert (told.message, told.code) == (phrase, code)


def test_a_pod_that_tolerates_a_cordon_is_placed_all_the_same() -> None:
    """kube-scheduler offers the node to those pods alone, such as a DaemonSet's."""
    world = World(node("b", unschedulable=True))

    assert world.filter(pod("p"), "b")["NodeNames"] == ["b"]


def test_a_refused_pod_is_told_of_a_node_that_was_not_offered_what_the_node_is() -> None:
    """Not that its GPU memory is short: nothing there would help."""
    world = World(node("a"), node("b", status=NOT_READY))
    world.see(held("other", "a", 0, 16_000))
    world.see(held("more", "b", 0, 16_000))

    world.filter(pod("p"), "a")

    assert "b: node not ready" in world.recorder.told[-1].note


@pytest.mark.parametrize(
    ("phase", "statuses", "shown"),
    [
        (records.PHASE_SUCCESS, [{"state": {"running": {}}}], "running"),
        (records.PHASE_ALLOCATING, [{"state": {"waiting": {"reason": "ContainerCreating"}}}], "starting"),
        (records.PHASE_SUCCESS, [{"state": {"waiting": {"reason": "CrashLoopBackOff"}}}], "CrashLoopBackOff"),
        (records.PHASE_ALLOCATING, [{"state": {"waiting": {"reason": "ImagePullBackOff"}}}], "ImagePullBackOff"),
        (records.PHASE_FAILED, [{"state": {"waiting": {"reason": "RunContainerError"}}}], from_objects.REFUSED),
    ],
)
def test_a_pod_whose_containers_do_not_run_is_not_shown_as_running(
    phase: str, statuses: list[dict[str, Any]], shown: str
) -> None:
    """The list must show which pods need help."""
    body = held("p", "a", 0, 4_000)
    body["metadata"]["annotations"][records.BIND_PHASE] = phase
    body["status"] = {"phase": "Running", "containerStatuses": statuses}

    seen = from_objects.pod_facts(msgspec.convert(body, objects.Pod), Settings().resource_names)

    assert views._pod_state(read_api._bound(seen)) == shown


def test_a_allocation_of_nothing_comes_and_goes() -> None:
    """Beside one of something on the same GPU, in whichever order they end."""
    ledger = Ledger()
    uuid, name = identifiers.GpuUuid("GPU-x"), identifiers.NodeName("a")
    for uid, allocation in (("nothing", allocations.NOTHING), ("something", allocations.Allocation(1, 1_000))):
        key = identifiers.PodKey(f"default/{uid}")
        ledger.set_bound(facts.BoundPod(identifiers.PodUid(uid), key, name, allocated={uuid: allocation}))

    ledger.remove_pod(identifiers.PodUid("something"))
    ledger.remove_pod(identifiers.PodUid("nothing"))

    assert ledger.pod_count == 0


def test_a_crash_loop_frees_nothing_and_wakes_no_pod() -> None:
    """Its status changes every few seconds, and what it holds does not."""
    world = World(node("a"))
    body = held("p", "a", 0, 4_000)
    world.see(body)
    generation = world.mirror.ledger.generation

    body["status"] = {"phase": "Running", "containerStatuses": [{"state": {"waiting": {"reason": "CrashLoopBackOff"}}}]}
    world.see(body)

    assert world.mirror.ledger.generation == generation
    known = world.mirror.ledger.pod(identifiers.PodUid("uid-p"))
    assert known is not None
    assert known.not_running == "CrashLoopBackOff"
