"""An API server in a dictionary, with the semantics of a Binding, that can lose answers. For state machines."""

import copy
from typing import Any
from urllib import parse

import msgspec
import orjson

from gpu_sharing.adapters import events, objects
from gpu_sharing.core import errors


class SilentRecorder:
    """Takes events and keeps them."""

    def __init__(self) -> None:
        self.told: list[events.Event] = []

    def record(self, event: events.Event) -> None:
        self.told.append(event)


class FakeApi:
    """Pods, and what a watcher of them would be sent.

    Attributes:
        pods: By name.
        stream: Events that nobody has read yet.
        told: How many events there were so far.
        protected: Pods that a disruption budget protects.
        evicted: Pods that were evicted, in order; they stay until somebody deletes them.
        loses: How the next Bindings go: `""` as they should, `"answer"` done but not answered, `"request"` neither.
    """

    def __init__(self) -> None:
        self.pods: dict[str, dict[str, Any]] = {}
        self.stream: list[tuple[str, dict[str, Any]]] = []
        self.loses: list[str] = []
        self._history: list[tuple[str, dict[str, Any]]] = []
        self._version = 0
        self.patches: list[tuple[str, Any]] = []
        self.protected: set[str] = set()
        self.evicted: list[str] = []

    def put(self, pod: dict[str, Any]) -> None:
        self._version += 1
        pod["metadata"]["resourceVersion"] = str(self._version)
        self.pods[pod["metadata"]["name"]] = pod
        self._tell("MODIFIED", copy.deepcopy(pod))

    def delete(self, name: str) -> None:
        self._tell("DELETED", self.pods.pop(name))

    @property
    def told(self) -> int:
        return len(self._history)

    def since(self, told: int) -> list[tuple[str, dict[str, Any]]]:
        """The events after the first `told`."""
        return self._history[told:]

    def _tell(self, kind: str, pod: dict[str, Any]) -> None:
        self._history.append((kind, pod))
        self.stream.append((kind, pod))

    async def post(self, path: str, body: bytes, timeout_seconds: float = 1.0) -> bytes:
        del timeout_seconds
        if "/eviction" in path:
            return self._evict(path, orjson.loads(body))
        outcome = self.loses.pop(0) if self.loses else ""
        if outcome == "request":
            raise errors.Unavailable("lost")
        binding = orjson.loads(body)
        name = parse.urlsplit(path).path.split("/")[6]
        pod = self.pods.get(name)
        if pod is None:
            raise errors.NotFound(name, 404)
        if pod["metadata"]["uid"] != binding["metadata"]["uid"]:
            raise errors.Conflict("Precondition failed: UID in precondition", 409)
        if pod["spec"].get("nodeName"):
            raise errors.Conflict(f"pod {name} is already assigned", 409)
        bound = copy.deepcopy(pod)
        bound["spec"]["nodeName"] = binding["target"]["name"]
        bound["metadata"].setdefault("annotations", {}).update(binding["metadata"]["annotations"])
        self.put(bound)
        if outcome == "answer":
            raise errors.Unavailable("lost")
        return b"{}"

    def _evict(self, path: str, body: Any) -> bytes:
        name = parse.urlsplit(path).path.split("/")[6]
        pod = self.pods.get(name)
        if pod is None:
            raise errors.NotFound(name, 404)
        if pod["metadata"]["uid"] != body["deleteOptions"]["preconditions"]["uid"]:
            raise errors.Conflict("Precondition failed: UID in precondition", 409)
        if name in self.protected:
            raise errors.Unavailable("Cannot evict pod as it would violate the pod's disruption budget.", 429)
        if "dryRun" not in path:
            self.evicted.append(name)
            self.put({**pod, "metadata": {**pod["metadata"], "deletionTimestamp": "2026-01-01T00:00:00Z"}})
        return b"{}"

    async def get(self, path: str, kind: type[Any], timeout_seconds: float = 1.0) -> Any:
        del timeout_seconds
        name = path.split("/")[6]
        if name not in self.pods:
            raise errors.NotFound(name, 404)
        return msgspec.convert(self.pods[name], kind)

    async def patch(self, path: str, body: bytes, timeout_seconds: float = 1.0) -> bytes:
        del timeout_seconds
        change = orjson.loads(body)
        self.patches.append((path, change))
        pod = self.pods.get(path.split("/")[6])
        if pod is not None:
            changed = copy.deepcopy(pod)
            _merge(changed["metadata"].setdefault("annotations", {}), change["metadata"].get("annotations", {}))
            _merge(changed["status"], change.get("status", {}))
            _merge(changed["spec"], change.get("spec", {}))
            self.put(changed)
        return b"{}"

    def objects(self) -> list[objects.Pod]:
        return [msgspec.convert(pod, objects.Pod) for pod in self.pods.values()]


def _merge(target: dict[str, Any], change: dict[str, Any]) -> None:
    """As a JSON merge patch does on one level: null takes away."""
    for key, value in change.items():
        target.pop(key, None)
        if value is not None:
            target[key] = value
