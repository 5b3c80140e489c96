"""Objects that a tenant, or the account of one node's plugin, may throw at the API server.

Each is named, and says with which status the API server answers where that is certain: 201 or 200 taken, 403 refused by
a policy or for want of a right, 422 no such object. 0 stands for either: what the webhook refuses is taken without it.
"""

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from gpu_sharing.core import gangs, records
from lab import gpus

LARGEST = "9223372036854775807"
EVIL = "evil"
"""The node whose plugin's account is in wrong hands."""
PICKED = "picked"
"""The node on which the tenant puts pods without a scheduler. No kubelet is here that would refuse them."""
DEEP = "[" * 20_000


@dataclass(frozen=True)
class Throw:
    """One call.

    Attributes:
        name: In the words of a test.
        method: Of HTTP.
        path: Below the tenant's namespace, or whole where it begins with a slash.
        body: As JSON.
        by: `tenant` or `plugin`.
        status: With which it is answered; 0 where that is not certain.
    """

    name: str
    body: Any
    method: str = "POST"
    path: str = "pods"
    by: str = "tenant"
    status: int = 0
    more: tuple[Any, ...] = field(default=())
    """More bodies, sent one after another."""


def pod(
    name: str, *limits: Mapping[str, Any], annotations: Mapping[str, str] | None = None, **spec: Any
) -> dict[str, Any]:
    """Return a pod with a container for each set of limits; our scheduler's unless it says otherwise."""
    containers = spec.pop("containers", None) or [
        {"name": f"c{index}", "image": "x", "resources": {"limits": dict(one)}} for index, one in enumerate(limits)
    ]
    whole = {"schedulerName": "hami-scheduler", "containers": containers, **spec}
    return {"metadata": {"name": name, "annotations": dict(annotations or {})}, "spec": whole}


def _limits(count: str = "1", **more: str) -> dict[str, str]:
    """Return what a container requests; little memory by default, so that it takes no GPU for itself."""
    named = {f"nvidia.com/{name.replace('_', '-')}": value for name, value in more.items()}
    return {"nvidia.com/gpu": count, "nvidia.com/gpumem": "10", **named}


def _many(count: int) -> dict[str, str]:
    return {f"{number:05x}": "" for number in range(count)}


def _amounts() -> Iterator[Throw]:
    away: dict[str, Any] = {"nodeName": PICKED, "schedulerName": "somebody-elses"}
    huge = _limits(LARGEST)
    yield Throw("a huge count twice on a node of its choice", pod("a1", huge, huge, **away), status=201)
    yield Throw("a huge count for our scheduler", pod("a2", huge))
    yield Throw("a count beyond a billion", pod("a3", _limits("1e18")))
    yield Throw("a huge amount of memory", pod("a4", _limits(gpumem=LARGEST)))
    yield Throw(
        "a huge amount of memory on a node of its choice", pod("a5", _limits(gpumem=LARGEST), **away), status=201
    )
    yield Throw("memory beyond what a quantity holds", pod("a6", _limits(gpumem="1e30")))
    yield Throw("huge cores", pod("a7", _limits(gpucores=LARGEST)))
    yield Throw("huge cores and percentage elsewhere",
                pod("a8", _limits(gpucores=LARGEST, gpumem_percentage=LARGEST), **away), status=201)  # fmt: skip
    yield Throw("a huge task priority", pod("a9", _limits(priority=LARGEST)))
    yield Throw("more GPUs than any node has", pod("a10", _limits("65"), _limits("64", gpumem="1")))
    yield Throw("memory without a count", pod("a11", {"nvidia.com/gpumem": "1000"}))
    yield Throw("a negative count", pod("a12", _limits("-1")))
    yield Throw("a fraction of a GPU", pod("a13", _limits("0.5")))
    yield Throw("many huge containers", pod("a14", *[huge] * 100, **away), status=201)
    init = [{"name": "i", "image": "x", "resources": {"limits": huge}}]
    yield Throw("a huge init container", pod("a15", _limits(), initContainers=init, **away), status=201)
    sidecar = [{**init[0], "restartPolicy": "Always"}]
    yield Throw("a huge sidecar", pod("a16", _limits(), initContainers=sidecar, **away), status=201)


