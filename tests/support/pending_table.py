"""Pods that are pending, each for another cause, on one small cluster, and the first line of each explanation.

The real kube-scheduler writes the conditions in the end-to-end test; the component test writes what it wrote there.
"""

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from gpu_sharing.core import records
from lab import gpus

GPU, MEMORY, CORES = "nvidia.com/gpu", "nvidia.com/gpumem", "nvidia.com/gpucores"
TYPE, UUID, MODE = "nvidia.com/use-gputype", "nvidia.com/use-gpuuuid", "nvidia.com/vgpu-mode"
PREEMPTION = "preemption: 0/7 nodes are available: 7 Preemption is not helpful for scheduling."


def nodes() -> list[dict[str, Any]]:
    """Return one node of each kind: two that work, and one each that is cordoned, tainted, partly or wholly useless."""
    cordoned = gpus.gpu_node("cordoned", gpus.L40S, 2, labels={"zone": "earth"})
    cordoned["spec"] = {"unschedulable": True}
    tainted = gpus.gpu_node("tainted", gpus.H100, 2, labels={"zone": "moon"})
    tainted["spec"] = {"taints": [{"key": "team", "value": "ml", "effect": "NoSchedule"}]}
    kept_out = ",".join(gpus.gpu_uuid("gpus-cordoned", index) for index in range(2))
    unhealthy = [dataclasses.replace(one, healthy=False) for one in gpus.inventory("sick", gpus.V100, 2)]
    return [
        gpus.gpu_node("large", gpus.A100, 2, cpus=64, labels={"zone": "earth"}),
        gpus.gpu_node("small", gpus.T4, 2, cpus=16, labels={"zone": "moon"}),
        cordoned,
        tainted,
        gpus.gpu_node("gpus-cordoned", gpus.A10, 2, annotations={records.CORDON: kept_out}),
        gpus.gpu_node("sick", gpus.V100, 2, annotations={records.INVENTORY: records.encode_inventory(unhealthy)}),
        gpus.gpu_node("cpu-only", gpus.A100, 0, cpus=256),
    ]


def pod(
    name: str, limits: Mapping[str, str], annotations: Mapping[str, str] | None = None, **spec: Any
) -> dict[str, Any]:
    """Return a pod with one container."""
    container = {"name": "main", "image": "train:1", "resources": {"limits": dict(limits), "requests": dict(limits)}}
    return {
        "metadata": {"name": name, "annotations": dict(annotations or {})},
        "spec": {"schedulerName": "hami-scheduler", "containers": [container], **spec},
    }


def _with_port(body: dict[str, Any]) -> dict[str, Any]:
    """Return a pod with a port of its node."""
    body["spec"]["containers"][0]["ports"] = [{"containerPort": 9445, "hostPort": 9445}]
    return body


HOLDERS = {
    "holds-large": (
        "large",
        _with_port(pod("holds-large", {GPU: "2", MEMORY: "60000", "cpu": "48"}, {TYPE: "A100"})),
    ),
    "holds-small": ("small", pod("holds-small", {GPU: "2", MEMORY: "4000", CORES: "80"}, {TYPE: "T4"})),
}
"""Pods that are bound before the others are created, and their nodes."""

QUOTA = {
    "apiVersion": "v1", "kind": "ResourceQuota", "metadata": {"name": "share"},
    "spec": {"hard": {"limits.nvidia.com/gpumem": "2000"}},
}  # fmt: skip
"""Of the namespace `limited`."""
CLAIM = {
    "apiVersion": "v1", "kind": "PersistentVolumeClaim", "metadata": {"name": "unbound"},
    "spec": {"accessModes": ["ReadWriteOnce"], "resources": {"requests": {"storage": "1Gi"}}, "storageClassName": ""},
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class Case:
    """One pending pod.

    Attributes:
        cause: What is in the way.
        body: The pod.
        first: The first line of the explanation, after the pod's name.
        condition: kube-scheduler's message, where the cause cannot be known without it; for tests without one.
        namespace: Where it is created.
    """

    cause: str
    body: dict[str, Any]
    first: str
    condition: str = ""
    namespace: str = "default"
    reason: str = field(default="Unschedulable")


ONE = {GPU: "1", MEMORY: "1000"}


def _named(node: str) -> dict[str, str]:
    return {"kubernetes.io/hostname": node}


def _member(
    gang: str, size: int, limits: Mapping[str, str], annotations: Mapping[str, str] | None = None
) -> dict[str, Any]:
    """Return one member of a gang, with the gate that the webhook sets."""
    own = {"hami.io/gang": gang, "hami.io/gang-size": str(size), **(annotations or {})}
    return pod(f"gang-of-{gang}", limits, own, schedulingGates=[{"name": "hami.io/gang"}])


def _affinity(key: str, *values: str) -> dict[str, Any]:
    term = {"matchExpressions": [{"key": key, "operator": "In", "values": list(values)}]}
    return {"nodeAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": {"nodeSelectorTerms": [term]}}}


