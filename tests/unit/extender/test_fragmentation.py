"""How much a placement takes from what other requests could still use."""

import asyncio
import logging
import random
from collections.abc import Sequence
from typing import Any

import msgspec
import numpy as np
import orjson
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gpu_sharing.adapters import kubernetes, objects
from gpu_sharing.core import allocations, errors, identifiers, placement, policies, records
from gpu_sharing.core.request_mix import Shape
from lab import gpus
from scheduler_extender.act import mix_keeper
from scheduler_extender.cluster import pending
from scheduler_extender.decide import packing, verbs
from scheduler_extender.fleet import facts, fragmentation, hole_values, node_reserve, prices
from tests.support.extender_world import World, pod

AWARE: dict[str, Any] = {
    "node_policy": policies.LEAST_FRAGMENTING_NODE,
    "gpu_policy": policies.gpu_policy("fragmentation-aware", "test"),
}
A100, T4 = gpus.Model("NVIDIA A100", 40_000), gpus.Model("Tesla T4", 16_000)


def limits(mib: int = 0, cores: int = 0, count: int = 1) -> dict[str, str]:
    found = {"nvidia.com/gpu": str(count)}
    if mib:
        found["nvidia.com/gpumem"] = str(mib)
    if cores:
        found["nvidia.com/gpucores"] = str(cores)
    return found


def learned(world: World, shares: dict[Shape, float]) -> World:
    """The world, having learned that mix."""
    for shape, share in shares.items():
        world.placer.packing.mix.count(shape, share)
    world.placer.packing.fit()
    return world


def placed(world: World, name: str, asked: dict[str, str], nodes: Sequence[str], **more: Any) -> tuple[str, list[str]]:
    """Place a pod as kube-scheduler would. Returns its node and its GPUs."""
    body = pod(name, asked, **more)
    world.see(body)
    fitting = world.filter(body, *nodes)["NodeNames"]
    assert fitting
    scores = world.prioritize(body, *fitting)
    node = max(fitting, key=lambda one: scores[one])
    listed = world.listed(name)
    assert isinstance(listed, pending.PendingPod)
    answer = world.placer.place_on(listed, identifiers.NodeName(node), nominations=False)
    assert isinstance(answer, placement.Placement)
    uuids = [str(share.uuid) for shares in answer.shares for share in shares]
    body["metadata"]["annotations"] |= records.pod_annotations(
        answer.shares, identifiers.NodeName(node), 0, identifiers.DecisionId("d")
    )
    body["spec"]["nodeName"] = node
    body["metadata"]["resourceVersion"] = "2"
    world.see(body)
    return node, uuids


def test_what_any_gpu_serves_does_not_take_the_gpus_that_others_need() -> None:
    """Pods that name the T4 need the only T4; a small pod without a wish fits there best, and goes elsewhere."""
    t4_only = Shape(1, memory_mib=8000, use_types=("t4",))
    world = World(gpus.gpu_node("big", A100, 1), gpus.gpu_node("small", T4, 1), **AWARE)
    learned(world, {t4_only: 5.0, Shape(1, memory_mib=8000): 5.0})

    assert placed(world, "any", limits(8000), ["big", "small"])[0] == "big"


def test_a_shared_gpu_is_filled_before_an_empty_one_is_begun() -> None:
    """Where whole GPUs are requested too, an empty GPU is worth more than a hole."""
    world = World(gpus.gpu_node("n", A100, 4), **AWARE)
    learned(world, {Shape(1, memory_percent=100, cores_percent=100): 1.0, Shape(1, memory_mib=10_000): 1.0})
    chosen = [placed(world, f"p{number}", limits(10_000), ["n"])[1][0] for number in range(4)]
    assert len(set(chosen)) == 1


def test_the_hole_that_is_left_is_one_that_others_fill() -> None:
    """30,000 of 40,000 MiB leave room for a pod of 10,000; 25,000 leave 5,000 MiB that no pod of this mix can use."""
    world = World(gpus.gpu_node("n", A100, 2), **AWARE)
    learned(
        world, {Shape(1, memory_mib=30_000): 1.0, Shape(1, memory_mib=10_000): 1.0, Shape(1, memory_mib=25_000): 0.2}
    )
    first = placed(world, "a", limits(30_000), ["n"])[1]
    second = placed(world, "b", limits(25_000), ["n"])[1]
    assert first != second
    assert placed(world, "c", limits(10_000), ["n"])[1] == first


