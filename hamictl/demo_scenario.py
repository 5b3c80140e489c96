"""The pods of the demo, the feature that each shows, and its expected result."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from gpu_sharing.core import allocations, errors, gpus, records
from lab import gpus as fake

COUNT, MEMORY, PERCENT, CORES = (
    "nvidia.com/gpu", "nvidia.com/gpumem", "nvidia.com/gpumem-percentage", "nvidia.com/gpucores",
)  # fmt: skip
TYPE, UUID, GPU_POLICY = "nvidia.com/use-gputype", "nvidia.com/use-gpuuuid", "hami.io/gpu-scheduler-policy"


@dataclass(frozen=True, slots=True)
class World:
    """The objects of the API server at the end of the scenario."""

    pods: Mapping[str, Mapping[str, Any]]
    nodes: Mapping[str, Sequence[gpus.Gpu]]
    """The GPUs of each node."""
    notes: Mapping[str, Sequence[str]]
    """Notes of our events on each pod, `reason: note`."""
    environments: Mapping[str, Mapping[str, Mapping[str, str]]] = field(default_factory=dict)
    """The environment of each container that was started, by pod and container; empty where no device plugin runs."""

    def shares(self, name: str) -> allocations.Shares:
        """Return the shares of each container of a pod; empty if the pod is not bound."""
        pod = self.pods[name]
        text = (pod["metadata"].get("annotations") or {}).get(records.ALLOCATED)
        containers = [*pod["spec"].get("initContainers", ()), *pod["spec"]["containers"]]
        asking = [
            any(key.startswith("nvidia.com/") for key in one["resources"].get("limits", {})) for one in containers
        ]
        return records.decode_shares(text, asking) if text else ()

    def uuids(self, name: str) -> set[str]:
        """Return the GPUs that a pod holds."""
        return {share.uuid for shares in self.shares(name) for share in shares}

    def note(self, name: str, reason: str) -> str:
        """Return the note of a pod's last event of a reason, or an empty string."""
        notes = [note for note in self.notes.get(name, ()) if note.startswith(f"{reason}: ")]
        return notes[-1].partition(": ")[2] if notes else ""


@dataclass(frozen=True, slots=True)
class Expectation:
    """Something that must hold at the end."""

    what: str
    holds: Callable[[World], bool]


@dataclass(frozen=True, slots=True)
class Chapter:
    """Pods that are submitted together, and their expectations."""

    title: str
    pods: Sequence[dict[str, Any]]
    expectations: Sequence[Expectation] = field(default=())


def pod(
    name: str,
    *limits: Mapping[str, str],
    annotations: Mapping[str, str] | None = None,
    init: Mapping[str, str] | None = None,
) -> dict[str, Any]:
    """Return a pod with one container per set of limits, and an init container if `init` has its limits."""
    containers = [
        {"name": f"main-{index}" if index else "main", "image": "cuda", "resources": {"limits": dict(one)}}
        for index, one in enumerate(limits)
    ]
    spec: dict[str, Any] = {"schedulerName": "hami-scheduler", "containers": containers}
    if init:
        spec["initContainers"] = [{"name": "prepare", "image": "cuda", "resources": {"limits": dict(init)}}]
    return {"metadata": {"name": name, "annotations": dict(annotations or {})}, "spec": spec}


def nodes() -> list[dict[str, Any]]:
    """Return a small mixed cluster."""
    return [
        fake.gpu_node("node-01", fake.A100, 2),
        fake.gpu_node("node-02", fake.T4, 4),
        fake.gpu_node("node-03", fake.L40S, 2),
    ]


def one_gpu() -> list[dict[str, Any]]:
    """Return a node with one GPU, for experiments."""
    return [fake.gpu_node("node-01", fake.A10, 1)]


def two_by_two() -> list[dict[str, Any]]:
    """Return two nodes with two GPUs each: pods of a GPU that fails have somewhere to go."""
    return [fake.gpu_node(name, fake.A10, 2) for name in ("node-01", "node-02")]


