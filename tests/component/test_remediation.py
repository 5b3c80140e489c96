"""A GPU dies on the lab cluster: its pods alone are evicted and run elsewhere, and recovery ends what was done."""

import json
import pathlib
from collections.abc import Iterator
from typing import Any

import pytest

from device_plugin.driver import gpu_source
from gpu_sharing.core import health, identifiers, records, remediation_history
from lab import cluster, faults, gpu_nodes, gpus, kinds
from tests.component import calls

pytestmark = pytest.mark.slow

NODES = "/api/v1/nodes"
OWNER = {"apiVersion": "apps/v1", "kind": "ReplicaSet", "name": "train", "uid": "rs-1", "controller": True}
RULES: dict[str, Any] = {
    "rules": [
        {"name": "cordon", "when": {"need": ["reset", "reboot"]}, "do": "cordon-gpu", "priority": 100},
        {
            "name": "evict", "when": {"need": ["reset", "reboot"]}, "do": "evict-pods", "priority": 90,
            "attempts": 20, "coolDownSeconds": 1,
        },
        {"name": "reboot", "when": {"need": ["reboot"]}, "do": "request-reboot", "priority": 50},
        {"name": "taint", "when": {"need": ["reboot"]}, "do": "taint-node", "priority": 40},
        {"name": "release", "when": {"state": ["healthy"]}, "do": "release"},
    ],
}  # fmt: skip


class Site:
    """A lab with two nodes of two GPUs and our plugins, and an extender that remediates."""

    def __init__(self, lab: cluster.Cluster) -> None:
        self.lab = lab
        self.server = lab.server

    def pod(self, name: str, node: str, gpu: int, *, owned: bool = True) -> None:
        """Create a pod on one GPU, and wait until it runs there."""
        body = self.body(name, owned=owned)
        body["metadata"]["annotations"] = {"nvidia.com/use-gpuuuid": gpus.gpu_uuid(node, gpu)}
        self.server.request("POST", calls.PODS, body)
        calls.eventually(lambda: self.read(name)["status"].get("phase") == "Running")

    @staticmethod
    def body(name: str, *, owned: bool = True) -> dict[str, Any]:
        containers = [{"name": "c", "image": "i", "resources": {"limits": calls.LIMITS}}]
        metadata: dict[str, Any] = {"name": name, **({"ownerReferences": [OWNER]} if owned else {})}
        spec = {"schedulerName": "hami-scheduler", "containers": containers, "terminationGracePeriodSeconds": 1}
        return {"metadata": metadata, "spec": spec}

    def read(self, name: str) -> Any:
        return self.server.request("GET", f"{calls.PODS}/{name}")

    def names(self) -> set[str]:
        """The pods that are not ending."""
        pods = self.lab.all(kinds.PODS)
        return {pod["metadata"]["name"] for pod in pods if not pod["metadata"].get("deletionTimestamp")}

    def node(self, name: str) -> Any:
        return self.server.request("GET", f"{NODES}/{name}")

    def annotation(self, node: str, key: str) -> str:
        return str((self.node(node)["metadata"].get("annotations") or {}).get(key, ""))

    def history(self, node: str) -> dict[str, remediation_history.Entry]:
        entries = remediation_history.decode(self.annotation(node, remediation_history.ANNOTATION))
        return {one.action.value: one for one in entries}

    def gpus(self, node: str) -> gpu_nodes.FakeGpus:
        served = self.lab.gpu_nodes[node]
        assert isinstance(served, gpu_nodes.GpuNode)
        return served.gpus

    def break_gpu(self, node: str, gpu: int, xid: int = 79) -> None:
        """The driver reports an XID: 79 needs a reboot, for 95 the driver requests a reset."""
        uuid = gpus.gpu_uuid(node, gpu)
        if xid == 95:
            self.gpus(node).readings[uuid] = health.Reading(recovery_action=1)
        self.gpus(node).faults.put(gpu_source.Fault(uuid, xid))

    def events(self, name: str) -> list[tuple[str, str]]:
        found = [one for one in self.lab.all(kinds.EVENTS) if one["regarding"]["name"] == name]
        return [(one["reason"], one["note"]) for one in found]

    def metric(self, name: str) -> float:
        return self.lab.extender.metric(name)

    def conditions(self, node: str) -> dict[str, str]:
        return {one["type"]: one["status"] for one in self.node(node)["status"]["conditions"]}