def test_a_node_that_big_requests_need_is_left_to_them() -> None:
    """Small pods go to the other nodes as long as they fit there."""
    names = [f"n{number}" for number in range(4)]
    world = World(*(gpus.gpu_node(name, A100, 8) for name in names), **AWARE)
    learned(world, {Shape(8, memory_percent=100, cores_percent=100): 1.0, Shape(1, memory_mib=10_000): 20.0})
    small = {placed(world, f"p{number}", limits(10_000), names)[0] for number in range(24)}
    kept = world.placer.packing._reserve.names
    assert kept
    assert not kept & small
    assert placed(world, "large", limits(count=8), names)[0] in kept


STEPS = st.lists(
    st.tuples(st.integers(0, 4), st.sampled_from([2000, 5000, 9000, 20_000]), st.sampled_from([0, 30, 100])),
    max_size=12,
)


@settings(max_examples=40, deadline=None)
@given(STEPS)
def test_what_follows_the_journal_equals_what_is_computed_anew(steps: list[tuple[int, int, int]]) -> None:
    """Pods come and go; after each the values are those of a fresh start, and the chosen GPU is one that fits."""
    nodes = ["a", "b", "c"]
    world = World(gpus.gpu_node("a", A100, 2), gpus.gpu_node("b", T4, 3), gpus.gpu_node("c", A100, 1), **AWARE)
    shapes = [Shape(1, memory_mib=5000, cores_percent=30), Shape(2, memory_percent=100, cores_percent=100)]
    learned(world, {**dict.fromkeys(shapes, 1.0), Shape(1, memory_mib=9000, use_types=("t4",)): 2.0})
    alive: list[str] = []
    aware = world.placer.packing
    for number, (act, mib, cores) in enumerate(steps):
        if act == 4:
            model = T4 if number % 2 else gpus.Model("New", 24_000)
            world.mirror.see_node(_node(gpus.gpu_node(f"new-{number % 3}", model, 1 + number % 4)))
        elif act == 0 and alive:
            world.mirror.pods.deleted(_object(pod(alive.pop(0), limits(1))))
        else:
            body = pod(f"p{number}", limits(mib, cores))
            world.see(body)
            if world.filter(body, *nodes)["NodeNames"]:
                placed(world, f"p{number}", limits(mib, cores), nodes)
                alive.append(f"p{number}")
    assert aware._fragmentation is not None
    known = aware._fragmentation._prices
    ledger = world.core.ledger
    fresh = fragmentation.Fragmentation(ledger, known, aware._reserve, ledger.settle(), ledger.changes)
    for shape in (*shapes, Shape(0, host_cpu_milli=4000)):
        mine, anew = aware._fragmentation.values(shape), fresh.values(shape)
        np.testing.assert_allclose(mine.nodes, anew.nodes, atol=0.5)
        for column in range(len(mine.nodes)):
            one = aware._fragmentation.values(shape, column)
            np.testing.assert_allclose(one.nodes, mine.nodes[[column]], atol=1e-3)
            np.testing.assert_allclose(one.gpus, mine.gpus[:, [column]], atol=1e-3)


def _object(body: dict[str, Any]) -> Any:
    return msgspec.convert(body, objects.Pod)


@pytest.mark.parametrize(
    "shares", [{}, {Shape(1, memory_mib=1 << 30): 1.0}, {Shape(0, host_cpu_milli=1): 1.0}, {Shape(64): 1.0}]
)
@pytest.mark.parametrize("nodes", [[], [gpus.gpu_node("n", A100, 1)], [gpus.gpu_node("n", A100, 0)]])
def test_a_mix_that_says_nothing_and_a_cluster_of_nothing_have_values(
    shares: dict[Shape, float], nodes: list[dict[str, Any]]
) -> None:
    """The first pod of an empty history, a cluster of one GPU or of none, requests that nothing serves."""
    world = learned(World(*nodes, **AWARE), shares)
    listed = _listed(world)
    values = world.placer.packing.node_values(listed)
    assert values is not None
    assert not np.isnan(values).any()
    assert not world.placer.packing._is_broken


