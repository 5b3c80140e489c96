"""What is said of a pod while it is being created."""

import re
from typing import Any

import msgspec
import pytest
import yaml

from gpu_sharing.adapters import objects
from gpu_sharing.core import gangs, identifiers, requests
from scheduler_extender.cluster import node_selection
from scheduler_extender.decide import admission
from scheduler_extender.fleet import gang_members
from scheduler_extender.settings import Settings
from tests import inputs

GPU, MEM, CORES, PRIORITY = "nvidia.com/gpu", "nvidia.com/gpumem", "nvidia.com/gpucores", "nvidia.com/priority"
DEFAULTS = Settings()


def pod(limits: dict[str, str], spec: dict[str, Any] | None = None, **metadata: Any) -> dict[str, Any]:
    """A pod as the API server sends it: with its defaults."""
    container = {"name": "main", "image": "x", "resources": {"limits": limits, "requests": limits}}
    return {
        "metadata": {"name": "p", **metadata},
        "spec": {"schedulerName": "default-scheduler", "containers": [container], **(spec or {})},
    }


def mended(body: dict[str, Any], settings: Settings = DEFAULTS) -> dict[str, Any]:
    """What a patch sets, by path."""
    verdict = admission.review(body, settings)
    assert not verdict.refused
    return {operation["path"]: operation["value"] for operation in verdict.patch}


def test_a_gpu_pod_becomes_ours_and_what_it_left_unsaid_is_written_down() -> None:
    """Memory alone means one GPU, a count alone the whole of it: as `kubectl get -o yaml` then shows."""
    assert mended(pod({MEM: "4000"})) == {
        "/spec/containers/0/resources": {
            "limits": {MEM: "4000", GPU: "1"},
            "requests": {MEM: "4000", GPU: "1"},
        },
        "/spec/schedulerName": "hami-scheduler",
    }
    assert mended(pod({GPU: "1"}))["/spec/containers/0/resources"]["limits"] == {GPU: "1", CORES: "100"}
    bare = pod({})
    bare["spec"]["initContainers"] = [{"name": "first", "resources": {"requests": {GPU: "1"}}}]
    bare["spec"]["containers"][0]["resources"] = None
    assert mended(bare)["/spec/initContainers/0/resources"] == {
        "limits": {CORES: "100"},
        "requests": {GPU: "1", CORES: "100"},
    }
    complete = pod({GPU: "1", MEM: "4000"}, {"schedulerName": "hami-scheduler"})
    assert mended(complete) == {}


def test_priority_becomes_the_variable_that_hami_core_reads_and_the_runtime_class_is_set_where_there_is_none() -> None:
    settings = Settings(runtime_class_name="nvidia")
    asked = {GPU: "1", MEM: "1", PRIORITY: "1"}

    found = mended(pod(asked), settings)

    assert found["/spec/containers/0/env"] == [{"name": "CUDA_TASK_PRIORITY", "value": "1"}]
    assert found["/spec/runtimeClassName"] == "nvidia"
    assert "/spec/runtimeClassName" not in mended(pod(asked, {"runtimeClassName": "kata"}), settings)
    refused = admission.review(pod({**asked, PRIORITY: "high"}), settings).refused
    assert refused.startswith("SCHED_INVALID_QUANTITY: container main: nvidia.com/priority")


@pytest.mark.parametrize(
    "env", [None, [{"name": "A", "value": "b"}, {"name": "NVIDIA_VISIBLE_DEVICES", "value": "all"}]]
)
def test_gpus_are_hidden_from_containers_without_one_if_that_is_set(env: list[dict[str, str]] | None) -> None:
    """An image that says NVIDIA_VISIBLE_DEVICES=all, or a pod, gets none: also beside a container that asks."""
    body = pod({GPU: "1", MEM: "1"}, {"schedulerName": "hami-scheduler"})
    body["spec"]["containers"].append({"name": "side", "env": env})
    kept = [{"name": "A", "value": "b"}] if env else []

    found = mended(body, Settings(hide_gpus=True))

    assert found == {"/spec/containers/1/env": [*kept, {"name": "NVIDIA_VISIBLE_DEVICES", "value": "void"}]}
    assert mended(body) == {}
    without = mended(pod({}), Settings(hide_gpus=True))
    assert without == {"/spec/containers/0/env": [{"name": "NVIDIA_VISIBLE_DEVICES", "value": "void"}]}


