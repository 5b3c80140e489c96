"""What one tenant, or one node that is broken into, throws at the cluster costs other tenants nothing.

On a real API server with everything that the chart installs, its admission policies and its webhook among them.
"""

import pathlib
import re
import statistics
from collections.abc import Iterator

import pytest

from gpu_sharing.core import quantities
from lab import extender_process, gpus
from lab.real import control_plane
from tests.chart import rendering
from tests.e2e import hostile_objects, test_chart
from tests.e2e import site as sites

MERGE = "application/merge-patch+json"
HOOKS = "/apis/admissionregistration.k8s.io/v1/mutatingwebhookconfigurations/hami-webhook"
PLUGIN = f"system:serviceaccount:{test_chart.NAMESPACE}:hami-device-plugin"
TENANT = "system:serviceaccount:tenant:tenant"
MOST_CPU_SECONDS = 1.0
"""Of the API server for one call."""
ROWS_BETWEEN_RESTARTS = 20
_DEADLINE_SECONDS = 30.0
_IDLE = 5
"""Innocent pods before anything is thrown."""


class Cluster:
    """A cluster with an innocent namespace and a hostile one.

    Attributes:
        plane: Its control plane.
        extender: The extender, with the flags and the account of the chart.
        seconds: How long each innocent pod waited.
    """

    def __init__(self, plane: control_plane.ControlPlane, extender: extender_process.ExtenderProcess) -> None:
        self.plane = plane
        self.extender = extender
        self.seconds: list[float] = []
        self._innocents = 0
        self._throws = 0

    def throw(self, one: hostile_objects.Throw) -> list[tuple[int, float]]:
        """Return the status of each call, and the CPU seconds that it cost the API server."""
        path = one.path if one.path.startswith("/") else f"/api/v1/namespaces/tenant/{one.path}"
        user, node = (PLUGIN, hostile_objects.EVIL) if one.by == "plugin" else (TENANT, "")
        kind = MERGE if one.method == "PATCH" else "application/json"
        pid = self.plane.parts.pid("kube-apiserver")
        answers = []
        for body in (one.body, *one.more):
            before = sites.cpu_seconds(pid)
            refused = sites.refusal(self.plane, one.method, path, body, kind, user, node)
            status = int(refused[:3]) if refused else 201 if one.method == "POST" else 200
            answers.append((status, sites.cpu_seconds(pid) - before))
        return answers

    def place_an_innocent(self) -> None:
        """Create a pod of another namespace, and see it bound at the first attempt."""
        self._innocents += 1
        name, pods = f"innocent-{self._innocents}", "/api/v1/namespaces/innocent/pods"
        limits = {"nvidia.com/gpu": "1", "nvidia.com/gpumem": "1000", "nvidia.com/gpucores": "5"}
        body = hostile_objects.pod(name, limits, nodeSelector={"kubernetes.io/hostname": "good"})
        self.plane.api("POST", pods, body)

        def bound() -> bool:
            return bool(self.plane.api("GET", f"{pods}/{name}")["spec"].get("nodeName"))

        self.seconds.append(sites.wait_for(bound, _DEADLINE_SECONDS, lambda: self._why(name)))
        assert self._refusals(name) == []
        self.plane.api("DELETE", f"{pods}/{name}", {"gracePeriodSeconds": 0})

    def _refusals(self, name: str) -> list[str]:
        events = self.plane.api("GET", "/api/v1/namespaces/innocent/events")["items"]
        return [
            one["message"]
            for one in events
            if one["involvedObject"]["name"] == name and one["reason"] == "FailedScheduling"
        ]

    def _why(self, name: str) -> str:
        return f"{self._refusals(name)}; {self.extender.log_file.read_text()[-3_000:]}"

    def restart(self) -> None:
        """End the extender as a crash does, and see it ready again."""
        self.extender.kill()
        self.extender.start()
        self.extender.wait_ready(_DEADLINE_SECONDS)

    def recover(self) -> None:
        """Take away what was thrown where the extender does not live with it: the next row is judged by itself."""
        if self.extender.get("health", "/livez")[0] == 200 and self.extender.get("health", "/readyz")[0] == 200:
            return
        for pod in self.plane.api.pages("/api/v1/namespaces/tenant/pods"):
            path = f"/api/v1/namespaces/tenant/pods/{pod['metadata']['name']}"
            if pod["metadata"].get("finalizers"):
                self.plane.api("PATCH", path, {"metadata": {"finalizers": None}}, MERGE)
            self.plane.api("DELETE", path, {"gracePeriodSeconds": 0})
        self.plane.api("DELETE", f"/api/v1/nodes/{hostile_objects.EVIL}")
        control_plane.add_nodes(self.plane.api, [gpus.gpu_node(hostile_objects.EVIL, gpus.A100, 1)])
        _run_on_evil(self.plane)
        self.restart()

    def peak_bytes(self) -> int:
        """Return how much memory the extender had at most."""
        status = pathlib.Path(f"/proc/{self.extender.pid}/status").read_text()
        found = re.search(r"VmHWM:\s+(\d+) kB", status)
        assert found
        return int(found[1]) * 1024


