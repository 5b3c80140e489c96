"""What the leader says of the whole cluster."""

import pathlib
import time

import pytest

from gpu_sharing.adapters import certificates
from gpu_sharing.core import error_codes, identifiers
from lab import certificates as lab_certificates
from lab import gpus
from scheduler_extender.report import cluster_gauges
from tests.support.extender_world import A100, World, held, pod, quota

MIB = 1 << 20


def counted(world: World, *, leads: bool = True, clock: float = 0.0) -> dict[str, dict[tuple[str, ...], float]]:
    """Every gauge, by name and values of its labels."""
    gauges = cluster_gauges.ClusterGauges(world.core, lambda: leads, lambda: clock)
    return {
        family.name: {tuple(one.labels.values()): one.value for one in family.samples} for family in gauges.collect()
    }


def test_memory_and_slots_are_summed_by_model() -> None:
    """Allocated and free, and the largest share that one GPU still has room for."""
    world = World(gpus.gpu_node("a", A100, 2), gpus.gpu_node("b", gpus.T4, 1))
    world.see(held("x", "a", 0, 10_000))

    found = counted(world)

    a100, t4 = (A100.type,), (gpus.T4.type,)
    assert found["hami_scheduler_nodes"] == {(): 2}
    assert found["hami_scheduler_gpus"] == {a100: 2, t4: 1}
    assert found["hami_scheduler_gpu_memory_bytes"] == {a100: 2 * A100.memory_mib * MIB, t4: 15_360 * MIB}
    assert found["hami_scheduler_gpu_memory_allocated_bytes"] == {a100: 10_000 * MIB, t4: 0}
    assert found["hami_scheduler_gpu_slots_allocated"] == {a100: 1, t4: 0}
    assert found["hami_scheduler_largest_free_bytes"] == {a100: A100.memory_mib * MIB, t4: 15_360 * MIB}
    assert found["hami_scheduler_pods_bound"] == {(): 1}


def test_fragmentation_is_the_free_memory_in_which_what_is_asked_for_does_not_fit() -> None:
    """Of 6,000 and 16,000 MiB free, the 6,000 are of no use to shares of 10,000."""
    world = World(gpus.gpu_node("a", A100, 2))
    assert counted(world)["hami_scheduler_fragmentation_ratio"] == {}

    world.see(held("x", "a", 0, 10_000))

    assert A100.memory_mib == 16_000
    assert counted(world)["hami_scheduler_fragmentation_ratio"] == {(A100.type,): pytest.approx(6_000 / 22_000)}


def test_waiting_pods_are_counted_by_why_they_wait() -> None:
    """One that nobody has looked at yet has no reason."""
    world = World(gpus.gpu_node("a", A100, 1))
    assert counted(world)["hami_scheduler_pods_pending"] == {(cluster_gauges.UNDECIDED,): 0}

    world.see(held("x", "a", 0, A100.memory_mib))
    world.see(pod("refused"))
    world.filter(pod("refused"), "a")
    world.see(pod("new"))

    assert counted(world)["hami_scheduler_pods_pending"] == {
        (error_codes.INSUFFICIENT_GPU_MEMORY,): 1,
        (cluster_gauges.UNDECIDED,): 1,
    }


def test_a_quota_shows_what_is_held_of_what_is_allowed() -> None:
    """Memory in bytes; what is not limited is not shown."""
    world = World(gpus.gpu_node("a", A100, 1))
    world.mirror.quotas.changed(quota(gpumem="18000", gpu="4"))
    world.see(held("x", "a", 0, 10_000))

    found = counted(world)

    memory, count = ("default", "nvidia.com/gpumem"), ("default", "nvidia.com/gpu")
    assert found["hami_scheduler_quota_used"] == {memory: 10_000 * MIB, count: 1}
    assert found["hami_scheduler_quota_limit"] == {memory: 18_000 * MIB, count: 4}


def test_a_replica_that_does_not_lead_says_nothing_of_the_cluster() -> None:
    """Two would double every sum."""
    assert counted(World(gpus.gpu_node("a", A100, 1)), leads=False) == {}


def test_many_scrapes_are_one_count() -> None:
    """For some seconds."""
    world, now = World(gpus.gpu_node("a", A100, 1)), [0.0]
    gauges = cluster_gauges.ClusterGauges(world.core, lambda: True, lambda: now[0])
    first = gauges.collect()
    world.see(held("x", "a", 0, 10_000))

    assert gauges.collect() is first
    now[0] = 5.0
    assert gauges.collect() is not first


def test_a_certificate_says_when_it_ends(tmp_path: pathlib.Path) -> None:
    """What cannot be read ends nothing."""
    lab_certificates.write(tmp_path / "crt", tmp_path / "key")
    ends = certificates.expires_at(tmp_path / "crt")
    assert ends is not None
    assert abs(ends - time.time() - 86_400) < 600

    text = (tmp_path / "crt").read_text()
    for broken in ("", "garbage", text[: len(text) // 2]):
        (tmp_path / "crt").write_text(broken)
        assert certificates.expires_at(tmp_path / "crt") is None
    assert certificates.expires_at(tmp_path / "none") is None


def test_the_reason_of_a_pod_is_the_one_of_its_last_refusal() -> None:
    """And none once it got a yes."""
    world = World(gpus.gpu_node("a", A100, 1))
    world.see(pod("p"))
    assert last_code(world) is None
    world.see(held("x", "a", 0, A100.memory_mib))

    world.filter(pod("p"), "a")
    assert last_code(world) == error_codes.INSUFFICIENT_GPU_MEMORY
    world.mirror.forget_pod(identifiers.PodUid("uid-x"))
    world.filter(pod("p"), "a")
    assert last_code(world) is None


def last_code(world: World) -> error_codes.Code | None:
    """The code of the last rejection of the pod p."""
    entry = world.pending.entry(identifiers.PodUid("uid-p"))
    assert entry is not None
    return entry.rejection.code if entry.rejection else None