def _gangs() -> Iterator[Throw]:
    def member(name: str, size: str, count: str = "1") -> dict[str, Any]:
        return pod(name, _limits(count), annotations={gangs.NAME: "g", gangs.SIZE: size})

    yield Throw("a gang of a hundred million", member("g1", "100000000"))
    yield Throw("a gang member that requests a huge count", member("g2", "2", LARGEST))
    yield Throw("a gang size of thousands of digits", member("g3", "9" * 4_500))
    yield Throw("a gang size in other digits", member("g4", "١٢"))
    yield Throw(
        "a gang name of 200 KiB", pod("g5", _limits(), annotations={gangs.NAME: "x" * 200_000, gangs.SIZE: "2"})
    )
    yield Throw("a gang of one that never fits", member("g6", "1", "64"))


def _metadata() -> Iterator[Throw]:
    away: dict[str, Any] = {"nodeName": PICKED, "schedulerName": "somebody-elses"}
    yield Throw("35,000 annotations", pod("m1", _limits(), annotations=_many(35_000)), status=403)
    yield Throw("35,000 annotations on a node", pod("m2", _limits(), annotations=_many(35_000), **away), status=403)
    yield Throw("one annotation of 256 KiB", pod("m3", _limits(), annotations={"x": "y" * 262_000}), status=201)
    types = ",".join(f"t{number}" for number in range(20_000))
    yield Throw("20,000 GPU types to use", pod("m4", _limits(), annotations={"nvidia.com/use-gputype": types}))
    yield Throw("20,000 GPUs to avoid", pod("m5", _limits(), annotations={"nvidia.com/nouse-gpuuuid": types}))
    yield Throw("deep JSON for a policy", pod("m6", _limits(), annotations={"hami.io/gpu-scheduler-policy": DEEP}))
    weights = "slot=" + "9" * 5_000
    yield Throw(
        "weights of thousands of digits", pod("m7", _limits(), annotations={"hami.io/device-scoring-weights": weights})
    )
    chain = ",".join(["binpack"] * 20_000)
    yield Throw("a chain of 20,000 policies", pod("m8", _limits(), annotations={"hami.io/gpu-scheduler-policy": chain}))
    yield Throw("a null byte in a mode", pod("m9", _limits(), annotations={"nvidia.com/vgpu-mode": "hami\0core"}))
    odd = {"nvidia.com/use-gputype": "\u202egnp.exe\u200b", "nvidia.com/numa-bind": "ｔｒｕｅ"}
    yield Throw("invisible letters", pod("m10", _limits(), annotations=odd))
    yield Throw("a name of 253 letters", pod("m" * 253, _limits()), status=201)
    labels = {"metadata": {"name": "m12", "labels": _many(10_000)}}
    yield Throw("10,000 labels", {**pod("m12", _limits()), **labels}, status=201)
    finalizers = {"metadata": {"name": "m13", "finalizers": ["x.io/stays"]}}
    yield Throw("a finalizer", {**pod("m13", _limits()), **finalizers}, status=201)


def _forged() -> Iterator[Throw]:
    share = f"{gpus.gpu_uuid('good', 0)},NVIDIA,80000,100:;"
    mig = json.dumps({"c0": [{"uuid": gpus.gpu_uuid("good", 0), "profile": "7g.80gb", "start": 1e300, "size": 8}]})
    notes = (
        {records.NODE: "good", records.ALLOCATED: share}, {records.ALLOCATED: DEEP}, {records.HOLD: "{}"},
        {records.MIG_ALLOCATIONS: mig.replace("1e+300", "1e999")}, {records.BIND_PHASE: "success"},
    )  # fmt: skip
    for number, annotations in enumerate(notes):
        forged = pod(f"f{number}", _limits(), annotations=annotations, nodeName="good", schedulerName="x")
        yield Throw(f"a forged {', '.join(annotations)}", forged, status=403)
    label = {"metadata": {"name": "f9", "labels": {records.NODE: "good"}}}
    yield Throw("a forged label", {**pod("f9", _limits()), **label}, status=403)
    nominated = {"status": {"nominatedNodeName": "good"}}
    yield Throw("a nomination of its own", nominated, "PATCH", "pods/a2/status", status=403)
    binding = {"target": {"kind": "Node", "name": "good"}, "metadata": {"name": "a2"}}
    yield Throw("a Binding of its own", binding, path="pods/a2/binding", status=403)
    yield Throw(
        "annotations of a node", {"metadata": {"annotations": {"x": "y"}}}, "PATCH", "/api/v1/nodes/good", status=403
    )


