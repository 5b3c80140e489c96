"""Liveness, readiness, health and metrics over HTTP, on a separate listener.

Readiness never depends on leadership: a rolling update would wait for the old pod's lease for ever.

| path | answers 200 |
| --- | --- |
| `/livez` | while the process runs |
| `/startupz` | once it has been ready for the first time |
| `/readyz` | while every required component is healthy |
| `/healthz` | likewise, with the state of every component as JSON |
"""

import asyncio
import time
from collections.abc import Awaitable, Callable, Mapping, MutableMapping
from dataclasses import dataclass
from typing import Any

import orjson
import structlog

from gpu_sharing.adapters import flags
from gpu_sharing.core import errors

READY, UNREADY = "ready", "unready"

log = structlog.get_logger("health")


@dataclass(frozen=True, slots=True)
class Component:
    """The state of one part of a process."""

    healthy: bool
    reason: str
    """What is wrong, or what is right, in a few words."""
    age_seconds: float = 0.0
    """Since when it was last known to be so."""
    required: bool = True
    """Whether the process is not ready without it, unless the settings say otherwise."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ProbeSettings:
    """The settings of the probes."""

    live_path: str = "/livez"
    """`/live` is the same."""
    ready_path: str = "/readyz"
    """`/ready` is the same."""
    health_path: str = "/healthz"
    """`/health` is the same."""
    initial: str = UNREADY
    """The answer of `/readyz` before the process is ready for the first time."""
    required: frozenset[str] = frozenset()
    """The components that must be healthy for the process to be ready; empty: those that it names itself."""
    canary_interval_seconds: float = 10.0
    """How often a process calls itself the way its callers do."""
    canary_timeout_seconds: float = 2.0
    """How long that may take."""


HELP = {
    "livez-path": "PATH of the liveness probe (default /livez)",
    "readyz-path": "PATH of the readiness probe (default /readyz)",
    "healthz-path": "PATH of the state of every component (default /healthz)",
    "health-initial": "ready or unready: what readiness says before the process was ready once (default unready)",
    "health-required": "components, with commas, that readiness needs (default: those that /healthz calls required)",
}
"""The flags of every process, in the order of `--help`."""
CANARY_HELP = {
    "canary-interval": "seconds between two calls of the process to itself (default 10)",
    "canary-timeout": "seconds that such a call may take (default 2)",
}
"""Those of a process that is called by others."""


def read(value: Callable[[str], str | None], known: frozenset[str], *, canary: bool) -> ProbeSettings:
    """The settings of the probes.

    Args:
        value: The value of a flag.
        known: The components that the process has.
        canary: Whether it has the flags of `CANARY_HELP`.

    Raises:
        SettingsError: A path is invalid, or a component does not exist.
    """
    default = ProbeSettings()
    required = frozenset(filter(None, (value("health-required") or "").split(",")))
    if required - known:
        raise errors.SettingsError(
            f"--health-required {','.join(sorted(required - known))}: there are {', '.join(sorted(known))}"
        )
    return ProbeSettings(
        live_path=_path("--livez-path", value("livez-path"), default.live_path),
        ready_path=_path("--readyz-path", value("readyz-path"), default.ready_path),
        health_path=_path("--healthz-path", value("healthz-path"), default.health_path),
        initial=flags.one_of("--health-initial", value("health-initial"), (READY, UNREADY), UNREADY),
        required=required,
        canary_interval_seconds=flags.number(
            "--canary-interval", value("canary-interval") if canary else None, 10.0, 0.05, 3600
        ),
        canary_timeout_seconds=flags.number(
            "--canary-timeout", value("canary-timeout") if canary else None, 2.0, 0.01, 600
        ),
    )


def _path(flag: str, text: str | None, default: str) -> str:
    if not text:
        return default
    if not text.startswith("/") or any(one in text for one in "?# "):
        raise errors.SettingsError(f"{flag} {text!r} is no path, for example {default}")
    return text


class HealthEndpoint:
    """The ASGI application for probes and Prometheus.

    Args:
        options: How it answers.
        components: Called at each request: every component's state by name.
        exposition: Called at each scrape with its `Accept`: the metrics as text, and their content type.
        facts: More that `/healthz` shows, such as leadership.
    """

    def __init__(
        self,
        options: ProbeSettings,
        components: Callable[[], Mapping[str, Component]],
        exposition: Callable[[str], tuple[bytes, str]],
        facts: Callable[[], Mapping[str, Any]],
    ) -> None:
        self._options = options
        self._components = components
        self._exposition = exposition
        self._facts = facts
        self._was_ready = False
        self._answers: Mapping[str, Callable[[str], tuple[int, bytes, bytes]]] = {
            "/live": self._live, options.live_path: self._live, "/startupz": self._startup,
            "/ready": self._ready, options.ready_path: self._ready,
            "/health": self._health, options.health_path: self._health, "/metrics": self._metrics,
        }  # fmt: skip

    async def __call__(
        self,
        scope: MutableMapping[str, Any],
        receive: Callable[[], Awaitable[MutableMapping[str, Any]]],
        send: Callable[[MutableMapping[str, Any]], Awaitable[None]],
    ) -> None:
        """Answer one request for a probe or for metrics."""
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
        handler = self._answers.get(path)
        if handler is None:
            pages = " ".join(one for one in self._answers if one not in ("/live", "/ready", "/health"))
            return 404, f"no such page: {pages}\n".encode(), b"text/plain"
        answer = handler(accept)
        log.debug("probe", path=path, status=answer[0])
        return answer

    def _missing(self, components: Mapping[str, Component]) -> list[str]:
        """Why the process is not ready."""
        missing = [
            f"{name}: {state.reason}"
            for name, state in components.items()
            if not state.healthy and self._is_required(name, state)
        ]
        self._was_ready = self._was_ready or not missing
        return missing

    def _is_required(self, name: str, state: Component) -> bool:
        return name in self._options.required if self._options.required else state.required

    def _live(self, accept: str) -> tuple[int, bytes, bytes]:
        return 200, b"ok\n", b"text/plain"

    def _startup(self, accept: str) -> tuple[int, bytes, bytes]:
        missing = self._missing(self._components())
        return (200, b"ok\n", b"text/plain") if self._was_ready else _unready(missing)

    def _ready(self, accept: str) -> tuple[int, bytes, bytes]:
        missing = self._missing(self._components())
        if not missing or (not self._was_ready and self._options.initial == READY):
            return 200, b"ok\n", b"text/plain"
        return _unready(missing)

    def _health(self, accept: str) -> tuple[int, bytes, bytes]:
        components = self._components()
        healthy = not self._missing(components)
        body = {
            "status": "ok" if healthy else "degraded",
            "components": {
                name: {
                    "healthy": state.healthy,
                    "required": self._is_required(name, state),
                    "reason": state.reason,
                    "ageSeconds": round(state.age_seconds, 1),
                }
                for name, state in components.items()
            },
            **self._facts(),
        }
        return 200 if healthy else 503, orjson.dumps(body), b"application/json"

    def _metrics(self, accept: str) -> tuple[int, bytes, bytes]:
        text, content_type = self._exposition(accept)
        return 200, text, content_type.encode()


def _unready(missing: list[str]) -> tuple[int, bytes, bytes]:
    return 503, "\n".join(missing).encode() + b"\n", b"text/plain"


class Canary:
    """Calls the process's own listener periodically: a listener may hang while the process is healthy.

    It is not required for readiness by default, because a busy process should keep its callers.
    """

    def __init__(self, call: Callable[[], Awaitable[None]], options: ProbeSettings) -> None:
        """Make a canary of a call, which raises if it fails."""
        self._call = call
        self._options = options
        self._problem = "not called yet"
        self._answered_at = time.monotonic()

    async def run(self) -> None:
        """Call for ever; ends only by cancellation."""
        while True:
            try:
                async with asyncio.timeout(self._options.canary_timeout_seconds):
                    await self._call()
            except Exception as problem:
                reason = str(problem) or f"no answer within {self._options.canary_timeout_seconds:g} s"
                if not self._problem:  # Before the first answer the listener is not open yet.
                    log.warning("the canary is not answered", cause=reason)
                self._problem = reason
            else:
                self._problem, self._answered_at = "", time.monotonic()
            await asyncio.sleep(self._options.canary_interval_seconds)

    def component(self) -> Component:
        """Return the result of the last call."""
        age = time.monotonic() - self._answered_at
        return Component(not self._problem, self._problem or "answers", age, required=False)
