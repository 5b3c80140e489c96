"""The read API: which pod holds what, which pods are pending and why, for the WebUI and `hamictl`.

Served on every replica, from the same mirror that decides. On loopback it is open; elsewhere `read_access` decides who
may read what. `gpu_sharing.adapters.read_api_types` describes every answer.
"""

import asyncio
import contextlib
import dataclasses
import heapq
from collections.abc import Awaitable, Callable, Iterable, Iterator
from dataclasses import dataclass

import msgspec
import orjson
import structlog

from gpu_sharing.adapters import guarded_http, http_calls, pauses, profiling, read_api_types
from gpu_sharing.core import error_codes, errors, gpus, identifiers, near_misses, placement
from gpu_sharing.core.rejections import Reason
from scheduler_extender import worker
from scheduler_extender.cluster import pending
from scheduler_extender.decide import causes, explaining
from scheduler_extender.decide.core import DecisionCore
from scheduler_extender.fleet import facts
from scheduler_extender.report import event_notes
from scheduler_extender.serve import read_access, remediation_view, server

log = structlog.get_logger("read api")

_MOST_QUERY_BYTES = 253
_SORTED_AT_A_TIME = 2_000
_MOST_COMPARED = 5_000
"""Names that a misspelled one is compared with: about 50 ms, beside the loop."""
_MOST_NAMED = 5
_MOST_DIGITS = 9


@dataclass(frozen=True, slots=True)
class Route:
    """A decoded path, for the gate and the router alike."""

    what: str
    """`cluster`, `nodes`, `pods`, `remediation`, `openapi.json`, `explain`, `events` or `profile`; anything else is
    unknown."""
    namespace: str = ""
    """Of the pod that `explain` and `events` are about."""
    name: str = ""
    seconds: float = 0.0
    """Of a profile."""
    most_nodes: int | None = None
    """How many nodes an explanation is to list; None for all."""


def most_nodes_of(query: bytes) -> int | None:
    """Return the parameter `nodes` of a query; None where it is absent or no number."""
    texts = [part.partition(b"=")[2] for part in query[:_MOST_QUERY_BYTES].split(b"&") if part.startswith(b"nodes=")]
    return int(texts[0]) if texts and texts[0].isdigit() and len(texts[0]) <= _MOST_DIGITS else None


def route_of(raw_path: bytes) -> Route | None:
    """Return the route of a path, or None for an unknown one."""
    parts = http_calls.segments(raw_path) or []
    match parts:
        case ["", "api", "v1", "cluster" | "nodes" | "pods" | "remediation" | "openapi.json" as what]:
            return Route(what)
        case ["", "api", "v1", "explain" | "events" as what, namespace, name]:
            return Route(what, namespace, name)
        case ["", "api", "v1", "profile", text] if text.isascii() and text.isdigit() and len(text) < 3:
            return (
                Route("profile", seconds=min(float(text), read_api_types.LONGEST_PROFILE_SECONDS))
                if int(text)
                else None
            )
        case _:
            return None


