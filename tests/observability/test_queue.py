"""A queue that grows, on real processes under a real Prometheus."""

from observability import alerts
from tests import tools
from tests.observability import watched_cluster

PODS = 60
assert next(int(one.limit) for one in alerts.ALERTS if one.name == "GPUPodsPendingMany") < PODS


def test_a_long_queue_fires_its_alert_and_no_other() -> None:
    """Operators hear of a queue before its users complain, and are not led astray by alerts about healthy parts."""
    with watched_cluster.running(tools.find("prometheus")) as world:
        world.create("fits", {"gpu": "1", "gpumem": "1000"})
        world.runs("fits")
        for number in range(PODS):
            world.create(f"queued-{number}", {"gpu": "1", "gpumem": "100000"})
        world.wait_alert("GPUPodsPendingMany")

        (age,) = world.prometheus.query(
            'hami_scheduler_oldest_pending_pod_age_seconds{error_code="SCHED_INSUFFICIENT_GPU_MEMORY"}'
        )
        assert float(age["value"][1]) > 0
        (bound,) = world.prometheus.query('hami_scheduler_pod_pending_duration_seconds_count{error_code="NONE"}')
        assert float(bound["value"][1]) == 1

        for number in range(PODS):
            path = f"/api/v1/namespaces/default/pods/queued-{number}?gracePeriodSeconds=0"
            world.cluster.server.request("DELETE", path)
        world.wait_quiet("GPUPodsPendingMany")
        assert world.seen == {"GPUPodsPendingMany"}
