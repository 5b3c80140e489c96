"""How long pods are pending: until they are bound, and those that still are."""

import asyncio
import datetime
import time
from typing import Any

from gpu_sharing.core import error_codes, gangs, identifiers
from lab import gpus
from scheduler_extender.act import binding
from scheduler_extender.metrics import NEVER_REJECTED
from scheduler_extender.report import cluster_gauges
from tests.support import fakes
from tests.support.extender_world import A100, World, bind_call, held, pod

GATE = [{"name": "example.com/queue"}]


def created(name: str, seconds_ago: float, **more: Any) -> dict[str, Any]:
    """Return a pod of some age."""
    body = pod(name, **more)
    moment = datetime.datetime.fromtimestamp(time.time() - seconds_ago, datetime.UTC)
    body["metadata"]["creationTimestamp"] = moment.strftime("%Y-%m-%dT%H:%M:%SZ")
    return body


def bind(world: World, body: dict[str, Any]) -> None:
    """Bind a pod to node a, as kube-scheduler requests it."""
    api: Any = fakes.FakeApi()
    api.put(body)
    binder = binding.Binder(api, world.core, world.decision_events, lambda: True)
    assert asyncio.run(binder.bind(bind_call(body, "a"))).code is None


def observed(world: World) -> dict[str, tuple[float, float]]:
    """Return number and sum of the pending times of bound pods, by reason."""
    (family,) = world.core.metrics.pending_seconds.collect()
    values = {(one.name.rpartition("_")[2], one.labels["error_code"]): one.value for one in family.samples}
    reasons = {reason for kind, reason in values if kind == "count"}
    return {reason: (values["count", reason], values["sum", reason]) for reason in reasons}


def oldest(world: World) -> dict[str, float]:
    """Return the age of the oldest pending pod, by reason."""
    families = cluster_gauges.ClusterGauges(world.core, lambda: True).collect()
    (ages,) = (one for one in families if one.name == "hami_scheduler_oldest_pending_pod_age_seconds")
    return {one.labels["error_code"]: one.value for one in ages.samples}


def test_a_bound_pod_counts_from_its_creation_by_the_reason_that_held_it_up_last() -> None:
    """Users wait from `kubectl apply` on, also while the extender restarts; the reason says what to buy or change."""
    world = World(gpus.gpu_node("a", A100, 1))
    world.see(held("x", "a", 0, A100.memory_mib))
    late, quick = created("late", 300), created("quick", 2)
    world.see(late)
    world.filter(late, "a")
    world.mirror.forget_pod(identifiers.PodUid("uid-x"))
    world.filter(late, "a")  # It fits now; what held it up is still known.

    bind(world, late)
    bind(world, quick)

    found = observed(world)
    assert found[error_codes.INSUFFICIENT_GPU_MEMORY][0] == found[NEVER_REJECTED][0] == 1
    assert 300 <= found[error_codes.INSUFFICIENT_GPU_MEMORY][1] < 400
    assert 2 <= found[NEVER_REJECTED][1] < 100


def test_time_behind_a_gate_of_another_program_is_not_ours() -> None:
    """A queue that holds a pod for a day is no fault of scheduling, and must not page anybody."""
    world = World(gpus.gpu_node("a", A100, 1))
    world.see(created("p", 86_400, schedulingGates=GATE))
    assert max(oldest(world).values()) < 100
    opened = created("p", 86_400)
    world.see(opened)

    assert max(oldest(world).values()) < 100
    bind(world, opened)
    assert observed(world)[NEVER_REJECTED][1] < 100


def test_time_behind_the_gate_of_a_gang_is_ours() -> None:
    """The extender opens it itself, once the whole gang has a place."""
    world = World(gpus.gpu_node("a", A100, 1))
    world.see(created("p", 600, schedulingGates=[{"name": gangs.GATE}]))
    assert max(oldest(world).values()) >= 600


def test_the_age_of_the_oldest_pending_pod_is_known_by_reason() -> None:
    """A pod that never starts is in no histogram of bound pods."""
    world = World(gpus.gpu_node("a", A100, 1))
    world.see(held("x", "a", 0, A100.memory_mib))
    for name, age in (("young", 60), ("old", 900)):
        body = created(name, age)
        world.see(body)
        world.filter(body, "a")
    world.see(created("other", 5_000, schedulerName="default-scheduler"))

    found = oldest(world)

    assert found.keys() == {error_codes.INSUFFICIENT_GPU_MEMORY, cluster_gauges.UNDECIDED}
    assert 900 <= found[error_codes.INSUFFICIENT_GPU_MEMORY] < 1_000
    assert found[cluster_gauges.UNDECIDED] == 0


def test_a_gated_pod_is_counted_as_gated() -> None:
    """An alert on the length of the queue must not count pods that another program keeps back."""
    world = World(gpus.gpu_node("a", A100, 1))
    world.see(created("p", 1, schedulingGates=GATE))
    families = cluster_gauges.ClusterGauges(world.core, lambda: True).collect()
    (counts,) = (one for one in families if one.name == "hami_scheduler_pods_pending")
    assert {one.labels["error_code"]: one.value for one in counts.samples} == {
        error_codes.GATED: 1,
        cluster_gauges.UNDECIDED: 0,
    }


def test_a_pod_whose_creation_is_unknown_is_not_measured() -> None:
    """A time since 1970 would spoil every average."""
    world = World(gpus.gpu_node("a", A100, 1))
    body = pod("p")
    world.see(body)
    bind(world, body)
    assert observed(world) == {NEVER_REJECTED: (0, 0)}
    assert oldest(world) == {cluster_gauges.UNDECIDED: 0}
