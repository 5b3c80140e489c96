"""What takes long is computed beside the loop that answers kube-scheduler, or in pieces on it."""

import asyncio
import itertools
import threading
from typing import Any

import msgspec
import pytest

from gpu_sharing.adapters import objects, watching
from gpu_sharing.core import identifiers, preemption
from lab import gpus
from scheduler_extender import app, worker
from scheduler_extender.decide import explaining, wake_order
from scheduler_extender.settings import Settings
from tests.support.extender_world import A100, World, held, pod
from tests.unit.extender.test_preempting import Scene, urgent

LARGE = {"nvidia.com/gpu": "1", "nvidia.com/gpumem": "12000"}


def full_nodes(count: int) -> World:
    names = [f"n{number}" for number in range(count)]
    world = World(*(gpus.gpu_node(name, A100, 1) for name in names))
    for name in names:
        world.see(held(f"on-{name}", name, 0, 8_000))
    return world


def test_an_explanation_stops_at_its_budget_and_says_where() -> None:
    """A pod of 2 GPUs on 60 full nodes kept kube-scheduler waiting for 13 s."""
    world = full_nodes(5)
    world.see(pod("p", LARGE))
    ticks = itertools.count(0.0, 0.4)
    explainer = explaining.Explainer(world.core, clock=lambda: next(ticks))

    answer = asyncio.run(explainer.explain(world.listed("p")))

    looked = [bool(one.waits_for) for one in answer.nodes]
    assert looked == [one.examined for one in answer.nodes]
    assert 0 < sum(looked) < 5
    assert all("GPU memory insufficient" in one.message for one in answer.nodes)


def threads_of_choices(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The names of the threads in which victims are chosen from now on."""
    names: list[str] = []
    right = preemption.choose

    def choose(*arguments: Any) -> Any:
        names.append(threading.current_thread().name)
        return right(*arguments)

    monkeypatch.setattr(preemption, "choose", choose)
    return names


def test_victims_are_chosen_in_another_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    """For explain, for preemption and for kube-scheduler's preempt call alike."""
    scene = Scene("a")
    scene.holder("low", "a", 0, 15_000)
    scene.holder("other", "a", 1, 15_000)
    scene.put(urgent())
    scene.refuse("urgent")
    world = scene.world
    waiting = world.listed("urgent")
    explainer = explaining.Explainer(world.core)
    asked = {"Pod": scene.api.pods["urgent"], "NodeNameToMetaVictims": {"a": {"Pods": []}}}
    names = threads_of_choices(monkeypatch)

    asyncio.run(explainer.explain(waiting))
    world.preempt(asked)
    assert scene.step()

    assert len(names) >= 3
    assert all(name.startswith("worker") for name in names)


def test_a_queue_that_is_full_is_refused_and_not_made_longer() -> None:
    """Callers of the read API must not take the one thread that preemption needs."""
    beside, begun, end = worker.Worker(), threading.Event(), threading.Event()

    def wait() -> None:
        begun.set()
        end.wait(10)

    async def ask() -> None:
        tasks = [asyncio.create_task(beside.run(wait)) for _ in range(16)]
        await asyncio.to_thread(begun.wait, 10)
        with pytest.raises(worker.Busy):
            await beside.run(wait)
        end.set()
        await asyncio.gather(*tasks)

    asyncio.run(ask())


def test_waking_thousands_of_pods_lets_others_have_their_turn_after_each() -> None:
    """3,000 refused pods of different sizes took 2.9 s in one piece."""
    world = full_nodes(1)
    for number in range(20):
        assert world.filter(pod(f"p{number}", {**LARGE, "nvidia.com/gpumem": str(12_000 + number)}), "n0")
        world.see(pod(f"p{number}", {**LARGE, "nvidia.com/gpumem": str(12_000 + number)}))
    world.mirror.forget_pod(identifiers.PodUid("uid-on-n0"))

    steps = list(wake_order.pods_to_wake(world.core))

    assert sum(step is None for step in steps) == 20
    assert [step.key for step in steps if step is not None] == ["default/p0"]


def test_a_list_is_taken_in_pod_by_pod() -> None:
    """50,000 of them at once kept every call waiting for a second."""
    world = full_nodes(1)
    pods = [msgspec.convert(pod(f"p{number}"), objects.Pod) for number in range(5)]

    steps = world.mirror.pods.replaced(pods, 0.0)

    assert len(list(steps)) >= len(pods)
    assert len(world.pending) == 5


def test_it_is_ready_only_once_every_node_is_counted() -> None:
    """The first filter would else count all nodes, while kube-scheduler waits."""

    class Client:
        observe: Any = None

    async def states() -> list[bool]:
        client: Any = Client()
        extender = app.Extender(Settings(), client, 0.0)
        for watch in extender._watches.values():
            assert isinstance(watch, watching.Reflector)
            watch.synced = True
        before = extender._ready(), extender._components()["ledger"].healthy
        extender._settled = True
        return [*before, extender._ready(), extender._components()["ledger"].healthy]

    assert asyncio.run(states()) == [False, False, True, True]
