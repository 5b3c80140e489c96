"""HAMi's own kinds of pods land, with the records and events that its users know."""

import re

from lab import gpus
from lab.real import build
from tests.e2e import site as sites
from tests.support import accounting

A100 = gpus.Model("NVIDIA A100-SXM4-80GB", 16_000)
T4 = gpus.Model("NVIDIA-Tesla T4", 8_000)


def test_every_kind_of_hami_pod_lands_with_its_record_and_event(site: sites.Site) -> None:
    """Somebody who comes from HAMi applies the manifests they have."""
    a, t = site.node_name("a100"), site.node_name("t4")
    site.add_nodes(gpus.gpu_node(a, A100, 4), gpus.gpu_node(t, T4, 4))
    wanted = gpus.gpu_uuid(a, 2)
    init = {
        "name": "warm",
        "image": "train:1",
        "resources": {"limits": {"nvidia.com/gpu": "1", "nvidia.com/gpumem": "500"}},
    }
    bodies = {
        "memory": site.pod_body("memory", {"nvidia.com/gpu": "1", "nvidia.com/gpumem": "4000"}),
        "percent": site.pod_body("percent", {"nvidia.com/gpu": "1", "nvidia.com/gpumem-percentage": "25"}),
        "cores": site.pod_body(
            "cores", {"nvidia.com/gpu": "1", "nvidia.com/gpumem": "3000", "nvidia.com/gpucores": "30"}
        ),
        "by-type": site.pod_body(
            "by-type", {"nvidia.com/gpu": "1", "nvidia.com/gpumem": "1000"},
            annotations={"nvidia.com/use-gputype": "T4"},
        ),
        "by-uuid": site.pod_body(
            "by-uuid", {"nvidia.com/gpu": "1", "nvidia.com/gpumem": "1000"},
            annotations={"nvidia.com/use-gpuuuid": wanted},
        ),
        "numa": site.pod_body(
            "numa", {"nvidia.com/gpu": "2", "nvidia.com/gpumem": "700"},
            annotations={
                "nvidia.com/use-gputype": "T4", "nvidia.com/numa-bind": "true",
                "hami.io/device-scoring-weights": "slot=1,core=1,memory=3",
                "hami.io/gpu-scheduler-policy": "numa,binpack",
            },
        ),
        "two": site.pod_body("two", {"nvidia.com/gpu": "1", "nvidia.com/gpumem": "3000"}, {"cpu": "1"}),
        "init": site.pod_body("init", {"nvidia.com/gpu": "1", "nvidia.com/gpumem": "2000"}, initContainers=[init]),
        "count": site.pod_body("count", {"nvidia.com/gpu": "1"}, annotations={"nvidia.com/use-gputype": "A100"}),
        "exclusive": site.pod_body(
            "exclusive", {"nvidia.com/gpu": "1", "nvidia.com/gpumem": "4000", "nvidia.com/gpucores": "100"},
            annotations={"nvidia.com/use-gputype": "A100"},
        ),
    }  # fmt: skip
    # Those that want a GPU for themselves come last, lest one takes the GPU that another pod names.
    alone = {"count", "exclusive"}
    site.create(*(body for name, body in bodies.items() if name not in alone))
    site.wait_bound(*(bodies.keys() - alone))
    site.create(*(bodies[name] for name in sorted(alone)))

    bound = site.wait_bound(*bodies)

    held = {name: accounting.devices(pod) for name, pod in bound.items()}
    sizes = {name: [[(mib, cores) for _, mib, cores in one] for one in containers] for name, containers in held.items()}
    on_a100 = bound["percent"]["spec"]["nodeName"] == a
    assert sizes == {
        "memory": [[(4000, 0)]],
        "percent": [[(4000 if on_a100 else 2000, 0)]],
        "cores": [[(3000, 30)]],
        "by-type": [[(1000, 0)]],
        "by-uuid": [[(1000, 0)]],
        "numa": [[(700, 0), (700, 0)]],
        "two": [[(3000, 0)], []],
        "init": [[(500, 0)], [(2000, 0)]],
        "count": [[(16_000, 100)]],
        "exclusive": [[(4000, 100)]],
    }
    assert bound["by-type"]["spec"]["nodeName"] == t
    assert held["by-uuid"][0][0][0] == wanted
    alone = {held["count"][0][0][0], held["exclusive"][0][0][0]}
    shared = {uuid for name in bodies if name not in ("count", "exclusive") for one in held[name] for uuid, _, _ in one}
    assert len(alone) == 2
    assert not alone & shared
    for name, pod in bound.items():
        check_record(name, pod)
    for name, pod in bound.items():
        sites.wait_for(lambda name=name: site.events(name, "Scheduled"), 60)  # type: ignore[misc]
        check_scheduled_event(site.events(name, "Scheduled")[0], pod)


