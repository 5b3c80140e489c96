"""Gangs: all members or nobody, on a mirror and an API server in a dictionary."""

import asyncio
from collections.abc import Sequence
from typing import Any

import msgspec
import pytest

from gpu_sharing.adapters import objects
from gpu_sharing.core import allocations, error_codes, errors, gangs, identifiers, records
from lab import gpus
from scheduler_extender.act import gang_planner, pod_writer
from scheduler_extender.cluster import node_selection
from scheduler_extender.fleet import facts
from tests.support.extender_world import A100, World, held, pod
from tests.unit.extender import scenes

WHOLE = {"nvidia.com/gpu": "1"}
GATES = [{"name": "someone-elses"}, {"name": gangs.GATE}]


class Scene(scenes.Scene):
    """A world whose API server can be changed, and a planner."""

    def __init__(self, *nodes: dict[str, Any], **changes: Any) -> None:
        super().__init__(*nodes, **changes)
        self.now = 1_000_000.0
        self.settings = self.world.core.settings
        self.world.mirror._wall_clock = lambda: self.now
        self.restart()

    def restart(self) -> None:
        """A new leader: nothing is remembered but what the API server knows."""
        client: Any = self.api
        world = self.world
        self.planner = gang_planner.GangPlanner(
            pod_writer.PodWriter(client), world.core, world.decision_events, lambda: self.now
        )

    def pass_time(self, seconds: float) -> None:
        self.now += seconds
        self.world.clock.now += seconds

    def step(self, times: int = 3) -> None:
        """Some rounds, each of which sees what the one before has written."""
        for _ in range(times):
            asyncio.run(self.planner.step())
            self.watch()

    def bind(self, *names: str) -> None:
        """kube-scheduler has bound them where they were planned."""
        for name in names:
            body = self.api.pods[name]
            hold = self.hold(name)
            assert hold is not None
            bound = held(name, hold.node, 0, 16_000, 100)
            annotations = {**body["metadata"]["annotations"], **bound["metadata"]["annotations"], records.HOLD: ""}
            annotations[records.BIND_TIME] = str(int(self.now))
            spec = {**body["spec"], "nodeName": hold.node}
            self.put({**body, "metadata": {**body["metadata"], "annotations": annotations}, "spec": spec})

    def told(self, text: str) -> bool:
        """Whether an event said so."""
        return any(text in one.note for one in self.world.recorder.told)

    def planned(self, names: Sequence[str]) -> list[str]:
        """Where each member is planned, is nominated, and whether its gate is open."""
        found = []
        for name in names:
            hold, body = self.hold(name), self.api.pods[name]
            if hold is not None:
                assert body["status"].get("nominatedNodeName") == hold.node
                assert body["spec"].get("schedulingGates") == [{"name": "someone-elses"}]
            found.append(str(hold.node) if hold else "")
        return found


def node(name: str, count: int = 1, **more: Any) -> dict[str, Any]:
    return gpus.gpu_node(name, A100, count, **more)


def member(name: str, gang: str, size: int, limits: dict[str, str] | None = None, **more: Any) -> dict[str, Any]:
    annotations = {gangs.NAME: gang, gangs.SIZE: str(size), **more.pop("annotations", {})}
    return pod(name, limits or WHOLE, annotations=annotations, schedulingGates=GATES, **more)


def test_nobody_starts_until_there_is_room_for_all() -> None:
    """Four members, three GPUs; then a fourth GPU is freed, and all are planned at once."""
    scene = Scene(*(node(f"n{number}") for number in range(4)))
    scene.put(held("other", "n3", 0, 16_000))
    names = [f"m{number}" for number in range(4)]
    scene.put(*(member(name, "train", 4) for name in names))

    scene.step()
    assert scene.planned(names) == [""] * 4
    answer = scene.world.filter(scene.api.pods["m0"], "n0", "n3")
    assert answer["FailedAndUnresolvableNodes"]["n0"] == "waits for its gang"
    assert any(
        "waits for its gang (train: not enough free for all 4 members at once" in one.note
        for one in scene.world.recorder.told
    )

    scene.delete("other")
    scene.step()
    assert sorted(scene.planned(names)) == ["n0", "n1", "n2", "n3"]
    for name in names:
        hold = scene.hold(name)
        assert hold is not None
        answer = scene.world.filter(scene.api.pods[name], "n0", "n1", "n2", "n3")
        assert hold.node in answer["NodeNames"]
    stranger = pod("stranger", WHOLE)
    assert scene.world.filter(stranger, "n0", "n1", "n2", "n3")["NodeNames"] == []


