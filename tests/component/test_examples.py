"""The example workloads run as their comments say: applied to a demo, with the pods that their controllers create."""

import dataclasses
import pathlib
import time
from collections.abc import Callable, Iterator
from typing import Any

import kubernetes_validate
import pytest
import yaml

from gpu_sharing.core import records
from hamictl import manifests
from lab import cluster as clusters
from lab import gpus, kinds, mig_models
from tests.support import accounting

FOLDER = pathlib.Path(__file__).parents[2] / "examples" / "workloads"
NAMES = sorted(path.stem for path in FOLDER.glob("*.yaml"))
SECONDS = 60.0

pytestmark = pytest.mark.slow


def divided_node(name: str) -> dict[str, Any]:
    """A node whose GPU is in MIG mode."""
    whole = gpus.inventory(name, gpus.A100, 1)
    inventory = [dataclasses.replace(one, mode="mig", mig_profiles=mig_models.PROFILES["a100"]) for one in whole]
    return gpus.gpu_node(name, gpus.A100, 1, annotations={records.INVENTORY: records.encode_inventory(inventory)})


@pytest.fixture(scope="module")
def demo() -> Iterator[clusters.Cluster]:
    nodes = [gpus.gpu_node("node-01", gpus.A100, 4), gpus.gpu_node("node-02", gpus.A100, 4), divided_node("node-mig")]
    with clusters.running(nodes) as running:
        yield running


def documents(name: str) -> list[dict[str, Any]]:
    return list(yaml.safe_load_all((FOLDER / f"{name}.yaml").read_text()))


def applied(demo: clusters.Cluster, name: str) -> list[str]:
    """Create the objects, and the pods that their controllers create. Returns the names of the pods."""
    by_kind = {one.kind: one for one in kinds.RESOURCES if one.plural != "events"}
    for one in documents(name):
        if one["kind"] != "Pod":
            demo.create(by_kind[one["kind"]], one)
    path = FOLDER / f"{name}.yaml"
    pods = manifests.read(path, path.read_text(), None, []).pods
    for pod in pods:
        metadata = {key: pod["metadata"][key] for key in ("name", "labels", "annotations") if pod["metadata"].get(key)}
        demo.create(kinds.PODS, {"metadata": metadata, "spec": pod["spec"]})
    return [pod["metadata"]["name"] for pod in pods]


def pods_of(demo: clusters.Cluster, names: list[str]) -> list[dict[str, Any]]:
    return [pod for pod in demo.all(kinds.PODS) if pod["metadata"]["name"] in names]


def wait(what: str, condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + SECONDS
    while not condition():
        assert time.monotonic() < deadline, what
        time.sleep(0.05)


def held(pods: list[dict[str, Any]]) -> list[str]:
    """The GPU of each share, in the order of the pods."""
    return [uuid for pod in pods for container in accounting.devices(pod) for uuid, _, _ in container]


@pytest.mark.parametrize("name", NAMES)
def test_every_example_is_valid_and_its_pods_run(name: str, demo: clusters.Cluster) -> None:
    """A reader applies it as it is."""
    for one in documents(name):
        kubernetes_validate.validate(one, "1.36", strict=True)

    pods = applied(demo, name)

    def running() -> bool:
        found = pods_of(demo, pods)
        return len(found) == len(pods) and all(one["status"]["phase"] == "Running" for one in found)

    wait(f"{name} runs", running)
    found = pods_of(demo, pods)
    assert all(accounting.devices(pod) for pod in found)
    checks: dict[str, Callable[[list[dict[str, Any]]], None]] = {
        "two-pods-share": on_one_gpu, "vllm": on_two_nodes, "gang": four_at_once, "mig": in_an_instance,
        "inference": on_one_gpu,
    }  # fmt: skip
    if name in checks:
        checks[name](found)
    for pod in found:
        metadata = pod["metadata"]
        demo.server.request("DELETE", f"/api/v1/namespaces/{metadata['namespace']}/pods/{metadata['name']}")
    wait(f"{name} is gone", lambda: not pods_of(demo, pods))


def on_one_gpu(pods: list[dict[str, Any]]) -> None:
    assert len(held(pods)) == 2
    assert len(set(held(pods))) == 1


def on_two_nodes(pods: list[dict[str, Any]]) -> None:
    assert len({pod["spec"]["nodeName"] for pod in pods}) == 2


def four_at_once(pods: list[dict[str, Any]]) -> None:
    assert len(pods) == 4
    assert len(held(pods)) == 4


def in_an_instance(pods: list[dict[str, Any]]) -> None:
    (pod,) = pods
    assert '"1g.10gb"' in pod["metadata"]["annotations"][records.MIG_ALLOCATIONS]


def test_the_documents_name_every_example() -> None:
    """An example that no page names is not found."""
    page = (FOLDER.parents[1] / "docs" / "reference" / "requests.md").read_text()
    assert [name for name in NAMES if f"examples/workloads/{name}.yaml" not in page] == []
