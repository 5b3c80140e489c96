"""Who is evicted: a set that helps, none that is smaller, and nobody who need not go."""

import itertools
from collections.abc import Sequence

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gpu_sharing.core import allocations, gpus, identifiers, placement, policies, preemption, requests
from tests.support import searching
from tests.unit import builders


def victim(name: str, priority: int, memory_mib: int, *rows: int, slots: int = 1) -> preemption.Victim:
    allocation = allocations.Allocation(slots, memory_mib, 0)
    return preemption.Victim(
        identifiers.PodUid(name), priority, {identifiers.GpuUuid(f"GPU-n-{row}"): allocation for row in rows}
    )


def node(
    count: int, victims: Sequence[preemption.Victim], *others: preemption.Victim, **changes: object
) -> placement.NodeState:
    """A node of GPUs of 16,000 MiB on which all of them are."""
    held: dict[str, allocations.Allocation] = {}
    for one in (*victims, *others):
        for uuid, allocation in one.allocated.items():
            held[uuid] = held.get(uuid, allocations.NOTHING).plus(allocation)
    states = tuple(
        gpus.GpuState(builders.gpu("n", row, **changes), held.get(f"GPU-n-{row}", allocations.NOTHING))
        for row in range(count)
    )
    return placement.NodeState(identifiers.NodeName("n"), states, sum(one.foreign_slots for one in victims))


def chosen(
    request: requests.PodRequest, where: placement.NodeState, victims: Sequence[preemption.Victim]
) -> list[str] | None:
    found = preemption.choose(request, where, victims, policies.BINPACK)
    return None if found is None else sorted(one.uid for one in found)


def test_the_fewest_pods_of_one_gpu_go_although_slots_are_plenty() -> None:
    """Three small pods on one GPU stay, because one large pod on another is enough."""
    pods = [victim(f"small-{number}", 0, 5_000, 0) for number in range(3)] + [victim("large", 0, 14_000, 1)]
    need = builders.pod_request(builders.share_of(13_000))

    assert chosen(need, node(2, pods), pods) == ["large"]


def test_the_highest_priority_among_the_victims_is_as_low_as_can_be() -> None:
    """Two pods of priority 0 go rather than one of priority 5."""
    pods = [victim("a", 0, 7_000, 0), victim("b", 0, 7_000, 0), victim("c", 5, 14_000, 1)]
    need = builders.pod_request(builders.share_of(13_000))

    assert chosen(need, node(2, pods), pods) == ["a", "b"]


def test_among_equals_the_least_memory_goes() -> None:
    """One pod either way."""
    pods = [victim("large", 0, 15_000, 0), victim("less", 0, 12_000, 1)]

    assert chosen(builders.pod_request(builders.share_of(10_000)), node(2, pods), pods) == ["less"]


def test_nobody_goes_where_it_fits_or_where_it_would_not_help() -> None:
    """A pod that nobody may evict is in the way, or the GPU is too small."""
    pods = [victim("a", 0, 4_000, 0)]
    kept = victim("kept", 9, 8_000, 0)

    assert chosen(builders.pod_request(builders.share_of(10_000)), node(1, pods), pods) == []
    assert chosen(builders.pod_request(builders.share_of(10_000)), node(1, pods, kept), pods) is None
    assert chosen(builders.pod_request(builders.share_of(20_000)), node(1, pods), pods) is None


def test_slots_are_freed_where_the_memory_is() -> None:
    """The device ids of the node are short too, and those of the same GPU are enough."""
    pods = [victim(f"full-{row}-{number}", number, 8_000, row) for row in range(2) for number in range(2)]
    need = builders.pod_request(builders.share_of(15_000))

    assert chosen(need, node(2, pods, slots=2), pods) == ["full-0-0", "full-0-1"]


def test_a_pod_without_a_record_gives_its_device_ids() -> None:
    """The node has memory, and all ids are out."""
    stranger = preemption.Victim(identifiers.PodUid("stranger"), 0, {}, foreign_slots=2)
    pods = [stranger, victim("a", 0, 1_000, 0, slots=1)]

    need = builders.pod_request(builders.share_of(1_000))
    assert chosen(need, node(1, pods, slots=3), pods) == ["stranger"]
    assert chosen(need, node(1, [stranger], slots=2), [stranger]) == ["stranger"]


