"""What is said of a pending pod: whose end it waits for, whom preemption would evict, what to write instead."""

import asyncio
from typing import Any

import pytest

from lab import gpus
from scheduler_extender.decide import explaining
from tests.support.extender_world import A100, World, held, pod


def explain(world: World, body: dict[str, Any]) -> explaining.Explanation:
    world.see(body)
    return asyncio.run(explaining.Explainer(world.core).explain(world.listed(body["metadata"]["name"])))


def full_node(**changes: Any) -> World:
    """Two GPUs of 16,000 MiB: one has two pods of which one is important, the other one small pod too many."""
    world = World(gpus.gpu_node("a", A100, 2), gpus.gpu_node("b", A100, 1), **changes)
    for name, node, index, mib, priority in (
        ("important", "a", 0, 9_000, 50),
        ("small", "a", 0, 4_000, 0),
        ("one", "a", 1, 6_000, 0),
        ("two", "a", 1, 6_000, 0),
        ("alone", "b", 0, 14_000, 50),
    ):
        body = held(name, node, index, mib)
        body["spec"]["priority"] = priority
        world.see(body)
    return world


def test_it_says_whose_end_makes_room_and_who_would_be_evicted() -> None:
    """The fewest pods of any priority, and the best victims of a lower one."""
    answer = explain(full_node(), pod("p", {"nvidia.com/gpu": "1", "nvidia.com/gpumem": "11000"}, priority=10))

    b, a = answer.nodes  # The nearest first: one pod must end there, two on the other.
    assert a.waits_for == ("default/one", "default/two")
    assert a.evictable == ("default/one", "default/two")
    assert a.advice == "request at most 4000 MiB of each GPU's memory"
    assert (b.waits_for, b.evictable) == (("default/alone",), ())
    assert answer.nearest == "b"


@pytest.mark.parametrize(
    ("more", "changes"), [({"preemptionPolicy": "Never"}, {}), ({"priority": 0}, {}), ({}, {"preempts": False})]
)
def test_nobody_is_called_evictable_who_would_not_be_evicted(more: dict[str, Any], changes: dict[str, Any]) -> None:
    """By its own policy, its priority, or the setting."""
    answer = explain(
        full_node(**changes),
        pod("p", {"nvidia.com/gpu": "1", "nvidia.com/gpumem": "11000"}, **{"priority": 10, **more}),
    )

    assert [one.evictable for one in answer.nodes] == [(), ()]


@pytest.mark.parametrize(
    ("limits", "annotations", "advice"),
    [
        ({"nvidia.com/gpu": "3", "nvidia.com/gpumem": "1"}, {}, "request at most 2 GPUs in one container"),
        (
            {"nvidia.com/gpu": "1"},
            {"nvidia.com/use-gputype": "T4"},
            "the annotation nvidia.com/use-gputype excludes it",
        ),
        (
            {"nvidia.com/gpu": "1"},
            {"nvidia.com/nouse-gputype": "A1"},
            "the annotation nvidia.com/nouse-gputype excludes it",
        ),
        (
            {"nvidia.com/gpu": "1"},
            {"nvidia.com/use-gpuuuid": "GPU-x"},
            "the annotation nvidia.com/use-gpuuuid excludes it",
        ),
        ({}, {"nvidia.com/vgpu-mode": "mps"}, "write nvidia.com/vgpu-mode: hami-core"),
    ],
)
def test_it_says_what_to_write_instead(limits: dict[str, str], annotations: dict[str, str], advice: str) -> None:
    """Where what was written is in the way, and not what others hold."""
    answer = explain(full_node(), pod("p", limits or {"nvidia.com/gpu": "1"}, annotations=annotations))

    assert answer.nodes[0].advice == advice
    assert answer.nodes[0].waits_for == ()


def test_gates_and_gangs_are_told() -> None:
    """A gated pod is never asked about, so that this is the only place where its GPUs are explained."""
    annotations = {"hami.io/gang": "train", "hami.io/gang-size": "2"}
    body = pod(
        "p",
        {"nvidia.com/gpu": "1", "nvidia.com/gpumem": "1000"},
        annotations=annotations,
        schedulingGates=[{"name": "hami.io/gang"}],
    )

    answer = explain(full_node(), body)

    assert answer.gates == ("hami.io/gang",)
    assert answer.nodes[0].message == "waits for its gang (train: 1 of 2 members are there)"
    assert answer.remedy.startswith("Wait, create the missing members")


