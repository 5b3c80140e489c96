"""Liveness, readiness, health and metrics over HTTP, apart from the business path.

Readiness never depends on leadership: a rolling update would wait for the old pod's lease for ever.
"""

from collections.abc import Awaitable, Callable, Mapping, MutableMapping
from dataclasses import dataclass
from typing import Any

import orjson

_ALIASES = {"/live": "/livez", "/ready": "/readyz", "/health": "/healthz"}


@dataclass(frozen=True, slots=True)
class Component:
    """The state of one part of a process."""

    healthy: bool
    reason: str
    """What is wrong, or what is right, in a few words."""
    age_seconds: float = 0.0
    """Since when it was last known to be so."""
    required: bool = True
    """Whether the process is not ready without it."""


class HealthEndpoint:
    """The ASGI application for probes and Prometheus.

    Args:
        components: Called at each request: every component's state by name.
        exposition: Called at each scrape with its `Accept`: the metrics as text, and their content type.
        facts: More that `/healthz` shows, such as leadership.
    """

    def __init__(
        self,
        components: Callable[[], Mapping[str, Component]],
        exposition: Callable[[str], tuple[bytes, str]],
        facts: Callable[[], Mapping[str, Any]],
    ) -> None:
        self._components = components
        self._exposition = exposition
        self._facts = facts

    async def __call__(
        self,
        scope: MutableMapping[str, Any],
        receive: Callable[[], Awaitable[MutableMapping[str, Any]]],
        send: Callable[[MutableMapping[str, Any]], Awaitable[None]],
    ) -> None:
        """Answer one request."""
        if scope["type"] != "http":
            return
        path = scope["path"]
        accept = next((value.decode("latin-1") for name, value in scope["headers"] if name == b"accept"), "")
        status, body, kind = (
            self.answer(path, accept) if scope["method"] in ("GET", "HEAD") else (405, b"", b"text/plain")
        )
        headers = [(b"content-type", kind), (b"content-length", str(len(body)).encode())]
        await send({"type": "http.response.start", "status": status, "headers": headers})
        await send({"type": "http.response.body", "body": b"" if scope["method"] == "HEAD" else body})

    def answer(self, path: str, accept: str = "") -> tuple[int, bytes, bytes]:
        """The status, body and content type for a path."""
        match _ALIASES.get(path, path):
            case "/livez":
                return 200, b"ok\n", b"text/plain"
            case "/readyz":
                missing = [
                    f"{name}: {state.reason}"
                    for name, state in self._components().items()
                    if state.required and not state.healthy
                ]
                return (
                    (503, "\n".join(missing).encode() + b"\n", b"text/plain")
                    if missing
                    else (200, b"ok\n", b"text/plain")
                )
            case "/healthz":
                return self._health()
            case "/metrics":
                text, content_type = self._exposition(accept)
                return 200, text, content_type.encode()
            case _:
                return 404, b"no such page: /livez /readyz /healthz /metrics\n", b"text/plain"

    def _health(self) -> tuple[int, bytes, bytes]:
        components = self._components()
        healthy = all(state.healthy for state in components.values() if state.required)
        body = {
            "status": "ok" if healthy else "degraded",
            "components": {
                name: {"healthy": state.healthy, "reason": state.reason, "ageSeconds": round(state.age_seconds, 1)}
                for name, state in components.items()
            },
            **self._facts(),
        }
        return 200 if healthy else 503, orjson.dumps(body), b"application/json"
