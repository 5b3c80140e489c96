"""Filter, prioritize and the waking of refused pods, on a mirror without a cluster."""

import asyncio

import msgspec
import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gpu_sharing.adapters import objects
from gpu_sharing.core import allocations, identifiers, records
from lab import gpus
from scheduler_extender.serve import wire
from tests import inputs
from tests.support.extender_world import A100, LIMITS, World, held, pod


def test_all_nodes_that_fit_are_returned_and_the_others_have_reasons() -> None:
    """kube-scheduler's own preferences still choose among them; every refusal is final for preemption."""
    world = World(gpus.gpu_node("a", A100, 1), gpus.gpu_node("b", A100, 1), gpus.gpu_node("full", A100, 1))
    world.see(held("other", "full", 0, 15_000))

    answer = world.filter(pod("p"), "b", "full", "a", "stranger")

    assert answer == {
        "NodeNames": ["b", "a"],
        "FailedAndUnresolvableNodes": {
            "full": "GPU memory insufficient",
            "stranger": "node unknown to the GPU scheduler",
        },
        "Error": "",
    }


def test_the_best_node_gets_ten_and_all_others_nothing() -> None:
    """The fuller one, by default; the emptier one where the pod asks to be spread."""
    world = World(gpus.gpu_node("a", A100, 1), gpus.gpu_node("b", A100, 1))
    world.see(held("other", "b", 0, 4000))
    spread = {"hami.io/node-scheduler-policy": "spread"}

    world.filter(pod("p"), "a", "b")
    assert world.prioritize(pod("p"), "a", "b") == {"a": 0, "b": 10}
    world.filter(pod("q", annotations=spread), "a", "b")
    assert world.prioritize(pod("q", annotations=spread), "a", "b") == {"a": 10, "b": 0}


def test_a_pod_with_wishes_of_its_own_gets_scores_of_one_only() -> None:
    """Its preferred zone outweighs our packing."""
    world = World(gpus.gpu_node("a", A100, 1), gpus.gpu_node("b", A100, 1))
    wishes = {"topologySpreadConstraints": [{"whenUnsatisfiable": "ScheduleAnyway"}]}
    affinity = {"affinity": {"nodeAffinity": {"preferredDuringSchedulingIgnoredDuringExecution": [{"weight": 1}]}}}

    for name, more in (("p", wishes), ("q", affinity)):
        one = pod(name, **more)
        world.filter(one, "a", "b")
        assert sorted(world.prioritize(one, "a", "b").values()) == [0, 1]


def test_prioritize_answers_without_a_filter_before_it() -> None:
    """After a restart the scheduler's cycle goes on."""
    world = World(gpus.gpu_node("a", A100, 1), gpus.gpu_node("b", A100, 1))

    assert world.prioritize(pod("p"), "b", "a", "stranger") == {"a": 10, "b": 0, "stranger": 0}


def test_prioritize_ranks_no_node_where_none_is_offered_and_none_fits() -> None:
    """The best of none is none; it failed with a code that says the extender is wrong."""
    world = World(gpus.gpu_node("a", A100, 1))

    assert world.prioritize(pod("p", {"nvidia.com/gpu": "9"})) == {}


def test_the_place_of_one_pod_is_not_offered_to_the_next_while_there_is_another() -> None:
    """Two pods in a row do not run into each other at bind."""
    world = World(gpus.gpu_node("a", A100, 1), gpus.gpu_node("b", A100, 1))
    large = {"nvidia.com/gpu": "1", "nvidia.com/gpumem": "10000"}
    world.filter(pod("first", large), "a", "b")
    assert world.prioritize(pod("first", large), "a", "b") == {"a": 10, "b": 0}

    assert world.filter(pod("second", large), "a", "b")["NodeNames"] == ["b"]
    assert world.filter(pod("third", large), "a")["NodeNames"] == ["a"]  # Nothing else fits it.
    world.clock.now += 6
    assert world.filter(pod("fourth", large), "a", "b")["NodeNames"] == ["a", "b"]


def test_a_single_node_is_kept_at_filter_because_prioritize_is_skipped() -> None:
    """kube-scheduler does not ask about a choice of one."""
    world = World(gpus.gpu_node("a", A100, 1), gpus.gpu_node("b", A100, 1))
    large = {"nvidia.com/gpu": "1", "nvidia.com/gpumem": "10000"}
    world.filter(pod("first", large), "a")

    assert world.filter(pod("second", large), "a", "b")["NodeNames"] == ["b"]