def _shapes() -> Iterator[Throw]:
    away: dict[str, Any] = {"nodeName": PICKED, "schedulerName": "somebody-elses"}
    small = {"resources": {"limits": _limits(gpumem="1")}}
    many = [{"name": f"c{number}", "image": "x", **small} for number in range(1_000)]
    yield Throw("1,000 containers with GPUs", pod("s1", containers=many))
    yield Throw("250 containers with GPUs on a node", pod("s2", containers=many[:250], **away), status=201)
    init = [{"name": f"i{number}", "image": "x", **small} for number in range(500)]
    yield Throw("500 init containers with GPUs", pod("s3", _limits(), initContainers=init))
    names = ("NVIDIA_VISIBLE_DEVICES", "CUDA_DEVICE_MEMORY_LIMIT_0", "LD_PRELOAD", "CUDA_DISABLE_CONTROL")
    env = [{"name": name, "value": "all"} for name in names] + [{"name": f"E{n}", "value": "x"} for n in range(10_000)]
    yield Throw("an environment of its own", pod("s4", containers=[{"name": "c", "image": "x", "env": env, **small}]))
    yield Throw("1,000 node selectors", pod("s5", _limits(), nodeSelector=_many(1_000)), status=201)
    expressions = [{"key": "x", "operator": "In", "values": [str(n) for n in range(100)]}] * 20
    terms = [{"matchExpressions": expressions}] * 50
    affinity = {"nodeAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": {"nodeSelectorTerms": terms}}}
    yield Throw("100,000 values of node affinity", pod("s6", _limits(), affinity=affinity), status=403)
    tolerations = [{"key": f"k{number}", "operator": "Exists"} for number in range(2_000)]
    yield Throw("2,000 tolerations", pod("s7", _limits(), tolerations=tolerations), status=201)
    gates = [{"name": f"x.io/g{number}"} for number in range(1_000)]
    yield Throw("1,000 scheduling gates", pod("s8", _limits(), schedulingGates=gates), status=201)
    nowhere = pod("s9", _limits(), nodeName="there-is-no-such-node", schedulerName="x")
    yield Throw("a node that does not exist", nowhere, status=201)
    yield Throw(
        "a resource of nearly our name", pod("s10", {**_limits(), "nvidia.com/gpumemory": "1", "nvidia.com/GPU": "1"})
    )


def _note(name: str, **notes: Any) -> Throw:
    """A write of the plugin's about its node; values that are no text are JSON."""
    written = {
        {"inventory": records.INVENTORY, "health": records.HEALTH, "score": records.SCORE, "agent": records.AGENT}[key]:
        value if isinstance(value, str) else json.dumps(value)
        for key, value in notes.items()
    }  # fmt: skip
    body = {"metadata": {"annotations": written}}
    return Throw(name, body, "PATCH", f"/api/v1/nodes/{EVIL}", "plugin", 200)


def _gpu(number: int, **more: Any) -> dict[str, Any]:
    known = {
        "id": f"GPU-{EVIL}-{number}", "index": number, "count": 10, "devmem": 16_000, "devcore": 100, "type": "T",
        "mode": "hami-core", "health": True,
    }  # fmt: skip
    return {**known, **more}