def _one(memory: str = "", cores: str = "", **more: str) -> dict[str, str]:
    limits = {COUNT: "1", **more}
    return limits | ({MEMORY: memory} if memory else {}) | ({CORES: cores} if cores else {})


def _bound(*names: str) -> Expectation:
    return Expectation(
        f"{', '.join(names)} placed, each with a record and a Scheduled event",
        lambda world: all(world.uuids(n) and world.note(n, "Scheduled").startswith("Successfully") for n in names),
    )


def _rejected(name: str, *parts: str) -> Expectation:
    return Expectation(
        f"{name} is rejected, and its event has the reason for each node",
        lambda world: not world.uuids(name) and all(part in world.note(name, "FailedScheduling") for part in parts),
    )


def chapters() -> list[Chapter]:
    """Return the scenario, in order."""
    wanted = fake.gpu_uuid("node-03", 1)
    on_t4, on_l40s = {TYPE: "T4"}, {TYPE: "L40S"}
    return [
        Chapter(
            "Two pods share one GPU: memory and cores are allocated once",
            [pod(name, _one("4000", "30"), annotations=on_t4) for name in ("share-a", "share-b")],
            [
                _bound("share-a", "share-b"),
                Expectation(
                    "share-a and share-b are on one GPU (binpack)",
                    lambda w: w.uuids("share-a") == w.uuids("share-b"),
                ),
            ],
        ),
        Chapter(
            "Two pods with the policy spread get a GPU each",
            [
                pod("spread-a", _one("2000"), annotations={**on_t4, GPU_POLICY: "spread"}),
                pod("spread-b", _one("2000"), annotations={**on_t4, GPU_POLICY: "spread"}),
            ],
            [
                _bound("spread-a", "spread-b"),
                Expectation(
                    "spread-a and spread-b are on two GPUs",
                    lambda w: not w.uuids("spread-a") & w.uuids("spread-b"),
                ),
            ],
        ),
        Chapter(
            "A pod that requests only a GPU count has the GPU exclusively",
            [pod("whole", _one(), annotations={TYPE: "A100"})],
            [
                _bound("whole"),
                Expectation(
                    "no other pod is on the GPU of whole",
                    lambda w: not any(w.uuids("whole") & w.uuids(name) for name in w.pods if name != "whole"),
                ),
            ],
        ),
        Chapter(
            "A quarter of a GPU's memory, by percentage; a GPU by its UUID",
            [
                pod("quarter", _one(**{PERCENT: "25"}), annotations=on_l40s),
                pod("by-uuid", _one("8000"), annotations={UUID: wanted}),
            ],
            [
                _bound("quarter", "by-uuid"),
                Expectation(
                    "quarter holds 25 % of an L40S, rounded down to MiB",
                    lambda w: w.shares("quarter")[0][0].memory_mib == fake.L40S.memory_mib * 25 // 100,
                ),
                Expectation("by-uuid is on the GPU that it named", lambda w: w.uuids("by-uuid") == {wanted}),
            ],
        ),
        Chapter(
            "Several containers, several GPUs, and an init container",
            [
                pod("two-containers", _one("3000"), _one("5000")),
                pod("two-gpus", {COUNT: "2", MEMORY: "6000"}),
                pod("with-init", _one("6000"), init=_one("10000")),
            ],
            [
                _bound("two-containers", "two-gpus", "with-init"),
                Expectation("two-gpus holds two distinct GPUs", lambda w: len(w.uuids("two-gpus")) == 2),
                Expectation("with-init has one GPU for both of its phases", lambda w: len(w.uuids("with-init")) == 1),
            ],
        ),
        Chapter(
            "Too much memory, a missing type, an unreadable amount: each with its reason",
            [
                pod("too-big", _one("100000")),
                pod("wrong-type", _one("1000"), annotations={TYPE: "H200"}),
                pod("unclear", _one("8000000")),
            ],
            [
                _rejected(
                    "too-big",
                    "0/3 nodes available: 3 GPU memory insufficient",
                    "\n    node-02: GPU memory insufficient (requested 100000MB, available ",
                ),
                _rejected("wrong-type", "\n    node-01: device type mismatch (requested H200, has A100"),
                _rejected("unclear", "write MiB such as 4000, or bytes such as 4Gi"),
            ],
        ),
    ]  # fmt: skip


