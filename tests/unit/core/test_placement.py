"""Where a pod fits on one node, and why it does not."""

import dataclasses

import pytest
from hypothesis import given, settings

from gpu_sharing.core import allocations, gpus, identifiers, placement, policies, rejections, requests
from gpu_sharing.core.allocations import Allocation, Kind
from gpu_sharing.core.rejections import Reason
from gpu_sharing.core.requests import GpuRequest
from tests.support import searching
from tests.unit import builders


def node(*states: gpus.GpuState, **more: object) -> placement.NodeState:
    return placement.NodeState(identifiers.NodeName("n"), states, **more)  # type: ignore[arg-type]


def state(index: int, used: Allocation = allocations.NOTHING, **changes: object) -> gpus.GpuState:
    return gpus.GpuState(builders.gpu("n", index, **changes), used)


def fit(request: requests.PodRequest, where: placement.NodeState) -> placement.Placement | rejections.Rejection:
    return placement.fit(request, where, policies.BINPACK)


def ask(memory_mib: int = 4000, cores: int = 0, count: int = 1) -> requests.PodRequest:
    return builders.pod_request(builders.share_of(memory_mib, cores, count))


@pytest.mark.parametrize(
    ("request_", "where", "sentence"),
    [
        (
            ask(8000),
            node(state(0, Allocation(1, 12_000))),
            "GPU memory insufficient (requested 8000MB, available 4000MB)",
        ),
        (
            builders.pod_request(GpuRequest(1, 0, 50)),
            node(state(0, Allocation(1, 12_000))),
            "GPU memory insufficient (requested 50%, available 25%)",
        ),
        (ask(1, 60), node(state(0, Allocation(1, 0, 60))), "GPU cores insufficient (requested 60%, available 40%)"),
        (ask(1), node(state(0, Allocation(1, 0, 100))), "GPU cores insufficient (requested 1%, available 0%)"),
        (ask(1, 0, 2), node(state(0)), "too few GPUs (requested 2, has 1)"),
        (ask(8000, 0, 2), node(state(0), state(1, Allocation(1, 9000))),
         "GPU memory insufficient (requested 8000MB, available 7000MB)"),
        (ask(1), node(state(0, Allocation(10, 0))), "GPU slots exhausted"),
        (ask(1), node(state(0), foreign_slots=10), "GPU slots exhausted (requested 1, available 0)"),
        (ask(1, 100), node(state(0, Allocation(1, 1))), "no GPU free for exclusive use"),
        (ask(1), node(state(0, Allocation(1, 1, 50, 1))), "GPU held exclusively by another pod"),
        (ask(1), node(state(0, healthy=False)), "GPU unhealthy"),
        (ask(1), node(gpus.GpuState(builders.gpu("n", 0), cordoned=True)), "GPU cordoned"),
        (ask(1), node(gpus.GpuState(builders.gpu("n", 0), allocation_unknown=True)), "GPU usage unknown"),
        (ask(1), node(state(0, mode="mig")), "GPU mode mismatch (requested sharing, has mig)"),
        (ask(1), node(), "too few GPUs (requested 1, has 0)"),
        (ask(1), node(standing=Reason.FOREIGN_AGENT), "GPUs served by another device plugin"),
    ],
)  # fmt: skip
def test_the_first_stage_that_leaves_too_few_gpus_is_the_reason(
    request_: requests.PodRequest, where: placement.NodeState, sentence: str
) -> None:
    """People read what would have to change, with numbers."""
    refused = fit(request_, where)

    assert isinstance(refused, rejections.Rejection)
    assert str(refused) == sentence