def check_record(name: str, pod: dict) -> None:  # type: ignore[type-arg]
    """Every annotation that HAMi's plugin, dashboards and tools look for."""
    annotations, node = pod["metadata"]["annotations"], pod["spec"]["nodeName"]
    assert annotations["hami.io/vgpu-node"] == node, name
    # Before 1.35 the API server merges the annotations of a Binding into the pod, and not its labels.
    if build.MINOR >= 35:
        assert pod["metadata"]["labels"]["hami.io/vgpu-node"] == node, name
    assert annotations["hami.io/vgpu-devices-allocated"] == annotations["hami.io/vgpu-devices-to-allocate"], name
    assert annotations["hami.io/bind-phase"] == "allocating", name
    assert re.fullmatch(r"\d{10}", annotations["hami.io/vgpu-time"]), name
    assert re.fullmatch(r"\d{10}", annotations["hami.io/bind-time"]), name
    assert re.fullmatch(r"[0-9a-f]{16}", annotations["hami.io/decision-id"]), name


def check_scheduled_event(note: str, pod: dict) -> None:  # type: ignore[type-arg]
    first, second, third, *_ = note.split("\n")
    assert first == f"Successfully assigned pod to {pod['spec']['nodeName']}"
    count = len({uuid for container in accounting.devices(pod) for uuid, _, _ in container})
    assert re.fullmatch(rf"    GPU: {count}/4, Memory: (\d+|\d+-\d+)MB", second)
    assert re.fullmatch(r"    Score: \d{1,3}, Policy: binpack", third)


def test_describe_says_for_each_node_why_a_pod_waits(own_site: sites.Site) -> None:
    """Whoever wonders why a pod is Pending reads it in `kubectl describe pod`."""
    own_site.add_nodes(gpus.gpu_node("node-01", A100, 1), gpus.gpu_node("node-02", T4, 2))
    limits = {"nvidia.com/gpu": "1", "nvidia.com/gpumem": "12000"}
    own_site.create(own_site.pod_body("first", limits))
    own_site.wait_bound("first")
    annotations = {"nvidia.com/use-gputype": "A100"}
    own_site.create(own_site.pod_body("second", {**limits, "nvidia.com/gpumem": "8000"}, annotations=annotations))
    sites.wait_for(lambda: own_site.events("second", "FailedScheduling"), 60)

    described = own_site.kubectl("describe", "pod", "second")

    at = described.index("0/2 nodes available:")
    assert described[at:].splitlines()[:3] == [
        "0/2 nodes available: 1 device type mismatch, 1 GPU memory insufficient",
        "    node-01: GPU memory insufficient (requested 8000MB, available 4000MB)",
        "    node-02: device type mismatch (requested A100, has T4)",
    ]
    assert re.search(r"Warning +FailedScheduling .* hami-scheduler +0/2 nodes available:", described)


def test_a_pod_that_kube_scheduler_itself_stops_is_explained_too(own_site: sites.Site) -> None:
    """The GPUs fit and the CPUs do not: the pod's owner is not sent to check the GPUs."""
    own_site.add_nodes(gpus.gpu_node("small", A100, 1, cpus=1))
    own_site.create(own_site.pod_body("hungry", {"nvidia.com/gpu": "1", "nvidia.com/gpumem": "1000", "cpu": "64"}))

    sites.wait_for(lambda: own_site.events("hungry", "FailedScheduling"), 60)

    assert own_site.events("hungry", "FailedScheduling") == [
        "0/1 nodes available: 1 ruled out by kube-scheduler\n    small: ruled out by kube-scheduler"
    ]


def test_a_request_that_cannot_be_read_is_refused_with_what_to_write(own_site: sites.Site) -> None:
    """A plain 8000000 reaches us as 8M, which cannot be told from bytes; nobody gets a GPU of a guessed size."""
    own_site.add_nodes(gpus.gpu_node("n", A100, 1))
    own_site.create(own_site.pod_body("vague", {"nvidia.com/gpu": "1", "nvidia.com/gpumem": "8000000"}))

    sites.wait_for(lambda: own_site.events("vague", "FailedScheduling"), 60)

    (note,) = own_site.events("vague", "FailedScheduling")
    assert "SCHED_AMBIGUOUS_MEMORY" in note
    assert "write MiB such as 4000, or bytes such as 4Gi" in note
