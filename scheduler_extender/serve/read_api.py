"""The read API: who holds what, who waits, and why, for the WebUI and `hamictl`.

Served on every replica, from the same mirror that decides. On loopback it is open; elsewhere `access` says who may read
what. Described by `openapi.json`, against which it is tested.
"""

import heapq
import importlib.resources
from collections.abc import Awaitable, Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any
from urllib import parse

import msgspec
import orjson

from gpu_sharing.adapters import pauses
from gpu_sharing.core import error_codes, errors, identifiers, placement
from gpu_sharing.core.rejections import Reason
from scheduler_extender import worker
from scheduler_extender.cluster import pending
from scheduler_extender.decide import explaining
from scheduler_extender.decide.core import DecisionCore
from scheduler_extender.fleet import facts
from scheduler_extender.report import event_notes
from scheduler_extender.serve import read_access, server

_LONGEST_NAME = 253
_SORTED_AT_A_TIME = 2_000


@dataclass(frozen=True, slots=True)
class Route:
    """What a request asks for; the one reading of its path, for the gate and the router."""

    what: str
    """`cluster`, `nodes`, `pods`, `openapi.json`, `explain` or `events`; anything else is unknown."""
    namespace: str = ""
    """Of the pod that `explain` and `events` are about."""
    name: str = ""


def route_of(raw_path: bytes) -> Route | None:
    """Return what a path asks for, or None where there is nothing.

    Each segment is percent-decoded once. A segment that then is empty, a dot segment, longer than a name, or holds a
    slash or a NUL is refused, so that no two readers can cut the path differently.
    """
    try:
        parts = [parse.unquote_to_bytes(part).decode() for part in raw_path.partition(b"?")[0].split(b"/")]
    except UnicodeDecodeError:
        return None
    if any(part in ("", ".", "..") or len(part) > _LONGEST_NAME or set("/\0") & set(part) for part in parts[1:]):
        return None
    match parts:
        case ["", "api", "v1", "cluster" | "nodes" | "pods" | "openapi.json" as what]:
            return Route(what)
        case ["", "api", "v1", "explain" | "events" as what, namespace, name]:
            return Route(what, namespace, name)
        case _:
            return None


Events = Callable[[str, identifiers.PodUid], Awaitable[list[dict[str, Any]]]]
"""The events of a pod, by its namespace and UID."""