def flags_for(folder: pathlib.Path, mode: str = "on", **changes: Any) -> list[str]:
    path = folder / "rules.json"
    path.write_text(json.dumps({**RULES, **changes}))
    return ["--remediation", mode, "--remediation-rules", str(path)]


def lab_with(folder: pathlib.Path, mode: str = "on", **changes: Any) -> Any:
    nodes = [gpus.gpu_node(name, gpus.A100, 2) for name in ("a", "b")]
    return cluster.running(nodes, flags_for(folder, mode, **changes), plugins=True)


@pytest.fixture
def site(tmp_path: pathlib.Path) -> Iterator[Site]:
    with lab_with(tmp_path) as lab:
        yield Site(lab)


def test_the_pods_of_a_dead_gpu_run_elsewhere_and_its_neighbours_stay(site: Site) -> None:
    """XID 79: what the page of an operator shows in the night, without the operator."""
    site.pod("train-0", "a", 0)
    site.pod("bare", "a", 0, owned=False)
    site.pod("neighbour", "a", 1)
    dead = gpus.gpu_uuid("a", 0)

    site.break_gpu("a", 0)
    calls.eventually(lambda: site.names() == {"bare", "neighbour"})
    calls.eventually(lambda: {"cordon-gpu", "evict-pods", "request-reboot", "taint-node"} == set(site.history("a")))

    assert site.annotation("a", records.CORDON) == dead
    assert site.annotation("a", remediation_history.REQUEST) == "reboot"
    assert [taint["key"] for taint in site.node("a")["spec"]["taints"]] == [remediation_history.TAINT]
    assert site.conditions("a")["GPUNeedsReboot"] == "True"
    assert site.conditions("a")["Ready"] == "True"
    assert site.history("b") == {}
    calls.eventually(lambda: {reason for reason, _ in site.events("a")} >= {"GPURemediated", "DeviceUnhealthy"})
    calls.eventually(lambda: any("SCHED_REMEDIATED: Evicted from a by rule evict" in note
                                 for _, note in site.events("train-0")))  # fmt: skip
    assert site.metric("hami_scheduler_migrations_under_way") == 1

    site.server.request("POST", calls.PODS, site.body("train-1"))
    calls.eventually(lambda: site.read("train-1")["spec"].get("nodeName") == "b")
    calls.eventually(lambda: site.metric('hami_scheduler_migrations_total{outcome="done"}') == 1)

    shown = calls.read(site.lab.extender, "remediation")
    assert {act["action"] for act in shown["history"]} == {"cordon-gpu", "evict-pods", "request-reboot", "taint-node"}
    assert (shown["mode"], shown["breaker"]) == ("on", "closed")

    # The node restarts: another boot, and the plugin finds the GPU in order.
    site.server.request("DELETE", f"{calls.PODS}/bare?gracePeriodSeconds=0")
    restart(site, "a")
    calls.eventually(lambda: site.annotation("a", records.CORDON) == "")
    calls.eventually(lambda: not site.node("a")["spec"].get("taints"))
    calls.eventually(lambda: site.conditions("a")["GPUNeedsReboot"] == "False")
    assert site.annotation("a", remediation_history.REQUEST) == ""
    assert not any(one.holds for one in site.history("a").values())
    calls.eventually(lambda: any(reason == "GPURemediationReleased" for reason, _ in site.events("a")))


def restart(site: Site, node: str) -> None:
    """The node restarts, and its GPUs are in order: the plugin's record of the fault names another boot."""
    site.gpus(node).readings.clear()
    served = site.lab.gpu_nodes[node]
    assert isinstance(served, gpu_nodes.GpuNode)
    served.reboot()


