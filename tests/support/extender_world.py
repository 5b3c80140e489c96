"""The extender's decisions without a cluster: a mirror with everything that decides on it, and objects to show it."""

import asyncio
from typing import Any

import msgspec
import orjson

from gpu_sharing.adapters import objects
from gpu_sharing.core import allocations, identifiers, records
from lab import gpus
from scheduler_extender.act import binding
from scheduler_extender.cluster.pending import AnyPod, PendingPod
from scheduler_extender.decide import wake_order
from scheduler_extender.decide.core import DecisionCore
from scheduler_extender.metrics import Metrics
from scheduler_extender.report.decision_events import DecisionEvents
from scheduler_extender.serve import server
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
        self.core = DecisionCore(Settings(**changes), Metrics(), self.clock)
        self.mirror, self.placer, self.pending = self.core.mirror, self.core.placer, self.core.pending
        self.recorder = fakes.SilentRecorder()
        self.decision_events = self.mirror.listener = DecisionEvents(self.core, self.recorder, lambda: True)
        api: Any = None
        binder = binding.Binder(api, self.core, self.decision_events, lambda: True)
        self.server = server.VerbServer(self.core, binder, self.decision_events, lambda: None)
        for node in nodes:
            self.mirror.see_node(msgspec.convert(node, objects.Node))

    def due(self) -> list[PendingPod]:
        """Return the pods that would be woken now."""
        return [pod for pod in wake_order.pods_to_wake(self.core) if pod is not None]

    def listed(self, name: str) -> AnyPod:
        """Return a pending pod of the default namespace."""
        found = self.pending.by_key(f"default/{name}")
        assert found is not None
        return found

    def preempt(self, body: dict[str, Any]) -> Any:
        """Return the decoded answer of preempt."""
        return orjson.loads(asyncio.run(self.server.preempt(orjson.dumps(body))))

    def see(self, pod: dict[str, Any]) -> None:
        self.mirror.see_pod(msgspec.convert(pod, objects.Pod))

    def filter(self, pod: dict[str, Any], *names: str) -> dict[str, Any]:
        answer: dict[str, Any] = orjson.loads(
            self.server.filter(orjson.dumps({"Pod": pod, "Nodes": None, "NodeNames": names}))[0]
        )
        return answer

    def prioritize(self, pod: dict[str, Any], *names: str) -> dict[str, int]:
        answer, _ = self.server.prioritize(orjson.dumps({"Pod": pod, "Nodes": None, "NodeNames": names}))
        return {entry["Host"]: entry["Score"] for entry in orjson.loads(answer)}


def bind_call(body: dict[str, Any], node: str) -> binding.BindCall:
    """Return what kube-scheduler requests to bind a pod."""
    metadata = body["metadata"]
    key = f"{metadata.get('namespace', 'default')}/{metadata['name']}"
    return binding.BindCall(identifiers.PodUid(metadata["uid"]), key, identifiers.NodeName(node))


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