Events = Callable[[str, identifiers.PodUid], Awaitable[list[read_api_types.Event]]]
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
        self._core = core
        self._mirror = core.mirror
        self._pending = core.pending
        self._explainer = explaining.Explainer(core)
        self._events = events
        self._gate = gate
        self._ready = ready
        self._profiling = asyncio.Lock()
        self._openapi = orjson.dumps(read_api_types.openapi())

    async def __call__(self, scope: server.Scope, receive: server.Receive, send: server.Send) -> None:
        """Answer one GET request, while its caller listens."""
        if scope["type"] != "http":
            return
        try:
            await guarded_http.while_caller_listens(receive, self._answer(scope, send))
        except guarded_http.CallerGone:
            log.info("caller gone", path=scope["path"][:200])

    async def _answer(self, scope: server.Scope, send: server.Send) -> None:
        if scope["method"] != "GET":
            await self._refuse(send, 405, error_codes.UNKNOWN_ROUTE, "the read API takes GET")
            return
        token = http_calls.bearer_token(dict(scope["headers"]).get(b"authorization", b""))
        route = route_of(scope["raw_path"])
        if route is not None and route.what == "explain":
            route = dataclasses.replace(route, most_nodes=most_nodes_of(scope.get("query_string", b"")))
        try:
            reader = await self._gate.admit(token)
            if route is not None and route.what == "openapi.json":
                await server.answer(send, 200, self._openapi)
            elif not self._ready():
                await self._refuse(send, 503, error_codes.NOT_READY, "the cluster has not been read yet")
            else:
                await self._read(route, reader, scope["path"], send)
        except http_calls.CallRefused as refused:
            await self._refuse(send, refused.status, refused.code, str(refused))

    async def _read(self, route: Route | None, reader: read_access.Reader, path: str, send: server.Send) -> None:
        try:
            body = await self._body(route, reader) if route else None
        except worker.Busy:
            text = "another profile is being taken, or other explanations are being computed; retry"
            await self._refuse(send, 503, error_codes.BUSY, text)
            return
        except (errors.KubernetesError, msgspec.MsgspecError) as cause:
            text = f"the pod's events cannot be read from the API server: {cause}"
            await self._refuse(send, 502, error_codes.EVENTS_UNREAD, text)
            return
        if body is None and route is not None:
            await self._refuse(send, 404, error_codes.NO_SUCH_POD, await self._absent(route, reader))
        elif body is None:
            known = (
                "cluster, nodes, pods, remediation, profile/<seconds>, explain/<namespace>/<pod>, "
                "events/<namespace>/<pod>"
            )
            text = f"nothing at {path[:80]}: there are {known}; the last two know pods that request GPUs"
            await self._refuse(send, 404, error_codes.UNKNOWN_ROUTE, text)
        else:
            await server.answer(send, 200, body)

    async def _absent(self, route: Route, reader: read_access.Reader) -> str:
        """Return that there is no such pod, and which one was probably meant, among those that the caller may see."""
        visible = await reader.visible(await self._namespaces())
        same_name: set[str] = set()
        near: list[str] = []
        pause = pauses.Pause()
        for key in [*(pod.key for pod in self._mirror.ledger.pods()), *(pod.key for pod in self._pending)]:
            await pause()
            namespace, _, name = key.partition("/")
            if visible is not None and namespace not in visible:
                continue
            if name == route.name:
                same_name.add(namespace)
            elif namespace == route.namespace and len(near) < _MOST_COMPARED:
                near.append(name)
        text = f"no pod {route.namespace}/{route.name} requests GPUs"
        if same_name:
            return f"{text}; a pod of that name is in namespace {', '.join(sorted(same_name)[:_MOST_NAMED])}"
        with contextlib.suppress(worker.Busy):
            meant = await self._core.worker.run(lambda: near_misses.nearest(route.name, near))
            return f"{text}; did you mean {route.namespace}/{meant}?" if meant else text
        return text

    async def _body(self, route: Route, reader: read_access.Reader) -> bytes | None:
        """Return the answer; None where there is no such pod.

        Lists are encoded in pieces: at 50,000 pods a whole one would delay kube-scheduler's calls.
        """
        match route.what:
            case "cluster":
                return msgspec.json.encode(await self._cluster())
            case "nodes":
                names = sorted(self._mirror.ledger.node_names())
                return await _list("nodes", (self._node(name) for name in names))
            case "pods":
                return await _list("pods", await self._pods(await reader.visible(await self._namespaces())))
            case "remediation":
                visible = await reader.visible(await self._namespaces())
                return msgspec.json.encode(remediation_view.view(self._core, visible))
            case "profile":
                await reader.require_profile()
                return await self._profile(route.seconds)
        answer = await self._about_pod(route, reader)
        return None if answer is None else msgspec.json.encode(answer)

    async def _profile(self, seconds: float) -> bytes:
        """Sample this process; one caller at a time.

        Raises:
            Busy: Another profile is being taken.
        """
        if self._profiling.locked():
            raise worker.Busy
        async with self._profiling:
            return msgspec.json.encode(await profiling.profile(seconds))

    async def _about_pod(
        self, route: Route, reader: read_access.Reader
    ) -> read_api_types.Events | read_api_types.Explanation | None:
        visible = await reader.visible([route.namespace])
        if route.what == "events":
            return await self._events_of(route.namespace, route.name)
        explained = await self._explain(f"{route.namespace}/{route.name}", route.most_nodes)
        if explained is not None and visible is not None:
            named = {_namespace_of(key) for node in explained.nodes for key in (*node.waits_for, *node.evictable)}
            visible |= await reader.visible_among(named)
            return _hidden(explained, visible)
        return explained

    async def _namespaces(self) -> frozenset[str]:
        """Those that have pods with GPUs or pending ones."""
        names, pause = set(), pauses.Pause()
        every: list[facts.BoundPod | pending.AnyPod] = [
            *self._mirror.ledger.pods(),
            *self._pending,
        ]
        for pod in every:
            names.add(_namespace_of(pod.key))
            await pause()
        return frozenset(names)

    async def _refuse(self, send: server.Send, status: int, code: error_codes.Code, message: str) -> None:
        await server.answer(send, status, orjson.dumps({"error_code": code, "message": message}))

    async def _cluster(self) -> read_api_types.Cluster:
        ledger, pause = self._mirror.ledger, pauses.Pause()
        names = ledger.node_names()
        gpus = memory_mib = allocated_mib = cores_percent = allocated_percent = 0
        for name in names:
            await pause()
            for state in ledger.allocated_on(name).states:
                gpus += 1
                memory_mib += state.gpu.memory_mib
                allocated_mib += state.allocated.memory_mib
                cores_percent += state.gpu.cores_percent
                allocated_percent += state.allocated.cores_percent
        return read_api_types.Cluster(
            nodes=len(names),
            gpus=gpus,
            memory_mib=read_api_types.Amount(memory_mib, allocated_mib),
            cores_percent=read_api_types.Amount(cores_percent, allocated_percent),
            pods_bound=ledger.pod_count,
            pods_pending=len(self._pending),
            resource_names=self._core.settings.resource_names,
        )

    def _node(self, name: identifiers.NodeName) -> read_api_types.Node:
        state = self._mirror.ledger.allocated_on(name)
        known = self._mirror.ledger.node_facts(name) or facts.Node(name)
        return read_api_types.Node(
            name=name,
            standing=_standing(state, known),
            foreign_slots=state.foreign_slots,
            gpus=[_gpu(one, known) for one in state.states],
            labels=dict(known.labels),
            problems=dict(known.problems),
        )

    async def _pods(self, visible: frozenset[str] | None) -> Iterator[read_api_types.Pod]:
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
            _bound(pod) if isinstance(pod, facts.BoundPod) else self._unbound(pod)
            for pod in heapq.merge(*runs, key=_by_name)
        )

    def _unbound(self, pod: pending.AnyPod) -> read_api_types.Pod:
        entry = self._pending.entry(pod.uid)
        rejection = entry.rejection if entry else None
        first = causes.headline(self._core, entry) if entry else None
        namespace, _, name = pod.key.partition("/")
        return read_api_types.Pod(
            namespace=namespace,
            name=name,
            uid=pod.uid,
            node=None,
            phase="pending",
            starting=False,
            corrupt=False,
            foreign_slots=0,
            gpus=[],
            error_code=rejection.code if rejection else "",
            created_at=pod.traits.created_at,
            requests=_requests(pod),
            reason=first.sentence if first else "",
            reason_code=first.code if first else "",
        )

    def _held(self, key: str) -> facts.BoundPod | None:
        return next((one for one in self._mirror.ledger.pods() if one.key == key), None)

    async def _events_of(self, namespace: str, name: str) -> read_api_types.Events | None:
        key = f"{namespace}/{name}"
        pod = self._pending.by_key(key) or self._held(key)
        return None if pod is None else read_api_types.Events(key, await self._events(namespace, pod.uid))

    async def _explain(self, key: str, most_nodes: int | None) -> read_api_types.Explanation | None:
        pod = self._pending.by_key(key)
        if pod is None:
            held = self._held(key)
            return None if held is None else read_api_types.Explanation(key, "bound", held.node)
        return explanation(key, await self._explainer.explain(pod), most_nodes)