def _listed(world: World) -> Any:
    world.see(pod("p", limits(1000)))
    return world.listed("p")


def test_before_anything_is_learned_the_policy_is_best_fit() -> None:
    """And so it is for a pod that the policy does not know, and where it fails."""
    world = World(gpus.gpu_node("n", A100, 2), **AWARE)
    listed = _listed(world)
    assert world.placer.packing.node_values(listed) is None
    assert world.placer.packing.gpu_gains(listed, identifiers.NodeName("n")) == {}
    assert placed(world, "p", limits(1000), ["n"])[0] == "n"


def test_a_defect_of_the_policy_costs_no_decision(caplog: pytest.LogCaptureFixture) -> None:
    """It is logged once, and the pod is placed by best fit."""
    world = learned(World(gpus.gpu_node("n", A100, 2), **AWARE), {Shape(1, memory_mib=1000): 1.0})

    class Broken:
        def values(self, shape: Shape, column: int | None) -> fragmentation.Values:
            raise ArithmeticError(shape)

    world.placer.packing._fragmentation = Broken()  # type: ignore[assignment]
    with caplog.at_level(logging.ERROR):
        assert placed(world, "p", limits(1000), ["n"])[0] == "n"
    assert world.placer.packing._is_broken


def test_the_mix_is_learned_from_pods_that_arrive_each_once() -> None:
    """kube-scheduler asks again about a pod that was refused; it has arrived once."""
    world = World(gpus.gpu_node("n", A100, 1), **AWARE)
    body = pod("p", limits(1000))
    world.see(body)
    for _ in range(3):
        world.filter(body, "n")
    assert world.placer.packing.mix.arrivals == 1


def test_the_mix_is_prepared_again_as_it_grows_and_as_gpus_change() -> None:
    """After 50, 100, 200, … arrivals, and when a node with other GPUs comes; never where no pod uses the policy."""
    world = World(gpus.gpu_node("n", A100, 1), **AWARE)
    aware = world.placer.packing
    assert not aware.is_due
    aware.node_values(_listed(world))
    assert aware.is_due
    aware.fit()
    assert not aware.is_due
    for _ in range(50):
        aware.mix.count(Shape(1, memory_mib=1000))
    assert aware.is_due
    aware.fit()
    world.mirror.see_node(_node(gpus.gpu_node("m", T4, 1)))
    world.core.ledger.settle()
    assert aware.is_due


def _node(body: dict[str, Any]) -> Any:
    return msgspec.convert(body, objects.Node)


def plain(name: str, node: str, cpu: str, **more: Any) -> dict[str, Any]:
    body = pod(name, {}, node, **more)
    body["spec"]["containers"][0]["resources"] = {"requests": {"cpu": cpu, "memory": "1Gi"}}
    return body


def test_what_pods_without_gpus_take_of_a_node_is_known_whatever_is_seen_first() -> None:
    """Lists of pods and of nodes arrive in any order; a node may go and come back; a pod may end, or be deleted."""
    world = World()
    ledger = world.core.ledger

    def free() -> tuple[int, int]:
        arrays = ledger.settle()
        column = arrays.column_of[identifiers.NodeName("n")]
        return int(arrays.host_cpu_free[column]), int(arrays.host_memory_free[column])

    world.see(plain("a", "n", "2"))
    ledger.settle()
    world.mirror.see_node(_node(gpus.gpu_node("n", A100, 1)))
    total = (128_000, 1 << 20)
    assert free() == (total[0] - 2000, total[1] - 1024)
    ledger.remove_node(identifiers.NodeName("n"))
    ledger.settle()
    world.mirror.see_node(_node(gpus.gpu_node("n", A100, 1)))
    world.see(plain("b", "n", "500m"))
    world.see(plain("waits", "", "4"))
    assert free() == (total[0] - 2500, total[1] - 2048)
    world.see(plain("a", "n", "2", status={"phase": "Succeeded"}))
    assert free() == (total[0] - 500, total[1] - 1024)
    world.mirror.pods.deleted(_object(plain("b", "n", "500m")))
    assert free() == total


