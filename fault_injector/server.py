"""The HTTP API: routes, limits, and the status of each refusal."""

from collections.abc import Awaitable, Callable, MutableMapping
from dataclasses import dataclass
from typing import Any

import msgspec
import orjson
import structlog

from fault_injector import access, api_types
from fault_injector.injector import Injector
from fault_injector.measurements import Measurements
from gpu_sharing.adapters import http_calls
from gpu_sharing.adapters.http_calls import CallRefused
from gpu_sharing.core import error_codes, errors, faults

Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]
Application = Callable[[Scope, Receive, Send], Awaitable[None]]

MOST_BODY_BYTES = 16 * 1024
_PROBES = frozenset({"/health", "/healthz", "/live", "/livez", "/ready", "/readyz", "/startupz", "/metrics"})
_STATUS = {
    error_codes.FAULT_INVALID: 400,
    error_codes.FAULT_UNKNOWN_KIND: 400,
    error_codes.FAULT_NO_CONSENT: 403,
    error_codes.FAULT_UNKNOWN: 404,
    error_codes.FAULT_ROUTE: 404,
    error_codes.FAULT_COLLIDES: 409,
    error_codes.FAULT_NO_TARGET: 422,
    error_codes.FAULT_TOO_MANY: 429,
    error_codes.FAULT_NOT_SUPPORTED: 501,
    error_codes.FAULT_BACKEND: 502,
    error_codes.FAULT_NO_MEASUREMENT: 502,
    error_codes.FAULT_TRACKER: 503,
    error_codes.FAULT_NOT_READY: 503,
}
"""The HTTP status of each code."""

log = structlog.get_logger("server")


@dataclass(frozen=True, slots=True)
class Route:
    """A decoded path, for the gate and the router alike."""

    what: str
    """`openapi`, `list`, `show`, `recover`, `cleanup`, `inject` or `measure`."""
    name: str = ""
    """A fault's id, a group or a measurement."""
    xid: int = 0
    """The preset XID of a short path."""

    @property
    def changes(self) -> bool:
        """Whether the call injects or recovers."""
        return self.what in ("recover", "cleanup", "inject")


def route_of(raw_path: bytes) -> Route | None:
    """Return the route of a path, or None for an unknown one."""
    parts = http_calls.segments(raw_path) or []
    match parts:
        case ["", "openapi.json"] | ["", "api", "v1", "openapi.json"]:
            return Route("openapi")
        case ["", "api", "v1", "faults"]:
            return Route("list")
        case ["", "api", "v1", "faults", "cleanup"]:
            return Route("cleanup")
        case ["", "api", "v1", "faults", group, "inject"] if group in {one.value for one in faults.Group}:
            return Route("inject", group)
        case ["", "api", "v1", "faults", "gpu", name] if name in {f"xid-{one}" for one in faults.XID_SHORTCUTS}:
            return Route("inject", "gpu", int(name[4:]))
        case ["", "api", "v1", "faults", fault_id, "recover"]:
            return Route("recover", fault_id)
        case ["", "api", "v1", "faults", fault_id]:
            return Route("show", fault_id)
        case ["", "api", "v1", "metrics", name] if name in api_types.MEASUREMENTS:
            return Route("measure", name)
        case _:
            return None