@pytest.mark.parametrize(
    ("selectors", "sentence"),
    [
        (requests.Selectors(use_types=("t4",)), "device type mismatch (requested T4, has A100-SXM4-80GB)"),
        (requests.Selectors(nouse_types=("a100",)), "device type mismatch (requested not A100, has A100-SXM4-80GB)"),
        (requests.Selectors(use_uuids=("GPU-x",)), "GPU UUID mismatch"),
        (requests.Selectors(mode="mps"), "GPU mode mismatch (requested mps, has hami-core)"),
    ],
)
def test_a_pods_wishes_are_named_when_no_gpu_meets_them(selectors: requests.Selectors, sentence: str) -> None:
    """As in the documented form of the event."""
    refused = fit(builders.pod_request(builders.share_of(1), selectors=selectors), node(state(0, mode="hami-core")))

    assert str(refused) == sentence


def test_a_gpu_without_a_known_type_is_called_unknown() -> None:
    """The sentence has a word there, whatever the driver said."""
    selectors = requests.Selectors(use_types=("t4",))

    assert str(fit(builders.pod_request(builders.share_of(1), selectors=selectors), node(state(0, type="")))) == (
        "device type mismatch (requested T4, has unknown)"
    )


def test_an_init_container_uses_the_gpus_that_its_pod_holds_anyway() -> None:
    """Then it costs nothing."""
    request = requests.PodRequest(
        kinds=(Kind.INIT, Kind.SIDECAR, Kind.APP),
        containers=(GpuRequest(1, 5000), GpuRequest(1, 1000), GpuRequest(1, 3000)),
    )
    where = node(state(0), state(1, Allocation(1, 9000)))

    placed = fit(request, where)

    assert isinstance(placed, placement.Placement)
    assert [[share.uuid for share in one] for one in placed.shares] == [["GPU-n-1"], ["GPU-n-1"], ["GPU-n-1"]]
    assert placed.gpu_count == 1
    assert placement.staying_memory_mib(request, placed) == 4000


def test_containers_of_one_pod_are_counted_against_each_other() -> None:
    """Two halves of a GPU and a bit do not fit on one."""
    request = builders.pod_request(builders.share_of(9000), builders.share_of(9000))

    assert isinstance(fit(request, node(state(0))), rejections.Rejection)
    assert isinstance(fit(request, node(state(0), state(1))), placement.Placement)


@settings(max_examples=searching.examples(150))
@given(builders.node_states("n"), builders.pod_requests(), builders.gpu_policies)
def test_what_fits_never_oversubscribes_a_gpu(
    where: placement.NodeState, request: requests.PodRequest, policy: policies.GpuPolicy
) -> None:
    """Whatever is placed, each GPU holds its old promises and the new ones, and exclusive means alone."""
    placed = placement.fit(request, where, policy)

    if isinstance(placed, placement.Placement):
        allocated_of = allocations.by_gpu(request.kinds, placed.shares)
        for one in where.states:
            if one.gpu.uuid in allocated_of:
                after = one.allocated.plus(allocated_of[one.gpu.uuid])
                assert after.memory_mib <= one.gpu.memory_mib
                assert after.cores_percent <= one.gpu.cores_percent
                assert after.slots <= one.gpu.slots
                assert one.allocated.exclusive == 0
                assert not allocated_of[one.gpu.uuid].exclusive or one.allocated.slots == 0
                assert one.gpu.healthy
                assert not one.cordoned
                assert not one.allocation_unknown
        for ask_, shares in zip(request.containers, placed.shares, strict=True):
            assert len({share.uuid for share in shares}) == len(shares) == (ask_.gpus if ask_ else 0)


