"""What recording costs beside prometheus-client alone, counted in calls: the machine's pace does not matter."""

import sys
from collections.abc import Callable
from types import FrameType

import pytest

from bench import workload

TIMES = 10


def calls(act: Callable[[], object]) -> int:
    """Calls of functions, of Python and of C, that some calls make; the first ones make series."""
    for _ in range(3):
        act()
    count = 0

    def profile(frame: FrameType, event: str, argument: object) -> None:
        nonlocal count
        count += event in ("call", "c_call")

    before = sys.getprofile()
    sys.setprofile(profile)
    try:
        for _ in range(TIMES):
            act()
    finally:
        sys.setprofile(before)
    return count


@pytest.mark.parametrize("name", list(workload.pairs()))
def test_recording_makes_at_most_half_as_many_calls_more_than_prometheus_client_alone(name: str) -> None:
    """Metrics that slow a model server down are switched off. `make bench ARGS=workload` has the times."""
    plain, ours = workload.pairs()[name]

    assert calls(ours) <= workload.MOST_RATIO * calls(plain)