def test_a_selector_is_weighed_with_what_the_selected_nodes_have() -> None:
    """It may match no node at all, only nodes that are too small, or only nodes that are full."""
    world = World(
        gpus.gpu_node("large", gpus.A100, 1, labels={"zone": "earth"}),
        gpus.gpu_node("small", gpus.T4, 1, labels={"zone": "moon"}),
        gpus.gpu_node("bare", gpus.T4, 0, labels={"zone": "mars"}),
    )
    limits = {"nvidia.com/gpu": "1", "nvidia.com/gpumem": "40000"}

    nowhere = explain(world, pod("nowhere", limits, nodeSelector={"zone": "mars"}))
    too_small = explain(world, pod("too-small", limits, nodeSelector={"zone": "moon"}))
    fitting = explain(world, pod("fitting", limits, nodeSelector={"zone": "earth"}))

    assert nowhere.causes[0].sentence == "nodeSelector zone=mars matches no node with GPUs; they have zone=earth"
    assert too_small.causes[0].sentence == (
        "nodeSelector zone=moon leaves only nodes whose GPUs never serve the request, and excludes large"
    )
    assert fitting.causes[0].sentence == "its GPUs fit on large; kube-scheduler has not tried the pod yet"


def test_nodes_without_gpus_are_no_cause_where_others_have_some() -> None:
    """A cluster may have a hundred nodes without GPUs; the one with GPUs is the one that is full."""
    world = World(gpus.gpu_node("g", A100, 1), *(gpus.gpu_node(f"cpu-{n}", A100, 0) for n in range(3)))
    world.see(held("holder", "g", 0, 15_000))
    body = pod("p", {"nvidia.com/gpu": "1", "nvidia.com/gpumem": "4000"})

    answer = explain(world, body)
    world.filter(body, "g")

    assert answer.causes[0].sentence == ("GPU memory insufficient (requested 4,000 MiB, available 1,000 MiB) on g")
    assert answer.causes[0].advice == "Request at most 1000 MiB of each GPU's memory, or wait for a pod to end."
    assert (answer.nodes[0].node, answer.nodes[0].waits_for) == ("g", ("default/holder",))
    entry = world.pending.entry(world.listed("p").uid)
    assert entry is not None
    assert entry.rejection is not None
    assert entry.rejection.code == "SCHED_INSUFFICIENT_GPU_MEMORY"


def test_empty_gpus_are_never_a_reason_to_wait() -> None:
    """No pod can end where there is none."""
    world = World(gpus.gpu_node("a", A100, 2), gpus.gpu_node("b", gpus.T4, 2))
    for number, (limits, annotations) in enumerate(
        [
            ({"nvidia.com/gpu": "1", "nvidia.com/gpumem": "200000"}, {}),
            ({"nvidia.com/gpu": "5"}, {}),
            ({"nvidia.com/gpu": "1", "nvidia.com/gpumem": "15900"}, {"nvidia.com/use-gputype": "T4"}),
            ({"nvidia.com/gpu": "1", "nvidia.com/gpumem": "100"}, {"nvidia.com/use-gputype": "H100"}),
            ({"nvidia.com/gpu": "1", "nvidia.com/gpumem": "100"}, {"nvidia.com/vgpu-mode": "mig"}),
        ]
    ):
        answer = explain(world, pod(f"p{number}", limits, annotations=annotations))
        advice = [answer.remedy, *(one.advice for one in answer.causes), *(one.advice for one in answer.nodes)]
        assert not any("wait" in text.lower() for text in advice), advice
        assert all(one.lasts for one in answer.causes)


def test_a_pod_for_which_others_are_evicted_only_has_to_wait() -> None:
    """It fits once they have ended, which their grace period may delay."""
    world = World(gpus.gpu_node("a", A100, 1))
    body = pod("p", {"nvidia.com/gpu": "1"}, status={"phase": "Pending", "nominatedNodeName": "a"})

    (cause,) = explain(world, body).causes

    assert (cause.code, cause.sentence) == ("SCHED_NOT_TRIED", "pods of lower priority are evicted for it on a")


@pytest.mark.parametrize(
    ("scheduler", "by_webhook"), [("default-scheduler", True), ("", True), ("hami-schedulr", False)]
)
def test_the_webhook_is_advised_where_it_would_write_the_scheduler_name(scheduler: str, *, by_webhook: bool) -> None:
    """It leaves the name of every scheduler but the default one alone."""
    world = World(gpus.gpu_node("a", A100, 1))

    cause = explain(world, pod("p", schedulerName=scheduler)).causes[0]

    assert cause.code == "SCHED_OTHER_SCHEDULER"
    assert cause.advice.startswith("Write schedulerName: hami-scheduler and create the pod again")
    assert ("webhook" in cause.advice) is by_webhook


