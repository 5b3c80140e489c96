"""The read API: who holds what, who waits, and why, for the WebUI and `hamictl`.

Served on every replica, from the same mirror that decides. On loopback it is open; elsewhere a bearer token is asked
for, which the API server reviews (TokenReview) and whose account must be allowed to get the path as a nonResourceURL
(SubjectAccessReview). Described by `openapi.json`, against which it is tested.
"""

import importlib.resources
import time
from collections.abc import Awaitable, Callable, Mapping
from typing import Any, Protocol
from urllib import parse

import msgspec
import orjson

from gpu_sharing.adapters import kubernetes, reviews
from gpu_sharing.core import error_codes, errors, identifiers, requests
from scheduler_extender import explaining, facts, mirror, node_conditions, server
from scheduler_extender.fleet import ledger

PREFIX = "/api/v1"
_REVIEWED_FOR_SECONDS = 30.0
_MOST_TOKENS = 1_000


class Gate(Protocol):
    """Who may read."""

    async def admits(self, token: str, path: str) -> bool:
        """Whether the bearer of that token may get that path."""


class OpenGate:
    """Everybody on this machine may read."""

    async def admits(self, token: str, path: str) -> bool:
        """Always."""
        return True


class TokenGate:
    """Asks the API server about each token, and remembers the answer for half a minute."""

    def __init__(self, client: kubernetes.Client, clock: Callable[[], float] = time.monotonic) -> None:
        self._client = client
        self._clock = clock
        self._known: dict[tuple[str, str], tuple[bool, float]] = {}

    async def admits(self, token: str, path: str) -> bool:
        """Whether the bearer of that token may get that path. No answer from the API server is a no."""
        if not token:
            return False
        area = "/".join(path.split("/")[:4])
        known = self._known.get((token, area))
        if known and self._clock() - known[1] < _REVIEWED_FOR_SECONDS:
            return known[0]
        try:
            allowed = await self._review(token, area)
        except (errors.KubernetesError, msgspec.MsgspecError):
            return False
        if len(self._known) >= _MOST_TOKENS:
            self._known.clear()
        self._known[(token, area)] = (allowed, self._clock())
        return allowed

    async def _review(self, token: str, path: str) -> bool:
        user = await reviews.user_of(self._client, token)
        wanted = {"nonResourceAttributes": {"path": path, "verb": "get"}}
        return user is not None and await reviews.may(self._client, user, wanted)


Events = Callable[[str, identifiers.PodUid], Awaitable[list[dict[str, Any]]]]
"""The events of a pod, by its namespace and UID."""


