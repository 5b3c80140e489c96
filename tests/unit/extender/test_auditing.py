"""Sums of the ledger that a defect made wrong are found and corrected, and records that differ are counted."""

import asyncio

from gpu_sharing.core import allocations, identifiers, quotas, records
from gpu_sharing.core.reconciliation import Drift
from lab import gpus
from scheduler_extender.cluster import auditing
from tests.support.extender_world import A100, World, held


def audited(world: World) -> dict[str, float]:
    """Audit once. Returns the corrections so far, and the records that differ."""
    asyncio.run(auditing.Auditor(world.core.ledger, world.core.metrics).step())
    metrics = world.core.metrics
    return {
        **{kind: metrics.books_drift.labels(kind=kind)._value.get() for kind in ("node", "quota")},
        **{kind.value: metrics.record_drift.labels(kind=kind.value)._value.get() for kind in Drift},
    }


def test_right_sums_and_records_are_left_alone() -> None:
    world = World(gpus.gpu_node("a", A100, 2))
    world.see(held("p", "a", 0, 4_000))

    assert set(audited(world).values()) == {0.0}


def test_a_wrong_sum_of_a_node_or_namespace_is_corrected() -> None:
    """It would keep GPUs from pods until the process is started again."""
    world = World(gpus.gpu_node("a", A100, 2))
    world.see(held("p", "a", 0, 4_000))
    ledger, name = world.core.ledger, identifiers.NodeName("a")
    right, amounts = ledger.allocated_on(name), ledger.quotas.held("default")
    ledger._nodes[name].allocated[gpus.gpu_uuid("a", 1)] = allocations.Allocation(1, 9_000)
    ledger._nodes[name].held = None
    ledger.quotas.add("default", quotas.Amounts(7, 7, 7))
    ledger.quotas.add("ghosts", quotas.Amounts(1, 1, 1))
    assert ledger.allocated_on(name) != right

    found = audited(world)

    assert (found["node"], found["quota"]) == (1, 2)
    assert ledger.allocated_on(name) == right
    assert (ledger.quotas.held("default"), ledger.quotas.held("ghosts")) == (amounts, quotas.NOTHING)
    assert audited(world) == found


def test_a_namespace_that_changes_during_the_count_is_left_for_the_next_one() -> None:
    """Pods come and go while 50,000 are counted."""
    world = World(gpus.gpu_node("a", A100, 2))
    world.see(held("p", "a", 0, 4_000))
    audit = world.core.ledger.quota_audit()
    for pod in list(world.core.ledger.pods()):
        audit.add(pod.uid)
    world.see(held("q", "a", 1, 4_000))
    audit.add(identifiers.PodUid("gone"))

    before = world.core.ledger.quotas.held("default")
    assert audit.correct() == []
    assert world.core.ledger.quotas.held("default") == before


def test_records_that_differ_from_their_node_are_counted_by_kind() -> None:
    """What they name stays allocated until the pod ends, so an operator must see them."""
    world = World(gpus.gpu_node("a", A100, 1))
    copied = held("copied", "a", 0, 1_000)
    copied["metadata"]["annotations"][records.NODE] = "elsewhere"
    for body in (copied, held("replaced", "a", 5, 1_000), held("gone", "nowhere", 0, 1_000), held("good", "a", 0, 1)):
        world.see(body)

    found = audited(world)

    assert {kind: found[kind.value] for kind in Drift} == dict.fromkeys(Drift, 1.0)
