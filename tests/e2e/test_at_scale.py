"""Many pods, many nodes, crashes: nothing is lost and nothing is allocated twice."""

import time

import pytest

from lab import gpus
from tests.e2e import site as sites
from tests.support import accounting

A100 = gpus.Model("NVIDIA A100-SXM4-80GB", 16_000)


def bodies(site: sites.Site, count: int, memory_mib: int, prefix: str = "p") -> list[dict]:  # type: ignore[type-arg]
    return [
        site.pod_body(f"{prefix}{index}", {"nvidia.com/gpu": "1", "nvidia.com/gpumem": str(memory_mib)})
        for index in range(count)
    ]


def wait_all_bound(site: sites.Site, count: int, seconds: float) -> None:
    def bound() -> int:
        return sum(1 for pod in site.pods() if pod["spec"].get("nodeName"))

    deadline = time.monotonic() + seconds
    while bound() < count:
        assert time.monotonic() < deadline, f"{bound()} of {count} bound after {seconds} s"
        time.sleep(0.5)


def test_two_thousand_pods_on_eight_hundred_gpus_never_oversubscribe_one(own_site: sites.Site) -> None:
    """The books of a full cluster balance, by the API objects alone."""
    own_site.add_nodes(*(gpus.gpu_node(f"node-{index:03d}", A100, 8) for index in range(100)))
    own_site.create(*bodies(own_site, 2000, 5000))

    wait_all_bound(own_site, 2000, 120)

    assert accounting.violations(own_site.nodes(), own_site.pods()) == []


def test_the_one_node_of_a_thousand_that_fits_is_found_at_first_try(own_site: sites.Site) -> None:
    """A pod never waits minutes because the one node with room was not looked at."""
    small, large = gpus.Model(A100.type, 1_000), gpus.Model(A100.type, 80_000)
    nodes = [gpus.gpu_node(f"node-{index:04d}", small, 8) for index in range(999)]
    own_site.add_nodes(*nodes, gpus.gpu_node("roomy", large, 8))
    own_site.create(*bodies(own_site, 10, 20_000))

    wait_all_bound(own_site, 10, 60)

    assert {pod["spec"]["nodeName"] for pod in own_site.pods()} == {"roomy"}
    assert own_site.scheduler is not None
    assert own_site.scheduler.attempts() == {"scheduled": 10}


def filter_calls(site: sites.Site) -> float:
    assert site.extender is not None
    return site.extender.metric("hami_scheduler_filter_duration_seconds_count")


def test_an_idle_cluster_stays_idle_beside_a_refused_pod_of_high_priority(own_site: sites.Site) -> None:
    """Failed preemption attempts do not wake each other for ever."""
    own_site.add_nodes(*(gpus.gpu_node(f"node-{index}", A100, 2) for index in range(5)))
    own_site.add_priority_class("high")
    own_site.create(*bodies(own_site, 10, 12_000))
    wait_all_bound(own_site, 10, 30)
    big = own_site.pod_body("big", {"nvidia.com/gpu": "1", "nvidia.com/gpumem": "8000"}, priorityClassName="high")
    own_site.create(big)
    sites.wait_for(lambda: own_site.events("big", "FailedScheduling"), 60)
    time.sleep(2)

    before = filter_calls(own_site)
    time.sleep(10)

    assert filter_calls(own_site) - before < 10


def test_a_refused_pod_is_placed_as_soon_as_room_is_made_and_the_others_sleep(own_site: sites.Site) -> None:
    """Deleting a pod helps the one that waits for its place within two seconds."""
    own_site.add_nodes(gpus.gpu_node("node-0", A100, 4))
    own_site.create(*bodies(own_site, 4, 12_000))
    wait_all_bound(own_site, 4, 30)
    two_gpus = {"nvidia.com/gpu": "2", "nvidia.com/gpumem": "10000"}
    own_site.create(*(own_site.pod_body(f"hopeless{index}", two_gpus) for index in range(20)))
    own_site.create(own_site.pod_body("waiting", {"nvidia.com/gpu": "1", "nvidia.com/gpumem": "10000"}))
    sites.wait_for(lambda: own_site.events("waiting", "FailedScheduling"), 60)
    sites.wait_for(lambda: own_site.events("hopeless19", "FailedScheduling"), 60)
    own_site.create(own_site.pod_body("cpu-only", {"cpu": "1"}))
    time.sleep(3)
    before = filter_calls(own_site)

    own_site.delete_pod("p0")
    # By itself kube-scheduler looks at it again after five minutes.
    sites.wait_for(lambda: own_site.pod("waiting")["spec"].get("nodeName"), 60)
    time.sleep(3)

    # kube-scheduler itself asks once about each refused pod per change of a bound pod: one deletion and one bind here.
    assert filter_calls(own_site) - before <= 3 * 21


@pytest.mark.parametrize("kills", [2])
def test_a_crash_in_the_middle_of_a_burst_loses_nothing(own_site: sites.Site, kills: int) -> None:
    """SIGKILL at any instant: every pod ends bound with its record, and no GPU is allocated twice."""
    site = own_site
    assert site.extender is not None
    site.add_nodes(*(gpus.gpu_node(f"node-{index:02d}", A100, 8) for index in range(25)))
    site.create(*bodies(site, 500, 5000))

    for _ in range(kills):
        time.sleep(0.7)
        site.extender.kill()
        site.extender.start()
        site.extender.wait_ready()
    wait_all_bound(site, 500, 120)

    assert accounting.violations(site.nodes(), site.pods()) == []