def explanation(key: str, answer: explaining.Explanation, most_nodes: int | None = None) -> read_api_types.Explanation:
    """Return what the path `explain` answers about a pending pod, with at most that many nodes."""
    return read_api_types.Explanation(
        pod=key,
        phase="pending",
        node=None,
        summary=event_notes.rejected(answer.rejection),
        remedy=answer.remedy,
        nearest=answer.nearest,
        gates=list(answer.gates),
        nodes=[_node_explanation(node) for node in answer.nodes[:most_nodes]],
        causes=[
            read_api_types.Cause(one.code, one.sentence, one.advice, one.nodes, one.lasts) for one in answer.causes
        ],
        groups=[
            read_api_types.NodeGroup(group.code or "", group.phrase, group.nodes, group.nearest)
            for group in answer.groups
        ],
    )


def _node_explanation(node: explaining.NodeExplanation) -> read_api_types.NodeExplanation:
    return read_api_types.NodeExplanation(
        node=node.node,
        fits=node.code is None,
        code=node.code or "",
        message=node.message,
        curable=node.curable,
        advice=node.advice,
        waits_for=list(node.waits_for),
        evictable=list(node.evictable),
        examined=node.examined,
    )


def _gpu(state: gpus.GpuState, known: facts.Node) -> read_api_types.Gpu:
    gpu, allocated, amount = state.gpu, state.allocated, read_api_types.Amount
    return read_api_types.Gpu(
        uuid=gpu.uuid,
        index=gpu.index,
        type=gpu.type,
        mode=gpu.mode,
        healthy=gpu.healthy,
        cordoned=state.cordoned,
        allocation_unknown=state.allocation_unknown,
        memory_mib=amount(gpu.memory_mib, allocated.memory_mib),
        cores_percent=amount(gpu.cores_percent, allocated.cores_percent),
        slots=amount(gpu.slots, allocated.slots),
        exclusive=allocated.exclusive > 0,
        unhealthy_reason=known.unhealthy_reasons.get(gpu.uuid, ""),
    )


