"""One table of pods through webhook, extender, device plugin, monitor and hamictl: the same numbers and words.

A pod that one part counts otherwise than another is bound and never starts, or is allocated what another pod has.
"""

import asyncio
import copy
import dataclasses
import pathlib
import re
from collections.abc import Mapping, Sequence
from typing import Any

import msgspec
import pytest
import yaml

from device_plugin.allocation import checks
from device_plugin.driver import gpu_source
from device_plugin.monitor import collector, share_usage
from device_plugin.node import api_objects, pods
from gpu_sharing.adapters import objects
from gpu_sharing.core import allocations, identifiers, placement, records, requests
from hamictl import manifests, record_checks, simulation, snapshot, views
from lab import gpus
from scheduler_extender.cluster import from_objects
from scheduler_extender.cluster.pending import PendingPod
from scheduler_extender.decide import admission, explaining
from scheduler_extender.serve import read_access, read_api
from scheduler_extender.settings import Settings
from tests.support.extender_world import World

GPU, MEM, PERCENT, CORES = "nvidia.com/gpu", "nvidia.com/gpumem", "nvidia.com/gpumem-percentage", "nvidia.com/gpucores"
NODE, TOTAL = "n", 23_028
A10 = gpus.Model("NVIDIA A10", TOTAL)
NAMES = requests.ResourceNames()
UUIDS = [gpus.gpu_uuid(NODE, index) for index in range(2)]
PLAIN: dict[str, str] = {"cpu": "1"}
FEW = {GPU: "1", MEM: "1000", CORES: "10"}
MUCH = {GPU: "1", MEM: "16000", CORES: "10"}


@dataclasses.dataclass(frozen=True)
class Kind:
    """A kind of pod, and what every part must say of it."""

    name: str
    apps: Sequence[Mapping[str, str]]
    held: tuple[int, int, int] | None = None
    """Slots, MiB and percent of cores over all GPUs; None where it is refused."""
    code: str = ""
    """Why it is refused."""
    at_creation: bool = False
    """Whether the webhook refuses it already."""
    init: Sequence[Mapping[str, str]] = ()
    sidecars: Sequence[Mapping[str, str]] = ()
    annotations: Mapping[str, str] = dataclasses.field(default_factory=dict)
    warns: str = ""
    """A part of what is warned of, at creation and in the `Scheduled` event."""


def asked(name: str, held: tuple[int, int, int], *apps: Mapping[str, str], **more: Any) -> Kind:
    return Kind(name, apps, held, **more)


def refused(name: str, code: str, *apps: Mapping[str, str], **more: Any) -> Kind:
    return Kind(name, apps, None, f"SCHED_{code}", **more)


