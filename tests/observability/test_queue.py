"""A queue that grows, on real processes under a real Prometheus."""

import json

from observability import alerts
from tests import tools
from tests.observability import watched_cluster
from tests.support import impatient

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


def test_calls_that_kube_scheduler_gave_up_fire_their_alert_and_no_other() -> None:
    """Each was a pod that waited for nothing; before, they counted as answered."""
    with watched_cluster.running(tools.find("prometheus")) as world:
        world.create("large", {"gpu": "1", "gpumem": "100000"})
        body = json.dumps({"Pod": world.pod("large"), "Nodes": None, "NodeNames": ["node-1"]}).encode()

        def fires_while_callers_hang_up() -> bool:
            impatient.hang_up(world.cluster.extender.verbs, "filter", body)
            return "SchedulerExtenderCallsCancelled" in world.prometheus.firing()

        world.wait("SchedulerExtenderCallsCancelled fires", fires_while_callers_hang_up)
        world.wait_quiet("SchedulerExtenderCallsCancelled")
        assert world.seen == {"SchedulerExtenderCallsCancelled"}


def test_the_progress_of_long_work_is_scraped_from_extender_and_plugins() -> None:
    """Of a cluster that has started, all of it is done."""
    with watched_cluster.running(tools.find("prometheus")) as world:
        found = world.prometheus.query("hami_progress_ratio")
        works = {one["metric"]["work"] for one in found}
        assert works == {
            "list_nodes", "list_pods", "list_resourcequotas", "count_nodes",
            "restore_containers", "change_mig_instances", "start_mps",
        }  # fmt: skip
        world.wait("all work is done", lambda: not world.prometheus.query("hami_progress_ratio < 1"))
        assert world.seen == set()
