"""Pods that request MIG instances, on a mirror without a cluster."""

import dataclasses
from typing import Any

import orjson

from gpu_sharing.core import allocations, identifiers, mig, records
from lab import gpus, mig_models
from tests.support.extender_world import World, pod, quota

MIG = {"nvidia.com/vgpu-mode": "mig"}
LARGE = {"nvidia.com/gpu": "1", "nvidia.com/gpumem": "30000"}


def divided_node(name: str, count: int = 1) -> dict[str, Any]:
    node = gpus.gpu_node(name, gpus.A100, count)
    inventory = [
        dataclasses.replace(gpu, mode="mig", mig_profiles=mig_models.PROFILES["a100"])
        for gpu in gpus.inventory(name, gpus.A100, count)
    ]
    node["metadata"]["annotations"][records.INVENTORY] = records.encode_inventory(inventory)
    return node


def holding(name: str, node: str, *instances: mig.Instance, corrupt: bool = False) -> dict[str, Any]:
    uuid = gpus.gpu_uuid(node, 0)
    shares = (tuple(allocations.Share(uuid, 9_932, 14, instance) for instance in instances),)
    annotations = records.pod_annotations(shares, identifiers.NodeName(node), 0, identifiers.DecisionId("d"))
    if corrupt:
        annotations[records.MIG_ALLOCATIONS] = "[{]"
    return pod(name, node=node, annotations=annotations)


def test_only_nodes_with_free_slices_take_the_pod_and_the_others_say_why() -> None:
    """What is free in MiB does not count: one small instance in the wrong place is enough."""
    world = World(*map(divided_node, ("free", "half", "none")), gpus.gpu_node("plain", gpus.A100, 1))
    world.see(holding("one", "half", mig.Instance("1g.10gb", 1, 1)))
    world.see(holding("two", "none", mig.Instance("1g.10gb", 0, 1), mig.Instance("1g.10gb", 4, 1)))

    answer = world.filter(pod("p", LARGE, annotations=MIG), "free", "half", "none", "plain")

    assert answer["NodeNames"] == ["free", "half"]
    assert answer["FailedAndUnresolvableNodes"] == {"none": "no MIG instance free", "plain": "GPU mode mismatch"}
    assert world.prioritize(pod("p", LARGE, annotations=MIG), "free", "half") == {"free": 0, "half": 10}
    assert world.filter(pod("q", LARGE), "free", "plain")["NodeNames"] == ["plain"]


def test_the_answer_is_kept_current_as_instances_come_and_go() -> None:
    """A remembered shape is asked anew about the nodes that changed, and a nomination holds its slices."""
    world = World(divided_node("a"))
    first, second, third = (pod(f"p{number}", LARGE, annotations=MIG) for number in range(3))

    assert world.filter(first, "a")["NodeNames"] == ["a"]
    assert world.filter(second, "a")["NodeNames"] == ["a"]
    world.see(holding("one", "a", mig.Instance("3g.40gb", 0, 4)))
    world.see(holding("two", "a", mig.Instance("3g.40gb", 4, 4)))
    assert world.filter(third, "a")["NodeNames"] == []
    world.mirror.forget_pod(identifiers.PodUid("uid-one"))
    assert world.filter(third, "a")["NodeNames"] == ["a"]


def test_a_pod_that_does_not_say_which_instance_closes_its_gpu() -> None:
    """Where the slices are is not guessed, be the record unreadable or another project's."""
    for stranger in (holding("s", "a", mig.Instance("1g.10gb", 0, 1), corrupt=True), holding("s", "a")):
        if records.MIG_ALLOCATIONS not in stranger["metadata"]["annotations"]:
            uuid = gpus.gpu_uuid("a", 0)
            stranger["metadata"]["annotations"][records.ALLOCATED] = f"{uuid},NVIDIA,9932,14:;"
        world = World(divided_node("a"))
        world.see(stranger)

        answer = world.filter(pod("p", {"nvidia.com/gpu": "1", "nvidia.com/gpumem": "5000"}, annotations=MIG), "a")

        assert answer["FailedAndUnresolvableNodes"] == {"a": "GPU usage unknown"}


def test_a_quota_counts_the_instance_not_what_was_asked() -> None:
    """5,000 MiB are an instance of 9,932."""
    world = World(divided_node("a"))
    world.mirror.quotas.changed(quota(gpumem="9000"))
    small = pod("p", {"nvidia.com/gpu": "1", "nvidia.com/gpumem": "5000"}, annotations=MIG)

    assert world.filter(small, "a")["FailedAndUnresolvableNodes"] == {"a": "quota exceeded"}
    assert "requested 9932MB, left 9000MB" in world.recorder.told[0].note
    world.mirror.quotas.changed(quota(gpumem="9932"))
    assert world.filter(small, "a")["NodeNames"] == ["a"]


def test_the_node_record_of_instances_is_what_is_decided_on() -> None:
    """As HAMi's plugin writes it too."""
    record = divided_node("a")["metadata"]["annotations"][records.INVENTORY]

    assert orjson.loads(record)[0]["migProfiles"][0] == {
        "name": "1g.10gb", "memoryMB": 9932, "core": 14,
        "placements": [{"start": start, "size": 1} for start in range(7)],
    }  # fmt: skip