TABLE = [
    asked("a count alone is a GPU of its own", (1, TOTAL, 100), {GPU: "1"}),
    asked("two GPUs of its own", (2, 2 * TOTAL, 200), {GPU: "2"}),
    asked("memory", (1, 4_000, 0), {GPU: "1", MEM: "4000"}),
    asked("memory as the API server rewrites it", (1, 4_000, 0), {GPU: "1", MEM: "4k"}),
    asked("memory in bytes", (1, 4_096, 0), {GPU: "1", MEM: "4Gi"}),
    asked("memory in decimal bytes", (1, 7_630, 0), {GPU: "1", MEM: "8G"}),
    asked("memory alone", (1, 3_000, 0), {MEM: "3000"}),
    asked("cores alone", (1, TOTAL, 30), {CORES: "30"}),
    asked("a percentage alone", (1, 5_757, 0), {PERCENT: "25"}),
    asked("a percentage rounded down", (1, 7_599, 0), {GPU: "1", PERCENT: "33"}),
    asked("a hundred percent", (1, TOTAL, 100), {GPU: "1", PERCENT: "100"}),
    asked("a hundred percent with a limit of cores", (1, TOTAL, 20), {GPU: "1", PERCENT: "100", CORES: "20"}),
    asked("an exclusive share", (1, 3_000, 100), {GPU: "1", MEM: "3000", CORES: "100"}),
    asked("memory and a percentage", (1, 2_000, 0), {GPU: "1", MEM: "2000", PERCENT: "50"}, warns="is ignored"),
    asked("zero cores are no limit", (1, 2_000, 0), {GPU: "1", MEM: "2000", CORES: "0"}),
    asked("two GPUs with a share each", (2, 4_000, 60), {GPU: "2", MEM: "2000", CORES: "30"}),
    asked("two containers", (2, 2_000, 20), FEW, FEW),
    asked("a container without a GPU first", (1, 1_000, 10), PLAIN, FEW),
    asked("an init container that needs more", (1, 16_000, 10), FEW, init=[MUCH]),
    asked("an init container that needs less", (1, 16_000, 10), MUCH, init=[FEW]),
    asked("an init container alone", (1, 16_000, 10), PLAIN, init=[MUCH]),
    asked("two init containers", (1, 16_000, 10), FEW, init=[FEW, MUCH]),
    asked("a sidecar", (2, 17_000, 20), FEW, sidecars=[MUCH]),
    asked("a sidecar beside an init container", (2, 17_000, 20), FEW, init=[MUCH], sidecars=[FEW]),
    asked("a mode in capitals", (1, 1_000, 10), FEW, annotations={requests.MODE: "HAMi-Core"}),
    asked("a type", (1, 1_000, 10), FEW, annotations={requests.USE_TYPE: "a10"}),
    asked("a UUID", (1, 1_000, 10), FEW, annotations={requests.USE_UUID: UUIDS[1]}),
    asked("a request as an annotation", (1, TOTAL, 100), {GPU: "1"}, annotations={MEM: "4000"}, warns="has no effect"),
    asked("a resource that is not known", (1, TOTAL, 100), {GPU: "1", "nvidia.com/gpumemory": "4000"},
          warns="the known one is nvidia.com/gpumem"),
    asked("a policy", (2, 2_000, 20), FEW, FEW, annotations={requests.GPU_POLICY: "spread"}),
    refused("more memory than any GPU has", "INSUFFICIENT_GPU_MEMORY", {GPU: "1", MEM: "99000"}),
    refused("more GPUs than the node has", "TOO_FEW_GPUS", {GPU: "3", MEM: "1"}),
    refused("another type", "TYPE_MISMATCH", FEW, annotations={requests.USE_TYPE: "H100"}),
    refused("another mode", "MODE_MISMATCH", FEW, annotations={requests.MODE: "mps"}),
    refused("small bytes", "AMBIGUOUS_MEMORY", {GPU: "1", MEM: "8M"}, at_creation=True),
    refused("a fraction", "INVALID_QUANTITY", {GPU: "1", MEM: "0.5"}, at_creation=True),
    refused("too many cores", "PERCENT_OUT_OF_RANGE", {GPU: "1", CORES: "101"}, at_creation=True),
    refused("a share of nothing", "CONTRADICTORY_REQUEST", {GPU: "0", MEM: "100"}, at_creation=True),
    refused("a type that excludes itself", "CONTRADICTORY_REQUEST", FEW, at_creation=True,
            annotations={requests.USE_TYPE: "A100", requests.NOUSE_TYPE: "A10"}),
    refused("a policy that does not exist", "UNKNOWN_POLICY", FEW, at_creation=True,
            annotations={requests.GPU_POLICY: "best"}),
]  # fmt: skip


def body_of(kind: Kind) -> dict[str, Any]:
    """The pod as its owner writes it."""

    def container(name: str, limits: Mapping[str, str], **more: Any) -> dict[str, Any]:
        return {"name": name, "image": "x", "resources": {"limits": dict(limits)}, **more}

    sidecars = [container(f"s{n}", limits, restartPolicy="Always") for n, limits in enumerate(kind.sidecars)]
    inits = [container(f"i{n}", limits) for n, limits in enumerate(kind.init)]
    apps = [container(f"c{n}", limits) for n, limits in enumerate(kind.apps)]
    return {
        "kind": "Pod",
        "metadata": {
            "name": "p", "namespace": "default", "uid": "uid-p", "resourceVersion": "1",
            "annotations": dict(kind.annotations),
        },
        "spec": {"schedulerName": "hami-scheduler", "initContainers": [*sidecars, *inits], "containers": apps},
        "status": {"phase": "Pending"},
    }  # fmt: skip