class ReadApi:
    """The ASGI application."""

    def __init__(
        self,
        cluster: mirror.Mirror,
        explainer: explaining.Explainer,
        events: Events,
        gate: Gate,
        ready: Callable[[], bool],
    ) -> None:
        self._mirror = cluster
        self._explainer = explainer
        self._events = events
        self._gate = gate
        self._ready = ready
        self._openapi = importlib.resources.files("scheduler_extender").joinpath("openapi.json").read_bytes()

    async def __call__(self, scope: server.Scope, receive: server.Receive, send: server.Send) -> None:
        """Answer one request."""
        if scope["type"] != "http":
            return
        path = scope["path"]
        if scope["method"] != "GET":
            await self._refuse(send, 405, error_codes.UNKNOWN_ROUTE, "the read API takes GET")
            return
        authorization = dict(scope["headers"]).get(b"authorization", b"").decode("latin-1")
        token = authorization[7:] if authorization[:7].lower() == "bearer " else ""
        if not await self._gate.admits(token, path):
            await self._refuse(send, 401, error_codes.UNAUTHORIZED, "send a bearer token that may get this path")
        elif path == f"{PREFIX}/openapi.json":
            await server.answer(send, 200, self._openapi)
        elif not self._ready():
            await self._refuse(send, 503, error_codes.NOT_READY, "the cluster has not been read yet")
        else:
            await self._read(path, scope.get("raw_path", b"").decode("latin-1"), send)

    async def _read(self, path: str, raw_path: str, send: server.Send) -> None:
        parts = [parse.unquote(part) for part in raw_path.partition("?")[0].split("/")[3:]]
        match parts:
            case ["cluster"]:
                body: Any = self._cluster()
            case ["nodes"]:
                words = node_conditions.conditions(self._mirror.ledger)
                body = {"nodes": [self._node(name, words) for name in sorted(self._mirror.ledger.node_names())]}
            case ["pods"]:
                body = {"pods": self._pods()}
            case ["explain", namespace, name]:
                body = self._explain(f"{namespace}/{name}")
            case ["events", namespace, name]:
                try:
                    body = await self._events_of(namespace, name)
                except (errors.KubernetesError, msgspec.MsgspecError) as cause:
                    text = f"the API server does not tell the pod's events: {cause}"
                    await self._refuse(send, 502, error_codes.EVENTS_UNREAD, text)
                    return
            case _:
                body = None
        if body is None:
            known = "cluster, nodes, pods, explain/<namespace>/<pod>, events/<namespace>/<pod>"
            text = f"nothing at {path[:80]}: there are {known}; the last two know pods that ask for GPUs"
            await self._refuse(send, 404, error_codes.UNKNOWN_ROUTE, text)
            return
        await server.answer(send, 200, orjson.dumps(body))

    async def _refuse(self, send: server.Send, status: int, code: error_codes.Code, message: str) -> None:
        await server.answer(send, status, orjson.dumps({"error_code": code, "message": message}))

    def _cluster(self) -> dict[str, Any]:
        books = self._mirror.ledger
        states = [books.held(name) for name in books.node_names()]
        gpu_states = [state for node in states for state in node.states]
        return {
            "nodes": len(states),
            "gpus": len(gpu_states),
            "memory_mib": {
                "total": sum(state.gpu.memory_mib for state in gpu_states),
                "promised": sum(state.used.memory_mib for state in gpu_states),
            },
            "cores_percent": {
                "total": sum(state.gpu.cores_percent for state in gpu_states),
                "promised": sum(state.used.cores_percent for state in gpu_states),
            },
            "pods_holding": sum(1 for _ in books.pods()),
            "pods_waiting": len(self._mirror.waiting),
        }

    def _node(self, name: identifiers.NodeName, words: Mapping[identifiers.NodeName, str]) -> dict[str, Any]:
        state = self._mirror.ledger.held(name)
        known = self._mirror.ledger.node_facts(name)
        ailments = known.ailments if known else {}
        return {
            "name": name,
            "standing": state.standing.name.lower(),
            "condition": words.get(name, ""),
            "foreign_slots": state.foreign_slots,
            "labels": known.labels if known else {},
            "gpus": [
                {
                    "uuid": one.gpu.uuid,
                    "index": one.gpu.index,
                    "type": one.gpu.type,
                    "mode": one.gpu.mode,
                    "healthy": one.gpu.healthy,
                    "ailment": ailments.get(one.gpu.uuid, ""),
                    "cordoned": one.cordoned,
                    "usage_unknown": one.usage_unknown,
                    "memory_mib": {"total": one.gpu.memory_mib, "promised": one.used.memory_mib},
                    "cores_percent": {"total": one.gpu.cores_percent, "promised": one.used.cores_percent},
                    "slots": {"total": one.gpu.slots, "promised": one.used.slots},
                    "exclusive": one.used.exclusive > 0,
                }
                for one in state.states
            ],
        }

    def _pods(self) -> list[dict[str, Any]]:
        holding = [self._holding(pod) for pod in self._mirror.ledger.pods()]
        waiting = [self._waiting(pod) for pod in self._mirror.waiting.values()]
        return sorted([*holding, *waiting], key=lambda pod: (pod["namespace"], pod["name"]))

    def _holding(self, pod: ledger.PodFacts) -> dict[str, Any]:
        namespace, _, name = pod.key.partition("/")
        return {
            "namespace": namespace, "name": name, "uid": pod.uid, "node": pod.node, "phase": "holding",
            "starting": pod.starting, "trouble": self._mirror.troubles.get(pod.uid, ""),
            "corrupt": pod.corrupt, "foreign_slots": pod.foreign_slots,
            "containers": [
                [
                    {"uuid": share.uuid, "memory_mib": share.memory_mib, "cores_percent": share.cores_percent}
                    for share in shares
                ]
                for shares in pod.shares
            ],
            "gpus": [
                {"uuid": uuid, "memory_mib": one.memory_mib, "cores_percent": one.cores_percent}
                for uuid, one in sorted(pod.bookings.items())
            ],
            "error_code": "", "created_at": pod.plain.created_at, "bound_at": pod.plain.bound_at, "asks": [],
        }  # fmt: skip

    def _waiting(self, pod: facts.Waiting) -> dict[str, Any]:
        namespace, _, name = pod.key.partition("/")
        return {
            "namespace": namespace, "name": name, "uid": pod.uid, "node": None, "phase": "waiting",
            "starting": False, "trouble": "", "corrupt": False, "foreign_slots": 0, "containers": [], "gpus": [],
            "error_code": self._explainer.reason_of(pod.uid) or "",
            "created_at": pod.plain.created_at, "bound_at": 0, "asks": _asks(pod.request),
        }  # fmt: skip

    def _held(self, key: str) -> ledger.PodFacts | None:
        return next((one for one in self._mirror.ledger.pods() if one.key == key), None)

    async def _events_of(self, namespace: str, name: str) -> dict[str, Any] | None:
        key = f"{namespace}/{name}"
        found = self._mirror.waiting_by_key(key) or self._held(key)
        return None if found is None else {"pod": key, "events": await self._events(namespace, found.uid)}

    def _explain(self, key: str) -> dict[str, Any] | None:
        pod = self._mirror.waiting_by_key(key)
        if pod is None:
            held = self._held(key)
            if held is None:
                return None
            return {
                "pod": key, "phase": "holding", "node": held.node, "summary": "", "remedy": "", "nearest": None,
                "gates": [], "nodes": [],
            }  # fmt: skip
        answer = self._explainer.explain(pod)
        return {
            "pod": key, "phase": "waiting", "node": None, "summary": answer.summary, "remedy": answer.remedy,
            "nearest": answer.nearest, "gates": answer.gates,
            "nodes": [
                {
                    "node": one.node, "fits": one.code is None, "code": one.code or "", "sentence": one.sentence,
                    "curable": one.curable, "advice": one.advice, "waits_for": one.waits_for,
                    "evictable": one.evictable,
                }
                for one in answer.verdicts
            ],
        }  # fmt: skip


def _asks(request: requests.PodRequest | requests.InvalidRequest) -> list[dict[str, int]]:
    """What each container with GPUs asks for; nothing where that cannot be read."""
    containers = request.containers if isinstance(request, requests.PodRequest) else ()
    return [
        {
            "gpus": one.gpus, "memory_mib": one.memory_mib, "memory_percent": one.memory_percent,
            "cores_percent": one.cores_percent,
        }
        for one in containers
        if one is not None
    ]  # fmt: skip
