"""Room is made for pods of higher priority, on a mirror and an API server in a dictionary."""

import asyncio
from collections.abc import Sequence
from typing import Any

import msgspec
import pytest

from gpu_sharing.adapters import objects
from gpu_sharing.core import identifiers, records
from lab import gpus
from scheduler_extender.act import pod_writer, preempting
from tests.support.extender_world import A100, World, held, pod
from tests.unit.extender import scenes

LARGE = {"nvidia.com/gpu": "1", "nvidia.com/gpumem": "12000"}


class Scene(scenes.Scene):
    """A world whose API server can be changed, and a preemptor."""

    def __init__(self, *nodes: str, gpus_each: int = 2) -> None:
        super().__init__(*(gpus.gpu_node(name, A100, gpus_each) for name in nodes))
        self.nodes = nodes
        self.restart()

    def restart(self) -> None:
        """A new leader: nothing is remembered but what the API server knows."""
        client: Any = self.api
        world = self.world
        self.preemptor = preempting.Preemptor(pod_writer.PodWriter(client), world.core, world.decision_events)

    def holder(self, name: str, node: str, index: int, memory_mib: int, priority: int = 0) -> None:
        body = held(name, node, index, memory_mib)
        body["spec"]["priority"] = priority
        self.put(body)

    def refuse(self, name: str, offered: Sequence[str] = ()) -> None:
        """kube-scheduler asks, and that is a while ago."""
        names = offered or self.nodes
        assert self.world.filter(self.api.pods[name], *names)["NodeNames"] == []
        self.world.clock.now += 2

    def step(self) -> list[str]:
        """One round. Returns who was evicted in it."""
        before = len(self.api.evicted)
        asyncio.run(self.preemptor.step())
        self.watch()
        return self.api.evicted[before:]

    def nominated(self, name: str) -> str:
        return str(self.api.pods[name]["status"].get("nominatedNodeName", ""))


def urgent(name: str = "urgent", limits: dict[str, str] | None = None, **more: Any) -> dict[str, Any]:
    return pod(name, limits or LARGE, **{"priority": 100, **more})


def test_the_pods_of_one_gpu_go_and_the_place_is_kept_until_there_is_room() -> None:
    """Not three on one GPU where two on another are enough, and nobody takes what the first of them leaves."""
    scene = Scene("a")
    for number in range(3):
        scene.holder(f"small-{number}", "a", 0, 5_000)
    for number in range(2):
        scene.holder(f"half-{number}", "a", 1, 7_000)
    scene.put(urgent())
    scene.refuse("urgent")

    assert sorted(scene.step()) == ["half-0", "half-1"]
    hold = scene.hold("urgent")
    assert hold is not None
    assert hold.node == "a"
    assert hold.gpus == {gpus.gpu_uuid("a", 1)}
    assert scene.step() == []  # They are ending.

    scene.delete("half-0")
    sneaky = pod("sneaky", {"nvidia.com/gpu": "1", "nvidia.com/gpumem": "6000"})
    assert scene.world.filter(sneaky, "a")["NodeNames"] == []
    scene.delete("half-1")
    assert scene.world.filter(sneaky, "a")["NodeNames"] == []
    assert scene.step() == []
    assert scene.nominated("urgent") == "a"
    assert scene.world.filter(sneaky, "a")["NodeNames"] == []
    assert scene.world.filter(scene.api.pods["urgent"], "a")["NodeNames"] == ["a"]
    scene.step()
    assert scene.hold("urgent") is None

    told = {event.reason: event for event in scene.world.recorder.told}
    assert told["Preempting"].note.splitlines() == [
        "Evicting 2 of lower priority on a for its GPUs",
        "    default/half-0 (priority 0)",
        "    default/half-1 (priority 0)",
    ]
    assert told["Preempted"].note.startswith("Preempted by default/urgent (priority 100)")


def test_the_node_where_it_costs_least_is_chosen_among_those_offered() -> None:
    """The lowest priority first, then the fewest; a node that kube-scheduler ruled out is no choice."""
    scene = Scene("a", "b", "c", gpus_each=1)
    scene.holder("important", "a", 0, 12_000, priority=50)
    scene.holder("one", "b", 0, 7_000)
    scene.holder("two", "b", 0, 7_000)
    scene.holder("cheap", "c", 0, 12_000)
    scene.put(urgent())
    scene.refuse("urgent", offered=("a", "b"))

    assert sorted(scene.step()) == ["one", "two"]


