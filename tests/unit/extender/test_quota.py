"""Quotas of namespaces at filter, bind and wake-up, on a mirror without a cluster."""

import asyncio
from typing import Any

import orjson
import pytest

from gpu_sharing.core import error_codes, identifiers
from lab import gpus
from scheduler_extender.act import binding
from tests.support import fakes
from tests.support.extender_world import A100, LIMITS, World, held, pod, quota


def refusal(answer: dict[str, Any]) -> dict[str, str]:
    found: dict[str, str] = answer["FailedAndUnresolvableNodes"]
    return found


def test_a_pod_over_its_quota_is_refused_and_told_so() -> None:
    """With the numbers, on every node where its GPUs would fit, and with its own reason on the others."""
    world = World(gpus.gpu_node("a", A100, 1), gpus.gpu_node("b", A100, 1), gpus.gpu_node("full", A100, 1))
    world.see(held("other", "full", 0, 15_000))
    world.mirror.quotas.changed(quota(gpumem="18000"))

    answer = world.filter(pod("p"), "a", "b", "full")

    assert refusal(answer) == {"a": "quota exceeded", "b": "quota exceeded", "full": "GPU memory insufficient"}
    (event,) = world.recorder.told
    line = "quota exceeded (namespace default): GPU memory requested 4000MB, left 3000MB of 18000MB by team"
    assert event.note.splitlines()[:2] == [
        "0/3 nodes available: 2 quota exceeded, 1 GPU memory insufficient",
        f"    a: {line}",
    ]


def test_other_namespaces_and_pods_within_the_quota_are_not_touched() -> None:
    """The tightest fit counts as a fit."""
    world = World(gpus.gpu_node("a", A100, 2))
    world.see(held("other", "a", 0, 10_000))
    world.mirror.quotas.changed(quota(gpumem="14000", gpu="2", gpucores="0"))
    elsewhere = pod("q", {"nvidia.com/gpu": "1"})
    elsewhere["metadata"]["namespace"] = "rich"

    assert world.filter(pod("p"), "a")["NodeNames"] == ["a"]
    assert world.filter(elsewhere, "a")["NodeNames"] == ["a"]


def test_percent_and_whole_gpus_count_as_the_memory_they_are() -> None:
    """Half of a small GPU is within the quota where half of a large one is not; a mixed node takes the smaller."""
    small, large = gpus.Model("NVIDIA T4", 8_000), gpus.Model("NVIDIA H100", 80_000)
    mixed = gpus.gpu_node("mixed", small, 2)
    entries = orjson.loads(mixed["metadata"]["annotations"]["hami.io/node-nvidia-register"])
    entries[1]["devmem"] = 80_000
    mixed["metadata"]["annotations"]["hami.io/node-nvidia-register"] = orjson.dumps(entries).decode()
    world = World(gpus.gpu_node("small", small, 1), gpus.gpu_node("large", large, 1), mixed)
    world.mirror.quotas.changed(quota(gpumem="8000"))
    half, whole = {"nvidia.com/gpu": "1", "nvidia.com/gpumem-percentage": "50"}, {"nvidia.com/gpu": "1"}

    assert world.filter(pod("p", half), "small", "large", "mixed")["NodeNames"] == ["small", "mixed"]
    assert world.filter(pod("q", whole), "small", "large", "mixed")["NodeNames"] == ["small", "mixed"]


def test_a_quota_that_cannot_be_read_closes_its_namespace() -> None:
    """And says where to look."""
    world = World(gpus.gpu_node("a", A100, 1))
    world.mirror.quotas.changed(quota(gpu="1500m"))

    assert refusal(world.filter(pod("p"), "a")) == {"a": "quota unreadable"}
    assert "ResourceQuota team: limits.nvidia.com/gpu: 1500m is a fraction" in world.recorder.told[0].note
    world.mirror.quotas.deleted(quota(gpu="1500m"))
    assert world.filter(pod("p"), "a")["NodeNames"] == ["a"]


def test_a_relist_forgets_quotas_that_went_while_nobody_watched() -> None:
    """And a quota whose GPU limits were taken out counts as gone."""
    world = World(gpus.gpu_node("a", A100, 1))
    for left in ([], [quota()]):
        list(world.mirror.quotas.replaced([quota(gpu="0")], 0.0))
        assert refusal(world.filter(pod("p"), "a")) == {"a": "quota exceeded"}
        list(world.mirror.quotas.replaced(left, 0.0))
        assert world.filter(pod("p"), "a")["NodeNames"] == ["a"]


@pytest.mark.parametrize("how", ["raised", "pod ended"])
def test_refused_pods_are_woken_once_their_quota_allows(how: str) -> None:
    """As many as it allows, whatever node something became free on, and nobody of another namespace."""
    world = World(gpus.gpu_node("a", A100, 1), gpus.gpu_node("b", A100, 1))
    world.see(held("other", "b", 0, 15_000))
    world.mirror.quotas.changed(quota(gpumem="16000"))
    selector = {"nvidia.com/use-gpuuuid": gpus.gpu_uuid("a", 0)}
    for number in (1, 2, 3):
        waiting = pod(f"p{number}", {"nvidia.com/gpu": "1", "nvidia.com/gpumem": "5000"}, annotations=selector)
        world.see(waiting)
        assert refusal(world.filter(waiting, "a")) == {"a": "quota exceeded"}
    world.due()

    if how == "raised":
        world.mirror.quotas.changed(quota(gpumem="25000"))
    else:
        world.mirror.forget_pod(identifiers.PodUid("uid-other"))

    expected = {"raised": ["default/p1", "default/p2"], "pod ended": ["default/p1", "default/p2", "default/p3"]}
    assert [one.key for one in world.due()] == expected[how]
    assert world.due() == []


def test_two_hundred_binds_at_once_never_exceed_the_quota() -> None:
    """Each was within it when it was filtered. What is bound is counted before the API server has answered."""
    world, api = World(*(gpus.gpu_node(f"n{index}", A100, 8) for index in range(30))), SlowApi()
    world.mirror.quotas.changed(quota(gpu="50", gpumem="170000"))
    client: Any = api
    binder = binding.Binder(client, world.core, world.decision_events, lambda: True)
    for number in range(200):
        one = pod(f"p{number}")
        api.put(one)
        world.see(one)

    async def race() -> list[binding.BindOutcome]:
        return await asyncio.gather(
            *(
                binder.bind(
                    binding.BindCall(
                        identifiers.PodUid(f"uid-p{number}"),
                        f"default/p{number}",
                        identifiers.NodeName(f"n{number % 30}"),
                    )
                )
                for number in range(200)
            )
        )

    answers = asyncio.run(race())

    bound = [one for one in api.pods.values() if one["spec"].get("nodeName")]
    assert len(bound) == 170_000 // int(LIMITS["nvidia.com/gpumem"])
    assert sum(answer.code is None for answer in answers) == len(bound)
    assert {answer.code for answer in answers if answer.code} == {error_codes.QUOTA_EXCEEDED}


class SlowApi(fakes.FakeApi):
    """Takes its time to answer, so that all binds are under way at once."""

    async def post(self, path: str, body: bytes, timeout_seconds: float = 1.0) -> bytes:
        await asyncio.sleep(0.01)
        return await super().post(path, body, timeout_seconds)
