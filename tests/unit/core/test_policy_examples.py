"""What each policy over a node's GPUs does, on one node that fits on paper.

GPU           0        1        2        3
NUMA node     0        0        1        1
memory held   4,000    12,000   0        8,000     of 16,000 MiB each
linked        0 and 1 by NVLink, 2 and 3 by NVLink, all else over PCIe
"""

import pytest

from gpu_sharing.core import allocations, gpus, identifiers, placement, policies
from tests.unit import builders

NODE = placement.NodeState(
    identifiers.NodeName("n"),
    tuple(
        gpus.GpuState(builders.gpu("n", index, numa=index // 2), allocations.Allocation(1 if mib else 0, mib))
        for index, mib in enumerate((4_000, 12_000, 0, 8_000))
    ),
    links=((0, 1200, 10, 10), (1200, 0, 10, 10), (10, 10, 0, 1200), (10, 10, 1200, 0)),
)


@pytest.mark.parametrize(
    ("policy", "one", "two"),
    [
        ("binpack", [1], [1, 3]),
        ("spread", [2], [2, 0]),
        ("numa", [0], [0, 1]),
        ("numa,spread", [0], [0, 1]),
        ("numa,binpack", [1], [1, 0]),
        ("binpack,numa", [1], [1, 3]),
        ("mutex", [2], "no GPU free for exclusive use"),
        ("mutex,spread", [2], "no GPU free for exclusive use"),
        ("topology-aware", [1], [1, 0]),
        ("topology-aware,spread", [2], [2, 3]),
        ("topology-aware,mutex", [2], "no GPU free for exclusive use"),
    ],
)
def test_a_container_of_one_and_of_two_gpus_with_2000_mib_each(
    policy: str, one: list[int], two: list[int] | str
) -> None:
    """The GPUs in the order in which the container gets them."""
    assert chosen(policy, 1) == one
    assert chosen(policy, 2) == two


def test_what_two_gpus_of_one_numa_node_are_depends_on_the_policy() -> None:
    """`numa-bind` says that they are together, the policy says where."""
    assert chosen("binpack", 2, numa_bind=True) == [1, 0]
    assert chosen("spread", 2, numa_bind=True) == [2, 3]
    assert chosen("spread", 3, numa_bind=True) == "too few GPUs on one NUMA node (requested 3, available 2)"


def chosen(policy: str, count: int, *, numa_bind: bool = False) -> list[int] | str:
    request = builders.pod_request(builders.share_of(2_000, gpus=count), numa_bind=numa_bind)
    answer = placement.fit(request, NODE, policies.gpu_policy(policy, "here"))
    if not isinstance(answer, placement.Placement):
        return str(answer)
    return [int(share.uuid[-1]) for share in answer.shares[0]]