def test_a_full_node_of_many_small_pods_is_decided_in_few_tries() -> None:
    """Like pods count once; where even that is too much, nobody goes who need not."""
    pods = [victim(f"{row}-{number:02d}", number % 3, 800 + number, row) for row in range(8) for number in range(18)]
    wide = builders.pod_request(builders.share_of(10_000, gpus=4))

    found = preemption.choose(wide, node(8, pods, slots=30), pods, policies.BINPACK)

    assert found
    for one in found:
        rest = [other for other in found if other is not one]
        left = preemption.without(node(8, pods, slots=30), rest)
        assert not isinstance(placement.fit(wide, left, policies.BINPACK), placement.Placement)


@st.composite
def crowds(draw: st.DrawFn) -> list[preemption.Victim]:
    count = draw(st.integers(0, 7))
    return [
        victim(
            f"v{number}",
            draw(st.integers(0, 2)),
            draw(st.sampled_from([1_000, 4_000, 8_000])),
            *draw(st.sampled_from([(0,), (1,), (2,), (0, 1)])),
        )
        for number in range(count)
    ]


@settings(max_examples=searching.examples(100))
@given(crowds(), st.sampled_from([1, 1, 2]), st.sampled_from([4_000, 9_000, 15_000]), st.sampled_from([3, 10]))
def test_no_set_is_better(pods: list[preemption.Victim], count: int, memory_mib: int, slots: int) -> None:
    """Compared with every set there is, on a node that has not more containers than slots."""
    slots = max(slots, *(sum(f"GPU-n-{row}" in one.allocated for one in pods) for row in range(3)))
    request = builders.pod_request(builders.share_of(memory_mib, gpus=count))
    where = node(3, pods, slots=slots)

    found = preemption.choose(request, where, pods, policies.BINPACK)

    helping = [
        gone
        for size in range(len(pods) + 1)
        for gone in itertools.combinations(pods, size)
        if isinstance(placement.fit(request, preemption.without(where, gone), policies.BINPACK), placement.Placement)
    ]
    if not helping:
        assert found is None
    else:
        assert found is not None
        assert preemption.cost(found) == min(map(preemption.cost, helping))


def test_what_is_gone_is_gone_from_every_sum() -> None:
    """The node that is left is the node without them."""
    pods = [victim("a", 0, 4_000, 0, 1), victim("b", 0, 2_000, 1)]

    assert preemption.without(node(2, pods), pods) == node(2, [])
    assert preemption.without(node(2, pods), pods[:1]) == node(2, pods[1:])


@pytest.mark.parametrize("priority", [-5, 0, 3])
def test_no_victim_costs_less_than_any(priority: int) -> None:
    """A node where the pod fits comes before all others."""
    assert preemption.cost(()) < preemption.cost((victim("a", priority, 0, 0),))


KIND = allocations.Kind


@pytest.mark.parametrize(
    ("kinds", "containers", "pod_level", "overhead", "expected"),
    [
        ((), (), None, 0, 0),
        ((KIND.APP, KIND.APP), (1, 2), None, 0, 3),
        ((KIND.SIDECAR, KIND.APP), (5, 2), None, 0, 7),
        ((KIND.INIT, KIND.APP), (9, 2), None, 0, 9),
        ((KIND.SIDECAR, KIND.INIT, KIND.SIDECAR, KIND.APP), (1, 9, 4, 2), None, 0, 10),
        ((KIND.APP,), (2,), 8, 0, 8),
        ((KIND.APP,), (8,), 2, 1, 3),
        ((KIND.APP,), (8,), 0, 0, 0),
        ((KIND.APP,), (2,), None, 3, 5),
    ],
)
def test_a_pod_frees_what_kube_scheduler_counts_for_it(
    kinds: tuple[allocations.Kind, ...],
    containers: tuple[int, ...],
    pod_level: int | None,
    overhead: int,
    expected: int,
) -> None:
    """Sidecars, init containers, the pod's own numbers and its overhead; else a pod is evicted in vain."""
    assert preemption.effective_request(kinds, containers, pod_level, overhead) == expected