def test_a_hold_of_equal_or_higher_priority_stands_and_one_of_lower_does_not() -> None:
    """`status.nominatedNodeName` is a promise, to those who may make it."""
    world = World(gpus.gpu_node("a", A100, 1))
    large = {"nvidia.com/gpu": "1", "nvidia.com/gpumem": "10000"}
    status = {"phase": "Pending", "nominatedNodeName": "a"}
    world.see(pod("preemptor", large, status=status, priority=5))

    assert world.filter(pod("low", large, priority=1), "a")["NodeNames"] == []
    assert world.filter(pod("equal", large, priority=5), "a")["NodeNames"] == []
    assert world.filter(pod("high", large, priority=9), "a")["NodeNames"] == ["a"]
    assert world.filter(pod("preemptor", large, status=status, priority=5), "a")["NodeNames"] == ["a"]


def test_a_pod_without_gpu_is_let_through() -> None:
    """Whoever sends it here does not lose it."""
    world = World(gpus.gpu_node("a", A100, 1))

    assert world.filter(pod("p", {"cpu": "1"}), "a", "x")["NodeNames"] == ["a", "x"]
    assert world.filter(pod("q", {"nvidia.com/gpu": "0"}), "a")["NodeNames"] == ["a"]
    assert world.prioritize(pod("p", {"cpu": "1"}), "a", "x") == {"a": 0, "x": 0}


def test_whole_nodes_are_answered_with_whole_nodes() -> None:
    """An extender that is not nodeCacheCapable must give back what it was sent."""
    world = World(gpus.gpu_node("a", A100, 1), gpus.gpu_node("full", A100, 1))
    world.see(held("other", "full", 0, 15_000))
    items = [{"metadata": {"name": "full"}, "x": 1}, {"metadata": {"name": "a"}, "spec": {"y": [1, 2]}}]

    body = orjson.dumps({"Pod": pod("p"), "Nodes": {"items": items}, "NodeNames": None})
    answer = orjson.loads(world.server.filter(body)[0])

    assert answer["Nodes"]["items"] == [items[1]]
    assert answer["FailedAndUnresolvableNodes"] == {"full": "GPU memory insufficient"}


def test_keys_in_lower_case_are_read_too() -> None:
    """Go's readers are indifferent to case, so other callers may be."""
    world = World(gpus.gpu_node("a", A100, 1))

    answer = orjson.loads(world.server.filter(orjson.dumps({"pod": pod("p"), "nodeNames": ["a"]}))[0])

    assert answer["NodeNames"] == ["a"]


def test_no_names_and_no_nodes_are_no_nodes() -> None:
    """`NodeNames: null` is an empty offer, not a crash."""
    world = World(gpus.gpu_node("a", A100, 1))

    answer = orjson.loads(world.server.filter(orjson.dumps({"Pod": pod("p"), "Nodes": None, "NodeNames": None}))[0])

    assert answer["NodeNames"] == []


def test_foreign_pods_take_slots_and_corrupt_records_close_their_node() -> None:
    """What is not known to be free is not given away."""
    world = World(gpus.gpu_node("a", A100, 1, slots=2), gpus.gpu_node("b", A100, 2))
    world.see(pod("stranger", {"nvidia.com/gpu": "2"}, node="a"))
    named = f"{gpus.gpu_uuid('b', 0)},NVIDIA,1000,0:garbage;"
    world.see(pod("broken", node="b", annotations={records.ALLOCATED: named}))

    answer = world.filter(pod("p", {"nvidia.com/gpu": "2", "nvidia.com/gpumem": "1"}), "a", "b")
    small = world.filter(pod("q"), "a", "b")

    assert answer["FailedAndUnresolvableNodes"] == {"a": "too few GPUs", "b": "GPU usage unknown"}
    assert small["NodeNames"] == ["b"]
    assert small["FailedAndUnresolvableNodes"] == {"a": "GPU slots exhausted"}
    assert {event.reason for event in world.recorder.told} >= {"ForeignGPUPod", "CorruptGPURecord"}


