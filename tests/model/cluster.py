"""A cluster in memory whose every delay is a step of its own, for walks that no schedule of real parts would take.

The API server keeps pods and nodes. A call of the extender is parked twice: the server does it in one step and it is
answered in a later one, or its request or answer is lost, or the answer cannot be decoded. Watches of pods and nodes
lag. A list begins, is read by the server, and arrives, in three steps. Anything may happen between any two steps.
"""

import asyncio
import copy
import dataclasses
import json
from typing import Any
from urllib import parse

import msgspec

from gpu_sharing.adapters import objects
from gpu_sharing.core import errors


@dataclasses.dataclass
class Call:
    """One call of the extender that is not answered yet."""

    method: str
    path: str
    body: Any
    future: "asyncio.Future[Any]"
    outcome: Any = None
    """What the server answers, or an exception; None until it has done the call."""

    @property
    def pod(self) -> str:
        return parse.urlsplit(self.path).path.split("/")[6]


class ApiServer:
    """Pods and nodes, and the events that watchers have not been sent yet."""

    def __init__(self, nodes: list[dict[str, Any]]) -> None:
        self.pods: dict[str, dict[str, Any]] = {}
        self.nodes = {node["metadata"]["name"]: node for node in nodes}
        self.pod_events: list[tuple[str, dict[str, Any]]] = []
        self.node_events: list[tuple[str, dict[str, Any]]] = []
        self.calls: list[Call] = []
        self._version = 0

    # What the extender calls.

    async def post(self, path: str, body: bytes, timeout_seconds: float = 1.0) -> bytes:
        del timeout_seconds
        return bytes(await self._park("POST", path, json.loads(body)))

    async def get(self, path: str, kind: type[Any], timeout_seconds: float = 1.0) -> Any:
        del timeout_seconds
        return msgspec.convert(await self._park("GET", path, None), kind)

    async def patch(self, path: str, body: bytes, timeout_seconds: float = 1.0) -> bytes:
        del timeout_seconds
        return bytes(await self._park("PATCH", path, json.loads(body)))

    async def _park(self, method: str, path: str, body: Any) -> Any:
        call = Call(method, path, body, asyncio.get_running_loop().create_future())
        self.calls.append(call)
        return await call.future

    # What the walk decides.

    def do(self, call: Call) -> None:
        """The server does a call; its answer is still on the way."""
        try:
            call.outcome = self._done(call)
        except errors.KubernetesError as refused:
            call.outcome = refused

    def answer(self, call: Call, how: str) -> None:
        """The caller gets the answer: as it is, none (`lost`), or one that does not decode (`garbled`)."""
        self.calls.remove(call)
        if call.future.done():
            return
        if how == "lost":
            call.future.set_exception(errors.Unavailable("lost"))
        elif how == "garbled":
            call.future.set_exception(UnicodeDecodeError("utf-8", b"\xff", 0, 1, "garbled"))
        elif isinstance(call.outcome, Exception):
            call.future.set_exception(call.outcome)
        else:
            call.future.set_result(call.outcome)

    def _done(self, call: Call) -> Any:
        pod = self.pods.get(call.pod)
        if pod is None:
            raise errors.NotFound(call.pod, 404)
        if call.method == "GET":
            return copy.deepcopy(pod)
        if call.method == "POST":
            if pod["metadata"]["uid"] != call.body["metadata"]["uid"]:
                raise errors.Conflict("Precondition failed: UID in precondition", 409)
            if pod["spec"].get("nodeName"):
                raise errors.Conflict(f"pod {call.pod} is already assigned", 409)
            bound = copy.deepcopy(pod)
            bound["spec"]["nodeName"] = call.body["target"]["name"]
            bound["metadata"]["annotations"].update(call.body["metadata"]["annotations"])
            self.put(bound)
        return b"{}"

    def put(self, pod: dict[str, Any]) -> None:
        self._version += 1
        pod["metadata"]["resourceVersion"] = str(self._version)
        self.pods[pod["metadata"]["name"]] = pod
        self.pod_events.append(("MODIFIED", copy.deepcopy(pod)))

    def delete(self, name: str) -> None:
        self.pod_events.append(("DELETED", self.pods.pop(name)))

    def put_node(self, node: dict[str, Any]) -> None:
        self.nodes[node["metadata"]["name"]] = node
        self.node_events.append(("MODIFIED", node))

    def delete_node(self, name: str) -> None:
        self.node_events.append(("DELETED", self.nodes.pop(name)))

    def snapshot(self) -> list[objects.Pod]:
        return [msgspec.convert(copy.deepcopy(pod), objects.Pod) for pod in self.pods.values()]