def test_an_incomplete_gang_waits_and_says_how_many_are_there() -> None:
    """And when a member goes away again, what was kept for the others is free."""
    scene = Scene(node("a", 2))
    scene.put(member("m0", "train", 2))
    scene.step()
    answer = scene.world.filter(scene.api.pods["m0"], "a")
    assert answer["FailedAndUnresolvableNodes"] == {"a": "waits for its gang"}
    assert any("waits for its gang (train: 1 of 2 members are there)" in one.note for one in scene.world.recorder.told)

    scene.put(member("m1", "train", 2))
    scene.step()
    assert scene.planned(["m0", "m1"]) == ["a", "a"]
    scene.delete("m1")
    scene.step()

    assert scene.hold("m0") is None
    assert scene.world.filter(pod("stranger", {"nvidia.com/gpu": "2"}), "a")["NodeNames"] == ["a"]


def test_two_gangs_that_each_need_everything_run_one_after_the_other() -> None:
    """Neither ever holds half of it."""
    scene = Scene(node("a"), node("b"))
    scene.put(*(member(f"{gang}-{number}", gang, 2) for number in range(2) for gang in ("red", "blue")))
    scene.step()
    first, second = ["blue-0", "blue-1"], ["red-0", "red-1"]
    assert sorted(scene.planned(first)) == ["a", "b"]
    assert scene.planned(second) == ["", ""]

    scene.bind(*first)
    scene.step()
    assert scene.planned(second) == ["", ""]
    scene.delete(*first)
    scene.step()
    assert sorted(scene.planned(second)) == ["a", "b"]


def test_a_member_that_dies_is_planned_beside_those_that_run() -> None:
    """Its replacement is the only one that waits."""
    scene = Scene(node("a"), node("b"), node("c"))
    scene.put(*(member(f"m{number}", "train", 3) for number in range(3)))
    scene.step()
    scene.bind("m0", "m1", "m2")
    scene.delete("m1")

    scene.put(member("again", "train", 3))
    scene.step()

    assert scene.planned(["again"]) != [""]


def test_members_that_are_done_make_a_gang_whole_for_one_that_comes_again_but_not_for_the_next_run() -> None:
    """A Job whose other pods have succeeded restarts a failed one; the next Job of that name is another gang run."""
    scene = Scene(node("a"), node("b"))

    def run(name: str, job: str) -> dict[str, Any]:
        body = member(name, "train", 2)
        body["metadata"]["ownerReferences"] = [{"uid": job, "controller": True}]
        return body

    scene.put(run("m0", "job-1"), run("m1", "job-1"))
    scene.step()
    scene.bind("m0", "m1")
    scene.put({**scene.api.pods["m0"], "status": {"phase": "Succeeded"}})
    scene.delete("m1")

    scene.put(run("m1-again", "job-1"))
    scene.step()
    assert scene.planned(["m1-again"]) != [""]

    scene.delete("m1-again")
    scene.put(run("next-0", "job-2"))
    scene.step()
    assert scene.planned(["next-0"]) == [""]
    scene.put(run("next-1", "job-2"))
    scene.step()
    assert sorted(scene.planned(["next-0", "next-1"])) == ["a", "b"]

    left = [one for one in scene.api.objects() if one.metadata.name != "m0"]
    list(scene.world.mirror.replace_pods(left, 0.0))
    assert scene.world.mirror.ledger.gangs.done() == []