def _nodes() -> Iterator[Throw]:
    yield _note("1,500 GPUs", inventory=[_gpu(number) for number in range(1_500)])
    yield _note("10,000 empty GPUs", inventory="[" + ",".join(["{}"] * 10_000) + "]")
    yield _note("no numbers", inventory=json.dumps([_gpu(0, devmem=float("nan"), count=float("inf"))]))
    yield _note("1e999 MiB", inventory=json.dumps([_gpu(0)]).replace("16000", "1e999"))
    yield _note("more than 2^63 MiB", inventory=[_gpu(0, devmem=2**63, count=2**70, devcore=-1)])
    yield _note("a huge index", inventory=[_gpu(2**62), _gpu(0, index=-(2**40))])
    yield _note("one GPU twice", inventory=[_gpu(0), _gpu(0)])
    stolen = {"id": gpus.gpu_uuid("good", 0)}
    yield _note("another node's GPU", inventory=[_gpu(0, **stolen)])
    yield _note("deep JSON", inventory=DEEP)
    yield _note("no JSON", inventory="GPU-x,10,16000,100,T,0,true,0,hami-core:" * 3_000)
    yield _note("digits of another script", inventory="GPU-x,١٠,16000,100,T,0,true,0,hami-core:")
    yield _note("null bytes", inventory="\0" * 100_000, agent="\0")
    types = [
        {"metadata": {"annotations": {records.INVENTORY: json.dumps(
            [_gpu(number, type=f"T{turn}-{number}") for number in range(64)]
        )}}}
        for turn in range(12)
    ]  # fmt: skip
    first, *rest = types
    path = f"/api/v1/nodes/{EVIL}"
    yield Throw("768 type names", first, "PATCH", path, "plugin", 200, tuple(rest))
    yield Throw("type names of 200 KiB", {"metadata": {"annotations": {records.INVENTORY: json.dumps(
        [_gpu(0, type="T" * 200_000)])}}}, "PATCH", path, "plugin", 200)  # fmt: skip
    profile = {"name": "1g.10gb", "memoryMB": 10_000, "core": 14, "placements": [{"start": 1e300, "size": 2**40}] * 100}
    mig = json.dumps(
        [_gpu(0, mode="mig", migProfiles=[profile] * 20), _gpu(1, mode="mig", migProfiles=[profile])]
    ).replace("1e+300", "1e999")
    yield _note("MIG placements without end", inventory=mig)
    yield _note("a health report of 200 KiB", inventory=[_gpu(0)], health={f"GPU-{n}": "x" for n in range(10_000)})
    yield _note("a deep health report", health=DEEP)
    scores = [{"uuid": f"GPU-{n}", "score": {f"GPU-{m}": 2**60 for m in range(60)}} for n in range(60)]
    yield _note("huge link scores", score=scores)
    yield _note("an agent of 200 KiB", score="[]", agent="hami-py/" + "9" * 200_000)
    yield _note("an honest inventory again", inventory=[_gpu(0)], agent=records.OUR_AGENT, health="{}", score="[]")
    on_evil = "/api/v1/namespaces/tenant/pods/on-evil"
    note = {"metadata": {"annotations": {records.BIND_PHASE: "x" * 100_000}}}
    yield Throw("a phase of 100 KiB", note, "PATCH", on_evil, "plugin", 200)
    record = {"metadata": {"annotations": {records.ALLOCATED: "x"}}}
    yield Throw("a record of its own pod", record, "PATCH", on_evil, "plugin", 403)
    elsewhere = {"metadata": {"annotations": {records.INVENTORY: "[]"}}}
    yield Throw("another node's inventory", elsewhere, "PATCH", "/api/v1/nodes/good", "plugin", 403)
    label = {"metadata": {"labels": {"node-role.kubernetes.io/control-plane": ""}}}
    yield Throw("a role of its node", label, "PATCH", path, "plugin", 403)
    yield Throw("a finalizer of its node", {"metadata": {"finalizers": ["x.io/y"]}}, "PATCH", path, "plugin", 403)
    yield Throw("a taint of its node", {"spec": {"unschedulable": True}}, "PATCH", path, "plugin", 403)


def _unseen() -> Iterator[Throw]:
    """The pods again with the label that keeps the webhook from them, so that nothing about them was checked."""
    for one in (*_amounts(), *_gangs(), *_metadata(), *_shapes()):
        metadata = {**one.body["metadata"], "name": f"u-{one.body['metadata']['name'][:200]}"}
        metadata["labels"] = {**metadata.get("labels", {}), "hami.io/webhook": "ignore"}
        yield Throw(f"unseen by the webhook: {one.name}", {**one.body, "metadata": metadata})


THROWS = (*_amounts(), *_gangs(), *_metadata(), *_forged(), *_shapes(), *_unseen(), *_nodes())
"""All of them, in the order in which they are thrown: each meets what those before it left behind."""
