"""Gangs on a real kube-scheduler: all members or nobody, whatever comes in between."""

import pathlib
import time
from typing import Any

import pytest

from lab import gpus
from lab.real import build, client, control_plane
from tests.e2e import site as sites
from tests.e2e.test_preemption import kubelet
from tests.support import accounting

A100 = gpus.Model("NVIDIA A100-SXM4-40GB", 40_000)
GATES = [{"name": "hami.io/gang"}]
"""As our webhook gives them to members."""


def create_gang(site: sites.Site, name: str, size: int, **limits: str) -> list[str]:
    names = [f"{name}-{number}" for number in range(size)]
    for member in names:
        create_member(site, member, name, size, **limits)
    return names


def create_member(site: sites.Site, member: str, name: str, size: int, **limits: str) -> None:
    annotations = {"hami.io/gang": name, "hami.io/gang-size": str(size)}
    asked = {"nvidia.com/gpu": "1", **limits}
    site.create(site.pod_body(member, asked, annotations=annotations, schedulingGates=GATES))


def bound(site: sites.Site, names: list[str]) -> list[str]:
    there = {pod["metadata"]["name"]: pod for pod in site.pods()}
    return [name for name in names if name in there and there[name]["spec"].get("nodeName")]


def test_eight_members_wait_for_the_eighth_gpu_and_then_start_at_once(own_site: sites.Site) -> None:
    """With room for seven, nobody starts."""
    own_site.add_nodes(gpus.gpu_node("n", A100, 8))
    own_site.create(own_site.pod_body("other", {"nvidia.com/gpu": "1"}))
    own_site.wait_bound("other")
    names = create_gang(own_site, "train", 8)

    sites.wait_for(lambda: own_site.events("train-0", "FailedScheduling"), 60)
    time.sleep(3)
    assert bound(own_site, names) == []
    assert "waits for its gang (train: not enough free for all 8 members at once)" in str(
        [own_site.events(name, "FailedScheduling") for name in names]
    )

    own_site.delete_pod("other")
    sites.wait_for(lambda: len(bound(own_site, names)) == 8, 60, lambda: f"{bound(own_site, names)}")
    assert accounting.violations(own_site.nodes(), own_site.pods()) == []


def test_pods_of_a_pod_group_start_as_soon_as_its_least_number_can(
    programs: pathlib.Path, tmp_path: pathlib.Path
) -> None:
    """`spec.schedulingGroup`, beside kube-scheduler's own alpha plugin: nobody while two fit, later four of five."""
    version = control_plane.POD_GROUP_API.get(build.MINOR)
    if version is None:
        pytest.skip(f"PodGroups of Kubernetes 1.{build.MINOR} are not supported")
    with sites.own(tmp_path, pod_groups=True) as site:
        site.add_nodes(gpus.gpu_node("n", A100, 4))
        site.create(*(site.pod_body(name, {"nvidia.com/gpu": "1"}) for name in ("other", "another")))
        site.wait_bound("other")
        site.wait_bound("another")
        create_pod_group(site, version, "train", {"schedulingPolicy": {"gang": {"minCount": 3}}})
        names = [f"train-{number}" for number in range(5)]
        group = {"podGroupName": "train"}
        for name in names:
            site.create(site.pod_body(name, {"nvidia.com/gpu": "1"}, schedulingGates=GATES, schedulingGroup=group))

        sites.wait_for(lambda: site.events("train-0", "FailedScheduling"), 60)
        time.sleep(2)
        assert bound(site, names) == []
        assert "not enough free for all 3 members at once" in str(
            [site.events(name, "FailedScheduling") for name in names]
        )

        site.delete_pod("other")
        sites.wait_for(lambda: len(bound(site, names)) == 3, 60, lambda: f"{site.pods()}")
        site.delete_pod("another")
        sites.wait_for(lambda: len(bound(site, names)) == 4, 60, lambda: f"{site.pods()}")


def test_the_size_of_a_labelled_gang_is_that_of_its_pod_group(own_site: sites.Site) -> None:
    """The PodGroup of coscheduling, a custom resource that comes with an add-on."""
    own_site.add_nodes(gpus.gpu_node("n", A100, 2))
    create_kind(own_site)
    assert own_site.extender
    own_site.extender.kill()
    own_site.extender.start()  # It would look again for itself, but only every ten minutes.
    own_site.extender.wait_ready()
    names = ["train-0", "train-1"]
    for name in names:
        body = own_site.pod_body(name, {"nvidia.com/gpu": "1"}, schedulingGates=GATES)
        body["metadata"]["labels"] = {"scheduling.x-k8s.io/pod-group": "train"}
        own_site.create(body)

    sites.wait_for(
        lambda: "there is no PodGroup of that name" in str(own_site.events("train-0", "FailedScheduling")), 20
    )
    create_pod_group(own_site, "scheduling.x-k8s.io/v1alpha1", "train", {"minMember": 2})
    sites.wait_for(lambda: len(bound(own_site, names)) == 2, 60, lambda: f"{own_site.pods()}")


