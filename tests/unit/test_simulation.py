"""`hamictl simulate` makes the pods that controllers make, and places them as the extender does."""

import pathlib
from typing import Any

import msgspec
import pytest
import yaml

from gpu_sharing.adapters import objects
from gpu_sharing.core import requests
from hamictl import failures, manifests, outcomes, simulation, snapshot
from lab import gpus
from scheduler_extender.settings import Settings
from tests import inputs

A10 = gpus.Model("NVIDIA A10", 23_028)
LIMITS = {"nvidia.com/gpu": 1, "nvidia.com/gpumem": 4000}
MEMORY = "nvidia.com/gpumem"
FILE = pathlib.Path("manifest.yaml")


def cluster(*names: str, **changes: Any) -> snapshot.State:
    nodes = [msgspec.convert(gpus.gpu_node(name, A10, 1), objects.Node) for name in names]
    return msgspec.structs.replace(snapshot.State(snapshot.VERSION, "", nodes, [], []), **changes)


def simulate(found: snapshot.State, *documents: dict[str, Any]) -> list[simulation.Outcome]:
    return world_of(found).place_all(manifests.read(FILE, yaml.safe_dump_all(documents), None, found.nodes).pods)


def world_of(found: snapshot.State) -> simulation.Simulation:
    return simulation.Simulation(found, Settings(resource_names=found.resource_names))


def pod_spec(limits: dict[str, Any] | None = None, **more: Any) -> dict[str, Any]:
    containers = [{"name": "main", "image": "busybox", "resources": {"limits": limits or LIMITS}}]
    return {"containers": containers, **more}


def controller(kind: str, own: dict[str, Any], **template: Any) -> dict[str, Any]:
    return {"kind": kind, "metadata": {"name": "x"}, "spec": {**own, "template": {"spec": pod_spec(), **template}}}


@pytest.mark.parametrize(
    ("document", "pods"),
    [
        (controller("Job", {"parallelism": 4, "completions": 2}), 2),
        (controller("Job", {"parallelism": 4}), 4),
        (controller("Job", {"completions": 3}), 1),
        (controller("Deployment", {"replicas": 3}), 3),
        (controller("PyTorchish", {"replicas": 2}), 2),
        ({"kind": "CronJob", "metadata": {"name": "x"}, "spec": {"jobTemplate": controller("Job", {})}}, 1),
        (controller("DaemonSet", {}), 2),
        (controller("StatefulSet", {"replicas": 3}), 3),
        ({"kind": "Deep", "metadata": {"name": "x"}, "spec": {"roles": [{"template": {"spec": pod_spec()}}]}}, 1),
        (
            {
                "kind": "PyTorchJob",
                "metadata": {"name": "x"},
                "spec": {
                    "pytorchReplicaSpecs": {
                        "Master": {"replicas": 1, "template": {"spec": pod_spec()}},
                        "Worker": {"replicas": 3, "template": {"spec": pod_spec()}},
                    }
                },
            },
            4,
        ),
        (
            {
                "kind": "JobSet",
                "metadata": {"name": "x"},
                "spec": {
                    "replicatedJobs": [
                        {"name": "driver", "template": {"spec": {"template": {"spec": pod_spec()}}}},
                        {
                            "name": "workers",
                            "replicas": 2,
                            "template": {
                                "spec": {"parallelism": 3, "completions": 3, "template": {"spec": pod_spec()}}
                            },
                        },
                    ]
                },
            },
            7,
        ),
        (
            {
                "kind": "LeaderWorkerSet",
                "metadata": {"name": "x"},
                "spec": {
                    "replicas": 2,
                    "leaderWorkerTemplate": {
                        "size": 3,
                        "leaderTemplate": {"spec": pod_spec()},
                        "workerTemplate": {"spec": pod_spec()},
                    },
                },
            },
            6,
        ),
    ],
)
def test_as_many_pods_are_made_as_the_controllers_make(document: dict[str, Any], pods: int) -> None:
    """A CronJob's template lies deeper, a DaemonSet makes one a node, and a Job no more than it has to complete."""
    outcomes = simulate(cluster("a", "b"), document)

    assert [bool(one.node) for one in outcomes] == [True] * pods


def test_each_pod_of_a_daemon_set_goes_to_its_own_node() -> None:
    """As its controller binds them, by affinity to the node's name, and only where its template may go."""
    found = cluster("a", "b", "c")
    found.nodes[2].metadata.labels = {"zone": "x"}
    everywhere = controller("DaemonSet", {})
    some = controller("DaemonSet", {}, spec=pod_spec(nodeSelector={"zone": "x"}))

    assert sorted(one.node for one in simulate(found, everywhere)) == ["a", "b", "c"]
    assert [one.node for one in simulate(found, some)] == ["c"]