def bulk(node_count: int, pod_count: int) -> tuple[list[dict[str, Any]], list[Chapter]]:
    """Return many nodes of several models, and many pods of several kinds."""
    models = list(fake.MODELS.values())
    bodies = [fake.gpu_node(f"node-{index:04d}", models[index % len(models)], 8) for index in range(node_count)]
    kinds = (
        [_one("4000", "30")],
        [_one("2000")],
        [_one(**{PERCENT: "25"})],
        [_one("8000", "50")],
        [_one("1000"), _one("3000")],
    )
    pods = [pod(f"pod-{index:05d}", *kinds[index % len(kinds)]) for index in range(pod_count)]
    return bodies, [Chapter(f"{pod_count} pods on {node_count} nodes", pods)]


def balanced(world: World) -> bool:
    """Return whether no GPU has more memory, cores or slots allocated than it has."""
    have: dict[str, gpus.Gpu] = {gpu.uuid: gpu for inventory in world.nodes.values() for gpu in inventory}
    held: dict[str, allocations.Allocation] = {}
    for name, body in world.pods.items():
        init = body["spec"].get("initContainers", ())
        kinds = [allocations.Kind.INIT] * len(init) + [allocations.Kind.APP] * len(body["spec"]["containers"])
        try:
            shares = world.shares(name)
        except errors.CorruptRecord:
            return False
        for uuid, allocation in allocations.by_gpu(kinds, shares or [()] * len(kinds)).items():
            held[uuid] = held.get(uuid, allocations.NOTHING).plus(allocation)
    return all(
        uuid in have
        and allocation.memory_mib <= have[uuid].memory_mib
        and allocation.cores_percent <= have[uuid].cores_percent
        and allocation.slots <= have[uuid].slots
        and (not allocation.exclusive or allocation.slots == 1)
        for uuid, allocation in held.items()
    )


def common() -> list[Expectation]:
    """Return the expectations of every scenario."""

    def decided(world: World) -> bool:
        return all(
            world.uuids(name) or world.note(name, "FailedScheduling")
            for name in world.pods
            if _requests_gpu(world, name)
        )

    return [
        Expectation("no GPU has more memory, cores or slots allocated than it has", balanced),
        Expectation("every GPU pod is placed with a record, or has an event with the reason", decided),
    ]


def on_the_nodes() -> list[Expectation]:
    """Return the expectations of a cluster with a device plugin on each node."""

    def own_slice(world: World) -> bool:
        return all(_started_as_recorded(world, name) for name in world.pods if world.uuids(name))

    return [
        Expectation("every container was started with its own record's GPUs and limits", own_slice),
        Expectation(
            "every placed pod has a DeviceAllocated event",
            lambda world: all(world.note(name, "DeviceAllocated") for name in world.pods if world.uuids(name)),
        ),
    ]


def _started_as_recorded(world: World, name: str) -> bool:
    spec = world.pods[name]["spec"]
    containers = [*spec.get("initContainers", ()), *spec["containers"]]
    for container, shares in zip(containers, world.shares(name), strict=True):
        environment = world.environments.get(name, {}).get(container["name"], {})
        wanted = {"HAMI_GPUS": ",".join(share.uuid for share in shares)}
        wanted |= {f"CUDA_DEVICE_MEMORY_LIMIT_{i}": f"{share.memory_mib}m" for i, share in enumerate(shares)}
        if shares and not wanted.items() <= environment.items():
            return False
    return True


def _requests_gpu(world: World, name: str) -> bool:
    containers = world.pods[name]["spec"]["containers"]
    return any(COUNT in one["resources"].get("limits", {}) for one in containers)