@pytest.mark.parametrize(
    ("body", "code", "words"),
    [
        (pod({MEM: "8M"}), "SCHED_AMBIGUOUS_MEMORY", "4000"),
        (pod({GPU: "1", CORES: "150"}), "SCHED_PERCENT_OUT_OF_RANGE", "nvidia.com/gpucores"),
        (
            pod({GPU: "1"}, annotations={"hami.io/gpu-scheduler-policy": "binpack,spread"}),
            "SCHED_CONTRADICTORY_REQUEST", "write one of them",
        ),
        (pod({GPU: "1"}, {"nodeName": "node-7"}), "SCHED_NODE_NAME_SET",
         "metadata.name, operator: In, values: [node-7]"),
    ],
)  # fmt: skip
def test_a_mistake_is_refused_with_its_code_and_what_to_write(body: dict[str, Any], code: str, words: str) -> None:
    """`kubectl apply` prints it."""
    refused = admission.review(body, DEFAULTS).refused

    assert refused.startswith(f"{code}: ")
    assert words in refused


def test_a_privileged_container_may_not_ask_for_a_gpu_unless_that_is_set() -> None:
    """It would see every GPU of its node, whatever it requested."""
    body = pod({GPU: "1", MEM: "1"})
    body["spec"]["containers"][0]["securityContext"] = {"privileged": True}

    assert admission.review(body, DEFAULTS).refused.startswith("SCHED_PRIVILEGED: container main is privileged")
    assert not admission.review(body, Settings(allow_privileged=True)).refused
    body["spec"]["containers"][0]["resources"] = {}
    assert not admission.review(body, DEFAULTS).refused


@pytest.mark.parametrize(
    "body",
    [
        pod({}), pod({}, {"nodeName": "node-7"}), pod({GPU: "0"}),
        pod({GPU: "x"}, labels={"hami.io/webhook": "ignore"}),
        pod({GPU: "x"}, {"nodeName": "n"}, annotations={"kubernetes.io/config.mirror": "1"}),
    ],
)  # fmt: skip
def test_pods_without_gpus_those_that_opt_out_and_static_pods_are_left_alone(body: dict[str, Any]) -> None:
    assert mended(body) == {}
    assert admission.review(body, DEFAULTS).warnings == ()


@pytest.mark.parametrize(
    ("scheduler", "settings"),
    [("volcano", DEFAULTS), ("default-scheduler", Settings(force_overwrite=False))],
)
def test_a_pod_of_another_scheduler_is_left_alone_with_a_warning(scheduler: str, settings: Settings) -> None:
    verdict = admission.review(pod({GPU: "1", MEM: "8M"}, {"schedulerName": scheduler}), settings)

    assert (verdict.refused, verdict.patch) == ("", ())
    assert f"schedulerName {scheduler} is not hami-scheduler" in verdict.warnings[0]


@pytest.mark.parametrize("scheduler", ["hami-scheduler", "default-scheduler", "volcano"])
@pytest.mark.parametrize("limits", [{GPU: "1", "nvidia.com/gpumemm": "4000"}, {"nvidia.com/gpumemm": "4000"}])
def test_a_misspelled_resource_is_a_warning_for_every_pod(scheduler: str, limits: dict[str, str]) -> None:
    """Also where nothing else of the pod is ours: its owner believes that it gets GPU memory."""
    verdict = admission.review(pod(limits, {"schedulerName": scheduler}), DEFAULTS)

    assert verdict.refused == ""
    assert "nvidia.com/gpumemm has no effect: the known one is nvidia.com/gpumem" in verdict.warnings[-1]


def test_what_the_request_ignores_is_a_warning() -> None:
    verdict = admission.review(pod({GPU: "1", MEM: "4000", "nvidia.com/gpumem-percentage": "50"}), DEFAULTS)

    assert "nvidia.com/gpumem-percentage is ignored" in verdict.warnings[0]


def test_members_of_a_gang_are_given_the_gate_that_keeps_them_together() -> None:
    """Beside gates that others put there; pods of no gang, and members that request no GPU, get none."""
    member = {"annotations": {"hami.io/gang": "train", "hami.io/gang-size": "2"}}
    theirs = {"schedulingGates": [{"name": "quota"}]}

    assert mended(pod({GPU: "1"}, **member))["/spec/schedulingGates"] == [{"name": "hami.io/gang"}]
    assert mended(pod({GPU: "1"}, theirs, **member))["/spec/schedulingGates"] == [
        {"name": "quota"},
        {"name": "hami.io/gang"},
    ]
    assert "/spec/schedulingGates" not in mended(pod({GPU: "1"}, theirs))
    assert "/spec/schedulingGates" not in mended(pod({"cpu": "1"}, **member))
    refused = admission.review(pod({GPU: "1"}, annotations={"hami.io/gang": "train"}), DEFAULTS).refused
    assert refused.startswith("SCHED_BAD_GANG: the gang 'train' has no size")