@pytest.mark.parametrize("evicts", [True, False])
def test_when_not_all_are_bound_in_time_everything_is_given_back(evicts: bool) -> None:
    """The bound ones of this attempt go, or are reported; the nodes where it failed are avoided next time."""
    scene = Scene(node("a"), node("b"), node("c"), gang_evicts=evicts)
    scene.put(member("old", "train", 3))
    scene.put(*(member(f"m{number}", "train", 3) for number in range(2)))
    scene.step()
    scene.bind("old")
    scene.now += 3_600
    restarted = scene.api.pods["old"]["metadata"]["annotations"]
    restarted[records.BIND_TIME] = str(int(scene.now) - 3_600)
    for name in ("m0", "m1"):
        hold = scene.hold(name)
        assert hold is not None
        renewed = records.encode_hold(hold._replace(until=int(scene.now) + 60))
        scene.api.pods[name]["metadata"]["annotations"][records.HOLD] = renewed
        scene.put(scene.api.pods[name])
    scene.bind("m0")
    scene.world.mirror.listener = None
    failed_on = scene.hold("m1")
    assert failed_on is not None

    scene.pass_time(61)
    scene.step()

    assert scene.api.evicted == (["m0"] if evicts else [])
    again = scene.hold("m1")
    assert again is None or again.node != failed_on.node
    told = [one for one in scene.world.recorder.told if one.reason == "GangTorn"]
    assert {one.regarding.name for one in told} == {"m0", "m1"}


@pytest.mark.parametrize("jump", [86_400, -86_400])
def test_a_step_of_the_wall_clock_neither_tears_a_gang_nor_keeps_its_place_for_ever(jump: int) -> None:
    """NTP sets the clock of a machine that was off by a day while a gang waits to be bound."""
    scene = Scene(node("a"), node("b"))
    scene.put(*(member(f"m{number}", "train", 2) for number in range(2)))
    scene.step()
    held_before = [scene.hold(name) for name in ("m0", "m1")]
    assert all(held_before)

    scene.now += jump
    scene.step()
    assert [scene.hold(name) for name in ("m0", "m1")] == held_before

    scene.world.clock.now += scene.settings.gang_deadline_seconds + 1
    scene.step(1)
    assert scene.hold("m0") is None


def test_a_new_leader_goes_on_in_the_middle() -> None:
    """Some members have their place, others not yet; or the places are there and no gate is open."""
    scene = Scene(node("a"), node("b"))
    hold = records.Hold(identifiers.NodeName("a"), frozenset(), int(scene.now) + 60)
    scene.put(member("m0", "train", 2, annotations={records.HOLD: records.encode_hold(hold)}), member("m1", "train", 2))

    scene.step()

    assert scene.planned(["m0", "m1"]) == ["a", "b"]


def test_a_plan_keeps_to_what_the_pods_say_of_nodes() -> None:
    """kube-scheduler would refuse the rest anyway."""
    scene = Scene(node("a", labels={"zone": "x"}), node("b", labels={"zone": "y"}), node("c", labels={"zone": "y"}))
    tainted = node("c", labels={"zone": "y"})
    tainted["spec"] = {"taints": [{"key": "dedicated", "effect": "NoSchedule"}]}
    scene.world.mirror.see_node(msgspec.convert(tainted, objects.Node))
    wishes = {"nodeSelector": {"zone": "y"}}
    scene.put(member("m0", "one", 1, **wishes))
    scene.put(*(member(f"t{number}", "two", 2, **wishes) for number in range(2)))
    scene.step()

    assert scene.planned(["m0"]) == ["b"]
    assert scene.planned(["t0", "t1"]) == ["", ""]


def test_pods_of_another_scheduler_are_no_members() -> None:
    """Nobody plans for them, and they make no gang whole."""
    scene = Scene(node("a", 2))
    scene.put(member("m0", "train", 2), member("m1", "train", 2, schedulerName="another"))

    scene.step()

    assert scene.planned(["m0", "m1"]) == ["", ""]


