"""Which instance, and where: never over another's slices, and never refused while a place is free."""

import dataclasses

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gpu_sharing.core import allocations, gpus, identifiers, mig, placement, policies, rejections, requests
from lab import mig_models
from tests.unit import builders

MIG = requests.Selectors(mode="mig")
models = st.sampled_from(sorted(mig_models.PROFILES))


@given(models, st.lists(st.tuples(st.booleans(), st.integers(0, 50), st.sampled_from([1, 25, 50, 100])), max_size=20))
def test_instances_never_overlap_and_none_is_refused_while_a_place_is_free(
    model: str, steps: list[tuple[bool, int, int]]
) -> None:
    """Containers come and go in any order; what is free is found here by looking at every place of every profile."""
    profiles = mig_models.PROFILES[model]
    largest = max(profile.memory_mib for profile in profiles)
    held: list[set[int]] = []
    slices = 0
    for leaves, which, percent in steps:
        if leaves and held:
            gone = held.pop(which % len(held))
            slices -= mig.taken(min(gone), len(gone))
            continue
        wanted = largest * percent // 100
        found = mig.choose(profiles, slices, wanted, 0, 0)
        occupied = set().union(*held)
        possible = [
            (profile, place)
            for profile in profiles if profile.memory_mib >= wanted
            for place in profile.places if not occupied & set(range(place.start, place.start + place.size))
        ]  # fmt: skip
        assert (found is not None) == bool(possible)
        if found is not None:
            assert found in possible
            assert found[1].size == min(place.size for _, place in possible)
            held.append(set(range(found[1].start, found[1].start + found[1].size)))
            slices += mig.taken(*found[1])


@pytest.mark.parametrize(
    ("model", "asked", "names"),
    [
        ("a100-40", [(4_000, 0)] * 8, ["1g.5gb"] * 7 + [None]),
        ("a100-40", [(8_000, 0)] * 5, ["1g.10gb"] * 4 + [None]),
        ("a100-40", [(8_000, 20)] * 4, ["2g.10gb"] * 3 + [None]),
        ("a100-40", [(19_000, 0)] * 3, ["3g.20gb", "3g.20gb", None]),
        ("a100-40", [(19_000, 50), (19_000, 0), (4_000, 0)], ["4g.20gb", "3g.20gb", None]),
        ("a100-40", [(4_000, 0), (19_000, 50)], ["1g.5gb", "4g.20gb"]),
        ("a100-40", [(4_000, 0), (30_000, 0)], ["1g.5gb", None]),
        ("a30", [(20_000, 0), (4_000, 0)], ["4g.24gb", None]),
        ("a30", [(4_000, 50), (4_000, 0), (4_000, 0), (4_000, 0)], ["2g.12gb", "1g.6gb", "1g.6gb", None]),
        ("h100", [(30_000, 0), (15_000, 0), (9_000, 0), (15_000, 0)], ["3g.40gb", "1g.20gb", "1g.10gb", None]),
        ("h200", [(100_000, 0)], ["7g.141gb"]),
        ("h200", [(60_000, 0), (17_000, 14)], ["3g.71gb", "1g.18gb"]),
        ("b200", [(1, 100)], ["7g.180gb"]),
        ("b200", [(1, 43)], ["4g.90gb"]),
    ],
)
def test_what_fits_on_one_gpu(model: str, asked: list[tuple[int, int]], names: list[str | None]) -> None:
    """MiB and percent of cores, one after another: the smallest profile that has both, while a place is free.

    An eighth small one finds no compute left on a GPU of eight memory slices, and the first small one leaves room for
    a large one beside it.
    """
    slices, found = 0, []
    for memory_mib, cores in asked:
        chosen = mig.choose(mig_models.PROFILES[model], slices, memory_mib, 0, cores)
        found.append(chosen[0].name if chosen else None)
        slices += mig.taken(*chosen[1]) if chosen else 0

    assert found == names


def node(*used: int, model: str = "a100-40", **changes: object) -> placement.NodeState:
    states = tuple(
        gpus.GpuState(
            builders.gpu("n", index, mode="mig", memory_mib=40_960, mig_profiles=mig_models.PROFILES[model], **changes),
            allocations.Allocation(slots=bin(slices).count("1"), slices=slices),
        )
        for index, slices in enumerate(used)
    )
    return placement.NodeState(identifiers.NodeName("n"), states)


def place(request: requests.PodRequest, where: placement.NodeState, policy: str = "binpack") -> list[str]:
    answer = placement.fit(request, where, policies.gpu_policy(policy, "here"))
    if isinstance(answer, rejections.Rejection):
        return [str(answer)]
    return [
        f"{share.uuid[-1]} {share.instance.profile}@{share.instance.start}"
        for container in answer.shares for share in container if share.instance
    ]  # fmt: skip