def _apart() -> dict[str, Any]:
    term = {"topologyKey": "kubernetes.io/hostname", "labelSelector": {}}
    return {"podAntiAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": [term]}}


def _beside(app: str) -> dict[str, Any]:
    term = {"topologyKey": "kubernetes.io/hostname", "labelSelector": {"matchLabels": {"app": app}}}
    return {"podAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": [term]}}


def _volumes(claim: str) -> dict[str, Any]:
    return {"volumes": [{"name": "data", "persistentVolumeClaim": {"claimName": claim}}]}


TABLE = [
    Case(
        "capacity: memory", pod("memory", {GPU: "1", MEMORY: "40000"}, {TYPE: "A100"}),
        "GPU memory insufficient (requested 40,000 MiB, available 21,920 MiB) on large",
    ),
    Case(
        "capacity: cores", pod("cores", {GPU: "1", MEMORY: "1000", CORES: "50"}, {TYPE: "T4"}),
        "GPU cores insufficient (requested 50%, available 20%) on small",
    ),
    Case(
        "capacity: exclusive", pod("exclusive", {GPU: "1", MEMORY: "1000", CORES: "100"}, {TYPE: "T4"}),
        "no GPU free for exclusive use on small",
    ),
    Case(
        "type", pod("type", ONE, {TYPE: "H200"}),
        "no GPU here is of type H200; the GPUs here are NVIDIA A10, NVIDIA A100-SXM4-80GB, NVIDIA H100 80GB HBM3, "
        "NVIDIA L40S, NVIDIA-Tesla T4 and 1 more",
    ),
    Case("UUID", pod("uuid", ONE, {UUID: "GPU-nowhere"}), "no GPU here has the UUID GPU-nowhere"),
    Case("mode", pod("mode", ONE, {MODE: "mig"}), "no GPU here runs in mode mig; the GPUs here run in hami-core"),
    Case(
        "impossible: memory", pod("huge", {GPU: "1", MEMORY: "200000"}),
        "no GPU here has 200,000 MiB; the largest has 81,920 MiB (NVIDIA A100-SXM4-80GB)",
    ),
    Case(
        "impossible: memory of a type", pod("huge-of-type", {GPU: "1", MEMORY: "20000"}, {TYPE: "T4"}),
        "no GPU here that the pod accepts has 20,000 MiB; the largest has 15,360 MiB (NVIDIA-Tesla T4)",
    ),
    Case(
        "impossible: count", pod("many", {GPU: "16", MEMORY: "1000"}),
        "no node here has 16 GPUs for one container; the most is 2 (cordoned)",
    ),
    Case(
        "cordoned node", pod("on-cordoned", ONE, {TYPE: "L40S"}),
        "node cordoned is cordoned, where its GPUs would fit",
    ),
    Case(
        "cordoned node, by its name", pod("on-cordoned-name", ONE, nodeSelector=_named("cordoned")),
        "node cordoned is cordoned, where its GPUs would fit",
    ),
    Case(
        "cordoned GPUs", pod("on-cordoned-gpus", ONE, nodeSelector=_named("gpus-cordoned")),
        "GPU cordoned on gpus-cordoned",
    ),
    Case("unhealthy GPUs", pod("on-sick", ONE, {TYPE: "V100"}), "GPU unhealthy on sick"),
    Case(
        "gate", pod("gated", ONE, schedulingGates=[{"name": "example.com/approval"}]),
        "the scheduling gate example.com/approval keeps kube-scheduler from trying the pod",
        "Scheduling is blocked due to non-empty scheduling gates", reason="SchedulingGated",
    ),
    Case(
        "two gates", pod("gated-twice", ONE, schedulingGates=[{"name": "example.com/a"}, {"name": "example.com/b"}]),
        "the scheduling gates example.com/a, example.com/b keep kube-scheduler from trying the pod",
        "Scheduling is blocked due to non-empty scheduling gates", reason="SchedulingGated",
    ),
    Case(
        "selector: value", pod("to-mars", ONE, nodeSelector={"zone": "mars"}),
        "nodeSelector zone=mars matches no node with GPUs; they have zone=earth, zone=moon",
    ),
    Case(
        "selector: key", pod("to-ssd", ONE, nodeSelector={"disk": "ssd"}),
        "nodeSelector disk=ssd matches no node with GPUs; none has the label disk",
    ),
    Case(
        "affinity", pod("to-venus", ONE, affinity=_affinity("zone", "venus", "mars")),
        "required affinity zone In (venus, mars) matches no node with GPUs",
    ),
    Case(
        "taint", pod("on-tainted", ONE, {TYPE: "H100"}),
        "the pod does not tolerate its taint team=ml:NoSchedule (tainted), where its GPUs would fit",
    ),
    Case(
        "CPU: more than a node has", pod("cpu-huge", {**ONE, "cpu": "200"}, {TYPE: "A100"}),
        "the pod requests 200 CPU, the whole node has 64 CPU (large), where its GPUs would fit",
    ),
    Case(
        "CPU: more than is free", pod("cpu", {**ONE, "cpu": "32"}, {TYPE: "A100"}),
        "Insufficient cpu on 2 nodes: the pod requests 32 CPU; the largest node has 64 CPU in all; "
        "its GPUs would fit on large",
        "0/7 nodes are available: 1 node(s) had untolerated taint(s), 1 node(s) were unschedulable, 2 Insufficient "
        f"cpu, 1 Insufficient nvidia.com/gpu, 2 device type mismatch. {PREEMPTION}",
    ),
    Case(
        "memory of the node", pod("memory-huge", {**ONE, "memory": "2Ti"}, {TYPE: "A100"}),
        "the pod requests 2,097,152 MiB of memory, the whole node has 1,048,576 MiB of memory (large), "
        "where its GPUs would fit",
    ),
    Case(
        "claim that is absent", pod("no-claim", ONE, **_volumes("nowhere")),
        'kube-scheduler: persistentvolumeclaim "nowhere" not found',
        '0/7 nodes are available: persistentvolumeclaim "nowhere" not found. not found',
    ),
    Case(
        "claim that is not bound", pod("unbound-claim", ONE, **_volumes("unbound")),
        "kube-scheduler: pod has unbound immediate PersistentVolumeClaims",
        f"0/7 nodes are available: pod has unbound immediate PersistentVolumeClaims. {PREEMPTION}",
    ),
    Case(
        "quota", pod("over-quota", {GPU: "1", MEMORY: "3000"}),
        "quota exceeded (namespace limited): GPU memory requested 3,000 MiB, left 2,000 MiB of 2,000 MiB by share",
        namespace="limited",
    ),
    Case(
        "gang that is incomplete",
        _member("three", 3, ONE),
        "waits for its gang (three: 1 of 3 members are there)",
        "Scheduling is blocked due to non-empty scheduling gates", reason="SchedulingGated",
    ),
    Case(
        "gang for which too little is free",
        _member("one", 1, {GPU: "2", MEMORY: "1000", CORES: "100"}, {TYPE: "A100"}),
        "no GPU free for exclusive use on large",
        "Scheduling is blocked due to non-empty scheduling gates", reason="SchedulingGated",
    ),
    Case(
        "schedulerName", pod("default-scheduler", ONE, schedulerName="default-scheduler"),
        "schedulerName is default-scheduler, and GPUs are allocated by hami-scheduler",
    ),
    Case(
        "schedulerName, misspelled", pod("misspelled-scheduler", ONE, schedulerName="hami-schedulr"),
        "schedulerName is hami-schedulr, and GPUs are allocated by hami-scheduler",
    ),
    Case(
        "resource, misspelled", pod("misspelled", {GPU: "1", "nvidia.com/gpumemm": "4000"}),
        "no node has the resource nvidia.com/gpumemm; the known one is nvidia.com/gpumem",
        f"0/7 nodes are available: 7 Insufficient nvidia.com/gpumemm. {PREEMPTION}",
    ),
    Case(
        "request that cannot be read", pod("unreadable", {GPU: "1", CORES: "500"}),
        "container main: nvidia.com/gpucores: '500' is outside 0 to 100 percent",
    ),
    Case(
        "affinity to pods", pod("beside", ONE, {TYPE: "A100"}, affinity=_beside("nowhere")),
        "kube-scheduler: 4 node(s) didn't match pod affinity rules; its GPUs would fit on large",
        "0/7 nodes are available: 1 node(s) had untolerated taint(s), 1 node(s) were unschedulable, "
        f"4 node(s) didn't match pod affinity rules, 1 Insufficient nvidia.com/gpu. {PREEMPTION}",
    ),
    Case(
        "storage of the node", pod("storage", {**ONE, "ephemeral-storage": "2Ti"}, {TYPE: "A100"}),
        "kube-scheduler: 5 Insufficient ephemeral-storage; its GPUs would fit on large",
        "0/7 nodes are available: 1 node(s) had untolerated taint(s), 1 node(s) were unschedulable, "
        f"5 Insufficient ephemeral-storage. {PREEMPTION}",
    ),
    Case(
        "resource of another vendor", pod("infiniband", {**ONE, "rdma/hca": "1"}, {TYPE: "A100"}),
        "kube-scheduler: 5 Insufficient rdma/hca; its GPUs would fit on large",
        "0/7 nodes are available: 1 node(s) had untolerated taint(s), 1 node(s) were unschedulable, "
        f"5 Insufficient rdma/hca. {PREEMPTION}",
    ),
    Case(
        "port of the node", _with_port(pod("port", ONE, {TYPE: "A100"})),
        "kube-scheduler: 1 node(s) didn't have free ports for the requested pod ports; its GPUs would fit on large",
        "0/7 nodes are available: 1 node(s) had untolerated taint(s), 1 node(s) were unschedulable, "
        f"1 node(s) didn't have free ports for the requested pod ports, 3 device type mismatch. {PREEMPTION}",
    ),
    Case(
        "anti-affinity of pods", pod("apart", ONE, {TYPE: "A100"}, affinity=_apart()),
        "kube-scheduler: 2 node(s) didn't match pod anti-affinity rules; its GPUs would fit on large",
        "0/7 nodes are available: 1 node(s) had untolerated taint(s), 1 node(s) were unschedulable, 2 node(s) didn't "
        f"match pod anti-affinity rules, 3 device type mismatch. {PREEMPTION}",
    ),
]  # fmt: skip
"""Every pod here stays pending."""

UNKNOWN = {
    "trian-7": "no pod default/trian-7 requests GPUs; did you mean default/train-7?",
    "elsewhere": "there is no pod default/elsewhere; it exists in namespace limited",
    "no-gpu": "default/no-gpu exists and requests no GPU",
    "only-misspelled": "default/only-misspelled exists and requests no GPU",
    "ended": "default/ended has ended (Succeeded), so it neither waits nor holds GPUs",
    "nothing-like-it": "no pod default/nothing-like-it requests GPUs",
}
"""Names that are asked for and that the extender does not know, and the first line."""
OTHERS = [
    ("default", pod("train-7", ONE, {TYPE: "H200"})),
    ("limited", pod("elsewhere", ONE, {TYPE: "H200"})),
    ("default", pod("no-gpu", {"cpu": "1"}, nodeSelector={"zone": "mars"})),
    ("default", pod("only-misspelled", {"nvidia.com/gpumemm": "4000"}, schedulerName="absent")),
    ("default", pod("ended", ONE, schedulerName="absent")),
]
"""The pods that they mean; `ended` is to end before it is asked for."""
ENDED = {"status": {"phase": "Succeeded"}}