def test_a_pod_that_names_its_node_is_told_so_and_an_exported_one_is_placed_anew() -> None:
    """`kubectl get pod X -o yaml | hamictl simulate -` carries the node that a scheduler chose, and its record."""
    named = {"kind": "Pod", "metadata": {"name": "pinned"}, "spec": pod_spec(nodeName="a")}
    exported = {
        "kind": "Pod",
        "metadata": {"name": "ran", "annotations": {"hami.io/vgpu-devices-allocated": "GPU-x,NVIDIA,4000,0:;"}},
        "spec": pod_spec(nodeName="gone"),
        "status": {"phase": "Running"},
    }

    pinned, placed = simulate(cluster("a"), named, exported)

    assert (pinned.node, pinned.code) == ("", "SCHED_NODE_NAME_SET")
    assert "matchFields" in pinned.why
    assert placed.node == "a"


def test_an_exported_pod_does_not_hold_its_gpus_beside_itself() -> None:
    """A pod that runs was found not to fit on the GPU that it holds itself."""
    found = cluster("a")
    body = {"kind": "Pod", "metadata": {"name": "p", "namespace": "ai"}, "spec": pod_spec({**LIMITS, MEMORY: 20_000})}
    world = world_of(found)
    world.place_all(manifests.read(FILE, yaml.safe_dump(body), None, found.nodes).pods)
    running = msgspec.convert(world.placed[0], objects.Pod, strict=False)
    full = msgspec.structs.replace(found, pods=[running])
    exported = {**world.placed[0], "kind": "Pod", "status": {"phase": "Running"}}

    manifest = manifests.read(FILE, yaml.safe_dump(exported), None, found.nodes)
    without, replaced = simulation.without_exported(full, manifest)
    (anew,) = world_of(without).place_all(manifest.pods)
    (beside,) = world_of(full).place_all(manifests.read(FILE, yaml.safe_dump(body), 2, found.nodes).pods[:1])

    assert (replaced, anew.node) == (1, "a")
    assert beside.code == "SCHED_INSUFFICIENT_GPU_MEMORY"


def test_a_pod_that_has_ended_is_not_placed() -> None:
    """`kubectl get pods -o yaml` lists those too, and they were counted."""
    ended = {"kind": "Pod", "metadata": {"name": "p"}, "spec": pod_spec(), "status": {"phase": "Succeeded"}}

    with pytest.raises(failures.CommandFailed, match="1 in it have ended"):
        simulate(cluster("a"), ended)


@pytest.mark.parametrize("size", [2, 3])
def test_a_gang_has_the_size_of_its_pod_group(size: int) -> None:
    """The group may stand in the manifest too; two pods are not enough for a group of three."""
    group = {
        "kind": "PodGroup", "apiVersion": "scheduling.x-k8s.io/v1alpha1", "metadata": {"name": "g"},
        "spec": {"minMember": size},
    }  # fmt: skip
    job = controller("Job", {"parallelism": 2}, metadata={"labels": {"scheduling.x-k8s.io/pod-group": "g"}})
    found = cluster("a", "b")
    manifest = manifests.read(FILE, yaml.safe_dump_all([group, job]), None, found.nodes)
    found, _ = simulation.without_exported(found, manifest)

    outcomes = world_of(found).place_all(manifest.pods)

    assert [bool(one.node) for one in outcomes] == [size == 2] * 2
    assert {one.code for one in outcomes} == {"" if size == 2 else "SCHED_GANG_WAITS"}


def test_replicas_are_counted_together_and_a_no_has_numbers_and_advice() -> None:
    """Twenty rows of the same sentence, none with a number, did not say what to change."""
    found = cluster("a", "b")
    world = world_of(found)
    deployment = controller("Deployment", {"replicas": 20}, spec=pod_spec({**LIMITS, MEMORY: 9000}))
    result = world.place_all(manifests.read(FILE, yaml.safe_dump(deployment), None, found.nodes).pods)

    groups = outcomes.grouped(result)
    (row,) = outcomes.group_rows(groups)
    text = outcomes.rejections(groups, world.explanations)

    assert row["POD"] == "default/x (20 pods)"
    assert row["WHY"].startswith("4 of 20 fit; 0/2 nodes available: ")
    assert row["NODE"] == "a (2), b (2)"
    assert text.startswith("default/x-4 would be pending: ")
    assert "(requested 9,000 MiB, available 5,028 MiB)" in text
    assert "request at most 5028 MiB of each GPU's memory" in text
    assert text.endswith("(15 more of default/x would be pending)")
    assert groups[0].to_facts() == {
        "group": "default/x", "pods": 20, "fit": 4, "rejected_by_code": {"SCHED_INSUFFICIENT_GPU_MEMORY": 16},
    }  # fmt: skip
    assert all(one.advice for one in result if not one.node)