def test_a_large_gang_fills_nodes_one_after_the_other() -> None:
    """Of two shapes, the larger first, on the fewest nodes."""
    scene = Scene(*(node(f"n{number}", 4) for number in range(8)))
    pairs, singles = [f"pair-{number}" for number in range(6)], [f"one-{number:02d}" for number in range(14)]
    scene.put(*(member(name, "train", 20, {"nvidia.com/gpu": "2"}) for name in pairs))
    scene.put(*(member(name, "train", 20) for name in singles))

    scene.step()

    assert sorted(scene.planned(pairs)) == ["n0", "n0", "n1", "n1", "n2", "n2"]
    assert sorted(scene.planned(singles)) == ["n3"] * 4 + ["n4"] * 4 + ["n5"] * 4 + ["n6"] * 2


def test_a_gang_counts_against_the_quota_as_a_whole() -> None:
    """Half a gang within the quota is no use."""
    scene = Scene(node("a", 2))
    body = {"metadata": {"name": "q", "namespace": "default"}, "spec": {"hard": {"limits.nvidia.com/gpu": "1"}}}
    scene.world.mirror.quotas.changed(msgspec.convert(body, objects.ResourceQuota))
    scene.put(member("m0", "train", 2), member("m1", "train", 2))

    scene.step()

    assert scene.planned(["m0", "m1"]) == ["", ""]


@pytest.mark.parametrize(
    ("others", "text"),
    [
        ([member("m1", "train", 3)], "train: the members disagree about its size, 2 and 3"),
        ([member("m1", "train", 2), member("m2", "train", 2)], "train: 3 members are there, and its size is 2"),
    ],
)
def test_a_gang_that_cannot_be_is_refused_with_the_contradiction(others: list[dict[str, Any]], text: str) -> None:
    """Whatever room there is."""
    scene = Scene(node("a", 8))
    scene.put(member("m0", "train", 2), *others)
    scene.step()

    scene.world.filter(scene.api.pods["m0"], "a")

    assert any(text in one.note for one in scene.world.recorder.told)
    assert scene.hold("m0") is None


@pytest.mark.parametrize(
    ("annotations", "labels", "found"),
    [
        ({}, {}, None),
        ({gangs.NAME: "", gangs.SIZE: " "}, {}, None),
        ({gangs.NAME: "a", gangs.SIZE: "8"}, {}, gangs.Gang("a", 8)),
        ({gangs.SIZE: "8"}, {gangs.LABEL: "a"}, gangs.Gang("a", 8)),
        ({gangs.NAME: "a", gangs.SIZE: "8"}, {gangs.LABEL: "a"}, gangs.Gang("a", 8)),
        ({gangs.NAME: "a"}, {}, "the gang 'a' has no size"),
        ({}, {gangs.LABEL: "a"}, gangs.Gang("a", 0, "", gangs.COSCHEDULING)),
        ({gangs.SIZE: "8"}, {}, "hami.io/gang-size is set without a gang"),
        ({gangs.NAME: "a", gangs.SIZE: "8"}, {gangs.LABEL: "b"}, "says 'a' and the label .* says 'b'; leave one"),
        ({gangs.NAME: "a", gangs.SIZE: "0"}, {}, "0 is outside 1 to 1000"),
        ({gangs.NAME: "a", gangs.SIZE: "eight"}, {}, "'eight' is not a quantity"),
    ],
)
def test_what_a_pod_says_of_its_gang(
    annotations: dict[str, str], labels: dict[str, str], found: gangs.Gang | str | None
) -> None:
    """By our annotations, or by the label that coscheduling uses with our size beside it."""
    if isinstance(found, str):
        with pytest.raises(errors.BadQuantity, match=found):
            gangs.read(annotations, labels)
    else:
        assert gangs.read(annotations, labels) == found