@pytest.mark.parametrize(
    "more",
    [
        {"priority": 0}, {"preemptionPolicy": "Never"}, {"schedulerName": "another"},
        {"status": {"phase": "Pending", "nominatedNodeName": "a"}},
    ],
)  # fmt: skip
def test_nobody_goes_for_a_pod_that_may_not_preempt(more: dict[str, Any]) -> None:
    """Not of its own priority, not where it says so itself, and not where somebody makes room for it already."""
    scene = Scene("a", gpus_each=1)
    scene.holder("other", "a", 0, 12_000)
    scene.put(urgent(**more))
    scene.refuse("urgent")

    assert scene.step() == []
    assert scene.hold("urgent") is None


def test_nobody_goes_where_it_would_not_help() -> None:
    """The GPU is too small."""
    scene = Scene("a", gpus_each=1)
    scene.holder("other", "a", 0, 12_000)
    scene.put(urgent(limits={"nvidia.com/gpu": "1", "nvidia.com/gpumem": "20000"}))
    scene.refuse("urgent")

    assert scene.step() == []


def test_nobody_goes_for_a_pod_that_its_quota_holds_back() -> None:
    """The room would be made and never used."""
    scene = Scene("a", gpus_each=1)
    scene.holder("other", "a", 0, 12_000)
    body = {"metadata": {"name": "q", "namespace": "default"}, "spec": {"hard": {"limits.nvidia.com/gpumem": "13000"}}}
    scene.world.mirror.quotas.changed(msgspec.convert(body, objects.ResourceQuota))
    scene.put(urgent())
    scene.refuse("urgent")

    assert scene.step() == []


def test_pods_that_end_anyway_are_waited_for() -> None:
    """Whoever has been told to go already makes the room."""
    scene = Scene("a", "b", gpus_each=1)
    scene.holder("going", "a", 0, 12_000)
    scene.holder("staying", "b", 0, 12_000)
    scene.put(urgent())
    body = scene.api.pods["going"]
    scene.put({**body, "metadata": {**body["metadata"], "deletionTimestamp": "2026-01-01T00:00:00Z"}})
    scene.refuse("urgent")

    assert scene.step() == []
    assert scene.hold("urgent") is None


def test_whom_a_disruption_budget_protects_is_spared() -> None:
    """Nobody is evicted in vain: the API server is asked about all before the first goes."""
    scene = Scene("a", "b", gpus_each=1)
    scene.holder("plain", "a", 0, 7_000)
    scene.holder("protected", "a", 0, 5_000)
    for number in range(3):
        scene.holder(f"many-{number}", "b", 0, 5_000)
    scene.api.protected = {"protected"}
    scene.put(urgent())
    scene.refuse("urgent")

    assert scene.step() == []
    assert sorted(scene.step()) == ["many-0", "many-1", "many-2"]


def test_a_new_leader_goes_on_where_the_old_one_was_stopped() -> None:
    """Killed between the hold and the evictions, or between two of them."""
    scene = Scene("a", gpus_each=1)
    scene.holder("one", "a", 0, 7_000)
    scene.holder("two", "a", 0, 7_000)
    hold = records.Hold(identifiers.NodeName("a"), frozenset([gpus.gpu_uuid("a", 0)]), 2**40)
    scene.put(urgent(annotations={records.HOLD: records.encode_hold(hold)}))
    body = scene.api.pods["one"]
    scene.put({**body, "metadata": {**body["metadata"], "deletionTimestamp": "2026-01-01T00:00:00Z"}})

    scene.restart()

    assert scene.step() == ["two"]
    scene.delete("one", "two")
    scene.step()
    assert scene.nominated("urgent") == "a"


@pytest.mark.parametrize("why", ["too late", "in vain"])
def test_it_is_given_up_cleanly(why: str) -> None:
    """What was kept is free for others again, and the pod rests before the next try."""
    scene = Scene("a", gpus_each=1)
    scene.holder("other", "a", 0, 12_000, priority=100 if why == "in vain" else 0)
    until = 1 if why == "too late" else 2**40
    hold = records.Hold(identifiers.NodeName("a"), frozenset([gpus.gpu_uuid("a", 0)]), until)
    scene.put(urgent(annotations={records.HOLD: records.encode_hold(hold)}))
    scene.refuse("urgent")
    small = pod("small", {"nvidia.com/gpu": "1", "nvidia.com/gpumem": "1000"})
    assert scene.world.filter(small, "a")["NodeNames"] == []

    assert scene.step() == []

    assert scene.hold("urgent") is None
    assert scene.world.filter(small, "a")["NodeNames"] == ["a"]
    assert scene.step() == []


