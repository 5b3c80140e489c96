"""Examples of the policies over nodes and over the GPUs of a node."""

import dataclasses

import pytest

from gpu_sharing.core import allocations, error_codes, errors, gpus, identifiers, placement, policies
from tests.unit import builders


def node(name: str, *used_mib: int) -> placement.NodeState:
    return placement.NodeState(
        identifiers.NodeName(name),
        tuple(
            gpus.GpuState(builders.gpu(name, index), allocations.Allocation(1 if mib else 0, mib))
            for index, mib in enumerate(used_mib)
        ),
    )


@pytest.mark.parametrize(
    ("policy", "gpu"), [(policies.BINPACK, "GPU-n-1"), (policies.SPREAD, "GPU-n-2")], ids=["binpack", "spread"]
)
def test_binpack_takes_the_fullest_gpu_that_fits_and_spread_the_emptiest(policy: policies.GpuPolicy, gpu: str) -> None:
    """Whole GPUs stay free for pods that need one, or each pod has few neighbours, as requested."""
    placed = placement.fit(builders.pod_request(builders.share_of(4000)), node("n", 4000, 10_000, 0, 15_000), policy)

    assert isinstance(placed, placement.Placement)
    assert [share.uuid for share in placed.shares[0]] == [gpu]


@pytest.mark.parametrize(
    ("policy", "gpu"), [(policies.BINPACK, "GPU-n-0"), (policies.SPREAD, "GPU-n-1")], ids=["binpack", "spread"]
)
def test_a_gpu_with_many_small_shares_may_be_emptier_than_one_with_a_large_share(
    policy: policies.GpuPolicy, gpu: str
) -> None:
    """Memory, cores and containers count alike: 0.75 of the memory is more than 2 of 10 containers with 0.125 of it."""
    states = (
        gpus.GpuState(builders.gpu("n", 0), allocations.Allocation(1, 12_000)),
        gpus.GpuState(builders.gpu("n", 1), allocations.Allocation(2, 2_000)),
    )

    placed = placement.fit(
        builders.pod_request(builders.share_of(1000)), placement.NodeState(identifiers.NodeName("n"), states), policy
    )

    assert isinstance(placed, placement.Placement)
    assert [share.uuid for share in placed.shares[0]] == [gpu]


@pytest.mark.parametrize(
    ("weights", "gpu"),
    [
        ("slot=1,core=1,memory=1", "GPU-n-0"),
        ("slot=0,core=0,memory=1", "GPU-n-1"),
        ("slot=5,core=0,memory=1", "GPU-n-0"),
    ],
)
def test_weights_say_what_makes_a_gpu_full(weights: str, gpu: str) -> None:
    """One GPU has many small neighbours, the other one that takes most of the memory."""
    states = (
        gpus.GpuState(builders.gpu("n", 0), allocations.Allocation(8, 2000, 40)),
        gpus.GpuState(builders.gpu("n", 1), allocations.Allocation(1, 12_000, 0)),
    )
    policy = dataclasses.replace(policies.BINPACK, weights=policies.weights(weights, "annotation"))

    placed = placement.fit(
        builders.pod_request(builders.share_of(1000)), placement.NodeState(identifiers.NodeName("n"), states), policy
    )

    assert isinstance(placed, placement.Placement)
    assert [share.uuid for share in placed.shares[0]] == [gpu]


def test_binpack_scores_the_fuller_node_higher_and_spread_the_emptier() -> None:
    """The same at the level of nodes, from 0 to 1."""
    request = builders.pod_request(builders.share_of(4000))
    scores: dict[tuple[str, str], float] = {}
    for policy in (policies.FULLEST_NODE, policies.EMPTIEST_NODE):
        for one in (node("full", 12_000), node("empty", 0)):
            placed = placement.fit(request, one, policies.BINPACK)
            assert isinstance(placed, placement.Placement)
            scores[policy.name, one.name] = placement.node_score(request, one, placed, policy)

    assert scores["binpack", "full"] > scores["binpack", "empty"]
    assert scores["spread", "full"] < scores["spread", "empty"]
    assert all(0 <= score <= 1 for score in scores.values())


def test_an_unknown_policy_is_refused_and_the_known_ones_are_named() -> None:
    """A typo is not read as the default."""
    with pytest.raises(errors.BadQuantity) as refused:
        policies.node_policy("bin-pack", "hami.io/gpu-scheduler-policy")

    assert refused.value.code == error_codes.UNKNOWN_POLICY
    assert refused.value.sentence.endswith("write binpack, spread or fragmentation-aware")
    assert policies.node_policy(" Spread ", "x") is policies.EMPTIEST_NODE
    assert policies.gpu_policy(" Spread ", "x") == policies.SPREAD


@pytest.mark.parametrize(
    ("text", "code", "ending"),
    [
        (
            "binpack,topology",
            error_codes.UNKNOWN_POLICY,
            "write binpack, spread, numa, fragmentation-aware, mutex or topology-aware",
        ),
        (
            "binpack,",
            error_codes.UNKNOWN_POLICY,
            "write binpack, spread, numa, fragmentation-aware, mutex or topology-aware",
        ),
        ("numa,spread,binpack", error_codes.CONTRADICTORY_REQUEST, "write one of them"),
    ],
)
def test_a_chain_that_cannot_be_is_refused(text: str, code: str, ending: str) -> None:
    with pytest.raises(errors.BadQuantity) as refused:
        policies.gpu_policy(text, "hami.io/gpu-scheduler-policy")

    assert refused.value.code == code
    assert refused.value.sentence.endswith(ending)


@pytest.mark.parametrize(
    ("text", "gpu"),
    [
        ("binpack", "GPU-n-3"), ("spread", "GPU-n-0"), ("numa", "GPU-n-1"), ("numa,binpack", "GPU-n-2"),
        ("numa,spread", "GPU-n-1"), ("spread,numa", "GPU-n-1"), ("mutex", "GPU-n-0"), ("numa,mutex", "GPU-n-1"),
    ],
)  # fmt: skip
def test_a_chain_prefers_gpus_by_its_first_word_then_by_the_next(text: str, gpu: str) -> None:
    """GPUs 0 (empty) and 3 (the fullest) are on NUMA node 1, GPUs 1 (empty) and 2 (busy) on NUMA node 0."""
    states = [
        gpus.GpuState(builders.gpu("n", index, numa=numa), allocations.Allocation(1 if mib else 0, mib))
        for index, (numa, mib) in enumerate([(1, 0), (0, 0), (0, 4000), (1, 8000)])
    ]
    where = placement.NodeState(identifiers.NodeName("n"), tuple(states))

    placed = placement.fit(
        builders.pod_request(builders.share_of(1000)), where, policies.gpu_policy(text, "annotation")
    )

    assert isinstance(placed, placement.Placement)
    assert [share.uuid for share in placed.shares[0]] == [gpu]


def test_mutex_takes_no_gpu_that_anybody_holds() -> None:
    """A pod that must not be disturbed at its start waits, and is told that no GPU is free."""
    request = builders.pod_request(builders.share_of(1000, gpus=2))

    refused = placement.fit(request, node("n", 100, 0), policies.gpu_policy("mutex", "annotation"))

    assert str(refused) == "no GPU free for exclusive use"
    assert isinstance(placement.fit(request, node("n", 0, 0), policies.gpu_policy("mutex", "x")), placement.Placement)
