"""What HAMi's users write, one thing at a time, on a real control plane: docs/reference/compatibility.md row by row.

Three nodes: `a` has four A100 on two NUMA nodes, bridged in pairs 0-2 and 1-3; `t` has two T4; `m` has one A100 in MIG
mode.
"""

import dataclasses
import itertools
import json
import pathlib
import re
from collections.abc import Iterator
from typing import Any

import pytest

from gpu_sharing.core import records
from lab import gpus, mig_models
from tests.e2e import site as sites

A100 = gpus.Model("NVIDIA A100-SXM4-80GB", 80_000)
T4 = gpus.Model("NVIDIA-Tesla T4", 16_000)
NUMBERS = itertools.count()
USE, NOT, POLICY = "nvidia.com/use-gputype", "nvidia.com/nouse-gputype", "hami.io/gpu-scheduler-policy"
GPU, MEM, PERCENT, CORES = "nvidia.com/gpu", "nvidia.com/gpumem", "nvidia.com/gpumem-percentage", "nvidia.com/gpucores"


@pytest.fixture(scope="module")
def cluster(programs: pathlib.Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[sites.Site]:
    with sites.own(tmp_path_factory.mktemp("cluster")) as site:
        a, t, m = gpus.gpu_node("a", A100, 4), gpus.gpu_node("t", T4, 2), gpus.gpu_node("m", A100, 1)
        there = [dataclasses.replace(gpu, numa=gpu.index // 2) for gpu in gpus.inventory("a", A100, 4)]
        links = [
            {
                "uuid": one.uuid,
                "score": {two.uuid: 1200 if two.index == one.index ^ 2 else 10 for two in there if two != one},
            }
            for one in there
        ]
        a["metadata"]["annotations"] |= {
            records.INVENTORY: records.encode_inventory(there),
            records.SCORE: json.dumps(links),
        }
        (divided,) = gpus.inventory("m", A100, 1)
        divided = dataclasses.replace(divided, mode="mig", mig_profiles=mig_models.PROFILES["a100"])
        m["metadata"]["annotations"][records.INVENTORY] = records.encode_inventory([divided])
        site.add_nodes(a, t, m)
        yield site


@pytest.fixture
def site(cluster: sites.Site) -> Iterator[sites.Site]:
    yield cluster
    for pod in cluster.pods():
        cluster.delete_pod(pod["metadata"]["name"])


def place(site: sites.Site, limits: dict[str, str], *more: dict[str, str], **annotations: str) -> Any:
    """A pod that is bound. Keywords are annotations by their last word."""
    body = site.pod_body("p", limits, *more, annotations={KEYS[key]: value for key, value in annotations.items()})
    site.create(body)
    return site.wait_bound("p")["p"]


KEYS = {
    "use_type": USE, "nouse_type": NOT, "use_uuid": "nvidia.com/use-gpuuuid", "nouse_uuid": "nvidia.com/nouse-gpuuuid",
    "numa_bind": "nvidia.com/numa-bind", "mode": "nvidia.com/vgpu-mode", "gpu_policy": POLICY,
    "node_policy": "hami.io/node-scheduler-policy", "weights": "hami.io/device-scoring-weights",
    "alignment": "hami.io/numa-alignment",
}  # fmt: skip


def given(pod: Any, container: int = 0) -> list[tuple[str, int, int]]:
    """Node and index of each GPU that a container got, with MiB and cores, as `a2`, 4000, 30."""
    known = {gpus.gpu_uuid(node, index): f"{node}{index}" for node in "atm" for index in range(4)}
    text = pod["metadata"]["annotations"][records.ALLOCATED].split(";")[container]
    fields = [part.split(",") for part in text.split(":") if part]
    return [(known[uuid], int(mib), int(cores)) for uuid, _, mib, cores in fields]


def where(pod: Any) -> list[str]:
    return [gpu for gpu, _, _ in given(pod)]


def uuids(*names: str) -> str:
    return ",".join(gpus.gpu_uuid(name[0], int(name[1:])) for name in names)


def hold(site: sites.Site, **memory_mib: int) -> None:
    """Pods that hold so much of GPUs, such as `a1=40_000`."""
    names = []
    for gpu, mib in memory_mib.items():
        names.append(f"holds-{gpu}")
        site.create(site.pod_body(names[-1], {GPU: "1", MEM: str(mib)}, annotations={KEYS["use_uuid"]: uuids(gpu)}))
    site.wait_bound(*names)


@pytest.mark.parametrize(
    ("limits", "expected"),
    [
        ({GPU: "1"}, (16_000, 100)),
        ({GPU: "1", MEM: "3000"}, (3_000, 0)),
        ({GPU: "1", MEM: "3000", CORES: "30"}, (3_000, 30)),
        ({GPU: "1", PERCENT: "50"}, (8_000, 0)),
        ({GPU: "1", PERCENT: "100"}, (16_000, 100)),
        ({GPU: "1", MEM: "3000", CORES: "100"}, (3_000, 100)),
        ({GPU: "1", MEM: "4Gi"}, (4_096, 0)),
        ({GPU: "1", MEM: "3000", PERCENT: "50"}, (3_000, 0)),
    ],
)
def test_resources(site: sites.Site, limits: dict[str, str], expected: tuple[int, int]) -> None:
    """Default, fraction of memory, sharing and exclusive card, and what is left unsaid."""
    pod = place(site, limits, use_type="T4")

    assert [held[1:] for held in given(pod)] == [expected]


def test_the_record_is_complete_before_the_kubelet_sees_the_pod(site: sites.Site) -> None:
    """All annotations and the label, written by the Binding itself; a container without GPU has an empty entry."""
    pod = place(site, {GPU: "1", MEM: "3000", CORES: "30"}, {"cpu": "1"}, use_type="T4")
    annotations = pod["metadata"]["annotations"]

    assert annotations["hami.io/vgpu-node"] == pod["metadata"]["labels"]["hami.io/vgpu-node"] == "t"
    assert re.fullmatch(r"GPU-[0-9a-f-]+,NVIDIA,3000,30:;;", annotations["hami.io/vgpu-devices-allocated"])
    assert annotations["hami.io/vgpu-devices-to-allocate"] == annotations["hami.io/vgpu-devices-allocated"]
    assert annotations["hami.io/bind-phase"] == "allocating"
    assert annotations["hami.io/bind-time"].isdigit()
    assert annotations["hami.io/vgpu-time"].isdigit()


def test_types_are_parts_of_names_in_any_case(site: sites.Site) -> None:
    """Wanted and not wanted, one or several."""
    limits = {GPU: "1", MEM: "1000"}
    for name, annotations in (
        ("one", {USE: "t4"}),
        ("two", {USE: "H100,tesla"}),
        ("three", {NOT: "a100"}),
        ("four", {NOT: "a100,H100"}),
    ):
        site.create(site.pod_body(name, limits, annotations=annotations))

    for pod in site.wait_bound("one", "two", "three", "four").values():
        assert pod["spec"]["nodeName"] == "t"


def test_gpus_by_uuid(site: sites.Site) -> None:
    """Just this one; and any but these."""
    assert where(place(site, {GPU: "1", MEM: "1000"}, use_uuid=uuids("a3"))) == ["a3"]
    site.delete_pod("p")
    assert where(place(site, {GPU: "1", MEM: "1000"}, use_type="A100", nouse_uuid=uuids("a0", "a1", "a3"))) == ["a2"]


@pytest.mark.parametrize(
    ("policy", "one", "two"),
    [
        ("binpack", ["a1"], ["a1", "a2"]),
        ("spread", ["a3"], ["a3", "a0"]),
        ("numa", ["a0"], ["a0", "a1"]),
        ("numa,spread", ["a0"], ["a0", "a1"]),
        ("mutex", ["a3"], None),
        ("topology-aware", ["a1"], ["a1", "a3"]),
        ("topology-aware,spread", ["a3"], ["a3", "a1"]),
    ],
)
def test_policies_over_gpus(site: sites.Site, policy: str, one: list[str], two: list[str] | None) -> None:
    """On GPUs of which 0 holds a little, 1 the most, 2 a half and 3 nothing."""
    hold(site, a0=10_000, a1=60_000, a2=40_000)

    assert where(place(site, {GPU: "1", MEM: "5000"}, use_type="A100", gpu_policy=policy)) == one
    site.delete_pod("p")
    if two is not None:
        assert sorted(where(place(site, {GPU: "2", MEM: "5000"}, use_type="A100", gpu_policy=policy))) == sorted(two)


@pytest.mark.parametrize(("policy", "node"), [("binpack", "t"), ("spread", "a")])
def test_policies_over_nodes(site: sites.Site, policy: str, node: str) -> None:
    """The fuller or the emptier of two."""
    hold(site, t0=8_000)

    assert place(site, {GPU: "1", MEM: "1000"}, node_policy=policy)["spec"]["nodeName"] == node


def test_weights_say_what_full_means(site: sites.Site) -> None:
    """Many small neighbours, or one that has most of the memory."""
    hold(site, a0=50_000)
    for number in range(4):
        site.create(
            site.pod_body(
                f"s{number}", {GPU: "1", MEM: "1000", CORES: "20"}, annotations={KEYS["use_uuid"]: uuids("a1")}
            )
        )
    site.wait_bound(*(f"s{number}" for number in range(4)))
    limits = {GPU: "1", MEM: "1000"}

    assert where(place(site, limits, use_type="A100", weights="slot=1,core=1,memory=0")) == ["a1"]
    site.delete_pod("p")
    assert where(place(site, limits, use_type="A100", weights="slot=0,core=0,memory=1")) == ["a0"]


def test_numa_bind_keeps_gpus_together(site: sites.Site) -> None:
    """0 and 1 are on one NUMA node, 2 and 3 on the other."""
    hold(site, a1=60_000, a2=40_000)

    assert where(place(site, {GPU: "2", MEM: "5000"}, use_type="A100", numa_bind="true")) == ["a1", "a0"]


def test_modes(site: sites.Site) -> None:
    """A GPU in MIG mode is given only to those who request it."""
    assert place(site, {GPU: "1", MEM: "9000"}, mode="hami-core", use_type="A100")["spec"]["nodeName"] == "a"
    site.delete_pod("p")

    pod = place(site, {GPU: "1", MEM: "9000"}, mode="mig")

    (instance,) = json.loads(pod["metadata"]["annotations"]["hami.io/vgpu-mig-allocations"])
    assert instance == {
        "containerIndex": 0, "deviceIndex": 0, "gpuUUID": uuids("m0"), "profile": "1g.10gb",
        "placement": {"start": 6, "size": 1},
    }  # fmt: skip
    assert given(pod) == [("m0", 9_932, 14)]


def test_an_empty_value_is_no_wish(site: sites.Site) -> None:
    """As templates leave them."""
    assert place(site, {GPU: "1", MEM: "1000"}, **dict.fromkeys(KEYS, ""))["spec"]["nodeName"]


@pytest.mark.parametrize(
    ("annotations", "text"),
    [
        ({POLICY: "best"}, "write binpack, spread, numa, fragmentation-aware, mutex or topology-aware"),
        ({POLICY: "binpack,spread"}, "binpack and spread exclude each other"),
        ({KEYS["node_policy"]: "random"}, "write binpack, spread or fragmentation-aware"),
        ({KEYS["weights"]: "slot=0,core=0,memory=0"}, "SCHED_BAD_SCORING_WEIGHTS"),
        ({KEYS["mode"]: "vgpu"}, "write hami-core, mps or mig"),
        ({KEYS["numa_bind"]: "yes"}, "neither true nor false"),
        ({KEYS["alignment"]: "strict"}, "cannot be guaranteed"),
        ({KEYS["use_uuid"]: "GPU-x", KEYS["nouse_uuid"]: "GPU-x"}, "SCHED_CONTRADICTORY_REQUEST"),
        ({USE: "A100", NOT: "a100"}, "SCHED_CONTRADICTORY_REQUEST"),
        ({"hami.io/gang": "g"}, "SCHED_BAD_GANG"),
    ],
)
def test_what_cannot_be_is_refused_with_what_to_write(site: sites.Site, annotations: dict[str, str], text: str) -> None:
    """Never ignored, never guessed."""
    name = f"bad-{next(NUMBERS)}"
    site.create(site.pod_body(name, {GPU: "1"}, annotations=annotations))

    sites.wait_for(lambda: site.events(name, "FailedScheduling"), 60)
    assert text in site.events(name, "FailedScheduling")[0]


def test_numa_alignment_is_honest(site: sites.Site) -> None:
    """A wish that has no effect is granted with the note that it has none."""
    place(site, {GPU: "1", MEM: "1000"}, alignment="best-effort")

    sites.wait_for(lambda: "hami.io/numa-alignment has no effect" in str(site.events("p", "Scheduled")), 60)


def test_a_node_whose_gpus_dra_gives_out_is_left_alone(site: sites.Site) -> None:
    """Known by what NVIDIA's DRA driver offers there; when it offers nothing any more, the node is ours."""
    site.add_nodes(gpus.gpu_node("d", A100, 1))
    slices = "/apis/resource.k8s.io/v1/resourceslices"
    pool = {"name": "d", "generation": 1, "resourceSliceCount": 1}
    spec = {"driver": "gpu.nvidia.com", "nodeName": "d", "pool": pool, "devices": [{"name": "gpu-0"}]}
    site.api("POST", slices, {"metadata": {"name": "d-gpus"}, "spec": spec})
    name = f"dra-{next(NUMBERS)}"
    site.create(site.pod_body(name, {GPU: "1", MEM: "1000"}, nodeSelector={"kubernetes.io/hostname": "d"}))

    sites.wait_for(lambda: "d: GPUs allocated by DRA" in str(site.events(name, "FailedScheduling")), 60)
    site.api("DELETE", f"{slices}/d-gpus")
    site.wait_bound(name)