def numa_node(*states: gpus.GpuState) -> placement.NodeState:
    """Two GPUs of 16,000 MiB on each of two NUMA nodes."""
    return node(
        *(dataclasses.replace(one, gpu=dataclasses.replace(one.gpu, numa=one.gpu.index // 2)) for one in states)
    )


@pytest.mark.parametrize(
    ("used_mib", "indices"),
    [
        ((0, 8000, 0, 0), ["GPU-n-1", "GPU-n-0"]),
        ((0, 0, 4000, 0), ["GPU-n-2", "GPU-n-3"]),
        ((0, 15_000, 0, 2000), ["GPU-n-3", "GPU-n-2"]),
    ],
    ids=["the fullest GPU decides which NUMA node", "the other way", "but it needs enough beside it"],
)
def test_numa_bind_takes_all_gpus_of_a_container_from_one_numa_node(
    used_mib: tuple[int, ...], indices: list[str]
) -> None:
    request = dataclasses.replace(ask(2000, count=2), numa_bind=True)
    where = numa_node(*(state(index, Allocation(1 if mib else 0, mib)) for index, mib in enumerate(used_mib)))

    placed = fit(request, where)

    assert isinstance(placed, placement.Placement)
    assert [share.uuid for share in placed.shares[0]] == indices


def test_numa_bind_is_refused_where_the_gpus_lie_apart_though_each_has_room() -> None:
    """Without the wish the pod fits; with it, the event says how many there are together."""
    full = Allocation(1, 16_000)
    where = numa_node(state(0), state(1, full), state(2), state(3, full))

    assert isinstance(fit(ask(2000, count=2), where), placement.Placement)
    refused = fit(dataclasses.replace(ask(2000, count=2), numa_bind=True), where)

    assert str(refused) == "too few GPUs on one NUMA node (requested 2, available 1)"


INIT_LARGE = requests.PodRequest(
    kinds=(Kind.INIT, Kind.APP),
    containers=(builders.share_of(12_000, 10), builders.share_of(1_000, 10)),
    selectors=requests.Selectors(),
)


def test_an_app_follows_its_larger_init_container_to_its_gpu() -> None:
    """There it costs nothing more; on the fuller GPU the pod would hold two."""
    fuller, emptier = state(0, Allocation(1, 8_000)), state(1)

    placed = fit(INIT_LARGE, node(fuller, emptier))

    assert isinstance(placed, placement.Placement)
    assert [[share.uuid for share in shares] for shares in placed.shares] == [["GPU-n-1"], ["GPU-n-1"]]


def test_an_init_container_follows_its_larger_app() -> None:
    """Else a small download step would hold part of a second GPU for the pod's life."""
    request = dataclasses.replace(INIT_LARGE, containers=tuple(reversed(INIT_LARGE.containers)))
    fuller, emptier = state(0, Allocation(1, 8_000)), state(1)

    placed = fit(request, node(fuller, emptier))

    assert isinstance(placed, placement.Placement)
    assert placed.gpu_count == 1
    assert placement.steps(request) == [1, 0]


def test_mib_and_percent_do_not_compare_so_that_apps_come_first() -> None:
    """The order of placing must be the same on every node, whatever its GPUs."""
    half, all_of_it = GpuRequest(1, 0, 50), GpuRequest(1, 0, 100)
    app = builders.share_of(4_000)

    assert placement.steps(dataclasses.replace(INIT_LARGE, containers=(half, app))) == [1, 0]
    assert placement.steps(dataclasses.replace(INIT_LARGE, containers=(all_of_it, app))) == [0, 1]


def test_room_for_more_is_what_memory_cores_and_slots_all_allow() -> None:
    """None where a pod has several shares, or its GPU has gone."""

    def room(used: Allocation, *shares: allocations.Share, gpu: int = 0) -> int | None:
        return placement.room_for_more(node(state(gpu, used)), placement.Placement((shares,)))

    total = state(0).gpu
    share = allocations.Share(total.uuid, 1000, 20)
    by_memory = (total.memory_mib - 1000) // 1000
    assert room(Allocation(1, 1000, 0), share._replace(cores_percent=0)) == min(by_memory, total.slots - 1)
    assert room(Allocation(1, 1000, 20), share) == min(4, by_memory, total.slots - 1)
    assert room(Allocation(total.slots, 1000, 20), share) == 0
    assert room(Allocation(1, 1000, 20), share, share) is None
    assert room(Allocation(1, 1000, 20), share, gpu=1) is None