def node() -> dict[str, Any]:
    found = gpus.gpu_node(NODE, A10, 2)
    offered = [dataclasses.replace(one, mode="hami-core") for one in gpus.inventory(NODE, A10, 2, gpus.SLOTS)]
    found["metadata"]["annotations"][records.INVENTORY] = records.encode_inventory(offered)
    return found


def test_there_are_at_least_thirty_kinds() -> None:
    """Each once."""
    assert len({kind.name for kind in TABLE}) == len(TABLE) >= 30


@pytest.mark.parametrize("kind", [kind for kind in TABLE if kind.held], ids=lambda kind: kind.name)
def test_every_part_counts_the_same_for_a_pod(kind: Kind) -> None:
    """From its creation to its start, its gauges and what hamictl prints."""
    assert kind.held
    body, world = body_of(kind), World(node())
    verdict = admission.review(body, Settings())
    assert not verdict.refused
    assert kind.warns in " ".join(verdict.warnings)
    assert bool(kind.warns) == bool(verdict.warnings)
    admitted = admission.patched(body, verdict)

    # The extender: what it decides, writes and counts.
    assert world.filter(admitted, NODE)["NodeNames"] == [NODE]
    world.see(admitted)
    pending = world.listed("p")
    assert isinstance(pending, PendingPod)
    placed = world.placer.place_on(pending, identifiers.NodeName(NODE), nominations=False)
    assert isinstance(placed, placement.Placement)
    bound = copy.deepcopy(admitted)
    bound["spec"]["nodeName"] = NODE
    bound["metadata"]["annotations"] |= records.pod_annotations(
        placed.shares, identifiers.NodeName(NODE), 1, identifiers.DecisionId("d")
    )
    world.decision_events.scheduled(
        pending, identifiers.NodeName(NODE), placed, score=1.0, decision=identifiers.DecisionId("d")
    )
    assert kind.warns in world.recorder.told[-1].note
    world.see(bound)
    found = world.mirror.ledger.pod(identifiers.PodUid("uid-p"))
    assert found is not None
    by_gpu = dict(found.allocated)
    assert summed(by_gpu) == kind.held
    if not (kind.init or kind.sidecars):
        assert tuple(found.amounts) == kind.held

    # The device plugin: the record of each container, and the last check.
    here = pods.Pods(NAMES, lambda: None)
    seen = msgspec.convert(bound, api_objects.Pod, strict=False)
    list(here.replaced([seen], 0.0))
    assert dict(seen.allocated(NAMES)) == by_gpu
    inventory = {
        gpu.uuid: gpu for gpu in records.decode_inventory(node()["metadata"]["annotations"][records.INVENTORY])
    }
    for position, container in enumerate(seen.all_containers):
        ask = pending.request.containers[position]
        if ask:
            shares = checks.recorded_shares(seen, container.name, ask.gpus, NODE, names=NAMES)
            assert shares == placed.shares[position]
            checks.refuse_oversubscription(seen, shares, here.holders, inventory)
    assert requests.mode(seen.annotations) in ("", "hami-core")

    # The monitor: what is allocated of each GPU.
    devices = [
        gpu_source.Device(uuid=uuid, index=index, name=A10.type, memory_mib=TOTAL, minor=index)
        for index, uuid in enumerate(UUIDS)
    ]
    joined = share_usage.usage_of_shares([seen], NAMES, {}, {}, region_of=lambda *_: {})
    gauges = allocated(collector.MonitorView(node=NODE, devices=devices, offered=inventory, usage=joined))
    assert gauges == {uuid: (one.slots, one.memory_mib << 20, one.cores_percent) for uuid, one in by_gpu.items()}

    # hamictl: who holds what, what is free, whether anything is wrong, and what would happen.
    rows = read(world)
    assert (rows["pod"]["ALLOCATED"], rows["pod"]["CORES"]) == (f"{kind.held[1]:,} MiB", f"{kind.held[2]}%")
    assert (rows["node"]["ALLOCATED"], rows["node"]["CONTAINERS"]) == (f"{kind.held[1]:,} MiB", f"{kind.held[0]}")
    assert problems(bound) == []
    (outcome,) = simulate(body)
    assert sorted(set(outcome.gpus)) == sorted(by_gpu)