def _make_tenant(plane: control_plane.ControlPlane) -> None:
    """Two namespaces; in one an account that may create pods, and nothing else."""
    for namespace in ("innocent", "tenant"):
        plane.api("POST", "/api/v1/namespaces", {"metadata": {"name": namespace}})
    rbac, group = "/apis/rbac.authorization.k8s.io/v1/namespaces/tenant", "rbac.authorization.k8s.io"
    rules = [{"apiGroups": [""], "resources": ["pods"], "verbs": ["create"]}]
    plane.api("POST", f"{rbac}/roles", {"metadata": {"name": "tenant"}, "rules": rules})
    subject = {"kind": "ServiceAccount", "name": "tenant", "namespace": "tenant"}
    reference = {"apiGroup": group, "kind": "Role", "name": "tenant"}
    body = {"metadata": {"name": "tenant"}, "subjects": [subject], "roleRef": reference}
    plane.api("POST", f"{rbac}/rolebindings", body)
    _run_on_evil(plane)


def _run_on_evil(plane: control_plane.ControlPlane) -> None:
    on_evil = hostile_objects.pod("on-evil", {"cpu": "1m"}, nodeName=hostile_objects.EVIL, schedulerName="x")
    plane.api("POST", "/api/v1/namespaces/tenant/pods", on_evil)


def _hook_up(plane: control_plane.ControlPlane, extender: extender_process.ExtenderProcess) -> None:
    """Let the API server reach the extender's webhook, which has no Service here."""

    def known() -> bool:
        return bool(plane.api("GET", HOOKS)["webhooks"][0]["clientConfig"].get("caBundle"))

    sites.wait_for(known, _DEADLINE_SECONDS, extender.log_file.read_text)
    found = plane.api("GET", HOOKS)
    reached = found["webhooks"][0]["clientConfig"]
    del reached["service"]
    reached["url"] = f"https://localhost:{extender.webhook.rpartition(':')[2]}/webhook"
    plane.api("PATCH", HOOKS, {"webhooks": found["webhooks"]}, MERGE)


@pytest.fixture(scope="module")
def cluster(programs: pathlib.Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    folder = tmp_path_factory.mktemp("hostile")
    with control_plane.running(folder) as plane:
        names = ("good", hostile_objects.PICKED, hostile_objects.EVIL)
        control_plane.add_nodes(plane.api, [gpus.gpu_node(name, gpus.A100, 2, slots=200) for name in names])
        done = test_chart.Installation(plane, 4).install()
        assert done.returncode == 0, done.stderr
        _make_tenant(plane)
        with test_chart.extender_of(plane, folder) as extender, plane.scheduler(f"http://{extender.verbs}"):
            _hook_up(plane, extender)
            found = Cluster(plane, extender)
            wrong = hostile_objects.pod("x", {"nvidia.com/gpu": "1"}, annotations={"nvidia.com/numa-bind": "perhaps"})
            asked = hostile_objects.Throw("", wrong)
            sites.wait_for(lambda: found.throw(asked)[0][0] == 403, _DEADLINE_SECONDS, extender.log_file.read_text)
            for _ in range(_IDLE):
                found.place_an_innocent()
            yield found


@pytest.mark.parametrize("one", hostile_objects.THROWS, ids=lambda one: f"{one.by}: {one.name}")
def test_what_one_throws_costs_nobody_else_anything(cluster: Cluster, one: hostile_objects.Throw) -> None:
    """A pod of another namespace is placed at once, the API server is not kept busy, and the extender lives."""
    cluster.recover()

    answers = cluster.throw(one)
    cluster.place_an_innocent()

    assert {status for status, _ in answers} <= ({one.status} if one.status else {200, 201, 403, 413, 422})
    assert max(seconds for _, seconds in answers) <= MOST_CPU_SECONDS
    assert cluster.extender.get("health", "/readyz")[0] == 200
    if hostile_objects.THROWS.index(one) % ROWS_BETWEEN_RESTARTS == ROWS_BETWEEN_RESTARTS - 1:
        cluster.restart()


def test_after_all_of_that_the_extender_starts_clean_and_small(cluster: Cluster) -> None:
    """With every object still there; a defect in the log would be one that can be caused again."""
    scheduler = rendering.one(rendering.objects(4), "Deployment", "hami-scheduler")
    limit = quantities.thousandths(rendering.container(scheduler, "extender")["resources"]["limits"]["memory"])
    baseline = statistics.median(cluster.seconds[:_IDLE])
    assert statistics.median(cluster.seconds) <= max(2.0, 10 * baseline)
    peak = cluster.peak_bytes()
    cluster.restart()
    cluster.place_an_innocent()

    assert max(peak, cluster.peak_bytes()) < limit / 1000
    assert [line for line in cluster.extender.log_lines() if line.get("event") == "defect"] == []
    assert "Traceback" not in cluster.extender.log_file.read_text()


def test_there_are_enough_of_them() -> None:
    """And no two have one name."""
    names = [(one.by, one.name) for one in hostile_objects.THROWS]
    assert len(names) == len(set(names)) >= 40
