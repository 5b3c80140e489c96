"""What a namespace may hold: how a ResourceQuota is read and what counts against it."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gpu_sharing.core import allocations, identifiers, quantities, quotas, requests
from gpu_sharing.core.rejections import Reason
from tests.unit import builders

KIND = allocations.Kind
NAMES = requests.ResourceNames()
HELD = quotas.Amounts(3, 30_000, 60)


def share(memory_mib: int, cores: int = 0, gpu: str = "GPU-0") -> allocations.Share:
    return allocations.Share(identifiers.GpuUuid(gpu), memory_mib, cores)


def test_the_limits_are_read_as_requests_are() -> None:
    """The API server writes 40000 as 40k, and people write bytes."""
    hard: dict[str, quantities.Raw] = {
        "limits.nvidia.com/gpu": "8", "limits.nvidia.com/gpumem": "40k", "limits.nvidia.com/gpucores": 250, "pods": "1",
    }  # fmt: skip

    assert quotas.read("team", hard, NAMES) == quotas.Quota("team", (8, 40_000, 250))
    assert quotas.read("team", {"limits.nvidia.com/gpumem": "40Gi"}, NAMES) == quotas.Quota(
        "team", (None, 40_960, None)
    )
    renamed = requests.ResourceNames(memory="example.com/vram")
    assert quotas.read("team", {"limits.example.com/vram": "7"}, renamed) == quotas.Quota("team", (None, 7, None))


def test_a_quota_that_does_not_speak_of_gpus_is_none_of_ours() -> None:
    """Its `requests.` keys are the API server's own business."""
    assert quotas.read("team", {"requests.nvidia.com/gpu": "8", "limits.cpu": "4"}, NAMES) is None


@pytest.mark.parametrize("raw", ["1500m", "-3", "many", "9e30", True, None, 1.5])
def test_nonsense_closes_the_namespace_and_says_what_is_wrong(raw: str) -> None:
    """Nobody knows how much is too much."""
    quota = quotas.read("team", {"limits.nvidia.com/gpumem": raw}, NAMES)

    assert quota is not None
    found = quotas.excess("ai-team", [quota], quotas.NOTHING, quotas.Amounts(1))
    assert found is not None
    assert found.reason is Reason.QUOTA_UNREADABLE
    assert str(found).startswith("quota unreadable (namespace ai-team): ResourceQuota team: limits.nvidia.com/gpumem: ")


@pytest.mark.parametrize(
    ("limits", "more", "text"),
    [
        ((4, None, None), (1, 9_999, 0), ""),
        ((4, None, None), (2, 0, 0), "GPUs requested 2, left 1 of 4 by team"),
        ((None, 32_000, None), (1, 2_000, 0), ""),
        ((None, 32_000, None), (1, 2_001, 0), "GPU memory requested 2001MB, left 2000MB of 32000MB by team"),
        ((9, 99_000, 100), (1, 1, 50), "GPU cores requested 50%, left 40% of 100% by team"),
        ((None, None, 50), (1, 1, 0), ""),
        ((None, None, 50), (1, 1, 1), "GPU cores requested 1%, left 0% of 50% by team"),
    ],
)
def test_each_quantity_is_limited_by_itself(
    limits: tuple[int | None, int | None, int | None], more: tuple[int, int, int], text: str
) -> None:
    """To the last MiB; a quota that was lowered below what is held lets in what requests nothing of it."""
    found = quotas.excess("ai-team", [quotas.Quota("team", limits)], HELD, quotas.Amounts(*more))

    assert str(found or "") == (f"quota exceeded (namespace ai-team): {text}" if text else "")


def test_every_quota_of_the_namespace_counts() -> None:
    """As in Kubernetes, the tightest decides."""
    loose, tight = quotas.Quota("loose", (9, None, None)), quotas.Quota("tight", (3, None, None))

    found = quotas.excess("ai-team", [loose, tight], HELD, quotas.Amounts(1))

    assert found is not None
    assert found.detail.endswith("by tight")


def test_what_counts_is_the_most_at_any_one_time() -> None:
    """An init container before two app containers, beside a sidecar."""
    kinds = (KIND.SIDECAR, KIND.INIT, KIND.APP, KIND.APP)
    shares = ((share(1_000),), (share(9_000, 10),), (share(2_000, 30), share(2_000, 30, "GPU-1")), ())

    assert quotas.amounts(kinds, shares) == quotas.Amounts(3, 10_000, 60)


@given(builders.pod_requests(), st.sampled_from([16_000, 24_000]))
def test_a_request_counts_alike_before_and_after_it_is_placed(request: requests.PodRequest, memory_mib: int) -> None:
    """On GPUs of one size it does not matter which."""
    shares = tuple(
        tuple(share(ask.memory_on(memory_mib), ask.cores_percent, f"GPU-{n}") for n in range(ask.gpus)) if ask else ()
        for ask in request.containers
    )

    assert quotas.asked(request, memory_mib) == quotas.amounts(request.kinds, shares)


def test_a_limit_that_nothing_counts_is_found_with_the_one_that_was_meant() -> None:
    """A team believes that it is limited, and is not."""
    hard: dict[str, quantities.Raw] = {
        "requests.nvidia.com/gpumemory": "8000", "limits.nvidia.com/gpu-mem": "8000",
        "limits.nvidia.com/gpumem": "8000", "requests.nvidia.com/gpumem": "8k", "limits.cpu": "4", "pods": "9",
        "count/pods": "9",
        "limits.nvidia.com/gpumem-percentage": "50", "requests.nvidia.com/mig-1g.5gb": "1",
    }  # fmt: skip

    assert quotas.uncounted(hard, NAMES) == [
        ("requests.nvidia.com/gpumemory", "limits.nvidia.com/gpumem"),
        ("limits.nvidia.com/gpu-mem", "limits.nvidia.com/gpumem"),
        ("limits.nvidia.com/gpumem-percentage", "limits.nvidia.com/gpumem"),
    ]
