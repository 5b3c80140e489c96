"""Sets of GPUs by their links: best of all, and the same on every replica."""

import itertools
import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gpu_sharing.core import allocations, gpus, identifiers, placement, policies, records, topology
from tests.unit import builders

NVLINK, BOARD, CPU = 1200, 60, 10


def pairs_of_two(count: int) -> topology.Links:
    """GPUs 0 and 1 are bridged, 2 and 3, and so on; the rest goes over the CPU."""
    return tuple(
        tuple(0 if one == other else NVLINK if one // 2 == other // 2 else CPU for other in range(count))
        for one in range(count)
    )


@given(st.data())
def test_the_set_is_the_best_of_all_sets_of_eight_gpus(data: st.DataObject) -> None:
    """Found here the slow way, by adding up every pair of every set."""
    links = data.draw(builders.link_matrices(8))
    rows = data.draw(st.permutations(range(8)).map(lambda order: order[: data.draw(st.integers(2, 8))]))
    count = data.draw(st.integers(2, len(rows)))

    chosen = topology.best_set(rows, links, count)

    def score(group: tuple[int, ...]) -> int:
        return sum(links[one][other] for one in group for other in group if one < other)

    assert len(set(chosen)) == count
    assert set(chosen) <= set(rows)
    assert score(chosen) == max(score(group) for group in itertools.combinations(sorted(rows), count))


def test_a_single_gpu_is_the_one_that_the_others_miss_least() -> None:
    """The bridged pair stays whole for whoever needs two."""
    assert topology.best_set((0, 1, 2), pairs_of_two(4), 1) == (2,)
    assert topology.best_set((3, 1, 2), pairs_of_two(4), 1) == (1,)


def test_between_equals_the_policy_decides() -> None:
    """And without links it decides alone."""
    assert topology.best_set((5, 4, 1, 0), pairs_of_two(8), 2) == (5, 4)
    assert topology.best_set((1, 0, 5, 4), pairs_of_two(8), 2) == (1, 0)
    assert topology.best_set((3, 1, 2), (), 2) == (3, 1)


@pytest.mark.parametrize("seed", range(5))
def test_on_sixteen_gpus_a_good_set_is_found_quickly(seed: int) -> None:
    """12,870 sets of eight are not compared; boards of eight, as they are built, are found all the same."""
    order = random.Random(seed).sample(range(16), 16)
    links = tuple(
        tuple(0 if one == other else NVLINK if order[one] // 8 == order[other] // 8 else CPU for other in range(16))
        for one in range(16)
    )

    chosen = topology.best_set(range(16), links, 8)

    assert len({order[row] // 8 for row in chosen}) == 1


def test_a_container_gets_the_bridged_pair_that_is_free() -> None:
    """Where 0 is taken, 1 has lost its partner; without the policy the fullest come first."""
    node = placement.NodeState(
        identifiers.NodeName("n"),
        tuple(
            gpus.GpuState(
                builders.gpu("n", index),
                allocations.Allocation(1, 12_000, 100, 1) if index == 0 else allocations.NOTHING,
            )
            for index in range(4)
        ),
        links=pairs_of_two(4),
    )
    pair = builders.pod_request(builders.share_of(8_000, gpus=2))

    def chosen(policy: policies.GpuPolicy) -> list[str]:
        answer = placement.fit(pair, node, policy)
        assert isinstance(answer, placement.Placement)
        return [share.uuid for share in answer.shares[0]]

    assert chosen(policies.gpu_policy("topology-aware", "here")) == ["GPU-n-2", "GPU-n-3"]
    assert chosen(policies.BINPACK) == ["GPU-n-1", "GPU-n-2"]


INVENTORY = tuple(builders.gpu("n", index) for index in range(3))


def test_the_record_of_links_is_read_in_the_order_of_the_gpus() -> None:
    """GPUs that the node does not advertise are left out, and a GPU is not linked with itself."""
    text = (
        '[{"uuid":"GPU-n-1","score":{"GPU-n-0":100,"GPU-hidden":7,"GPU-n-1":5}},'
        '{"uuid":"GPU-n-0","score":{"GPU-n-1":100}},{"uuid":"GPU-n-2"}]'
    )

    assert records.decode_links(text, INVENTORY) == (((0, 100, 0), (100, 0, 0), (0, 0, 0)), "")
    assert records.decode_links("", INVENTORY) == ((), "")


def test_two_gpus_that_disagree_are_not_linked_and_that_is_said() -> None:
    """As HAMi has it."""
    text = '[{"uuid":"GPU-n-0","score":{"GPU-n-1":100,"GPU-n-2":20}},{"uuid":"GPU-n-2","score":{"GPU-n-0":20}}]'

    links, problem = records.decode_links(text, INVENTORY)

    assert links == ((0, 0, 20), (0, 0, 0), (20, 0, 0))
    assert problem == "hami.io/node-nvidia-score: GPU-n-0 and GPU-n-1 disagree about their link"


@pytest.mark.parametrize(
    "text",
    [
        "{", "7", '"x"', "[7]", "[{}]", '[{"uuid":["a"]}]', '[{"uuid":"a","score":7}]',
        '[{"uuid":"a","score":{"b":-1}}]', '[{"uuid":"a","score":{"b":true}}]', '[{"uuid":"a","score":{"b":1e9}}]',
        '[{"uuid":"a","score":{"b":99999999999}}]', "[" * 5_000, " " * 300_000 + "[]",
    ],
)  # fmt: skip
def test_a_record_that_does_not_decode_counts_as_none_and_says_so(text: str) -> None:
    """A preference is no reason to keep pods off a node."""
    links, problem = records.decode_links(text, INVENTORY)

    assert links == ()
    assert problem.startswith("hami.io/node-nvidia-score cannot be read: ")
    assert len(problem) <= 200
