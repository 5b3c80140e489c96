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
CANARY_AGENT = "hami-canary"
"""The `User-Agent` of a process that calls itself."""
_CHUNK_BYTES = 64 * 1024

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

    startup_path: str = "/startupz"
    live_path: str = "/livez"
    """`/live` is the same. The default paths stay valid beside another one, so that probes of either kind work."""
    ready_path: str = "/readyz"
    """`/ready` is the same."""
    health_path: str = "/healthz"
    """`/health` is the same."""
    initial: str = UNREADY
    """The answer of `/readyz` before the process is ready for the first time."""
    required: frozenset[str] = frozenset()
    """The components that must be healthy for the process to be ready; empty: those that it names itself."""
    canary: bool = True
    """Whether a process calls itself the way its callers do."""
    canary_idle_seconds: float = 30.0
    """How long no caller must have received an answer before the process calls itself: an answer proves as much."""
    canary_interval_seconds: float = 10.0
    """The pause between two calls of the process to itself."""
    canary_timeout_seconds: float = 2.0
    """How long such a call may take."""


HELP = {
    "startupz-path": "PATH of the startup probe, beside /startupz",
    "livez-path": "PATH of the liveness probe, beside /livez",
    "readyz-path": "PATH of the readiness probe, beside /readyz",
    "healthz-path": "PATH of the state of every component, beside /healthz",
    "health-initial": "ready or unready: what readiness says before the process was ready once (default unready)",
    "health-required": "components, with commas, that readiness needs (default: those that /healthz calls required)",
    "canary": "true or false: the process calls itself while no other caller does (default true)",
    "canary-idle": "seconds without an answer to a caller before the process calls itself (default 30)",
    "canary-interval": "seconds between two calls of the process to itself (default 10)",
    "canary-timeout": "seconds that such a call may take (default 2)",
}
"""The flags of every process, in the order of `--help`."""
_MEANINGS = {
    "startup": ("/startupz",),
    "live": ("/livez", "/live"),
    "ready": ("/readyz", "/ready"),
    "health": ("/healthz", "/health"),
    "metrics": ("/metrics",),
}
"""The paths that a process always answers, by what they mean."""


def read(value: Callable[[str], str | None], known: frozenset[str], canary: str) -> ProbeSettings:
    """Return the settings of the probes.

    Args:
        value: The value of a flag.
        known: The components that the process has.
        canary: The component that shows the process's calls to itself.

    Raises:
        SettingsError: A path is invalid, a component does not exist, or is required and switched off.
    """
    required = frozenset(filter(None, (value("health-required") or "").split(",")))
    if required - known:
        raise errors.SettingsError(
            f"--health-required {','.join(sorted(required - known))}: there are {', '.join(sorted(known))}"
        )
    settings = ProbeSettings(
        **_paths(value),
        initial=flags.one_of("--health-initial", value("health-initial"), (READY, UNREADY), UNREADY),
        required=required,
        canary=flags.truth("--canary", value("canary") or "true"),
        canary_idle_seconds=flags.number("--canary-idle", value("canary-idle"), 30.0, 0, 3600),
        canary_interval_seconds=flags.number("--canary-interval", value("canary-interval"), 10.0, 0.05, 3600),
        canary_timeout_seconds=flags.number("--canary-timeout", value("canary-timeout"), 2.0, 0.01, 600),
    )
    if canary in required and not settings.canary:
        raise errors.SettingsError(f"--health-required {canary} needs --canary true: its calls are what shows it")
    return settings


def _paths(value: Callable[[str], str | None]) -> dict[str, str]:
    """Return the four paths, each with one meaning."""
    default = ProbeSettings()
    meanings = {path: meaning for meaning, paths in _MEANINGS.items() for path in paths}
    paths = {}
    for meaning in ("startup", "live", "ready", "health"):
        flag, field = f"--{meaning}z-path", f"{meaning}_path"
        path = _path(flag, value(flag.removeprefix("--")), getattr(default, field))
        if meanings.setdefault(path, meaning) != meaning:
            raise errors.SettingsError(f"{flag} {path} is the path of {meanings[path]}: choose another")
        paths[field] = path
    return paths


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
        meanings: Mapping[str, tuple[str, Callable[[str], tuple[int, bytes, bytes]]]] = {
            "live": (options.live_path, self._live),
            "startup": (options.startup_path, self._startup),
            "ready": (options.ready_path, self._ready),
            "health": (options.health_path, self._health),
            "metrics": ("/metrics", self._metrics),
        }
        self._pages = " ".join(path for path, _ in meanings.values())
        self._answers = {
            path: handler for meaning, (chosen, handler) in meanings.items() for path in (chosen, *_MEANINGS[meaning])
        }

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
            return 404, f"no such page: {self._pages}\n".encode(), b"text/plain"
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
    """Calls the process's own listener while no one else does: a listener may hang while the process is healthy.

    It is not required for readiness by default, because a busy process should keep its callers.
    """

    def __init__(
        self,
        call: Callable[[], Awaitable[None]],
        options: ProbeSettings,
        answered_at: Callable[[], float] = lambda: float("-inf"),
    ) -> None:
        """Make a canary.

        Args:
            call: The call, which raises if it fails.
            options: Whether, when and how long it calls.
            answered_at: Monotonic seconds of the last answer that another caller received.
        """
        self._call = call
        self._options = options
        self._others_answered_at = answered_at
        self._problem = "not called yet"
        self._answered_at = time.monotonic()
        self.seconds: float | None = None
        """How long the last call took; None before the first."""

    @property
    def success(self) -> bool | None:
        """Whether the last call was answered, the process's own or another; None while it is switched off."""
        return not self._problem if self._options.canary else None

    async def run(self) -> None:
        """Call whenever the process is idle; ends only by cancellation, or where it is switched off."""
        while self._options.canary:
            idle_seconds = time.monotonic() - self._others_answered_at()
            if idle_seconds < self._options.canary_idle_seconds:
                self._problem, self._answered_at = "", time.monotonic() - idle_seconds
                await asyncio.sleep(
                    min(self._options.canary_idle_seconds - idle_seconds, self._options.canary_interval_seconds)
                )
                continue
            await self._try()
            await asyncio.sleep(self._options.canary_interval_seconds)

    async def _try(self) -> None:
        started = time.monotonic()
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
        self.seconds = time.monotonic() - started

    def component(self) -> Component:
        """Return the result of the last call."""
        if not self._options.canary:
            return Component(True, "switched off", required=False)
        age = time.monotonic() - self._answered_at
        return Component(not self._problem, self._problem or "answers", age, required=False)


async def get_own(address: str, path: str, most_status: int = 200) -> None:
    """GET a path of one of the process's own listeners without TLS, on a new connection, and read the answer.

    Args:
        address: `HOST:PORT` of the listener.
        path: The path.
        most_status: The highest HTTP status that counts as an answer.

    Raises:
        OSError: The status is higher, or there is no answer.
    """
    host, _, port = address.rpartition(":")
    reader, writer = await asyncio.open_connection(host.strip("[]"), int(port))
    try:
        head = (f"GET {path} HTTP/1.1", f"Host: localhost:{port}", f"User-Agent: {CANARY_AGENT}", "Connection: close")
        writer.write("".join(f"{line}\r\n" for line in (*head, "")).encode())
        first_line = await reader.readline()
        status = first_line.split(b" ")[1:2]
        if not status or not status[0].isdigit() or int(status[0]) > most_status:
            raise OSError(f"{address} answers {first_line[:80].decode(errors='replace').strip() or 'nothing'}")
        while await reader.read(_CHUNK_BYTES):
            pass
    finally:
        writer.close()
