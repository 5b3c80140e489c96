"""Whether the records of several pods can stand beside each other on one GPU."""

import dataclasses

import pytest
from hypothesis import given

from gpu_sharing.core import allocations, gpus, identifiers, mig, placement, policies, requests
from gpu_sharing.core.allocations import NOTHING, Allocation
from tests.unit import builders

SLICE = mig.taken(0, 1)


@pytest.mark.parametrize(
    ("held", "more", "texts"),
    [
        (Allocation(9, 15_000, 90), Allocation(1, 1_000, 10), ()),
        (Allocation(10, 15_000, 90), Allocation(1, 1_001, 11),
         ("11 of 10 slots", "16001 of 16000 MiB of memory", "101 of 100 percent of cores")),
        (Allocation(1, 1), Allocation(1, 1, 100, 1), ("exclusive use beside another pod",)),
        (Allocation(1, 1, 100, 1), Allocation(1, 1), ("exclusive use beside another pod",)),
        (NOTHING, Allocation(2, 1, 100, 1), ()),
        (Allocation(1, 16_000, 90, 0, SLICE), Allocation(1, 16_000, 90, 0, mig.taken(2, 1)), ()),
        (Allocation(1, 1, 1, 0, SLICE), Allocation(1, 1, 1, 0, SLICE), ("a MIG slice to two pods",)),
        (Allocation(1, 16_000), Allocation(1, 1, 1, 0, SLICE), ("16001 of 16000 MiB of memory",)),
    ],
)  # fmt: skip
def test_a_record_that_does_not_fit_beside_others_is_told_with_its_numbers(
    held: Allocation, more: Allocation, texts: tuple[str, ...]
) -> None:
    """The plugin and `doctor` say the same words."""
    assert gpus.conflicts(builders.gpu("n", 0), held, more) == texts


@given(builders.gpu_states("n", 0), builders.gpu_requests())
def test_what_the_scheduler_places_is_never_refused_by_the_plugin(
    state: gpus.GpuState, ask: requests.GpuRequest
) -> None:
    """Else a pod would be bound and never start."""
    state = dataclasses.replace(state, allocated=state.allocated._replace(slices=0))
    request = builders.pod_request(ask)
    node = placement.NodeState(identifiers.NodeName("n"), (state,))

    placed = placement.fit(request, node, policies.BINPACK)

    if isinstance(placed, placement.Placement) and not gpus.conflicts(state.gpu, NOTHING, state.allocated):
        (allocation,) = allocations.by_gpu(request.kinds, placed.shares).values()
        assert gpus.conflicts(state.gpu, state.allocated, allocation) == ()
