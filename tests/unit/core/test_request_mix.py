"""Which requests arrive and how often, and how that survives a restart."""

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gpu_sharing.core import allocations, errors, request_mix, requests
from gpu_sharing.core.request_mix import RequestMix, Shape

SMALL, LARGE = Shape(1, memory_mib=4000, host_cpu_milli=2000), Shape(8, memory_percent=100, cores_percent=100)


def asked(*containers: requests.GpuRequest | None, **more: Any) -> requests.PodRequest:
    return requests.PodRequest(kinds=(allocations.Kind.APP,) * len(containers), containers=containers, **more)


def test_requests_that_are_alike_have_one_shape() -> None:
    """The node's memory is rounded up, so that pods that differ by some bytes count together."""
    request = asked(requests.GpuRequest(2, memory_mib=4000, cores_percent=30), None)
    selectors = requests.Selectors(use_types=("a100",), nouse_types=("40g",))

    assert request_mix.shape_of(request, 2000, (1000 << 20) * 100) == Shape(2, 4000, 0, 30, (), (), 2000, 256)
    chosen = request_mix.shape_of(asked(requests.GpuRequest(1, memory_percent=50), selectors=selectors), 0, 0)
    assert chosen == Shape(1, 0, 50, 0, ("a100",), ("40g",))


@pytest.mark.parametrize(
    "request_",
    [
        asked(None),
        asked(requests.GpuRequest(1), requests.GpuRequest(1)),
        asked(requests.GpuRequest(1), selectors=requests.Selectors(mode="mig")),
        asked(requests.GpuRequest(1), selectors=requests.Selectors(use_uuids=("GPU-1",))),
        requests.PodRequest(kinds=(allocations.Kind.INIT,), containers=(requests.GpuRequest(1),)),
    ],
    ids=["no GPU", "two containers", "MIG", "by UUID", "only an init container"],
)
def test_requests_that_the_policy_does_not_know_have_none(request_: requests.PodRequest) -> None:
    """They are placed by best fit, and are no part of the mix."""
    assert request_mix.shape_of(request_, 0, 0) is None


def test_the_shares_of_all_requests_are_a_whole_and_recent_ones_weigh_more() -> None:
    """After a half-life of arrivals an earlier one counts half."""
    mix = RequestMix()
    mix.count(LARGE)
    for _ in range(request_mix.HALF_LIFE_ARRIVALS):
        mix.count(SMALL)
    shares = mix.shares()

    assert list(shares) == [SMALL, LARGE]
    assert sum(shares.values()) == pytest.approx(1)
    assert mix.weights[LARGE] / mix._scale == pytest.approx(0.5, rel=0.001)


def test_a_mix_stays_small_whatever_is_requested() -> None:
    """A tenant may request another size for each pod, for months: the frequent ones stay."""
    mix = RequestMix()
    for number in range(200_000):
        mix.count(SMALL if number % 2 else Shape(1, memory_mib=number))
    assert len(mix.weights) < 1000
    assert next(iter(mix.shares())) == SMALL
    assert mix._scale < 1e7
    assert len(mix.encode()) < 50_000


SHAPES = st.builds(
    Shape,
    st.integers(0, 16),
    st.integers(0, 1 << 20),
    st.integers(0, 100),
    st.integers(0, 100),
    st.lists(st.text(max_size=5), max_size=2).map(tuple),
    st.lists(st.text(max_size=5), max_size=2).map(tuple),
    st.integers(0, 1 << 20),
    st.integers(0, 1 << 20),
)


@given(st.dictionaries(SHAPES, st.floats(0.01, 1000), max_size=5))
def test_a_mix_is_read_as_it_was_written(weights: dict[Shape, float]) -> None:
    """A restart changes nothing of the shares, but for rounding."""
    before = RequestMix(weights)
    after = request_mix.decode(before.encode())
    assert after.weights.keys() == weights.keys()
    assert after.shares() == pytest.approx(before.shares(), abs=1e-3)


GOOD = [1, 4000, 0, 30, [], [], 2000, 4096, 3.5]


@pytest.mark.parametrize(
    "text",
    [
        "",
        "[]",
        "{}",
        "[" * 100_000,
        "x" * 300_000,
        json.dumps({"version": 2, "shapes": []}),
        json.dumps({"version": 1, "shapes": 3}),
        json.dumps({"version": 1, "shapes": [[1, 2]]}),
        json.dumps({"version": 1, "shapes": [[True, *GOOD[1:]]]}),
        json.dumps({"version": 1, "shapes": [[-1, *GOOD[1:]]]}),
        json.dumps({"version": 1, "shapes": [[10**9, *GOOD[1:]]]}),
        json.dumps({"version": 1, "shapes": [[*GOOD[:4], [1], *GOOD[5:]]]}),
        json.dumps({"version": 1, "shapes": [[*GOOD[:4], ["x"] * 100, *GOOD[5:]]]}),
        json.dumps({"version": 1, "shapes": [[*GOOD[:-1], 0]]}),
        json.dumps({"version": 1, "shapes": [[*GOOD[:-1], 1e300]]}),
        json.dumps({"version": 1, "shapes": [[*GOOD[:-1], "1"]]}),
    ],
)
def test_nonsense_is_no_mix(text: str) -> None:
    """A ConfigMap of another version, or edited by hand: it is refused as a whole, and the mix is learned anew."""
    with pytest.raises(errors.CorruptRecord):
        request_mix.decode(text)
    assert request_mix.decode(json.dumps({"version": 1, "shapes": [GOOD]})).shares()
