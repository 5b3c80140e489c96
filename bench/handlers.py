"""The time of filter and prioritize in the handler, compared with the floor: JSON alone.

The floor is the time of orjson to parse both bodies and to write both answers. The order of names differs in each call,
as from kube-scheduler; each call has a new pod, and between calls one pod is bound, as in a queue.
"""

import random
import statistics
import time
from typing import Any

import msgspec
import orjson

from bench import report
from gpu_sharing.adapters import objects
from gpu_sharing.core import allocations, identifiers, records
from lab import gpus
from scheduler_extender.cluster.mirror import Mirror
from scheduler_extender.decide.core import DecisionCore
from scheduler_extender.metrics import Metrics
from scheduler_extender.report.decision_events import DecisionEvents
from scheduler_extender.serve import server
from scheduler_extender.settings import Settings

TARGET = 10.0


class _Silent:
    """Drops all events of the benchmark."""

    def record(self, event: object) -> None:
        del event


def run(quick: bool) -> report.Report:
    sizes, calls = ((50,), 20) if quick else ((100, 1000, 5000), 200)
    rows: list[list[Any]] = []
    missed = []
    for nodes in sizes:
        for filled_percent in (0, 60):
            row = _measure(nodes, filled_percent, calls)
            rows.append([nodes, f"{filled_percent} %", *row])
            if nodes == 5000 and row[-1] > TARGET:
                missed.append(f"{nodes} nodes, {filled_percent} % filled: {row[-1]:.1f} x the floor, wanted {TARGET}")
    return report.Report(
        "filter + prioritize in the handler, p50 in ms",
        ["nodes", "filled", "filter", "prioritize", "both", "both, p99", "floor", "both / floor"],
        rows,
        {"calls": calls, "GPUs per node": 8, "pod": "4000 MiB, 30 % cores, a 4 KB manifest"},
        missed,
    )


def _measure(nodes: int, filled_percent: int, calls: int) -> list[float]:
    names = [f"node-{index:05d}" for index in range(nodes)]
    core, verbs = cluster(names, filled_percent)
    shuffler = random.Random(1)
    filters, priorities, floors = [], [], []
    for call in range(calls):
        shuffler.shuffle(names)
        pod = pending_body(call)
        body = orjson.dumps({"Pod": pod, "Nodes": None, "NodeNames": names})
        started = time.perf_counter()
        answer, _ = verbs.filter(body)
        filtered = time.perf_counter()
        left = orjson.loads(answer)["NodeNames"]
        second = orjson.dumps({"Pod": pod, "Nodes": None, "NodeNames": left})
        begun = time.perf_counter()
        scores, _ = verbs.prioritize(second)
        ended = time.perf_counter()
        filters.append(filtered - started)
        priorities.append(ended - begun)
        floors.append(_floor(body, answer, second, scores))
        best = next(entry["Host"] for entry in orjson.loads(scores) if entry["Score"])
        _bind(core, pod["metadata"]["uid"], best)
    both = sorted(a + b for a, b in zip(filters, priorities, strict=True))
    floor = statistics.median(floors)
    p50 = statistics.median(both)
    return [
        1000 * value
        for value in (
            statistics.median(filters), statistics.median(priorities), p50, both[int(len(both) * 0.99) - 1], floor,
        )
    ] + [p50 / floor]  # fmt: skip


def _floor(body: bytes, answer: bytes, second: bytes, scores: bytes) -> float:
    one, other = orjson.loads(answer), orjson.loads(scores)
    started = time.perf_counter()
    orjson.loads(body)
    orjson.dumps(one)
    orjson.loads(second)
    orjson.dumps(other)
    return time.perf_counter() - started


def cluster(names: list[str], filled_percent: int) -> tuple[DecisionCore, server.VerbServer]:
    """Return an extender without a cluster: nodes of 8 GPUs, and pods on that share of them."""
    core = DecisionCore(Settings(), Metrics())
    for name in names:
        core.mirror.see_node(msgspec.convert(gpus.gpu_node(name, gpus.A100, 8), objects.Node))
    decision_events = DecisionEvents(core, _Silent(), lambda: True)
    chosen = random.Random(2)
    for index in range(len(names) * 8 * filled_percent // 100 * 2):
        _hold(core.mirror, index, chosen.choice(names), chosen.randrange(8))
    core.ledger.settle()
    binder: Any = None
    return core, server.VerbServer(core, binder, decision_events, lambda: None)


def _hold(mirror: Mirror, index: int, node: str, gpu: int) -> None:
    shares = ((allocations.Share(gpus.gpu_uuid(node, gpu), 20_000, 20),),)
    annotations = records.pod_annotations(shares, identifiers.NodeName(node), 0, identifiers.DecisionId("d"))
    pod = pending_body(1_000_000 + index)
    pod["metadata"]["annotations"] = annotations
    pod["spec"]["nodeName"] = node
    mirror.see_pod(msgspec.convert(pod, objects.Pod))


def _bind(core: DecisionCore, uid: str, node: str) -> None:
    """Update the ledger as a bind does."""
    entry = core.pending.entry(identifiers.PodUid(uid))
    assert entry is not None
    assert entry.decision is not None
    pod = pending_body(int(uid.split("-")[1]))
    shares = ((allocations.Share(gpus.gpu_uuid(node, 0), 4000, 30),),)
    pod["metadata"]["annotations"] = records.pod_annotations(
        shares, identifiers.NodeName(node), 0, identifiers.DecisionId("d")
    )
    pod["spec"]["nodeName"] = node
    core.mirror.see_pod(msgspec.convert(pod, objects.Pod))


def pending_body(index: int) -> dict[str, Any]:
    """Return a pending pod with one share."""
    limits = {"nvidia.com/gpu": "1", "nvidia.com/gpumem": "4k", "nvidia.com/gpucores": "30"}
    return {
        "metadata": {"name": f"pod-{index}", "namespace": "default", "uid": f"uid-{index}", "labels": {"app": "train"}},
        "spec": {
            "schedulerName": "hami-scheduler",
            "containers": [
                {
                    "name": "main",
                    "image": "registry.example/train:1",
                    "env": [{"name": f"VARIABLE_{n}", "value": "x" * 40} for n in range(45)],
                    "resources": {"limits": limits, "requests": limits},
                }
            ],
        },
        "status": {"phase": "Pending"},
    }