def test_the_scheduling_group_of_a_pod_names_its_gang() -> None:
    """Nothing else may name another; a size beside it holds."""
    assert gangs.read({}, {}, "job", "a") == gangs.Gang("a", 0, "job", gangs.KUBERNETES)
    assert gangs.read({gangs.SIZE: "4"}, {gangs.LABEL: "a"}, "job", "a") == gangs.Gang("a", 4, "job")
    with pytest.raises(errors.BadQuantity, match=r"says 'b' and spec\.schedulingGroup says 'a'; leave one"):
        gangs.read({gangs.NAME: "b", gangs.SIZE: "4"}, {}, "job", "a")


def grouped(name: str, **more: Any) -> dict[str, Any]:
    return pod(name, WHOLE, schedulingGates=GATES, schedulingGroup={"podGroupName": "train"}, **more)


def group(size: int) -> objects.PodGroup:
    body = {
        "metadata": {"name": "train", "namespace": "default"},
        "spec": {"schedulingPolicy": {"gang": {"minCount": size}}},
    }
    return msgspec.convert(body, objects.PodGroup)


def test_a_pod_group_says_how_many_must_start_at_least() -> None:
    """More of them come as there is room, and one that finds none in time takes nothing from the others."""
    scene = Scene(node("a", 2), node("b", 1), node("c", 1))
    names = [f"m{number}" for number in range(5)]
    scene.put(*(grouped(name) for name in names))
    scene.step()
    assert scene.planned(names) == [""] * 5
    assert scene.told("there is no PodGroup of that name to say its size")

    sink = scene.world.mirror.groups[gangs.KUBERNETES]
    sink.changed(group(5))
    scene.step()
    assert scene.planned(names) == [""] * 5
    sink.changed(group(3))
    scene.step()

    planned = scene.planned(names)
    assert sorted(planned) == ["", "a", "a", "b", "c"]
    *kept, left = sorted(names, key=lambda name: not scene.hold(name))
    assert scene.told("3 no GPU free for exclusive use")
    (alone,) = (one for one in scene.world.pending if one.hold is None)
    assert "not enough free for one more member" in str(scene.world.placer.gang_rejection(alone))

    scene.bind(*kept[:3])
    scene.pass_time(100)
    scene.step(1)
    assert scene.hold(kept[3]) is None
    assert len(scene.api.pods) == 5
    assert not scene.told(error_codes.GANG_TORN)

    scene.delete(kept[0], kept[3])
    scene.world.clock.now += 100
    scene.step()
    assert scene.hold(left)


def test_a_member_whose_request_makes_no_sense_holds_back_its_gang_and_no_other() -> None:
    """One that came past the webhook: the planner goes on with everybody else."""
    scene = Scene(node("a", 4))
    scene.put(member("m0", "bad", 2), member("m1", "bad", 2, {"nvidia.com/gpu": "1", "nvidia.com/gpucores": "900"}))
    scene.put(member("n0", "good", 2), member("n1", "good", 2))

    scene.step()

    assert scene.planned(["m0", "m1"]) == ["", ""]
    assert scene.planned(["n0", "n1"]) == ["a", "a"]


def test_pod_groups_that_are_listed_no_more_are_gone() -> None:
    """And one of the other API is another."""
    scene = Scene(node("a", 2))
    ours, others = (scene.world.mirror.groups[one] for one in (gangs.KUBERNETES, gangs.COSCHEDULING))
    list(ours.replaced([group(2)], 0.0))
    list(others.replaced([], 0.0))
    scene.put(grouped("m0"), grouped("m1"))
    members = scene.world.mirror.ledger.gangs.members(("default", "train"))
    assert members.size == 2

    list(ours.replaced([], 0.0))

    assert members.size == 0
    basic = msgspec.convert({"spec": {"schedulingPolicy": {"basic": {}}}}, objects.PodGroup)
    assert basic.least_members == 1
    assert msgspec.convert({"spec": {"minMember": 4}}, objects.PodGroup).least_members == 4


def test_a_member_that_contradicts_itself_is_no_pod_without_a_gang() -> None:
    """It is refused, not placed alone."""
    world = World(node("a"))

    answer = world.filter(pod("p", WHOLE, annotations={gangs.NAME: "train"}), "a")

    assert "the gang 'train' has no size" in answer["FailedAndUnresolvableNodes"]["a"]
    assert error_codes.BAD_GANG in world.recorder.told[0].note