def test_a_preemptor_that_goes_away_leaves_nothing_behind() -> None:
    """Deleted, or placed elsewhere."""
    scene = Scene("a", gpus_each=1)
    scene.holder("other", "a", 0, 3_000)
    hold = records.Hold(identifiers.NodeName("a"), frozenset([gpus.gpu_uuid("a", 0)]), 2**40)
    scene.put(urgent(annotations={records.HOLD: records.encode_hold(hold)}))
    small = pod("small", {"nvidia.com/gpu": "1", "nvidia.com/gpumem": "1000"})
    assert scene.world.filter(small, "a")["NodeNames"] == []

    scene.delete("urgent")

    assert scene.world.filter(small, "a")["NodeNames"] == ["a"]


@pytest.mark.parametrize(
    "text",
    [
        "", "{", "7", "{}", '{"node":7,"gpus":[],"until":1}', '{"node":"a","gpus":[7],"until":1}',
        '{"node":"a","gpus":[],"until":"soon"}', "[" * 3_000,
    ],
)  # fmt: skip
def test_a_hold_that_does_not_decode_keeps_nothing(text: str) -> None:
    assert records.decode_hold(text) is None


def preempt(world: World, body: dict[str, Any], **chosen: list[str]) -> dict[str, list[str]]:
    """What `/preempt` answers: victims by node."""
    meta = {node: {"Pods": [{"UID": f"uid-{name}"} for name in names]} for node, names in chosen.items()}
    answer = world.preempt({"Pod": body, "NodeNameToMetaVictims": meta})
    return {
        node: sorted(one["UID"].removeprefix("uid-") for one in found["Pods"])
        for node, found in answer["NodeNameToMetaVictims"].items()
    }


def test_victims_that_do_not_help_are_replaced_by_those_that_do() -> None:
    """kube-scheduler counts device ids: any pod gives one, but only one GPU's pods give its memory."""
    scene = Scene("a")
    scene.holder("first", "a", 0, 12_000, priority=1)
    scene.holder("second", "a", 1, 5_000)
    scene.holder("third", "a", 1, 7_000)

    assert preempt(scene.world, urgent(), a=["second"]) == {"a": ["second", "third"]}


def test_victims_chosen_for_their_cpu_stay_and_others_are_added() -> None:
    """Pods without GPUs hold nothing that we know of; pods with GPUs go in vain only if their CPU is needed."""
    scene = Scene("a")
    scene.holder("large", "a", 0, 12_000)
    body = held("thirsty", "a", 1, 2_000)
    body["spec"]["containers"][0]["resources"]["requests"] = {"cpu": "8", "memory": "1Gi"}
    scene.put(body)
    scene.holder("rest", "a", 1, 12_000, priority=100)

    assert preempt(scene.world, urgent(), a=["plain"]) == {"a": ["large", "plain"]}
    assert preempt(scene.world, urgent(), a=["thirsty"]) == {"a": ["large", "thirsty"]}


def test_nodes_where_eviction_cannot_help_are_dropped() -> None:
    """Whoever is in the way there has the same priority, or the GPUs are too small."""
    scene = Scene("a", "b", gpus_each=1)
    scene.holder("equal", "a", 0, 12_000, priority=100)
    scene.holder("small", "a", 0, 1_000)
    scene.holder("lower", "b", 0, 12_000)

    assert preempt(scene.world, urgent(), a=["small"], b=["lower"]) == {"b": ["lower"]}
    assert (
        preempt(
            scene.world, urgent(limits={"nvidia.com/gpu": "1", "nvidia.com/gpumem": "20000"}), a=["small"], b=["lower"]
        )
        == {}
    )


@pytest.mark.parametrize(
    "spec",
    [
        {"initContainers": [{"name": "s", "restartPolicy": "Always", "resources": {"requests": {"cpu": "8"}}}]},
        {"initContainers": [{"name": "i", "resources": {"requests": {"cpu": "8"}}}]},
        {"resources": {"requests": {"cpu": "8"}}},
        {"overhead": {"cpu": "8"}},
    ],
)
def test_cpu_counts_wherever_a_pod_says_it(spec: dict[str, Any]) -> None:
    """The pod that serves the GPUs frees the CPU too, so that no second, innocent pod has to go."""
    scene = Scene("a")
    serving = held("serving", "a", 0, 12_000)
    serving["spec"] |= spec
    chosen = held("chosen", "a", 1, 2_000)
    chosen["spec"]["containers"][0]["resources"]["requests"] = {"cpu": "8"}
    scene.put(serving, chosen)
    scene.holder("rest", "a", 1, 12_000, priority=100)

    assert preempt(scene.world, urgent(), a=["chosen"]) == {"a": ["serving"]}