def test_nodes_of_another_plugin_are_not_chosen_unless_allowed_and_then_one_pod_at_a_time() -> None:
    """Its plugin gives GPUs to the first pending pod it sees."""
    theirs = gpus.gpu_node("a", A100, 1, annotations={records.AGENT: ""})
    assert World(theirs).filter(pod("p"), "a")["FailedAndUnresolvableNodes"] == {
        "a": "GPUs served by another device plugin"
    }
    world = World(theirs, allow_hami_nodes=True)
    assert world.filter(pod("p"), "a")["NodeNames"] == ["a"]

    world.see(held("starting", "a", 0, 1000))

    assert world.filter(pod("q"), "a")["FailedAndUnresolvableNodes"] == {"a": "node still starting another GPU pod"}


def test_a_node_that_offers_gpus_without_a_record_is_somebody_elses() -> None:
    """As with NVIDIA's own plugin, or before a driver is there; `allow_hami_nodes` does not change that."""
    theirs, empty = gpus.gpu_node("theirs", A100, 1), gpus.gpu_node("empty", A100, 1)
    theirs["metadata"]["annotations"] = empty["metadata"]["annotations"] = {}
    empty["status"]["allocatable"] = {"nvidia.com/gpu": "0", "cpu": "4"}

    answer = World(theirs, empty, allow_hami_nodes=True).filter(pod("p"), "theirs", "empty")

    assert answer["FailedAndUnresolvableNodes"] == {
        "theirs": "GPUs served by another device plugin",
        "empty": "no GPUs registered",
    }


def test_a_node_whose_gpus_dra_gives_out_is_left_alone_until_it_stops() -> None:
    """Whatever record it has: a GPU has one master. Other drivers' slices, and those of no node, say nothing."""
    world = World(gpus.gpu_node("a", A100, 1), gpus.gpu_node("b", A100, 1))

    def piece(name: str, driver: str, node: str) -> objects.ResourceSlice:
        body = {"metadata": {"name": name}, "spec": {"driver": driver, "nodeName": node}}
        return msgspec.convert(body, objects.ResourceSlice)

    ours = piece("one", "gpu.nvidia.com", "a")
    list(
        world.mirror.slices.replaced([ours, piece("two", "nic.example", "b"), piece("all", "gpu.nvidia.com", "")], 0.0)
    )
    world.see(pod("p"))
    assert world.filter(pod("p"), "a")["FailedAndUnresolvableNodes"] == {"a": "GPUs allocated by DRA"}
    assert world.filter(pod("q"), "b")["NodeNames"] == ["b"]
    world.due()

    world.mirror.slices.deleted(ours)

    assert [one.key for one in world.due()] == ["default/p"]
    world.mirror.slices.changed(ours)
    assert world.filter(pod("r"), "a", "b")["NodeNames"] == ["b"]


def test_a_refused_pod_is_woken_once_when_its_room_is_made() -> None:
    """And the one behind it, which would fit only instead of it, sleeps on."""
    world = World(gpus.gpu_node("a", A100, 1))
    large = {"nvidia.com/gpu": "1", "nvidia.com/gpumem": "10000"}
    world.see(held("other", "a", 0, 15_000))
    for name, priority in (("late", 0), ("urgent", 7)):
        world.see(pod(name, large, priority=priority))
        assert world.filter(pod(name, large, priority=priority), "a")["NodeNames"] == []
    world.due()

    world.mirror.forget_pod(identifiers.PodUid("uid-other"))

    assert [one.key for one in world.due()] == ["default/urgent"]
    assert world.due() == []


@pytest.mark.parametrize("trouble", ["cordoned", "released", "sick", "unregistered"])
def test_a_refused_pod_is_woken_when_its_node_is_well_again(trouble: str) -> None:
    """A cordon is lifted, a reset is over, a GPU recovers, a device plugin comes up."""
    well, ill = gpus.gpu_node("a", A100, 1), gpus.gpu_node("a", A100, 1)
    annotations = ill["metadata"]["annotations"]
    if trouble == "cordoned":
        annotations[records.CORDON] = gpus.gpu_uuid("a", 0)
    elif trouble == "released":
        annotations[records.RELEASE] = gpus.gpu_uuid("a", 0)
    elif trouble == "sick":
        annotations[records.INVENTORY] = annotations[records.INVENTORY].replace(',"health":true', "")
    else:
        del annotations[records.INVENTORY]
    world = World(ill)
    world.see(pod("p"))
    world.see(pod("large", {"nvidia.com/gpu": "1", "nvidia.com/gpumem": "99000"}))
    for name, limits in (("p", LIMITS), ("large", {"nvidia.com/gpu": "1", "nvidia.com/gpumem": "99000"})):
        assert world.filter(pod(name, limits), "a")["NodeNames"] == []
    world.due()

    world.mirror.see_node(msgspec.convert(well, objects.Node))

    assert [one.key for one in world.due()] == ["default/p"]