class ReadApi:
    """The ASGI application."""

    def __init__(
        self,
        core: DecisionCore,
        events: Events,
        gate: read_access.Gate,
        ready: Callable[[], bool],
    ) -> None:
        self._mirror = core.mirror
        self._pending = core.pending
        self._explainer = explaining.Explainer(core)
        self._events = events
        self._gate = gate
        self._ready = ready
        self._openapi = importlib.resources.files("scheduler_extender.serve").joinpath("openapi.json").read_bytes()

    async def __call__(self, scope: server.Scope, receive: server.Receive, send: server.Send) -> None:
        """Answer one request."""
        if scope["type"] != "http":
            return
        if scope["method"] != "GET":
            await self._refuse(send, 405, error_codes.UNKNOWN_ROUTE, "the read API takes GET")
            return
        authorization = dict(scope["headers"]).get(b"authorization", b"").decode("latin-1")
        token = authorization[7:] if authorization[:7].lower() == "bearer " else ""
        route = route_of(scope["raw_path"])
        try:
            reader = await self._gate.admit(token)
            if route is not None and route.what == "openapi.json":
                await server.answer(send, 200, self._openapi)
            elif not self._ready():
                await self._refuse(send, 503, error_codes.NOT_READY, "the cluster has not been read yet")
            else:
                await self._read(route, reader, scope["path"], send)
        except read_access.Refused as refused:
            await self._refuse(send, refused.status, refused.code, str(refused))

    async def _read(self, route: Route | None, reader: read_access.Reader, path: str, send: server.Send) -> None:
        try:
            body = await self._body(route, reader) if route else None
        except worker.Busy:
            await self._refuse(send, 503, error_codes.BUSY, "other explanations are being computed, retry")
            return
        except (errors.KubernetesError, msgspec.MsgspecError) as cause:
            text = f"the API server does not tell the pod's events: {cause}"
            await self._refuse(send, 502, error_codes.EVENTS_UNREAD, text)
            return
        if body is None:
            known = "cluster, nodes, pods, explain/<namespace>/<pod>, events/<namespace>/<pod>"
            text = f"nothing at {path[:80]}: there are {known}; the last two know pods that ask for GPUs"
            await self._refuse(send, 404, error_codes.UNKNOWN_ROUTE, text)
            return
        await server.answer(send, 200, body)

    async def _body(self, route: Route, reader: read_access.Reader) -> bytes | None:
        """Return the answer; None where there is no such pod.

        The lists are made in pieces: at 50,000 pods a whole one would keep kube-scheduler waiting.
        """
        match route.what:
            case "cluster":
                return orjson.dumps(await self._cluster())
            case "nodes":
                names = sorted(self._mirror.ledger.node_names())
                return await _list("nodes", (self._node(name) for name in names))
            case "pods":
                return await _list("pods", await self._pods(await reader.visible(await self._namespaces())))
        told = await self._about_pod(route, reader)
        return None if told is None else orjson.dumps(told)

    async def _about_pod(self, route: Route, reader: read_access.Reader) -> dict[str, Any] | None:
        visible = await reader.visible([route.namespace])
        if route.what == "events":
            return await self._events_of(route.namespace, route.name)
        told = await self._explain(f"{route.namespace}/{route.name}")
        if told is not None and visible is not None:
            named = {_namespace_of(key) for one in told["nodes"] for key in (*one["waits_for"], *one["evictable"])}
            visible |= await reader.visible_among(named)
            _hide(told, visible)
        return told

    async def _namespaces(self) -> frozenset[str]:
        """Those in which pods hold GPUs or wait for them."""
        found, pause = set(), pauses.Pause()
        every: list[facts.BoundPod | pending.AnyPod] = [
            *self._mirror.ledger.pods(),
            *self._pending,
        ]
        for pod in every:
            found.add(_namespace_of(pod.key))
            await pause()
        return frozenset(found)

    async def _refuse(self, send: server.Send, status: int, code: error_codes.Code, message: str) -> None:
        await server.answer(send, status, orjson.dumps({"error_code": code, "message": message}))

    async def _cluster(self) -> dict[str, Any]:
        ledger, pause = self._mirror.ledger, pauses.Pause()
        names = ledger.node_names()
        gpus = 0
        memory_mib, cores_percent = {"total": 0, "promised": 0}, {"total": 0, "promised": 0}
        for name in names:
            await pause()
            for state in ledger.allocated_on(name).states:
                gpus += 1
                memory_mib["total"] += state.gpu.memory_mib
                memory_mib["promised"] += state.allocated.memory_mib
                cores_percent["total"] += state.gpu.cores_percent
                cores_percent["promised"] += state.allocated.cores_percent
        return {
            "nodes": len(names),
            "gpus": gpus,
            "memory_mib": memory_mib,
            "cores_percent": cores_percent,
            "pods_holding": ledger.pod_count,
            "pods_waiting": len(self._pending),
        }

    def _node(self, name: identifiers.NodeName) -> dict[str, Any]:
        state = self._mirror.ledger.allocated_on(name)
        known = self._mirror.ledger.node_facts(name)
        ailments = known.ailments if known else {}
        return {
            "name": name,
            "standing": _standing(state, known),
            "foreign_slots": state.foreign_slots,
            "labels": known.labels if known else {},
            "problems": known.problems if known else {},
            "gpus": [
                {
                    "uuid": one.gpu.uuid,
                    "index": one.gpu.index,
                    "type": one.gpu.type,
                    "mode": one.gpu.mode,
                    "healthy": one.gpu.healthy,
                    "ailment": ailments.get(one.gpu.uuid, ""),
                    "cordoned": one.cordoned,
                    "allocation_unknown": one.allocation_unknown,
                    "memory_mib": {"total": one.gpu.memory_mib, "promised": one.allocated.memory_mib},
                    "cores_percent": {"total": one.gpu.cores_percent, "promised": one.allocated.cores_percent},
                    "slots": {"total": one.gpu.slots, "promised": one.allocated.slots},
                    "exclusive": one.allocated.exclusive > 0,
                }
                for one in state.states
            ],
        }

    async def _pods(self, visible: frozenset[str] | None) -> Iterator[dict[str, Any]]:
        """The pods of the visible namespaces (None: of all), by namespace and name."""
        pause = pauses.Pause()
        every: list[facts.BoundPod | pending.AnyPod] = [
            *self._mirror.ledger.pods(),
            *self._pending,
        ]
        runs = []
        for start in range(0, len(every), _SORTED_AT_A_TIME):
            some = every[start : start + _SORTED_AT_A_TIME]
            seen = some if visible is None else [pod for pod in some if _namespace_of(pod.key) in visible]
            runs.append(sorted(seen, key=_by_name))
            await pause()
        return (
            self._holding(pod) if isinstance(pod, facts.BoundPod) else self._waiting(pod)
            for pod in heapq.merge(*runs, key=_by_name)
        )

    def _holding(self, pod: facts.BoundPod) -> dict[str, Any]:
        namespace, _, name = pod.key.partition("/")
        return {
            "namespace": namespace, "name": name, "uid": pod.uid, "node": pod.node, "phase": "holding",
            "starting": pod.starting, "corrupt": pod.corrupt, "foreign_slots": pod.foreign_slots,
            "trouble": pod.not_running,
            "containers": [
                [
                    {"uuid": share.uuid, "memory_mib": share.memory_mib, "cores_percent": share.cores_percent}
                    for share in shares
                ]
                for shares in pod.shares
            ],
            "gpus": [
                {"uuid": uuid, "memory_mib": one.memory_mib, "cores_percent": one.cores_percent}
                for uuid, one in sorted(pod.allocated.items())
            ],
            "error_code": "", "created_at": pod.traits.created_at, "bound_at": pod.traits.bound_at, "asks": [],
        }  # fmt: skip

    def _waiting(self, pod: pending.AnyPod) -> dict[str, Any]:
        namespace, _, name = pod.key.partition("/")
        rejection = self._pending.entry_of(pod).rejection
        return {
            "namespace": namespace, "name": name, "uid": pod.uid, "node": None, "phase": "waiting",
            "starting": False, "corrupt": False, "foreign_slots": 0, "trouble": "", "containers": [], "gpus": [],
            "error_code": rejection.code if rejection else "",
            "created_at": pod.traits.created_at, "bound_at": 0, "asks": _asks(pod),
        }  # fmt: skip

    def _held(self, key: str) -> facts.BoundPod | None:
        return next((one for one in self._mirror.ledger.pods() if one.key == key), None)

    async def _events_of(self, namespace: str, name: str) -> dict[str, Any] | None:
        key = f"{namespace}/{name}"
        found = self._pending.by_key(key) or self._held(key)
        return None if found is None else {"pod": key, "events": await self._events(namespace, found.uid)}

    async def _explain(self, key: str) -> dict[str, Any] | None:
        pod = self._pending.by_key(key)
        if pod is None:
            held = self._held(key)
            if held is None:
                return None
            return {
                "pod": key, "phase": "holding", "node": held.node, "summary": "", "remedy": "", "nearest": None,
                "gates": [], "nodes": [],
            }  # fmt: skip
        answer = await self._explainer.explain(pod)
        return {
            "pod": key, "phase": "waiting", "node": None, "summary": event_notes.rejected(answer.rejection),
            "remedy": answer.remedy, "nearest": answer.nearest, "gates": answer.gates,
            "nodes": [
                {
                    "node": one.node, "fits": one.code is None, "code": one.code or "", "sentence": one.sentence,
                    "curable": one.curable, "advice": one.advice, "waits_for": one.waits_for,
                    "evictable": one.evictable, "looked_into": one.looked_into,
                }
                for one in answer.nodes
            ],
        }  # fmt: skip