def create_pod_group(site: sites.Site, version: str, name: str, spec: dict[str, Any]) -> None:
    body = {"apiVersion": version, "kind": "PodGroup", "metadata": {"name": name}, "spec": spec}
    site.api("POST", f"/apis/{version}/namespaces/{site.namespace}/podgroups", body)


def create_kind(site: sites.Site) -> None:
    """What coscheduling's CustomResourceDefinition says that matters here."""
    schema = {"openAPIV3Schema": {"type": "object", "x-kubernetes-preserve-unknown-fields": True}}
    version = {"name": "v1alpha1", "served": True, "storage": True, "schema": schema}
    spec = {
        "group": "scheduling.x-k8s.io", "scope": "Namespaced", "versions": [version],
        "names": {"plural": "podgroups", "singular": "podgroup", "kind": "PodGroup"},
    }  # fmt: skip
    kind = {
        "apiVersion": "apiextensions.k8s.io/v1", "kind": "CustomResourceDefinition", "spec": spec,
        "metadata": {
            "name": "podgroups.scheduling.x-k8s.io",
            "annotations": {"api-approved.kubernetes.io": "https://github.com/kubernetes-sigs/scheduler-plugins/pull/50"},
        },
    }  # fmt: skip
    site.api("POST", "/apis/apiextensions.k8s.io/v1/customresourcedefinitions", kind)
    path = "/apis/scheduling.x-k8s.io/v1alpha1/podgroups"
    sites.wait_for(lambda: is_served(site, path), 60)


def is_served(site: sites.Site, path: str) -> bool:
    try:
        site.api("GET", path)
    except client.Refused:
        return False
    return True


def test_two_gangs_that_each_need_the_whole_run_one_after_the_other(own_site: sites.Site) -> None:
    """Created in turns, member by member."""
    own_site.add_nodes(*(gpus.gpu_node(name, A100, 2) for name in ("a", "b")))
    gangs = {name: [f"{name}-{number}" for number in range(4)] for name in ("red", "blue")}
    for number in range(4):
        for name in gangs:
            create_member(own_site, f"{name}-{number}", name, 4)

    sites.wait_for(lambda: any(len(bound(own_site, names)) == 4 for names in gangs.values()), 60)
    time.sleep(2)
    first = next(name for name, names in gangs.items() if len(bound(own_site, names)) == 4)
    second = "blue" if first == "red" else "red"
    assert bound(own_site, gangs[second]) == []

    for name in gangs[first]:
        own_site.delete_pod(name)
    sites.wait_for(lambda: len(bound(own_site, gangs[second])) == 4, 60)


def test_a_plan_outlives_its_scheduler_and_its_planner(own_site: sites.Site) -> None:
    """Both are killed between the plan and the binds."""
    assert own_site.scheduler
    assert own_site.extender
    assert own_site.plane
    own_site.add_nodes(*(gpus.gpu_node(name, A100, 1) for name in ("a", "b", "c")))
    own_site.scheduler.stop()
    names = create_gang(own_site, "train", 3)

    def admitted() -> bool:
        return all(
            pod["status"].get("nominatedNodeName") and not pod["spec"].get("schedulingGates") for pod in own_site.pods()
        )

    sites.wait_for(admitted, 60, lambda: f"{own_site.pods()}")
    own_site.extender.kill()
    own_site.extender.start()
    own_site.extender.wait_ready()
    with own_site.plane.scheduler(f"http://{own_site.extender.verbs}"):
        sites.wait_for(lambda: len(bound(own_site, names)) == 3, 60)


def test_a_gang_that_an_intruder_tears_is_given_back_and_comes_again(
    programs: pathlib.Path, tmp_path: pathlib.Path
) -> None:
    """A pod without GPUs and of higher priority has the CPUs of one node, which the plan cannot see."""
    with sites.own(tmp_path, "--gang-deadline-seconds", "4") as site, kubelet(site):
        site.add_nodes(*(gpus.gpu_node(name, A100, 1, cpus=4) for name in ("a", "b")))
        site.add_priority_class("urgent")
        intruder: dict[str, Any] = {"nodeSelector": {"kubernetes.io/hostname": "b"}, "priorityClassName": "urgent"}
        site.create(site.pod_body("intruder", {"cpu": "3"}, **intruder))
        site.wait_bound("intruder")
        names = create_gang(site, "train", 2, cpu="2")

        def torn() -> bool:
            return len({pod["metadata"]["name"] for pod in site.pods()} & set(names)) == 1 and not bound(site, names)

        sites.wait_for(torn, 60, lambda: f"{bound(site, names)}")
        (left,) = {pod["metadata"]["name"] for pod in site.pods()} & set(names)
        assert "SCHED_GANG_TORN" in str(site.events(left, "GangTorn"))
        (gone,) = set(names) - {left}
        create_member(site, gone, "train", 2, cpu="2")
        time.sleep(2)
        assert bound(site, names) == []

        site.delete_pod("intruder")
        sites.wait_for(lambda: len(bound(site, names)) == 2, 60, lambda: f"{bound(site, names)}")