def test_a_pod_that_was_asked_about_after_the_room_was_made_is_not_woken() -> None:
    """kube-scheduler knows already."""
    world = World(gpus.gpu_node("a", A100, 1), gpus.gpu_node("b", A100, 1))
    huge = {"nvidia.com/gpu": "1", "nvidia.com/gpumem": "16000"}
    world.see(held("one", "a", 0, 15_000))
    world.see(held("two", "b", 0, 15_000))
    world.see(pod("p", huge))
    world.filter(pod("p", huge), "a", "b")
    world.due()
    world.mirror.forget_pod(identifiers.PodUid("uid-one"))

    world.filter(pod("p", huge), "b")

    assert world.due() == []


def test_past_ten_nodes_refusals_are_grouped() -> None:
    """One line a reason, with the node that came nearest."""
    world = World(*(gpus.gpu_node(f"n{index:02d}", A100, 1) for index in range(12)))
    world.see(held("other", "n03", 0, 6000))
    for index in range(12):
        if index != 7:
            world.see(held(f"h{index}", f"n{index:02d}", 0, 9000 if index != 3 else 1))
    world.see(held("nearest", "n07", 0, 8001))

    world.filter(pod("p", {"nvidia.com/gpu": "1", "nvidia.com/gpumem": "16000"}), *(f"n{i:02d}" for i in range(12)))

    (note,) = [event.note for event in world.recorder.told if event.reason == "FailedScheduling"]
    assert note == (
        "0/12 nodes available: 12 GPU memory insufficient\n"
        "    12 nodes, nearest n03: GPU memory insufficient (requested 16000MB, available 9999MB)"
    )


def test_the_same_refusal_is_not_told_twice_in_a_row() -> None:
    """A pod that is retried does not fill its own event list."""
    world = World(gpus.gpu_node("a", A100, 1))
    huge = pod("p", {"nvidia.com/gpu": "1", "nvidia.com/gpumem": "99000"})

    for _ in range(3):
        world.filter(huge, "a")
    assert len(world.recorder.told) == 1
    world.clock.now += 10
    world.filter(huge, "a")

    assert len(world.recorder.told) == 2


def test_preempt_gives_a_pod_without_gpus_its_victims_back_by_uid() -> None:
    """What kube-scheduler chose stands, in either form of the question."""
    world = World()
    whole = {"Pod": pod("p", {}), "NodeNameToVictims": {"a": {"Pods": [pod("v")], "NumPDBViolations": 1}}}
    meta = {"Pod": pod("p", {}), "NodeNameToMetaVictims": {"a": {"Pods": [{"UID": "uid-v"}], "NumPDBViolations": 1}}}
    expected = {"NodeNameToMetaVictims": {"a": {"Pods": [{"UID": "uid-v"}], "NumPDBViolations": 1}}}

    assert [world.preempt(body) for body in (whole, meta)] == [
        expected,
        expected,
    ]


@given(
    st.one_of(
        st.binary(max_size=200),
        st.recursive(
            st.one_of(
                st.none(), st.booleans(), st.integers(-(2**63), 2**63), st.floats(allow_nan=False), st.text(max_size=20)
            ),
            lambda inner: st.one_of(
                st.lists(inner, max_size=4),
                st.dictionaries(
                    st.sampled_from(["Pod", "NodeNames", "Nodes", "metadata", "spec", "uid", "name", "x"]), inner
                ),
            ),
            max_leaves=20,
        ).map(orjson.dumps),
    )
)
def test_any_body_is_answered_or_refused(body: bytes) -> None:
    """Nothing that arrives on the wire is a crash."""
    world = World(gpus.gpu_node("a", A100, 1))
    preempt = lambda body: asyncio.run(world.server.preempt(body))  # noqa: E731
    for verb in (world.server.filter, world.server.prioritize, preempt, wire.decode_bind):
        try:
            verb(body)
        except wire.BadRequest as refused:
            assert str(refused)