def test_a_list_without_a_pod_says_that_it_is_gone() -> None:
    """Its deletion was missed while the watch was down."""
    world = World(gpus.gpu_node("n", A100, 1))
    for name in ("a", "b"):
        world.see(plain(name, "n", "2"))
    for _ in world.mirror.pods.replaced([_object(plain("b", "n", "2"))], 0.0):
        pass
    arrays = world.core.ledger.settle()
    assert arrays.host_cpu_free[arrays.column_of[identifiers.NodeName("n")]] == 126_000


def test_holes_are_worth_what_fills_them() -> None:
    """Two requests of half a GPU fill it; 30 percent are worth nothing to them, and a whole GPU is worth 1."""
    values = hole_values.hole_values({50: 1.0})
    assert values[[0, 30, 50, 70, 100]].tolist() == pytest.approx([0, 0, 0.5, 0.5, 1])
    mixed = hole_values.hole_values({81: 3.0, 19: 1.0, 47: 1.0})
    assert (np.diff(mixed) >= -1e-9).all()
    assert mixed[19] > 0 == mixed[18]


def test_the_reserve_stands_still_while_the_need_changes_little() -> None:
    """Else no node would ever drain for a big request."""
    reserve, classes = node_reserve.NodeReserve(), (prices.GpuClass("A", 1000, 100),)
    names = [identifiers.NodeName(f"n{number}") for number in range(10)]
    class_of, big, small = np.ones((8, 10), np.int64), Shape(8, memory_percent=100), Shape(1, memory_percent=10)

    def choose(share: float, empty: list[int]) -> frozenset[identifiers.NodeName]:
        prepared = prices.prepare({big: share, small: 1 - share}, classes, 1000.0)
        nodes = node_reserve.Nodes(
            names=names,
            class_of=class_of,
            empty=np.array(empty),
            capacity_milli=80_000.0,
            cpu_milli=np.full(10, 64_000),
            memory_mib=np.full(10, 1 << 20),
        )
        reserve.choose(prepared, nodes)
        return reserve.names

    first = choose(0.01, [8] * 5 + [0] * 5)
    assert first
    assert choose(0.0105, [0] * 5 + [8] * 5) == first
    assert choose(0.03, [0] * 5 + [8] * 5) > first
    assert choose(0.0, [8] * 10) == frozenset()
    assert not reserve.value(1, np.full(10, 8), {}).any()


class _ConfigMaps:
    """One ConfigMap of an API server."""

    def __init__(self, text: str | None = None, *, fails: bool = False) -> None:
        self.text = text
        self.fails = fails
        self.writes: list[str] = []

    async def get(self, path: str, kind: Any) -> Any:
        assert path == "/api/v1/namespaces/hami-system/configmaps/mix"
        if self.fails:
            raise errors.Unavailable("no answer")
        if self.text is None:
            raise errors.NotFound(path, 404)
        return kind(data={"mix": self.text})

    async def patch(self, path: str, body: bytes) -> None:
        if self.fails:
            raise errors.Unavailable("no answer")
        if self.text is None:
            raise errors.NotFound(path, 404)
        self._write("patch", body)

    async def post(self, path: str, body: bytes) -> None:
        self._write("post", body)

    def _write(self, verb: str, body: bytes) -> None:
        self.text = orjson.loads(body)["data"]["mix"]
        self.writes.append(verb)


def _kept(config_maps: _ConfigMaps, aware: packing.Packing, *, leads: bool = True) -> None:
    """Let the keeper read and write once."""

    async def work() -> None:
        client: kubernetes.Client = config_maps  # type: ignore[assignment]
        keeper = mix_keeper.MixKeeper(client, "hami-system/mix", aware, lambda: leads)
        keeper.every_seconds = 0.001
        task = asyncio.create_task(keeper.run())
        await asyncio.sleep(0.05)
        task.cancel()

    asyncio.run(work())


def _packing() -> packing.Packing:
    return World(gpus.gpu_node("n", A100, 1)).placer.packing