def test_a_foreign_cordon_stays_and_a_protected_pod_is_tried_again(site: Site) -> None:
    """What an administrator cordoned is the administrator's, and a disruption budget delays an eviction."""
    dead, other = gpus.gpu_uuid("a", 0), gpus.gpu_uuid("a", 1)
    mine = {"metadata": {"annotations": {records.CORDON: other}}}
    site.server.request("PATCH", f"{NODES}/a", mine, "application/merge-patch+json")
    site.pod("train-0", "a", 0)
    site.server.app.faults.arm(faults.Fault("POST", "/eviction$", times=2, refuse_with=429))

    site.break_gpu("a", 0, 95)
    calls.eventually(lambda: site.metric('hami_scheduler_remediation_evictions_total{outcome="refused"}') == 2)
    calls.eventually(lambda: site.names() == set())
    assert len(site.history("a")["evict-pods"].times) == 3
    assert set(site.annotation("a", records.CORDON).split(",")) == {dead, other}

    site.gpus("a").readings.clear()
    calls.eventually(lambda: site.annotation("a", records.CORDON) == other)


def test_a_dry_run_says_what_it_would_do_and_writes_nothing(tmp_path: pathlib.Path) -> None:
    """An operator reads a week of it before rules may act."""
    with lab_with(tmp_path, "dry-run") as lab:
        site = Site(lab)
        site.pod("train-0", "a", 0)
        site.break_gpu("a", 0)
        calls.eventually(lambda: any("would do evict-pods" in note for _, note in site.events("a")))

        assert site.names() == {"train-0"}
        assert site.history("a") == {}
        assert site.annotation("a", records.CORDON) == ""
        acts = calls.read(lab.extender, "remediation")["acts"]
        assert {(act["action"], act["reason"]) for act in acts} >= {
            ("cordon-gpu", "dry run"),
            ("evict-pods", "dry run"),
        }


def test_a_process_that_is_killed_between_two_acts_does_nothing_twice(site: Site) -> None:
    """The successor knows from the node what was done: one cordon, one request, and the budget goes on."""
    site.pod("train-0", "a", 0)
    site.server.app.faults.arm(faults.Fault("POST", "/eviction$", times=1000, delay_seconds=30))
    site.break_gpu("a", 0)
    calls.eventually(lambda: "evict-pods" in site.history("a"))
    site.lab.extender.kill()
    site.server.call(site.server.app.faults.disarm)
    before = site.history("a")
    site.lab.extender.start()
    site.lab.extender.wait_ready()

    calls.eventually(lambda: site.names() == set())
    calls.eventually(lambda: "request-reboot" in site.history("a"))
    after = site.history("a")
    assert after["cordon-gpu"] == before["cordon-gpu"]
    assert len(after["request-reboot"].times) == 1

    def spent() -> int:  # Read anew each time: the taint follows as another act.
        return sum(len(one.times) for one in site.history("a").values())

    calls.eventually(lambda: site.metric("hami_scheduler_remediation_budget_left") == 10 - spent())


def test_many_broken_nodes_open_the_breaker(tmp_path: pathlib.Path) -> None:
    """A bad driver update on every node must not evict every pod."""
    nodes = [gpus.gpu_node(name, gpus.A100, 1) for name in ("a", "b", "c")]
    with cluster.running(nodes, flags_for(tmp_path, breaker={"nodes": 1, "percent": 1}), plugins=True) as lab:
        site = Site(lab)
        for name in ("a", "b", "c"):
            site.break_gpu(name, 0)
        calls.eventually(lambda: site.metric('hami_scheduler_remediation_breaker{state="open"}') == 1)
        assert calls.read(lab.extender, "remediation")["breaker"] == "open"


def test_nobody_acts_while_another_replica_leads(tmp_path: pathlib.Path) -> None:
    """Two replicas see the same fault; one of them answers it."""
    lease = ["--leader-lease", "kube-system/hami", "--identity", "us"]
    nodes = [gpus.gpu_node("a", gpus.A100, 1)]
    with cluster.running(nodes, [*flags_for(tmp_path), *lease], plugins=True) as lab:
        site = Site(lab)
        spec = {"holderIdentity": "other_1", "leaseDurationSeconds": 15}
        leases = "/apis/coordination.k8s.io/v1/namespaces/kube-system/leases"
        site.server.request("POST", leases, {"metadata": {"name": "hami"}, "spec": spec})
        site.break_gpu("a", 0)
        unhealthy = identifiers.GpuUuid(gpus.gpu_uuid("a", 0))
        calls.eventually(lambda: unhealthy in site.annotation("a", records.HEALTH))
        calls.eventually(lambda: site.metric('hami_watch_lists_total{watch="nodes"}') >= 1)

        assert calls.read(lab.extender, "remediation")["leading"] is False
        assert site.history("a") == {}