def test_a_pod_that_asks_for_several_gets_instances_of_one_gpu_or_of_several() -> None:
    """And its record holds what the instances have, not what was asked."""
    two = builders.pod_request(builders.share_of(8_000, 20, gpus=2), selectors=MIG)

    assert place(two, node(0)) == ["0 2g.10gb@4", "0 2g.10gb@2"]
    assert place(two, node(0, 0), "spread") == ["0 2g.10gb@4", "1 2g.10gb@4"]
    answer = placement.fit(two, node(0), policies.BINPACK)
    assert isinstance(answer, placement.Placement)
    assert {(share.memory_mib, share.cores_percent) for share in answer.shares[0]} == {(9_932, 28)}


def test_an_instance_of_just_the_size_comes_before_a_larger_one() -> None:
    """Whatever the policy; among equals it decides."""
    four = builders.pod_request(builders.share_of(4_000), selectors=MIG)
    ones_gone = sum(mig.taken(start, 1) for start in (0, 1, 2, 3, 4, 6))

    assert place(four, node(ones_gone, 0)) == ["0 1g.5gb@5"]
    assert place(four, node(0, mig.taken(0, 4))) == ["1 1g.5gb@6"]
    assert place(four, node(0, mig.taken(0, 4)), "spread") == ["0 1g.5gb@6"]
    assert place(four, node(mig.taken(0, 4), 0), "mutex") == ["1 1g.5gb@6"]


def test_instances_of_a_container_are_kept_on_one_numa_node_where_that_is_asked() -> None:
    """The second GPU is elsewhere, and is taken for the third instance only without that wish."""
    three = builders.pod_request(builders.share_of(15_000, gpus=3), selectors=MIG)
    where = node(0, 0)
    apart = dataclasses.replace(where.states[1], gpu=dataclasses.replace(where.states[1].gpu, numa=1))
    where = placement.NodeState(where.name, (where.states[0], apart))

    assert [gpu[0] for gpu in place(three, where)] == ["0", "0", "1"]
    bound = dataclasses.replace(three, numa_bind=True)
    assert place(bound, where)[0].startswith("no MIG instance free")


def test_whole_gpu_means_the_largest_instance() -> None:
    """No instance has all the memory of its GPU."""
    whole = builders.pod_request(requests.GpuRequest(1, 0, 100, 100), selectors=MIG)

    assert place(whole, node(0)) == ["0 7g.40gb@0"]
    assert place(whole, node(mig.taken(6, 1))) == [
        "no MIG instance free (requested 100% with 100% of cores, available 19865MB with 57% of cores)"
    ]


def test_why_there_is_no_instance_is_said_with_what_could_be_had() -> None:
    """And a pod that does not request MIG never lands there."""
    large = builders.pod_request(builders.share_of(30_000), selectors=MIG)

    assert place(large, node(mig.taken(6, 1))) == ["no MIG instance free (requested 30000MB, available 19865MB)"]
    assert place(large, node(0, healthy=False)) == ["GPU unhealthy"]
    assert place(large, node(0, slots=1, model="a30")) == [
        "no MIG instance free (requested 30000MB, available 23838MB)"
    ]
    assert place(builders.pod_request(builders.share_of(30_000)), node(0)) == [
        "GPU mode mismatch (requested sharing, has mig)"
    ]
    plain = placement.NodeState(identifiers.NodeName("n"), (gpus.GpuState(builders.gpu("n", 0, mode="hami-core")),))
    assert place(large, plain) == ["GPU mode mismatch (requested mig, has hami-core)"]


def test_containers_of_a_pod_share_no_instance() -> None:
    """Not even an init container and an app container, as an instance is made for one and not handed on."""
    kinds = (allocations.Kind.INIT, allocations.Kind.APP)
    request = requests.PodRequest(kinds, (builders.share_of(4_000), builders.share_of(4_000)), MIG)

    assert sorted(place(request, node(0))) == ["0 1g.5gb@5", "0 1g.5gb@6"]


def test_what_is_booked_of_slices_adds_up_and_the_most_at_one_time_is_kept() -> None:
    """Four bits a slice."""
    first, second = mig.taken(0, 2), mig.taken(1, 2)

    assert mig.at_least(first, second) == mig.taken(0, 3)
    assert mig.at_least(first + second, 0) == first + second
    assert not mig.is_free(first + second, mig.Slices(1, 1))
    assert mig.is_free(first + second, mig.Slices(3, 5))
    assert mig.largest((), 0) == (0, 0)