def test_one_member_too_many_or_of_another_size_cannot_join() -> None:
    """Counted are those that wait and those that hold GPUs."""
    gang = gangs.Gang("train", 2)
    known = gang_members.Gangs()
    known.add_pending(identifiers.PodUid("a"), "default", gang)

    assert known.join_refusal("default", gang) == ""
    assert known.join_refusal("default", gangs.Gang("train", 3)) == (
        "the other members of gang train say that it has 2 members, this one says 3"
    )
    known.add_bound(identifiers.PodUid("b"), "default", gang)
    assert known.join_refusal("default", gang) == "gang train has its 2 members already"
    assert known.join_refusal("elsewhere", gang) == ""
    assert known.join_refusal("default", gangs.Gang("train", 0, "", gangs.KUBERNETES)) == ""
    known.set_group(gangs.KUBERNETES, "default", "train", 4)
    assert known.join_refusal("default", gangs.Gang("train", 0, "", gangs.KUBERNETES)) == (
        "the other members of gang train say that it has 2 members, this one says 4"
    )
    known.remove_bound(identifiers.PodUid("b"))
    known.remove_pending(identifiers.PodUid("a"))
    assert known.join_refusal("default", gangs.Gang("train", 3)) == ""


def test_the_settings_of_silence_are_written_into_the_pod() -> None:
    """So that `kubectl get -o yaml` shows what the pod gets, and a change of the settings does not change it."""
    names = requests.ResourceNames(defaults=requests.Defaults(2, 3000, 25))
    settings = Settings(resource_names=names)

    assert mended(pod({GPU: "1"}), settings)["/spec/containers/0/resources"]["limits"] == {
        GPU: "1",
        MEM: "3000",
        CORES: "25",
    }
    assert mended(pod({CORES: "10"}), settings)["/spec/containers/0/resources"]["limits"] == {
        CORES: "10",
        GPU: "2",
        MEM: "3000",
    }


def test_a_request_that_is_an_annotation_is_warned_of() -> None:
    """The pod got the whole GPU, without a word; a pod without any resource got none."""
    body = inputs.pod("05-gpumem-annotation.yaml")
    without = pod({}, annotations=body["metadata"]["annotations"])

    for one in (body, without):
        warnings = admission.review(one, DEFAULTS).warnings
        assert [warning.split(" has no effect")[0] for warning in warnings] == [
            "annotation nvidia.com/gpumem",
            "annotation nvidia.com/gpucores",
        ]


def test_what_the_advice_for_a_node_name_says_admits_that_node() -> None:
    """The label kubernetes.io/hostname may be another name than the node's, as on EKS."""
    (advised,) = inputs.documents("27-nodename-advice.yaml")
    (wanted,) = advised["spec"].pop("nodeSelector").values()
    labels = {"kubernetes.io/hostname": "ip-10-0-0-1"}
    fields = re.search(r"{key.*}", admission.review(pod({GPU: "1"}, {"nodeName": wanted}), DEFAULTS).refused)
    assert fields
    terms = [{"matchFields": [yaml.safe_load(fields[0])]}]
    required = {"requiredDuringSchedulingIgnoredDuringExecution": {"nodeSelectorTerms": terms}}
    advised["spec"]["affinity"] = {"nodeAffinity": required}

    wishes = node_selection.requirements_of(msgspec.convert(advised, objects.Pod))

    assert node_selection.admits(wishes, wanted, labels, ())
    assert not node_selection.admits(wishes, "another", labels, ())


@pytest.mark.parametrize("name", ["NVIDIA_VISIBLE_DEVICES", "CUDA_DEVICE_MEMORY_LIMIT_0", "CUDA_DEVICE_SM_LIMIT"])
def test_a_variable_of_the_device_plugin_is_warned_of_or_refused_as_set(name: str) -> None:
    """Without CDI it wins over what the pod is allocated."""
    body = pod({GPU: "1", MEM: "1"})
    body["spec"]["containers"][0]["env"] = [{"name": "A", "value": "b"}, {"name": name, "value": "all"}]
    strict = Settings(refuse_own_variables=True)

    warned = admission.review(body, DEFAULTS)
    refused = admission.review(body, strict).refused

    assert (warned.refused, warned.warnings) == (
        "",
        (f"container main sets {name}, which the device plugin sets; remove it from env",),
    )
    assert refused == f"SCHED_OWN_VARIABLES: {warned.warnings[0]}"
    body["spec"]["containers"][0]["resources"] = {}
    assert not admission.review(body, strict).refused