class FaultApi:
    """The ASGI application."""

    def __init__(
        self,
        injector: Injector,
        measurements: Measurements,
        gate: access.Gate,
        probes: Application | None = None,
    ) -> None:
        """Join the parts.

        Args:
            injector: Injects and recovers.
            measurements: Measures.
            gate: Decides who may call.
            probes: Answers health and metrics on this listener too; None where it has a listener of its own.
        """
        self._injector = injector
        self._measurements = measurements
        self._gate = gate
        self._probes = probes
        self._openapi = orjson.dumps(api_types.openapi())

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request over HTTP."""
        if scope["type"] != "http":
            return
        if self._probes is not None and scope["path"] in _PROBES:
            await self._probes(scope, receive, send)
            return
        try:
            status, body = await self._answer(scope, receive)
        except CallRefused as refused:
            status, body = refused.status, _problem(refused.code, str(refused))
        except errors.FaultRefused as refused:
            status, body = _STATUS.get(refused.code, 500), _problem(refused.code, str(refused))
        except Exception:
            log.exception("defect", error_code=error_codes.INTERNAL, path=scope["path"][:80])
            status, body = 500, _problem(error_codes.INTERNAL, "this call failed; see the log of the service")
        await _send(send, status, body)

    async def _answer(self, scope: Scope, receive: Receive) -> tuple[int, bytes]:
        route = route_of(scope["raw_path"])
        caller = access.Caller.of(dict(scope["headers"]))
        await self._gate.demand(caller, access.INJECT if route and route.changes else access.READ)
        if route is None:
            raise CallRefused(404, error_codes.FAULT_ROUTE, f"nothing at {scope['path'][:80]}; see /openapi.json")
        method = "POST" if route.changes else "GET"
        if scope["method"] != method:
            raise CallRefused(405, error_codes.FAULT_ROUTE, f"this path supports {method}")
        if not self._injector.is_ready and route.what != "openapi":
            raise CallRefused(503, error_codes.FAULT_NOT_READY, "the record of faults has not been read yet")
        if route.what == "inject":
            return await self._inject(route, await _body(receive))
        return 200, await self._read_or_recover(route)

    async def _inject(self, route: Route, body: bytes) -> tuple[int, bytes]:
        try:
            value = orjson.loads(body)
        except orjson.JSONDecodeError as cause:
            raise errors.FaultRefused(error_codes.FAULT_INVALID, f"the body is not JSON: {cause}") from cause
        preset: dict[str, faults.Value] = {"kind": "xid", "xid": route.xid} if route.xid else {}
        request = faults.read_request(value, faults.Group(route.name), preset)
        fault = await self._injector.inject(request)
        if fault.state is not faults.State.INJECTED or fault.cause:
            text = f"{fault.id} is {fault.state.value}: {fault.cause}"
            raise errors.FaultRefused(error_codes.FAULT_BACKEND, text)
        return 201, msgspec.json.encode(api_types.fault_of(fault))

    async def _read_or_recover(self, route: Route) -> bytes:
        match route.what:
            case "openapi":
                return self._openapi
            case "list":
                return _encoded(self._injector.recorded)
            case "show":
                return msgspec.json.encode(api_types.fault_of(self._injector.find(route.name)))
            case "cleanup":
                recovered = await self._injector.recover_all()
                _demand_recovered(recovered)
                return _encoded(recovered)
            case "recover":
                fault = await self._injector.recover(route.name)
                _demand_recovered([fault])
                return msgspec.json.encode(api_types.fault_of(fault))
        try:
            return msgspec.json.encode(await self._measurements.measure(route.name))
        except errors.KubernetesError as cause:
            raise errors.FaultRefused(error_codes.FAULT_NO_MEASUREMENT, str(cause)) from cause


def _encoded(recorded: Any) -> bytes:
    return msgspec.json.encode(api_types.Faults([api_types.fault_of(fault) for fault in recorded]))


def _demand_recovered(recorded: list[faults.Fault]) -> None:
    """Refuse where a recovery failed, with every cause."""
    left = [f"{fault.id} is {fault.state.value}: {fault.cause}" for fault in recorded if fault.is_in_effect]
    if left:
        raise errors.FaultRefused(error_codes.FAULT_BACKEND, "; ".join(left))


def _problem(code: error_codes.Code, message: str) -> bytes:
    return orjson.dumps({"error_code": code, "message": message})


async def _body(receive: Receive) -> bytes:
    chunks: list[bytes] = []
    size = 0
    while True:
        message = await receive()
        if message["type"] == "http.disconnect":
            raise CallRefused(400, error_codes.FAULT_INVALID, "the caller closed the connection")
        chunks.append(message.get("body", b""))
        size += len(chunks[-1])
        if size > MOST_BODY_BYTES:
            raise CallRefused(413, error_codes.FAULT_INVALID, f"the body is longer than {MOST_BODY_BYTES} bytes")
        if not message.get("more_body", False):
            return b"".join(chunks)


async def _send(send: Send, status: int, body: bytes) -> None:
    headers = [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode())]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body})