@pytest.mark.parametrize(
    ("spec", "admitted"),
    [
        ({}, True),
        ({"nodeSelector": {"zone": "x"}}, True),
        ({"nodeSelector": {"zone": "x", "disk": "ssd"}}, False),
        ({"required": [[{"key": "zone", "operator": "In", "values": ["x", "y"]}]]}, True),
        ({"required": [[{"key": "zone", "operator": "NotIn", "values": ["x"]}]]}, False),
        ({"required": [[{"key": "zone", "operator": "Exists"}, {"key": "disk", "operator": "DoesNotExist"}]]}, True),
        (
            {
                "required": [
                    [{"key": "disk", "operator": "Exists"}],
                    [{"key": "rank", "operator": "Gt", "values": ["3"]}],
                ]
            },
            True,
        ),
        ({"required": [[{"key": "rank", "operator": "Lt", "values": ["4"]}]]}, False),
        ({"required": [[{"key": "zone", "operator": "Gt", "values": ["4"]}]]}, False),
        ({"required": [[{"key": "zone", "operator": "Near"}]]}, False),
        ({"required": [[]]}, False),
    ],
)
def test_nodes_a_pod_may_go_to(spec: dict[str, Any], admitted: bool) -> None:
    """As kube-scheduler reads selectors: one term must hold, and an empty one holds nowhere."""
    terms = [{"matchExpressions": expressions} for expressions in spec.pop("required", [])]
    if terms:
        required = {"requiredDuringSchedulingIgnoredDuringExecution": {"nodeSelectorTerms": terms}}
        spec["affinity"] = {"nodeAffinity": required}
    wanted = node_selection.requirements_of(msgspec.convert({"spec": spec}, objects.Pod))

    assert node_selection.admits(wanted, "n", {"zone": "x", "rank": "5"}, []) is admitted


@pytest.mark.parametrize(
    ("toleration", "admitted"),
    [
        (None, False), ({"operator": "Exists"}, True), ({"key": "gpu", "operator": "Exists"}, True),
        ({"key": "gpu", "value": "a"}, True), ({"key": "gpu", "value": "b"}, False),
        ({"key": "gpu", "value": "a", "effect": "NoExecute"}, False), ({"key": "other", "operator": "Exists"}, False),
    ],
)  # fmt: skip
def test_taints_keep_pods_off_unless_they_are_tolerated(toleration: dict[str, str] | None, admitted: bool) -> None:
    """One that only prefers other pods keeps nobody off."""
    body = {"spec": {"tolerations": [toleration] if toleration else None}}
    wanted = node_selection.requirements_of(msgspec.convert(body, objects.Pod))
    taints = [facts.Taint("gpu", "a", "NoSchedule"), facts.Taint("soft", "", "PreferNoSchedule")]

    assert node_selection.admits(wanted, "n", {}, taints) is admitted


def test_what_was_kept_for_a_member_does_not_count_beside_what_it_holds() -> None:
    """Between its bind and the watch's word of it; and if the bind comes to nothing, it is kept again."""
    scene = Scene(node("a", 2))
    scene.put(member("m0", "train", 2), member("m1", "train", 2))
    scene.step()
    scene.world.clock.now += 10
    ledger = scene.world.mirror.ledger
    ledger.expire(scene.world.clock.now)
    stranger = pod("stranger", WHOLE)

    held_now = {gpus.gpu_uuid("a", 0): allocations.Allocation(1, 16_000, 100, 1)}
    uid = identifiers.PodUid("uid-m0")
    ledger.assume(facts.BoundPod(uid, identifiers.PodKey("default/m0"), identifiers.NodeName("a"), allocated=held_now))

    assert scene.world.filter(scene.api.pods["m1"], "a")["NodeNames"] == ["a"]
    assert scene.world.filter(stranger, "a")["NodeNames"] == []
    ledger.forget(uid)
    assert scene.world.filter(stranger, "a")["NodeNames"] == []
