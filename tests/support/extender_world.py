"""The extender's decisions without a cluster: a mirror with everything that decides on it, and objects to show it."""

from typing import Any

import msgspec
import orjson

from gpu_sharing.adapters import objects
from gpu_sharing.core import allocations, identifiers, records
from lab import gpus
from scheduler_extender.act import waking
from scheduler_extender.cluster import measured_usage
from scheduler_extender.cluster.mirror import Mirror
from scheduler_extender.decide import verbs
from scheduler_extender.decide.placer import Placer
from scheduler_extender.metrics import Metrics
from scheduler_extender.report.decision_events import DecisionEvents
from scheduler_extender.settings import Settings
from tests.support import fakes

A100 = gpus.Model("NVIDIA A100", 16_000)
LIMITS = {"nvidia.com/gpu": "1", "nvidia.com/gpumem": "4000"}


class Clock:
    now = 1000.0

    def __call__(self) -> float:
        return self.now


class World:
    """A mirror with everything that decides on it."""

    def __init__(self, *nodes: dict[str, Any], **changes: Any) -> None:
        self.clock = Clock()
        settings, metrics = Settings(**changes), Metrics()
        self.mirror = Mirror(settings, metrics, self.clock)
        self.recorder = fakes.SilentRecorder()
        self.placer = Placer(self.mirror.ledger, settings, self.clock)
        self.decision_events = DecisionEvents(
            self.mirror, self.placer, self.recorder, settings, lambda: True, self.clock
        )
        self.mirror.listener = self.decision_events
        self.refusals = waking.Refusals(self.mirror, self.placer, settings, metrics, self.clock)
        self.usage = measured_usage.MeasuredUsage(settings, self.clock)
        self.verbs = verbs.Verbs(
            self.mirror, self.placer, self.decision_events, self.refusals, settings, metrics, self.usage, self.clock
        )
        for node in nodes:
            self.mirror.see_node(msgspec.convert(node, objects.Node))

    def see(self, pod: dict[str, Any]) -> None:
        self.mirror.see_pod(msgspec.convert(pod, objects.Pod))

    def filter(self, pod: dict[str, Any], *names: str) -> dict[str, Any]:
        answer: dict[str, Any] = orjson.loads(
            self.verbs.filter(orjson.dumps({"Pod": pod, "Nodes": None, "NodeNames": names}))
        )
        return answer

    def prioritize(self, pod: dict[str, Any], *names: str) -> dict[str, int]:
        answer = self.verbs.prioritize(orjson.dumps({"Pod": pod, "Nodes": None, "NodeNames": names}))
        return {entry["Host"]: entry["Score"] for entry in orjson.loads(answer)}


def pod(name: str, limits: dict[str, str] | None = None, node: str = "", **more: Any) -> dict[str, Any]:
    metadata: dict[str, Any] = {"name": name, "namespace": "default", "uid": f"uid-{name}", "resourceVersion": "1"}
    metadata["annotations"] = more.pop("annotations", {})
    containers = [{"name": "c", "resources": {"limits": LIMITS if limits is None else limits}}]
    status = more.pop("status", {"phase": "Pending"})
    spec = {"schedulerName": "hami-scheduler", "nodeName": node, "containers": containers, **more}
    return {"metadata": metadata, "spec": spec, "status": status}


def held(name: str, node: str, index: int, memory_mib: int, cores: int = 0) -> dict[str, Any]:
    shares = ((allocations.Share(gpus.gpu_uuid(node, index), memory_mib, cores),),)
    annotations = records.pod_annotations(shares, identifiers.NodeName(node), 0, identifiers.DecisionId("d"))
    return pod(name, node=node, annotations=annotations)


def quota(**limits: str) -> objects.ResourceQuota:
    body = {
        "metadata": {"name": "team", "namespace": "default"},
        "spec": {"hard": {"limits.nvidia.com/" + key: value for key, value in limits.items()}},
    }
    return msgspec.convert(body, objects.ResourceQuota)