def test_a_node_without_gpus_is_no_fault_to_correct() -> None:
    """Most clusters have such nodes, and the advice would send a person to a device plugin that must not run there."""
    world = World(gpus.gpu_node("g", A100, 1), gpus.gpu_node("cpu", A100, 0))

    answer = explain(world, pod("p", {"nvidia.com/gpu": "1", "nvidia.com/gpumem": "99000"}))

    assert [(one.node, bool(one.advice)) for one in answer.nodes] == [("g", True), ("cpu", False)]


def test_without_any_gpu_the_cluster_is_the_cause() -> None:
    """And another plugin's GPUs are named, because they look as if they were free."""
    none = explain(World(gpus.gpu_node("cpu", A100, 0)), pod("p"))
    foreign_node = gpus.gpu_node("foreign", A100, 0)
    foreign_node["status"]["allocatable"] = {"nvidia.com/gpu": "8"}
    foreign = explain(World(foreign_node, gpus.gpu_node("cpu", A100, 0)), pod("p"))
    empty = explain(World(), pod("p"))

    assert none.causes[0].sentence == empty.causes[0].sentence == "no node has registered GPUs"
    assert foreign.causes[0].sentence == ("GPUs served by another device plugin (foreign), and no other node has GPUs")
    assert none.causes[0].advice.startswith("Ask an operator of the cluster: ")


def test_a_cause_of_the_pod_is_not_repeated_by_the_nodes() -> None:
    """A gated pod is not tried by kube-scheduler, and that is the gate's doing, not one thing more."""
    world = World(gpus.gpu_node("a", A100, 1))
    gated = explain(world, pod("gated", schedulingGates=[{"name": "x/y"}]))
    member = {"hami.io/gang": "g", "hami.io/gang-size": "2"}
    ganged = explain(world, pod("ganged", annotations=member, schedulingGates=[{"name": "hami.io/gang"}]))

    assert [one.code for one in gated.causes] == ["SCHED_GATED"]
    assert [one.code for one in ganged.causes] == ["SCHED_GANG_WAITS"]


def test_what_a_tenant_wrote_at_length_is_cut() -> None:
    """A pod may have thousands of expressions, and its explanation looks at each node."""
    world = World(gpus.gpu_node("a", A100, 1))
    expressions = [
        {"key": f"key-{number}" + "x" * 300, "operator": "In", "values": [str(value) for value in range(1_000)]}
        for number in range(1_000)
    ]
    terms = [{"matchExpressions": expressions}] * 100
    required = {"requiredDuringSchedulingIgnoredDuringExecution": {"nodeSelectorTerms": terms}}
    long_affinity = explain(world, pod("affinity", affinity={"nodeAffinity": required}))
    selector = {f"key-{number}": "x" * 63 for number in range(500)}
    long_selector = explain(world, pod("selector", nodeSelector=selector))
    many_gates = explain(world, pod("gates", schedulingGates=[{"name": f"x/{n}"} for n in range(1_000)]))

    for answer in (long_affinity, long_selector, many_gates):
        assert len(answer.causes[0].sentence) < 3_000
        assert all(len(node.message) < 3_000 for node in answer.nodes)
    assert "and 95 more" in long_affinity.causes[0].sentence
    assert "and 495 more" in long_selector.causes[0].sentence


def test_after_the_cause_come_only_the_rules_without_which_the_pod_would_fit() -> None:
    """Nodes of other types are no cause, and where the pod fits already nothing else matters."""
    cordoned = gpus.gpu_node("spare", A100, 1)
    cordoned["spec"] = {"unschedulable": True}
    world = World(gpus.gpu_node("full", A100, 1), cordoned, gpus.gpu_node("other", gpus.T4, 4))
    world.see(held("holder", "full", 0, 15_000))
    limits = {"nvidia.com/gpu": "1", "nvidia.com/gpumem": "4000"}

    waits = explain(world, pod("waits", limits, annotations={"nvidia.com/use-gputype": "A100"}))
    fits = explain(world, pod("fits", limits))

    assert [one.sentence for one in waits.causes] == [
        "GPU memory insufficient (requested 4,000 MiB, available 1,000 MiB) on full",
        "node spare is cordoned, where its GPUs would fit",
    ]
    assert [one.code for one in fits.causes] == ["SCHED_NOT_TRIED"]