def _bound(pod: facts.BoundPod) -> read_api_types.Pod:
    namespace, _, name = pod.key.partition("/")
    share = read_api_types.Share
    return read_api_types.Pod(
        namespace=namespace,
        name=name,
        uid=pod.uid,
        node=pod.node,
        phase="bound",
        starting=pod.starting,
        corrupt=pod.corrupt,
        foreign_slots=pod.foreign_slots,
        gpus=[share(uuid, one.memory_mib, one.cores_percent) for uuid, one in sorted(pod.allocated.items())],
        containers=[[share(one.uuid, one.memory_mib, one.cores_percent) for one in shares] for shares in pod.shares],
        not_running=pod.not_running,
        created_at=pod.traits.created_at,
        bound_at=pod.traits.bound_at,
    )


def _standing(state: placement.NodeState, known: facts.Node) -> str:
    """Why new pods are not placed on a node: by its GPUs' record, or by the node itself; `none` where they are."""
    if state.standing is Reason.NONE:
        return known.unavailable.name.lower()
    return state.standing.name.lower()


async def _list(field: str, items: Iterable[msgspec.Struct]) -> bytes:
    """Return a JSON object with one list, encoded item by item."""
    pause, encoded = pauses.Pause(), bytearray(b'{"%b":[' % field.encode())
    separator = b""
    for item in items:
        encoded += separator + msgspec.json.encode(item)
        separator = b","
        await pause()
    encoded += b"]}"
    return bytes(encoded)


def _by_name(pod: facts.BoundPod | pending.AnyPod) -> tuple[str, str]:
    namespace, _, name = pod.key.partition("/")
    return namespace, name


def _namespace_of(key: str) -> str:
    return key.partition("/")[0]


def _hidden(explained: read_api_types.Explanation, visible: frozenset[str]) -> read_api_types.Explanation:
    """An explanation without the names of pods of other namespaces; it says how many those are."""

    def shown(keys: list[str]) -> list[str]:
        mine = [key for key in keys if _namespace_of(key) in visible]
        hidden = len(keys) - len(mine)
        return [*mine, *([f"{hidden} of other namespaces"] if hidden else [])]

    nodes = [
        msgspec.structs.replace(node, waits_for=shown(node.waits_for), evictable=shown(node.evictable))
        for node in explained.nodes
    ]
    return msgspec.structs.replace(explained, nodes=nodes)


def _requests(pod: pending.AnyPod) -> list[read_api_types.ContainerRequest]:
    containers = () if isinstance(pod, pending.UnreadablePod) else pod.request.containers
    return [
        read_api_types.ContainerRequest(one.gpus, one.memory_mib, one.memory_percent, one.cores_percent)
        for one in containers
        if one
    ]
