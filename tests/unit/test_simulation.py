"""`hamictl simulate` makes the pods that controllers make, and places them as the extender does."""

import pathlib
from typing import Any

import msgspec
import pytest
import yaml

from gpu_sharing.adapters import objects
from gpu_sharing.core import requests
from hamictl import simulation, snapshot
from lab import gpus
from scheduler_extender.settings import Settings
from tests import inputs

A10 = gpus.Model("NVIDIA A10", 23_028)
LIMITS = {"nvidia.com/gpu": 1, "nvidia.com/gpumem": 4000}
FILE = pathlib.Path("manifest.yaml")


def cluster(*names: str, **changes: Any) -> snapshot.State:
    nodes = [msgspec.convert(gpus.gpu_node(name, A10, 1), objects.Node) for name in names]
    return msgspec.structs.replace(snapshot.State(snapshot.VERSION, "", nodes, [], []), **changes)


def simulate(found: snapshot.State, *documents: dict[str, Any]) -> list[simulation.Outcome]:
    options = Settings(resource_names=found.resource_names)
    pods = simulation.pods_of(FILE, yaml.safe_dump_all(documents), None, found.nodes)
    return simulation.Simulation(found, options).place_all(pods)


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
        ({"kind": "Deep", "metadata": {"name": "x"}, "spec": {"roles": [{"template": {"spec": pod_spec()}}]}}, 1),
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
    pods = simulation.pods_of(FILE, (inputs.FOLDER / file).read_text(), None, found.nodes)

    outcomes = simulation.Simulation(found, Settings()).place_all(pods)

    assert [bool(one.node) for one in outcomes] == placed


def test_a_renamed_resource_of_a_renamed_node_is_found_too_large() -> None:
    """`simulate` said that the pod requests no GPU."""
    names = requests.ResourceNames("example.com/vgpu", "example.com/vgpumem")
    node = msgspec.json.decode((inputs.FOLDER / "17-renamed-node.json").read_bytes(), type=objects.Node)
    found = snapshot.State(snapshot.VERSION, "", [node], [], [], names)
    pods = simulation.pods_of(FILE, (inputs.FOLDER / "17-renamed.yaml").read_text(), None, found.nodes)

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
