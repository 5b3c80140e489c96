"""What a pod allocates is what it holds at one time, by Kubernetes' own rules."""

from gpu_sharing.core import allocations, identifiers
from gpu_sharing.core.allocations import Allocation, Kind, Share

A, B = identifiers.GpuUuid("GPU-a"), identifiers.GpuUuid("GPU-b")


def test_app_containers_add_up() -> None:
    """They run together."""
    shares = ((Share(A, 1000, 10),), (Share(A, 2000, 20), Share(B, 500, 0)))

    assert allocations.by_gpu((Kind.APP, Kind.APP), shares) == {A: Allocation(2, 3000, 30), B: Allocation(1, 500, 0)}


def test_init_containers_take_turns_and_sidecars_stay() -> None:
    """A sidecar counts beside every init container after it and beside the apps."""
    kinds = (Kind.INIT, Kind.SIDECAR, Kind.INIT, Kind.APP)
    shares = ((Share(A, 9000, 0),), (Share(A, 1000, 0),), (Share(A, 3000, 50),), (Share(A, 2000, 20),))

    assert allocations.by_gpu(kinds, shares) == {A: Allocation(2, 9000, 50)}


def test_what_an_init_container_needs_is_booked_for_the_pods_life() -> None:
    """A new sandbox runs it again, so another pod must not get its memory in the meantime."""
    shares = ((Share(B, 9000, 100),), (Share(A, 1, 0),))

    assert allocations.by_gpu((Kind.INIT, Kind.APP), shares) == {A: Allocation(1, 1), B: Allocation(1, 9000, 100, 1)}


def test_all_cores_are_the_gpu_to_itself() -> None:
    """That is what 100 percent has always meant."""
    assert allocations.allocation_of(Share(A, 1, 100)) == Allocation(1, 1, 100, 1)
    assert allocations.allocation_of(Share(A, 1, 99)) == Allocation(1, 1, 99, 0)


def test_what_was_added_can_be_taken_away_again() -> None:
    """A node's allocations are counted by adding and subtracting."""
    assert Allocation(3, 7000, 90, 1).plus(Allocation(1, 2000, 30)).minus(Allocation(1, 2000, 30)) == Allocation(
        3, 7000, 90, 1
    )