def _standing(state: placement.NodeState, known: facts.Node | None) -> str:
    """Why new pods are not placed on a node: by its GPUs' record, or by the node itself; `none` where they are."""
    if state.standing is Reason.NONE and known is not None:
        return known.unavailable.name.lower()
    return state.standing.name.lower()


async def _list(field: str, items: Iterable[dict[str, Any]]) -> bytes:
    """Return a JSON object with one list, encoded item by item."""
    pause, encoded = pauses.Pause(), bytearray(b'{"%b":[' % field.encode())
    separator = b""
    for item in items:
        encoded += separator + orjson.dumps(item)
        separator = b","
        await pause()
    encoded += b"]}"
    return bytes(encoded)


def _by_name(pod: facts.BoundPod | pending.AnyPod) -> tuple[str, str]:
    namespace, _, name = pod.key.partition("/")
    return namespace, name


def _namespace_of(key: str) -> str:
    return key.partition("/")[0]


def _hide(told: dict[str, Any], visible: frozenset[str]) -> None:
    """Take the names of pods of other namespaces out of an explanation, and say how many those are."""
    for one in told["nodes"]:
        for field in ("waits_for", "evictable"):
            shown = [key for key in one[field] if _namespace_of(key) in visible]
            hidden = len(one[field]) - len(shown)
            one[field] = [*shown, *([f"{hidden} of other namespaces"] if hidden else [])]


def _asks(pod: pending.AnyPod) -> list[dict[str, int]]:
    """What each container with GPUs asks for; nothing where that cannot be read."""
    containers = () if isinstance(pod, pending.UnreadablePod) else pod.request.containers
    return [
        {
            "gpus": one.gpus, "memory_mib": one.memory_mib, "memory_percent": one.memory_percent,
            "cores_percent": one.cores_percent,
        }
        for one in containers
        if one is not None
    ]  # fmt: skip
