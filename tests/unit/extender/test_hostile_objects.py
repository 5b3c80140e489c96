"""One object's defect stays its own: what one tenant or one node writes stops nothing else."""

import asyncio
import json
from typing import Any

import msgspec
import pytest

from gpu_sharing.adapters import objects
from gpu_sharing.core import allocations, identifiers, mig, records
from lab import gpus
from scheduler_extender.act import gang_planner, pod_writer
from scheduler_extender.fleet import arrays
from tests.support.extender_world import A100, World, held, pod
from tests.unit.extender import scenes

HUGE = "9223372036854775807"


def two_nodes(**changes: Any) -> World:
    return World(gpus.gpu_node("a", A100, 1), gpus.gpu_node("b", A100, 1), **changes)


def set_aside(world: World) -> float:
    return float(world.mirror._metrics.set_aside._value.get())


def test_a_pod_of_another_scheduler_that_asks_for_all_the_world_leaves_the_extender_running() -> None:
    """The API server takes such a count; two of them add up to more than 64 bits."""
    world = two_nodes()
    many = pod("many", {"nvidia.com/gpu": HUGE}, node="a", schedulerName="default-scheduler")
    many["spec"]["containers"].append({**many["spec"]["containers"][0], "name": "d"})

    world.see(many)

    assert world.filter(pod("p"), "a", "b")["NodeNames"] == ["b"]
    assert set_aside(world) == 0
    world.mirror.forget_pod(identifiers.PodUid("uid-many"))
    assert world.filter(pod("q"), "a", "b")["NodeNames"] == ["a", "b"]


@pytest.mark.parametrize(
    ("limits", "words"),
    [
        ({"nvidia.com/gpu": HUGE}, "nvidia.com/gpu: '9223372036854775807' is more than any node has; write at most 64"),
        ({"nvidia.com/gpu": "65"}, "write at most 64"),
        ({"nvidia.com/gpu": "1", "nvidia.com/gpumem": "2147483648"}, "write at most 2147483647 MiB"),
        ({"nvidia.com/gpu": "1", "nvidia.com/gpumem": "7Ei"}, "write at most 2147483647 MiB"),
    ],
)
def test_a_request_beyond_any_node_is_invalid_and_says_so(limits: dict[str, str], words: str) -> None:
    """It meets no array and no loop; the pod's owner reads what to write."""
    answer = two_nodes().filter(pod("p", limits), "a", "b")

    assert answer["NodeNames"] == []
    (said,) = set(answer["FailedAndUnresolvableNodes"].values())
    assert words in said


def test_a_pod_with_more_gpu_containers_than_any_is_refused_before_it_costs_a_pass_for_each() -> None:
    """Each container is one pass over all nodes."""
    body = pod("p")
    body["spec"]["containers"] = [{**body["spec"]["containers"][0], "name": f"c{n}"} for n in range(17)]

    answer = two_nodes().filter(body, "a", "b")

    assert "17 containers request GPUs; write at most 16 in one pod" in answer["FailedAndUnresolvableNodes"]["a"]


def test_a_hundred_million_gpus_in_a_namespace_with_a_quota_are_counted_without_a_list_of_them() -> None:
    """The quota's arithmetic takes as long for many as for one."""
    world = two_nodes()
    hard = {"limits.nvidia.com/gpumem": "1000"}
    quota = msgspec.convert(
        {"metadata": {"name": "q", "namespace": "default"}, "spec": {"hard": hard}}, objects.ResourceQuota
    )
    world.mirror.see_quota(quota)

    answer = world.filter(pod("p", {"nvidia.com/gpu": "100000000"}), "a", "b")

    assert "more than any node has" in answer["FailedAndUnresolvableNodes"]["a"]


def test_a_member_that_breaks_the_planner_holds_back_its_own_gang_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """Gangs are planned in the order of their names; a defect in the first must not stop the last."""
    scene = scenes.Scene(gpus.gpu_node("a", A100, 2))
    client: Any = scene.api
    world, metrics = scene.world, scene.world.core.metrics
    planner = gang_planner.GangPlanner(pod_writer.PodWriter(client), world.core, world.decision_events)
    one_gpu = {"nvidia.com/gpu": "1", "nvidia.com/gpumem": "1000"}
    for name in ("aaa", "zzz"):
        annotations = {"hami.io/gang": name, "hami.io/gang-size": "1"}
        scene.put(pod(name, one_gpu, annotations=annotations))
    right = planner._plan

    async def broken(key: tuple[str, str], *rest: Any, **more: Any) -> Any:
        if key[1] == "aaa":
            raise OverflowError("int too big")
        return await right(key, *rest, **more)

    monkeypatch.setattr(planner, "_plan", broken)
    asyncio.run(planner.step())
    scene.watch()

    assert scene.hold("zzz") is not None
    assert metrics.set_aside._value.get() == 1