def test_pods_are_described_by_flags_with_the_names_of_the_installation() -> None:
    """A question such as "would another one fit?" needs no file."""
    names = requests.ResourceNames("example.com/vgpu", "example.com/vgpumem", cores="example.com/vcores")
    found = cluster("a", resource_names=names)
    fitting = manifests.described({"gpus": "1", "gpumem": "10Gi", "gpucores": "30"}, 2, names)
    refused = manifests.described({"gpus": "many"}, 1, names)

    assert [bool(one.node) for one in world_of(found).place_all(fitting.pods)] == [True, True]
    (outcome,) = world_of(found).place_all(refused.pods)
    assert outcome.code == "SCHED_INVALID_QUANTITY"
    assert "'many' is not a quantity" in outcome.why


@pytest.mark.parametrize(("memory", "fits"), [(4000, True), (12_000, False)])
def test_a_gang_is_planned_as_the_extender_plans_it(memory: int, fits: bool) -> None:
    """All of its members, or none with the reason; not four times that it waits for its gang."""
    annotations = {"hami.io/gang": "g", "hami.io/gang-size": "4"}
    spec = pod_spec({"nvidia.com/gpu": 1, "nvidia.com/gpumem": memory})
    job = controller("Job", {"parallelism": 4, "completions": 4}, metadata={"annotations": annotations}, spec=spec)

    outcomes = simulate(cluster("a", "b"), job)

    assert [bool(one.node) for one in outcomes] == [fits] * 4
    if not fits:
        assert "not enough free for all 4 members at once" in outcomes[0].why


def test_what_the_webhook_writes_is_written_before_a_pod_is_placed() -> None:
    """Memory without a count means one GPU where the webhook is asked, and that is what an installation has."""
    body = {"kind": "Pod", "metadata": {"name": "p"}, "spec": pod_spec({"nvidia.com/gpumem": 4000})}

    (outcome,) = simulate(cluster("a"), body)

    assert outcome.node == "a"


def test_resources_go_by_the_names_of_the_installation() -> None:
    """With renamed resources the usual ones request nothing, and the pod's memory counts."""
    names = requests.ResourceNames("example.com/vgpu", "example.com/vgpumem")
    found = cluster("a", resource_names=names)
    body = {"kind": "Pod", "metadata": {"name": "p"}}
    usual = {**body, "spec": pod_spec()}
    renamed = {**body, "spec": pod_spec({"example.com/vgpu": 1, "example.com/vgpumem": 999_999})}

    (none,) = simulate(found, usual)
    (large,) = simulate(found, renamed)

    assert none.why == "it requests no example.com/vgpu: kube-scheduler places it alone"
    assert large.code == "SCHED_INSUFFICIENT_GPU_MEMORY"


@pytest.mark.parametrize(
    ("file", "placed"),
    [
        ("10-cronjob.yaml", [True]),
        ("11-daemonset.yaml", [True, True]),
        ("13-nodename.yaml", [False]),
        ("16-gang.yaml", [True] * 4),
        ("16-gang-pods.yaml", [True] * 4),
    ],
)
def test_manifests_that_once_went_wrong(file: str, placed: list[bool]) -> None:
    """As users wrote them."""
    found = cluster("a", "b")
    pods = manifests.read(FILE, (inputs.FOLDER / file).read_text(), None, found.nodes).pods

    outcomes = simulation.Simulation(found, Settings()).place_all(pods)

    assert [bool(one.node) for one in outcomes] == placed


def test_a_renamed_resource_of_a_renamed_node_is_found_too_large() -> None:
    """`simulate` said that the pod requests no GPU."""
    names = requests.ResourceNames("example.com/vgpu", "example.com/vgpumem")
    node = msgspec.json.decode((inputs.FOLDER / "17-renamed-node.json").read_bytes(), type=objects.Node)
    found = snapshot.State(snapshot.VERSION, "", [node], [], [], names)
    pods = manifests.read(FILE, (inputs.FOLDER / "17-renamed.yaml").read_text(), None, found.nodes).pods

    (outcome,) = simulation.Simulation(found, Settings(resource_names=names)).place_all(pods)

    assert outcome.code == "SCHED_INSUFFICIENT_GPU_MEMORY"
    assert "requested 999999MB" in outcome.why


def test_a_name_without_effect_is_warned_of_whether_or_not_the_pod_fits() -> None:
    """As the webhook would: the pod fits, and gets a whole GPU instead of the share that was meant."""
    with_gpu = controller("Job", {}, spec=pod_spec({"nvidia.com/gpu": 1, "nvidia.com/gpumemm": 4000}))
    without = controller("Job", {}, spec=pod_spec({"nvidia.com/gpumemm": 4000}))

    for document in (with_gpu, without):
        (outcome,) = simulate(cluster("a"), document)
        assert outcome.warnings[-1] == (
            "container main: resource nvidia.com/gpumemm has no effect: the known one is nvidia.com/gpumem"
        )