@pytest.mark.parametrize("kind", [kind for kind in TABLE if not kind.held], ids=lambda kind: kind.name)
def test_every_part_refuses_a_pod_with_the_same_code_and_sentence(kind: Kind) -> None:
    """At creation, at filter where the webhook was not asked, in explain, and in simulate."""
    body, world = body_of(kind), World(node())
    verdict = admission.review(body, Settings())
    assert verdict.refused.startswith(f"{kind.code}: ") is kind.at_creation

    answer = world.filter(body, NODE)
    world.see(body)
    code, message = explained(world)
    (outcome,) = simulate(body)

    assert answer["NodeNames"] in (None, [])
    assert code == outcome.code == kind.code
    entry = world.pending.entry(identifiers.PodUid("uid-p"))
    assert entry is not None
    assert entry.rejection is not None
    assert entry.rejection.code == kind.code
    note = world.recorder.told[-1].note
    assert message in note
    assert message in outcome.why
    if kind.at_creation:
        assert verdict.refused == f"{kind.code}: {message}"


def explained(world: World) -> tuple[str | None, str]:
    """Code and sentence of the explanation: of the request where it cannot be read, else of the only node.

    With the unit of events, which say MB as HAMi's do and mean MiB.
    """
    answer = asyncio.run(explaining.Explainer(world.core).explain(world.listed("p")))
    if not answer.nodes:
        return answer.causes[0].code, answer.causes[0].sentence
    (one,) = answer.nodes
    return one.code, re.sub(r"([\d,]+) MiB", lambda amount: f"{amount[1].replace(',', '')}MB", one.message)


def summed(by_gpu: Mapping[identifiers.GpuUuid, allocations.Allocation]) -> tuple[int, int, int]:
    every = by_gpu.values()
    return (
        sum(one.slots for one in every),
        sum(one.memory_mib for one in every),
        sum(one.cores_percent for one in every),
    )


def allocated(view: collector.MonitorView) -> dict[str, tuple[int, int, int]]:
    """Containers, bytes and percent of cores of each GPU that anything is allocated of."""
    found: dict[str, dict[str, int]] = {}
    names = ("hami_gpu_containers", "hami_gpu_allocated_memory_bytes", "hami_gpu_allocated_cores_percent")
    for family in collector.Gauges(lambda: view, compatible=True, clock=lambda: 0.0).collect():
        for sample in family.samples if family.name in names else ():
            found.setdefault(sample.labels["device"], {})[family.name] = int(sample.value)
    return {
        uuid: (values[names[0]], values[names[1]], values[names[2]])
        for uuid, values in found.items()
        if values[names[0]]
    }


def read(world: World) -> dict[str, dict[str, str]]:
    """The rows of `hamictl pods` and `hamictl nodes`."""
    unused: Any = None
    api = read_api.ReadApi(world.core, unused, read_access.OpenGate(), lambda: True)
    (pod_row,) = views.pod_rows(list(asyncio.run(api._pods(None))), 0)  # what the path `pods` answers
    (node_row,) = views.node_rows([api._node(identifiers.NodeName(NODE))])  # likewise `nodes`
    return {"pod": pod_row, "node": node_row}


def cluster(*bound: dict[str, Any]) -> snapshot.State:
    nodes = [msgspec.convert(node(), objects.Node, strict=False)]
    return snapshot.State(
        snapshot.VERSION, "", nodes, [msgspec.convert(one, objects.Pod, strict=False) for one in bound], []
    )


def problems(bound: dict[str, Any]) -> list[str]:
    """What `hamictl doctor` says of the pod and the GPUs."""
    found = record_checks.checks(record_checks.Observation(cluster(bound), None, "", 0.0), NAMES)
    return [one.detail for _, check in found for one in check if one.about.startswith(("pod/", "gpu/"))]


def simulate(body: dict[str, Any]) -> list[simulation.Outcome]:
    made = manifests.read(pathlib.Path("pod.yaml"), yaml.safe_dump(body), None, cluster().nodes).pods
    assert from_objects.is_ours(msgspec.convert(made[0], objects.Pod, strict=False), NAMES)
    return simulation.Simulation(cluster(), Settings()).place_all(made)