@pytest.mark.parametrize("number", ["1e999", "-1", "1.5", '"0"', "true", "99999999999999999999999"])
def test_a_mig_record_with_a_number_that_is_none_keeps_its_gpus_out_of_use_and_nothing_else(number: str) -> None:
    """The record is corrupt: what it may hold is not given out, and the process goes on."""
    world = two_nodes()
    body = held("mig", "a", 0, 4_000)
    share = f'"containerIndex":0,"deviceIndex":0,"gpuUUID":"{gpus.gpu_uuid("a", 0)}","profile":"1g.10gb"'
    text = f'[{{{share},"placement":{{"start":{number},"size":1}}}}]'
    body["metadata"]["annotations"][records.MIG_ALLOCATIONS] = text

    world.see(body)

    holder = world.mirror.ledger.pod(identifiers.PodUid("uid-mig"))
    assert holder is not None
    assert holder.corrupt
    assert "b" in world.filter(pod("p"), "a", "b")["NodeNames"]


def test_a_node_that_renames_its_gpus_again_and_again_takes_no_numbers_from_others() -> None:
    """Names that are in use no more are given back, so that they never run out."""
    world = two_nodes()
    body = gpus.gpu_node("b", A100, 1)
    for turn in range(700):
        text = json.loads(body["metadata"]["annotations"][records.INVENTORY])
        for item in text:
            item["type"] = f"NVIDIA {turn}"
        body["metadata"]["annotations"][records.INVENTORY] = json.dumps(text)
        world.mirror.see_node(msgspec.convert(body, objects.Node))
        world.mirror.ledger.settle()

    assert world.filter(pod("p"), "a", "b")["NodeNames"] == ["a", "b"]
    assert len(world.mirror.ledger.arrays.types.words) <= 3


@pytest.mark.parametrize(("count", "types"), [(65, 1), (9, 9)])
def test_a_node_with_more_gpus_or_models_than_any_is_out_of_use_alone(count: int, types: int) -> None:
    """Its record is refused where it is read."""
    world = two_nodes()
    body = gpus.gpu_node("b", A100, 1)
    (item,) = json.loads(body["metadata"]["annotations"][records.INVENTORY])
    items = [{**item, "id": f"GPU-{n}", "index": n, "type": f"NVIDIA {n % types}"} for n in range(count)]
    body["metadata"]["annotations"][records.INVENTORY] = json.dumps(items)

    world.mirror.see_node(msgspec.convert(body, objects.Node))

    answer = world.filter(pod("p"), "a", "b")
    assert answer["NodeNames"] == ["a"]
    assert answer["FailedAndUnresolvableNodes"] == {"b": "GPU record of the node unreadable"}


def test_a_legacy_inventory_takes_ascii_digits_only() -> None:
    """Arabic digits are numbers to Python, and to no other reader of the record."""
    world = two_nodes()
    body = gpus.gpu_node("b", A100, 1)
    body["metadata"]["annotations"][records.INVENTORY] = "GPU-x,١٠,16000,100,NVIDIA A100,0,true:"

    world.mirror.see_node(msgspec.convert(body, objects.Node))

    assert world.filter(pod("p"), "a", "b")["NodeNames"] == ["a"]


def test_a_node_that_cannot_be_counted_is_out_of_use_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """A defect of ours that no bound foresees: the column is never half written, and heals with the next change."""
    world = two_nodes()
    right = arrays.Arrays._usage_values
    broken = True

    def values(self: arrays.Arrays, node: Any) -> Any:
        if broken and node.name == "b" and node.states:
            raise OverflowError("int too big")
        return right(self, node)

    monkeypatch.setattr(arrays.Arrays, "_usage_values", values)
    answer = world.filter(pod("p"), "a", "b")
    assert answer["FailedAndUnresolvableNodes"] == {"b": "GPU record of the node unreadable"}
    assert set_aside(world) == 1

    broken = False
    world.see(held("other", "b", 0, 1_000))
    assert world.filter(pod("q"), "a", "b")["NodeNames"] == ["a", "b"]


def test_a_pod_that_cannot_be_taken_in_keeps_its_node_and_nothing_else_out_of_use(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """What it may hold is not given out twice."""
    world = two_nodes()
    monkeypatch.setattr(records, "decode_instances", lambda text, shares: 1 // 0)
    world.see(held("strange", "a", 0, 4_000))
    monkeypatch.undo()

    answer = world.filter(pod("p"), "a", "b")

    assert answer["NodeNames"] == ["b"]
    assert set_aside(world) == 1


@pytest.mark.parametrize("holders", [1, 15, 16, 40])
def test_a_mig_gpu_that_many_pods_wait_for_is_given_to_none_beside_them(holders: int) -> None:
    """However many holds close the same slices, a slice that is kept stays kept."""
    closed = allocations.Allocation(0, 0, 0, 0, mig.taken(0, mig.MOST_SLICES))
    total = allocations.NOTHING
    for _ in range(holders):
        total = total.plus(closed)

    assert not any(mig.is_free(total.slices, mig.Slices(start, 1)) for start in range(mig.MOST_SLICES))
    for _ in range(holders):
        total = total.minus(closed)
    assert total == allocations.NOTHING