def test_what_was_learned_survives_a_restart() -> None:
    """The first write creates the ConfigMap; nothing is written while nothing arrives."""
    config_maps, before, after = _ConfigMaps(), _packing(), _packing()
    before.mix.count(Shape(1, memory_mib=4000))
    _kept(config_maps, before)
    assert config_maps.writes == ["post"]
    after.mix.count(Shape(2, memory_mib=1000))
    _kept(config_maps, after)
    assert config_maps.writes == ["post", "patch"]
    assert {shape.gpus for shape in after.mix.shares()} == {1, 2}


@pytest.mark.parametrize("config_maps", [_ConfigMaps("nonsense"), _ConfigMaps(fails=True)], ids=["nonsense", "down"])
def test_a_mix_that_cannot_be_read_is_learned_anew(config_maps: _ConfigMaps) -> None:
    """Nothing of it is lost that would not come again, and the process goes on."""
    aware = _packing()
    aware.mix.count(Shape(1, memory_mib=4000))
    _kept(config_maps, aware)
    assert list(aware.mix.shares()) == [Shape(1, memory_mib=4000)]
    assert config_maps.writes == ([] if config_maps.fails else ["patch"])


def test_only_the_leader_keeps_the_mix() -> None:
    """The other replica is asked about no pods."""
    config_maps, aware = _ConfigMaps(), _packing()
    aware.mix.count(Shape(1, memory_mib=4000))
    _kept(config_maps, aware, leads=False)
    assert config_maps.writes == []


def test_a_mix_is_prepared_beside_the_event_loop() -> None:
    """Answers to kube-scheduler go on meanwhile."""
    world = World(gpus.gpu_node("n", A100, 1), **AWARE)

    async def work() -> None:
        task = asyncio.create_task(world.placer.packing.run(world.core.worker))
        world.placer.packing.node_values(_listed(world))
        while world.placer.packing._fragmentation is None:
            await asyncio.sleep(0.01)
        task.cancel()

    asyncio.run(asyncio.wait_for(work(), 60))


MODELS = (
    T4,
    gpus.Model("Tesla P100", 16_000),
    gpus.Model("NVIDIA A10", 23_000),
    A100,
    gpus.Model("NVIDIA H100", 80_000),
)


def refused_of_500(seed: int, **policy: Any) -> list[str]:
    """Place 500 pods on 40 nodes of five models; one pod in five names a model. Returns those that fit nowhere."""
    names = [identifiers.NodeName(f"n{number:02d}") for number in range(40)]
    world = World(*(gpus.gpu_node(name, MODELS[number % 5], 4) for number, name in enumerate(names)), **policy)
    choose, decide, refused = random.Random(seed), verbs.Verbs(world.core), []
    for number in range(500):
        model = choose.choice(MODELS) if choose.random() < 0.2 else None
        annotations = {"nvidia.com/use-gputype": model.type.split()[-1]} if model else {}
        body = pod(f"p{number}", limits(choose.choice([2000, 4000, 8000, 14_000])), annotations=annotations)
        world.see(body)
        listed = world.listed(f"p{number}")
        assert isinstance(listed, pending.PendingPod)
        answer = decide.filter(listed, [*names])
        assert answer is not None
        if answer.rejection:
            refused.append(f"p{number}")
            continue
        node = decide.prioritize(listed, answer.decision.names).best or names[0]
        placed_there = world.placer.place_on(listed, node, nominations=False)
        assert isinstance(placed_there, placement.Placement)
        allocated = allocations.by_gpu(listed.request.kinds, placed_there.shares)
        world.core.ledger.assume(facts.BoundPod(listed.uid, listed.key, node, allocated=allocated))
        if world.placer.packing.is_due:
            world.placer.packing.fit()
    return refused


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(3))
def test_pods_that_name_a_model_find_it_while_the_cluster_is_half_empty(seed: int) -> None:
    """The mix is learned on the way; what any GPU serves leaves rare ones free."""
    assert refused_of_500(seed, **AWARE) == []


def test_best_fit_takes_the_small_models_first() -> None:
    """So that the test before this one can fail: pods that name the T4 or the P100 find them full."""
    assert refused_of_500(0)
