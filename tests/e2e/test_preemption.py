"""Preemption on a real kube-scheduler: for GPU memory, which it does not count, and for device ids, which it does."""

import contextlib
import pathlib
import threading
from collections.abc import Iterator
from typing import Any

import pytest

from lab import gpus
from tests.e2e import site as sites
from tests.support import accounting

A100 = gpus.Model("NVIDIA A100-SXM4-40GB", 40_000)
MERGE = "application/merge-patch+json"


@contextlib.contextmanager
def kubelet(site: sites.Site) -> Iterator[None]:
    """Ends the pods that are told to, a moment later, as the kubelet of a node would."""
    stop = threading.Event()

    def run() -> None:
        seen: set[str] = set()
        while not stop.wait(0.3):
            ending = [pod for pod in site.pods() if pod["metadata"].get("deletionTimestamp")]
            for pod in ending:
                if pod["metadata"]["uid"] in seen:
                    site.delete_pod(pod["metadata"]["name"])
            seen |= {pod["metadata"]["uid"] for pod in ending}

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()


def fill(site: sites.Site, *pods: tuple[str, int, int]) -> None:
    """Pods of priority 0, each on a GPU of the node: name, GPU, MiB."""
    for name, index, memory_mib in pods:
        only = {"nvidia.com/use-gpuuuid": gpus.gpu_uuid("n", index)}
        limits = {"nvidia.com/gpu": "1", "nvidia.com/gpumem": str(memory_mib)}
        site.create(site.pod_body(name, limits, annotations=only))
    site.wait_bound(*(name for name, _, _ in pods))


def urgent(site: sites.Site, memory_mib: int, **spec: Any) -> None:
    site.add_priority_class("urgent")
    limits = {"nvidia.com/gpu": "1", "nvidia.com/gpumem": str(memory_mib)}
    site.create(site.pod_body("urgent", limits, priorityClassName="urgent", **spec))


def left(site: sites.Site) -> set[str]:
    return {pod["metadata"]["name"] for pod in site.pods()} - {"urgent"}


def test_exactly_the_pods_of_one_gpu_go_although_slots_are_plenty(own_site: sites.Site) -> None:
    """30,000 MiB on one GPU: two pods of one GPU go, not one of each; a fourth that came meanwhile waits."""
    own_site.add_nodes(gpus.gpu_node("n", A100, 3))
    fill(own_site, ("a", 0, 14_000), ("b", 0, 14_000), ("c", 1, 12_000), ("d", 1, 12_000), ("e", 1, 12_000))
    fill(own_site, ("f", 2, 9_000), ("g", 2, 9_000), ("h", 2, 9_000), ("i", 2, 9_000))

    with kubelet(own_site):
        urgent(own_site, 30_000)
        own_site.wait_bound("urgent")

    assert left(own_site) == set("cdefghi")
    assert accounting.violations(own_site.nodes(), own_site.pods()) == []
    (note,) = own_site.events("urgent", "Preempting")
    assert note.splitlines()[0] == "Evicting 2 of lower priority on n for its GPUs"


def test_a_disruption_budget_and_a_pod_that_never_preempts_are_honoured(own_site: sites.Site) -> None:
    """The budget's pod stays, so that three others go; and nobody goes for a pod that says Never."""
    own_site.add_nodes(gpus.gpu_node("n", A100, 2))
    fill(own_site, ("a", 0, 38_000), ("b", 1, 12_000), ("c", 1, 12_000), ("d", 1, 12_000))
    path = f"/api/v1/namespaces/{own_site.namespace}/pods/a"
    own_site.api("PATCH", path, {"metadata": {"labels": {"app": "serving"}}}, MERGE)
    own_site.api("PATCH", f"{path}/status", {"status": {"phase": "Running"}}, MERGE)  # No budget protects others.
    budgets = f"/apis/policy/v1/namespaces/{own_site.namespace}/poddisruptionbudgets"
    spec = {"minAvailable": 1, "selector": {"matchLabels": {"app": "serving"}}}
    own_site.api("POST", budgets, {"metadata": {"name": "serving"}, "spec": spec})

    with kubelet(own_site):
        own_site.add_priority_class("polite", preemptionPolicy="Never")
        limits = {"nvidia.com/gpu": "1", "nvidia.com/gpumem": "30000"}
        own_site.create(own_site.pod_body("polite", limits, priorityClassName="polite"))
        sites.wait_for(lambda: own_site.events("polite", "FailedScheduling"), 60)
        urgent(own_site, 30_000)
        own_site.wait_bound("urgent")

    assert left(own_site) == {"a", "polite"}


@pytest.mark.parametrize("verb", [True, False], ids=["with our verb", "without it"])
def test_where_slots_are_exhausted_our_verb_makes_the_eviction_count(
    programs: pathlib.Path, tmp_path: pathlib.Path, verb: bool
) -> None:
    """kube-scheduler counts slots alone: by itself it evicts somebody whose going does not make the room (control)."""
    without = () if verb else ("preemptVerb",)
    with sites.own(tmp_path, "--preempt", "false", without=without) as site, kubelet(site):
        site.add_nodes(gpus.gpu_node("n", A100, 2, slots=2))
        fill(site, ("a", 0, 20_000), ("b", 0, 20_000), ("c", 1, 20_000), ("d", 1, 20_000))

        urgent(site, 35_000)

        if verb:
            site.wait_bound("urgent")
            assert left(site) in ({"a", "b"}, {"c", "d"})
        else:
            sites.wait_for(lambda: len(left(site)) == 3, 60)
            sites.wait_for(lambda: "GPU memory insufficient" in str(site.events("urgent", "FailedScheduling")), 60)
            assert not site.pod("urgent")["spec"].get("nodeName")
