"""Requests that no node can serve, however empty it is."""

import dataclasses

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gpu_sharing.core import error_codes, gpus, identifiers, placement, policies, requests
from gpu_sharing.core.rejections import Reason
from scheduler_extender.fleet import arrays, never_fits
from tests.unit import builders

Selectors = requests.Selectors


def fleet_of(*nodes: placement.NodeState) -> arrays.Arrays:
    fleet = arrays.Arrays()
    for node in nodes:
        fleet.write(fleet.column(node.name), node, inventory_changed=True)
    return fleet


def node(name: str, *each: gpus.Gpu) -> placement.NodeState:
    return placement.NodeState(identifiers.NodeName(name), tuple(gpus.GpuState(gpu) for gpu in each))


SMALL = node("small", *(builders.gpu("small", index, type="NVIDIA-Tesla T4", mode="hami-core") for index in range(4)))
LARGE = node("large", *(builders.gpu("large", index, memory_mib=81_920, mode="hami-core") for index in range(2)))


@pytest.mark.parametrize(
    ("ask", "selectors", "sentence"),
    [
        (
            builders.share_of(200_000),
            Selectors(),
            (
                "no GPU here has 200,000 MiB; the largest has 81,920 MiB (NVIDIA A100-SXM4-80GB); "
                "request at most 81920 MiB of each GPU's memory"
            ),
        ),
        (
            builders.share_of(20_000),
            Selectors(use_types=("t4",)),
            (
                "no GPU here that the pod accepts has 20,000 MiB; the largest has 16,000 MiB (NVIDIA-Tesla T4); "
                "request at most 16000 MiB of each GPU's memory"
            ),
        ),
        (
            builders.share_of(1_000, gpus=16),
            Selectors(),
            (
                "no node here has 16 GPUs for one container; the most is 4 (small); "
                "request at most 4 GPUs in one container"
            ),
        ),
        (
            builders.share_of(40_000, gpus=3),
            Selectors(),
            (
                "no node here has 3 GPUs with 40,000 MiB for one container; the most is 2 (large); "
                "request at most 2 GPUs in one container"
            ),
        ),
        (
            builders.share_of(1),
            Selectors(use_types=("h100",)),
            (
                "no GPU here is of type H100; the GPUs here are NVIDIA A100-SXM4-80GB, NVIDIA-Tesla T4; "
                "correct the annotation nvidia.com/use-gputype, or remove it"
            ),
        ),
        (
            builders.share_of(1),
            Selectors(nouse_types=("nvidia",)),
            (
                "the annotation nvidia.com/nouse-gputype excludes every GPU; "
                "the GPUs here are NVIDIA A100-SXM4-80GB, NVIDIA-Tesla T4; remove types from it"
            ),
        ),
        (
            builders.share_of(1),
            Selectors(use_uuids=("GPU-nowhere",)),
            "no GPU here has the UUID GPU-nowhere; correct the annotation nvidia.com/use-gpuuuid, or remove it",
        ),
        (
            builders.share_of(1),
            Selectors(nouse_uuids=tuple(f"GPU-{name}-{index}" for name in ("small", "large") for index in range(4))),
            "the annotation nvidia.com/nouse-gpuuuid excludes every GPU; remove UUIDs from it",
        ),
        (
            builders.share_of(1),
            Selectors(mode="mig"),
            (
                "no GPU here runs in mode mig; the GPUs here run in hami-core; "
                "write another mode in the annotation nvidia.com/vgpu-mode, or remove it"
            ),
        ),
    ],
)
def test_it_names_what_no_node_has_and_what_there_is(
    ask: requests.GpuRequest, selectors: requests.Selectors, sentence: str
) -> None:
    """A pod that can never start must not be told to wait for others to end."""
    obstacles = never_fits.obstacles(fleet_of(SMALL, LARGE), builders.pod_request(ask, selectors=selectors))

    assert [str(one) for one in obstacles] == [sentence]


def test_where_no_gpu_is_known_nothing_is_impossible() -> None:
    """The extender may have just started, or the cluster has no GPU nodes yet."""
    assert never_fits.obstacles(arrays.Arrays(), builders.pod_request(builders.share_of(99_000))) == ()


@given(
    st.lists(st.sampled_from(["a", "b", "c"]), min_size=1, max_size=3, unique=True).flatmap(
        lambda names: st.tuples(*(builders.node_states(name) for name in names))
    ),
    builders.pod_requests(),
)
def test_a_request_that_fits_a_node_now_is_never_called_impossible(
    nodes: tuple[placement.NodeState, ...], request: requests.PodRequest
) -> None:
    """A wrong "never" would make a person change a request that only has to wait."""
    policy = policies.GpuPolicy("any", ("spread",), False, policies.Weights(), False)
    fits = any(isinstance(placement.fit(request, node, policy), placement.Placement) for node in nodes)

    if fits:
        assert never_fits.obstacles(fleet_of(*nodes), request) == ()


def test_codes_are_those_of_the_selectors_or_never_fits() -> None:
    """The remedy of a size is to request less, of a selector to correct the annotation."""
    fleet = fleet_of(SMALL)
    big = never_fits.obstacles(fleet, builders.pod_request(builders.share_of(99_000)))
    wrong = never_fits.obstacles(
        fleet, builders.pod_request(builders.share_of(1), selectors=Selectors(use_types=("h100",)))
    )

    assert [one.code for one in (*big, *wrong)] == [error_codes.NEVER_FITS, error_codes.TYPE_MISMATCH]


def test_what_was_impossible_is_looked_at_again_when_a_node_arrives_or_is_released() -> None:
    """An autoscaler may add what was missing, and the list of pods must not go on to say that nothing has it."""
    fleet, cache = fleet_of(SMALL), never_fits.Cache()
    request = builders.pod_request(builders.share_of(40_000))

    assert cache.obstacles(fleet, request) == cache.obstacles(fleet, request) != ()
    fleet.write(fleet.column(LARGE.name), LARGE, inventory_changed=True)
    assert cache.obstacles(fleet, request) == ()
    foreign = dataclasses.replace(LARGE, standing=Reason.FOREIGN_AGENT)
    fleet.write(fleet.column(LARGE.name), foreign, inventory_changed=False)
    assert cache.obstacles(fleet, request) != ()


def test_the_cache_of_requests_is_bounded() -> None:
    """A tenant may create ten thousand pods that all request something else."""
    fleet, cache = fleet_of(SMALL), never_fits.Cache()
    for number in range(3_000):
        cache.obstacles(fleet, builders.pod_request(builders.share_of(20_000 + number)))

    assert len(cache._known) <= 1_024
