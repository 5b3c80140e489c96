"""What pods request, with the defaults that HAMi's users rely on and without its traps."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gpu_sharing.core import allocations, error_codes, policies, requests
from gpu_sharing.core.requests import GpuRequest
from tests import inputs

GPU, MEM, PERCENT, CORES = "nvidia.com/gpu", "nvidia.com/gpumem", "nvidia.com/gpumem-percentage", "nvidia.com/gpucores"
NAMES = requests.ResourceNames()


@dataclass
class Container:
    limits: Mapping[str, Any] = field(default_factory=dict)
    requests: Mapping[str, Any] = field(default_factory=dict)
    restarts_always: bool = False
    name: str = "main"


def read(*limits: Mapping[str, Any], annotations: Mapping[str, str] | None = None) -> requests.PodRequest:
    found = requests.read([], [Container(one) for one in limits], annotations or {}, NAMES)
    assert isinstance(found, requests.PodRequest), found
    return found


def refuse(limits: Mapping[str, Any], annotations: Mapping[str, str] | None = None) -> requests.InvalidRequest:
    found = requests.read([], [Container(limits)], annotations or {}, NAMES)
    assert isinstance(found, requests.InvalidRequest), found
    return found


@pytest.mark.parametrize(
    ("limits", "expected"),
    [
        ({GPU: "1"}, GpuRequest(1, 0, 100, 100)),
        ({GPU: "2", MEM: "4k"}, GpuRequest(2, 4000, 0, 0)),
        ({GPU: "1", MEM: "4k", CORES: "30"}, GpuRequest(1, 4000, 0, 30)),
        ({GPU: "1", PERCENT: "50"}, GpuRequest(1, 0, 50, 0)),
        ({GPU: "1", PERCENT: "100"}, GpuRequest(1, 0, 100, 100)),
        ({GPU: "1", PERCENT: "100", CORES: "20"}, GpuRequest(1, 0, 100, 20)),
        ({GPU: "1", CORES: "30"}, GpuRequest(1, 0, 100, 30)),
        ({GPU: "1", MEM: "4Gi"}, GpuRequest(1, 4096, 0, 0)),
        ({GPU: "1", PERCENT: "10"}, GpuRequest(1, 0, 10, 0)),
        ({GPU: "1", MEM: "0", CORES: "0"}, GpuRequest(1, 0, 100, 100)),
        ({GPU: "1", CORES: "0", MEM: "100"}, GpuRequest(1, 100, 0, 0)),
        ({GPU: "1", MEM: "100", CORES: "100"}, GpuRequest(1, 100, 0, 100)),
        ({GPU: "0"}, None),
        ({MEM: "0"}, None),
        ({CORES: "0"}, None),
        ({"cpu": "1"}, None),
    ],
)
def test_a_container_asks_for_what_hami_users_mean(limits: Mapping[str, Any], expected: GpuRequest | None) -> None:
    """Defaults: a count alone is a whole GPU."""
    assert read(limits).containers == (expected,)


@pytest.mark.parametrize("limits", [{MEM: "3000"}, {CORES: "30"}, {PERCENT: "10"}])
def test_a_share_without_a_count_is_refused_unless_the_webhook_writes_the_count(limits: Mapping[str, Any]) -> None:
    """The kubelet asks no plugin for it: the container would start without a GPU, and no event would say so."""
    refused = refuse(limits)
    beside = requests.read([], [Container({GPU: "1", MEM: "1"}), Container(limits)], {}, NAMES)
    followed = requests.read([], [Container(limits)], {}, NAMES, counts_follow=True)

    assert refused.code == error_codes.NO_GPU_COUNT
    assert str(refused).endswith("write nvidia.com/gpu: 1")
    assert isinstance(beside, requests.InvalidRequest)
    assert isinstance(followed, requests.PodRequest)
    assert followed.gpus == 1


@pytest.mark.parametrize(
    ("limits", "expected"),
    [
        ({GPU: "1"}, GpuRequest(1, 2000, 0, 20)),
        ({GPU: "1", MEM: "100", CORES: "10"}, GpuRequest(1, 100, 0, 10)),
        ({GPU: "1", PERCENT: "100"}, GpuRequest(1, 0, 100, 20)),
        ({MEM: "100"}, GpuRequest(3, 100, 0, 20)),
    ],
)
def test_what_silence_means_can_be_set(limits: Mapping[str, Any], expected: GpuRequest) -> None:
    """As in HAMi: defaultMemory, defaultCores and defaultGPUNum."""
    names = requests.ResourceNames(defaults=requests.Defaults(3, 2000, 20))

    found = requests.read([], [Container(limits)], {}, names, counts_follow=True)

    assert isinstance(found, requests.PodRequest)
    assert found.containers == (expected,)


def test_a_container_that_a_limit_range_made_a_gpu_container_is_warned_of() -> None:
    """Else each pod of the namespace takes GPUs, down to the one that only runs a shell, and no one knows why."""
    text = (
        "LimitRanger plugin set: cpu, nvidia.com/gpu, nvidia.com/gpumem request for container main; "
        "nvidia.com/gpu, nvidia.com/gpumem limit for container main; cpu limit for init container first"
    )
    found = read({GPU: "1", MEM: "100"}, annotations={requests.LIMIT_RANGER: text})

    assert found.warnings == (
        "container main requests nvidia.com/gpu, nvidia.com/gpumem by a LimitRange of the namespace, not by itself",
    )


def test_limits_win_over_requests() -> None:
    """As for every extended resource."""
    found = requests.read([], [Container({GPU: "1", MEM: "100"}, {MEM: "900", CORES: "10"})], {}, NAMES)

    assert isinstance(found, requests.PodRequest)
    assert found.containers == (GpuRequest(1, 100, 0, 10),)


def test_memory_wins_over_percentage_with_a_warning() -> None:
    """Both at once is a contradiction that HAMi resolves this way; here it is said."""
    found = read({GPU: "1", MEM: "100", PERCENT: "50"})

    assert found.containers == (GpuRequest(1, 100, 0, 0),)
    assert found.warnings == (f"container main: {PERCENT} is ignored, because {MEM} is set",)


@pytest.mark.parametrize(
    ("limits", "code"),
    [
        ({GPU: "-1"}, error_codes.INVALID_QUANTITY),
        ({GPU: "0.5"}, error_codes.INVALID_QUANTITY),
        ({GPU: "1", MEM: "lots"}, error_codes.INVALID_QUANTITY),
        ({GPU: "1", MEM: "8M"}, error_codes.AMBIGUOUS_MEMORY),
        ({GPU: "1", CORES: "101"}, error_codes.PERCENT_OUT_OF_RANGE),
        ({GPU: "1", PERCENT: "0"}, error_codes.PERCENT_OUT_OF_RANGE),
        ({GPU: "1", PERCENT: "150"}, error_codes.PERCENT_OUT_OF_RANGE),
        ({GPU: "0", MEM: "100"}, error_codes.CONTRADICTORY_REQUEST),
        ({GPU: "0", CORES: "10"}, error_codes.CONTRADICTORY_REQUEST),
        ({GPU: float("nan")}, error_codes.INVALID_QUANTITY),
    ],
)
def test_a_request_that_makes_no_sense_is_refused_with_a_code(limits: Mapping[str, Any], code: str) -> None:
    """It is never read as "no GPU"."""
    refused = refuse(limits)

    assert refused.code == code
    assert str(refused).startswith("container main: nvidia.com/")


@pytest.mark.parametrize(
    "annotations",
    [
        {requests.NODE_POLICY: "random"}, {requests.GPU_POLICY: "topology"}, {requests.MODE: "MIGG"},
        {requests.NUMA_BIND: "yes"},
        {requests.NUMA_ALIGNMENT: "strict"}, {requests.USE_UUID: ",".join(f"GPU-{i}" for i in range(65))},
    ],
)  # fmt: skip
def test_a_wish_that_cannot_be_honoured_is_refused_not_ignored(annotations: Mapping[str, str]) -> None:
    """A pod is never placed as if it had not asked."""
    assert refuse({GPU: "1"}, annotations).code == error_codes.UNKNOWN_POLICY


@pytest.mark.parametrize(
    ("use", "nouse", "named"),
    [
        ({requests.USE_UUID: "GPU-a,GPU-b"}, {requests.NOUSE_UUID: "GPU-b"}, "'GPU-b'"),
        ({requests.USE_TYPE: "A100"}, {requests.NOUSE_TYPE: "T4,a100"}, "'a100'"),
    ],
    ids=["uuid", "type"],
)
def test_what_is_both_wanted_and_excluded_is_refused(
    use: Mapping[str, str], nouse: Mapping[str, str], named: str
) -> None:
    """One of the two is a mistake, and nobody but its writer knows which."""
    refused = refuse({GPU: "1"}, {**use, **nouse})

    assert refused.code == error_codes.CONTRADICTORY_REQUEST
    assert f"both name {named}" in refused.sentence


@pytest.mark.parametrize(
    "text",
    [
        "slot=1,core=1", "slot=1,core=1,memory=3,disk=1", "slot=0,core=0,memory=0", "slot=-1,core=1,memory=1",
        "slot=1.5,core=1,memory=1", "slot=1,slot=1,core=1,memory=1", "memory", ",", "slot=1,core=1,memory=",
        "slot=1,core=1,memory=9999999", "slot=1,core=1,memory=\u0663",
    ],
)  # fmt: skip
def test_weights_that_do_not_say_what_counts_are_refused_with_an_example(text: str) -> None:
    refused = refuse({GPU: "1"}, {requests.SCORING_WEIGHTS: text})

    assert refused.code == error_codes.BAD_SCORING_WEIGHTS
    assert refused.sentence.endswith("such as slot=1,core=1,memory=3")


def test_weights_change_the_pods_policy_or_the_default_alike() -> None:
    asked = {requests.SCORING_WEIGHTS: " memory=3, slot=1,core=0 "}
    weights = policies.Weights(slot=1, core=0, memory=3)

    by_default = read({GPU: "1"}, annotations=asked).gpu_policy_or(policies.BINPACK)
    by_choice = read({GPU: "1"}, annotations={**asked, requests.GPU_POLICY: "spread"}).gpu_policy_or(policies.BINPACK)

    assert (by_default.name, by_default.weights) == ("binpack", weights)
    assert (by_choice.name, by_choice.weights) == ("spread", weights)
    assert read({GPU: "1"}).gpu_policy_or(policies.SPREAD) is policies.SPREAD


def test_annotations_select_gpus_and_policies() -> None:
    """Lists are split, trimmed, and types lose their case; an empty value requests nothing."""
    found = read(
        {GPU: "1"},
        annotations={
            requests.USE_TYPE: " A100, h100 ,", requests.NOUSE_TYPE: "T4", requests.USE_UUID: "GPU-a,GPU-b",
            requests.NOUSE_UUID: "GPU-c", requests.NODE_POLICY: "Spread", requests.GPU_POLICY: "binpack",
            requests.MODE: "hami-core", requests.NUMA_BIND: "false",
        },
    )  # fmt: skip

    assert found.selectors == requests.Selectors(("a100", "h100"), ("t4",), ("GPU-a", "GPU-b"), ("GPU-c",), "hami-core")
    assert (found.node_policy, found.gpu_policy) == (policies.EMPTIEST_NODE, policies.BINPACK)
    assert read({GPU: "1"}, annotations={requests.USE_TYPE: "", requests.GPU_POLICY: ""}).selectors == (
        requests.Selectors()
    )


@pytest.mark.parametrize(
    ("mode", "gpu_mode", "accepted"),
    [
        ("", "", True),
        ("", "hami-core", True),
        ("", "mig", False),
        ("hami-core", "hami-core", True),
        ("hami-core", "mps", False),
        ("hami-core", "", True),
        ("mps", "mig", False),
    ],
)
def test_a_pod_never_lands_on_a_mig_gpu_that_it_did_not_ask_for(mode: str, gpu_mode: str, accepted: bool) -> None:
    """A MIG GPU takes whole instances only."""
    assert requests.Selectors(mode=mode).accept_mode(gpu_mode) is accepted


def test_selectors_accept_by_substring_and_by_exact_uuid() -> None:
    """`use-gputype: A100` means every A100."""
    some = requests.Selectors(("a100",), ("pcie",), ("GPU-a",), ("GPU-b",))

    assert some.accept_type("NVIDIA A100-SXM4-80GB")
    assert not some.accept_type("NVIDIA A100-PCIE-40GB")
    assert not some.accept_type("Tesla T4")
    assert some.accept_uuid("GPU-a")
    assert not some.accept_uuid("GPU-b")
    assert not requests.Selectors(nouse_uuids=("GPU-a",)).accept_uuid("GPU-a")


def test_memory_is_a_number_or_rounded_down_from_a_percentage() -> None:
    """A percentage never requests more than the GPU has."""
    assert GpuRequest(1, 0, 33).memory_on(16_001) == 5280
    assert GpuRequest(1, 4000).memory_on(16_001) == 4000
    assert (GpuRequest(1, 0, 33).memory_words, GpuRequest(1, 4000).memory_words) == ("33%", "4000MB")


def test_a_pod_counts_the_slots_it_holds_at_the_most_at_one_time() -> None:
    """As the kubelet and kube-scheduler count device ids: sidecars run beside later init containers."""
    kind, one = allocations.Kind, GpuRequest(1, 100)
    pod = requests.PodRequest(
        kinds=(kind.INIT, kind.SIDECAR, kind.INIT, kind.APP),
        containers=(GpuRequest(3, 1), one, GpuRequest(4, 1), GpuRequest(2, 1)),
    )

    assert (pod.slots, pod.gpus, pod.wants_gpu) == (5, 4, True)
    assert not read({"cpu": "1"}).wants_gpu


def test_a_container_that_names_a_managed_resource_makes_the_pod_ours() -> None:
    """Well-formed or not: garbage must be refused, not passed on."""
    assert requests.asks_for_gpu([Container({}, {MEM: "garbage"})], NAMES)
    assert not requests.asks_for_gpu([Container({"cpu": "1"})], NAMES)


def test_init_containers_come_first_and_sidecars_are_told_apart() -> None:
    """The order of records."""
    kind = allocations.Kind
    inits = [Container(), Container(restarts_always=True)]

    assert requests.kinds_of(inits, [Container()]) == (kind.INIT, kind.SIDECAR, kind.APP)


json_values = st.one_of(st.text(max_size=20), st.integers(), st.floats(), st.none(), st.sampled_from(["1", "4k", "50"]))


@given(
    st.dictionaries(st.sampled_from([GPU, MEM, PERCENT, CORES, "cpu"]), json_values),
    st.dictionaries(
        st.sampled_from([requests.USE_TYPE, requests.MODE, requests.GPU_POLICY, requests.NUMA_BIND]),
        st.text(max_size=30),
    ),
)
def test_any_pod_is_read_or_refused_with_a_code(limits: dict[str, Any], annotations: dict[str, str]) -> None:
    """Whatever users write, the answer is a request or a sentence."""
    found = requests.read([], [Container(limits)], annotations, NAMES)

    if isinstance(found, requests.InvalidRequest):
        assert found.code in error_codes.REGISTRY
        assert found.sentence
    else:
        for ask in found.containers:
            assert ask is None or (ask.gpus >= 1 and (ask.memory_mib > 0) != (ask.memory_percent > 0))


def test_a_wish_without_effect_is_granted_with_a_note() -> None:
    """Where the CPUs will be is not known when the GPU is chosen."""
    found = requests.read([], [Container({GPU: "1"})], {requests.NUMA_ALIGNMENT: "best-effort"}, NAMES)

    assert isinstance(found, requests.PodRequest)
    assert found.warnings == ("hami.io/numa-alignment has no effect: GPUs are chosen before the kubelet chooses CPUs",)


@pytest.mark.parametrize(
    ("containers", "expected"),
    [
        ([{GPU: "2"}, {GPU: "3"}], 5),
        ([{GPU: "9223372036854775807"}, {GPU: "1"}], 640_001),
        ([{GPU: "nonsense"}, {GPU: "-1"}], 2),
        ([{MEM: "4000"}, {}], 0),
        ([{MEM: "8191Pi"}], 640_000),
        ([{GPU: "1", CORES: "9223372036854775807"}], 640_000),
        ([{GPU: "2", MEM: "nonsense"}], 2),
    ],
)
def test_device_ids_are_counted_by_counts_alone_and_within_what_a_node_can_offer(
    containers: list[dict[str, Any]], expected: int
) -> None:
    """A pod that another scheduler bound holds them, however absurd its request is."""
    assert requests.device_ids([], [Container(one) for one in containers], NAMES) == expected


def test_many_containers_without_gpus_are_none_too_many() -> None:
    """Only those that request GPUs cost a pass over all nodes."""
    every = [Container({GPU: "1"})] + [Container() for _ in range(40)]

    assert isinstance(requests.read([], every, {}, NAMES), requests.PodRequest)


def test_device_ids_of_init_containers_are_used_again() -> None:
    """The kubelet gives them to the containers that run later."""
    inits = [Container({GPU: "4"}), Container({}, {GPU: "2"})]

    assert requests.device_ids(inits, [Container({GPU: "3"})], NAMES) == 4


def test_a_type_that_a_part_of_it_excludes_is_refused() -> None:
    """`a10` is a part of `a100`: no GPU could ever match, and the pod waited for ever."""
    pod = inputs.pod("34-type-excluded-by-substring.yaml")
    annotations = pod["metadata"]["annotations"]

    refused = refuse({GPU: "1"}, annotations)
    other = read({GPU: "1"}, annotations={requests.USE_TYPE: "A100,L40", requests.NOUSE_TYPE: "A10"})

    assert refused.code == error_codes.CONTRADICTORY_REQUEST
    assert "'a10' is a part of 'a100'" in str(refused)
    assert other.selectors.accept_type("NVIDIA L40S")


@pytest.mark.parametrize(
    ("annotations", "limits", "warnings"),
    [
        ({"nvidia.com/gpumem": "4000"}, {GPU: "1"},
         ["annotation nvidia.com/gpumem has no effect: it is a resource, write it under resources.limits"]),
        ({"nvidia.com/use-gpu-type": "T4"}, {GPU: "1"},
         ["annotation nvidia.com/use-gpu-type has no effect: the known one is nvidia.com/use-gputype"]),
        ({"hami.io/use-gputype": "T4"}, {GPU: "1"},
         ["annotation hami.io/use-gputype has no effect: the known one is nvidia.com/use-gputype"]),
        ({}, {GPU: "1", "nvidia.com/gpumemory": "4000"},
         ["container main: resource nvidia.com/gpumemory has no effect: the known one is nvidia.com/gpumem"]),
        ({}, {GPU: "1", "nvidia.com/gpu-memory": "4000"},
         ["container main: resource nvidia.com/gpu-memory has no effect: the known one is nvidia.com/gpumem"]),
        ({"nvidia.com/gpumemm": "4000"}, {GPU: "1"},
         ["annotation nvidia.com/gpumemm has no effect: write the resource nvidia.com/gpumem under resources.limits"]),
        ({"nvida.com/use-gputype": "T4"}, {GPU: "1", "nvidia.io/gpucores": "30"},
         ["annotation nvida.com/use-gputype has no effect: the known one is nvidia.com/use-gputype",
          "container main: resource nvidia.io/gpucores has no effect: the known one is nvidia.com/gpucores"]),
        ({"amd.com/use-gputype": "x", "nvidiacom": ""}, {GPU: "1", "amd.com/gpu": "1", "cpu": "1"}, []),
        ({"example.com/gpumem": "1", "nvidia.com/cuda": "12", "hami.io/vgpu-node": "n", requests.MODE: "mps",
          "nvidia.com/" + "x" * 200: ""},
         {GPU: "1", "nvidia.com/mig-1g.5gb": "1", "nvidia.com/gpu.shared": "1", "nvidia.com/priority": "0"}, []),
        ({f"nvidia.com/use-gputype{number}": "" for number in range(30)}, {GPU: "1"}, None),
    ],
)  # fmt: skip
def test_a_word_that_nobody_knows_is_said_and_not_ignored(
    annotations: Mapping[str, str], limits: Mapping[str, Any], warnings: list[str] | None
) -> None:
    """A user who misspells a limit gets a whole GPU, and pays for it."""
    found = read(limits, annotations=annotations).warnings

    assert found == tuple(warnings) if warnings is not None else len(found) == 5


def test_a_resource_that_a_setting_renamed_has_near_misses_too() -> None:
    """The likely name is the one of this cluster."""
    names = requests.ResourceNames(count="corp.example/vgpu", memory="corp.example/vgpu-memory")

    assert requests.meant_resource("corp.example/vgpu-memry", names) == "corp.example/vgpu-memory"
    assert requests.meant_resource("corp.example/vgpu-memory", names) == ""
    assert requests.meant_resource("other.example/vgpu-memory", names) == ""