@pytest.mark.parametrize("field", ["PodName", "PodNamespace", "PodUID", "Node"])
def test_a_bind_without_a_proper_name_is_refused(field: str) -> None:
    """Names go into URLs."""
    whole = {"PodName": "p", "PodNamespace": "d", "PodUID": "u", "Node": "n"}
    assert wire.decode_bind(orjson.dumps(whole)).node == "n"

    for bad in ("", "a/b", "x" * 300, "a\nb"):
        with pytest.raises(wire.BadRequest):
            wire.decode_bind(orjson.dumps({**whole, field: bad}))


def test_prioritize_does_not_take_as_many_nodes_for_the_same_nodes() -> None:
    """kube-scheduler's other plugins left one node, another freed meanwhile: equal numbers, other names."""
    world = World(gpus.gpu_node("a", A100, 1), gpus.gpu_node("b", A100, 1), gpus.gpu_node("c", A100, 1))
    world.see(held("there", "c", 0, 14_000))
    world.see(held("here", "a", 0, 15_000))
    assert world.filter(pod("p"), "a", "b")["NodeNames"] == ["b"]
    world.see(held("newer", "b", 0, 15_000))
    world.mirror.forget_pod(identifiers.PodUid("uid-here"))

    assert set(world.prioritize(pod("p"), "b")) == {"b"}
    assert world.prioritize(pod("q"), "a") == {"a": 10}


@pytest.mark.parametrize("quota", [True, False])
def test_kube_scheduler_and_the_event_say_the_same_reason(quota: bool) -> None:
    """A gang member over its quota: both say the quota, and the gang where there is none."""
    world = World(gpus.gpu_node("a", A100, 1))
    if quota:
        hard = {"limits.nvidia.com/gpumem": "1000"}
        body = {"metadata": {"name": "q", "namespace": "default"}, "spec": {"hard": hard}}
        world.mirror.see_quota(msgspec.convert(body, objects.ResourceQuota))
    member = pod("m", annotations={"hami.io/gang": "train", "hami.io/gang-size": "2"})
    world.see(member)

    answer = world.filter(member, "a")

    phrase = "quota exceeded" if quota else "waits for its gang"
    assert answer["FailedAndUnresolvableNodes"]["a"].startswith(phrase)
    assert phrase in world.recorder.told[-1].note


def test_the_memory_of_a_finished_init_container_is_not_given_to_another_pod() -> None:
    """The device plugin, which counts it for the pod's life, would refuse the other pod for ever."""
    a10 = gpus.Model("NVIDIA A10", 23_028)
    world = World(gpus.gpu_node("n", a10, 1))
    first = inputs.pod("02-init-done-a.yaml")
    share = allocations.Share(gpus.gpu_uuid("n", 0), 16_000, 10)
    record = records.pod_annotations(
        ((share,), (share._replace(memory_mib=1_000),)), identifiers.NodeName("n"), 0, identifiers.DecisionId("d")
    )
    first["metadata"]["annotations"] = record
    first["spec"]["nodeName"] = "n"
    done = {"name": "convert-weights", "state": {"terminated": {"exitCode": 0}}}
    world.see({**first, "status": {"phase": "Running", "initContainerStatuses": [done]}})

    answer = world.filter(inputs.pod("02-init-done-b.yaml"), "n")

    assert answer["FailedAndUnresolvableNodes"] == {"n": "GPU memory insufficient"}
    assert "requested 20000MB, available 7028MB" in world.recorder.told[-1].note
    assert world.filter(pod("small", {"nvidia.com/gpu": "1", "nvidia.com/gpumem": "7028"}), "n")["NodeNames"] == ["n"]


def test_a_pod_that_asks_for_memory_and_no_gpu_is_refused_where_the_webhook_was_away() -> None:
    """It was bound, and ran without any GPU and without an event."""
    world = World(gpus.gpu_node("n", A100, 1))

    answer = world.filter(inputs.pod("01-gpumem-only.yaml"), "n")

    assert "write nvidia.com/gpu: 1" in answer["FailedAndUnresolvableNodes"]["n"]
    assert "SCHED_NO_GPU_COUNT" in world.recorder.told[-1].note


def test_a_bound_pod_without_a_count_holds_no_device_ids() -> None:
    """The kubelet gave it none, so the node's slots stay free."""
    world = World(gpus.gpu_node("n", A100, 1))

    world.see(pod("mem-only", {"nvidia.com/gpumem": "3000"}, node="n"))
    world.see(pod("unreadable", {"nvidia.com/gpu": "1", "nvidia.com/gpumem": "8M"}, node="n"))

    assert world.mirror.ledger.allocated_on(identifiers.NodeName("n")).foreign_slots == 1
