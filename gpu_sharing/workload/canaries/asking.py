"""Asks one endpoint for one token, or reads in its metrics that users got theirs; says why where it is not ready."""

from __future__ import annotations

import dataclasses
import json
import math
import time
from collections.abc import Callable
from typing import Any

from gpu_sharing.core import error_codes, json_text
from gpu_sharing.workload.canaries import http_calls
from gpu_sharing.workload.canaries.canary import Canary
from gpu_sharing.workload.canaries.http_calls import CanaryRefused, Target
from gpu_sharing.workload.canaries.settings import CanarySettings

_LONGEST_REASON = 200


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """Whether an endpoint is ready, and why."""

    url: str
    engine: str
    ready: bool
    by: str = ""
    """`answer`: it generated a token; `traffic`: its counters grew; empty if it is not ready."""
    error_code: str = ""
    reason: str = ""
    seconds: float = 0.0


def outcome(
    canary: Canary, url: str, settings: CanarySettings, timeout_seconds: float, traffic_window_seconds: float = 0.0
) -> Outcome:
    """Return whether an endpoint is ready.

    Args:
        canary: Of the endpoint's engine.
        url: The server's address, without the engine's path.
        settings: What to send.
        timeout_seconds: For the whole of it.
        traffic_window_seconds: With more than 0: read the server's counters twice, this long apart, and send nothing if
            they grew.
    """
    began = time.monotonic()
    by = code = reason = ""
    try:
        server = http_calls.target(url)
        deadline = began + timeout_seconds
        busy = traffic_window_seconds > 0 and has_traffic(canary, server, settings, traffic_window_seconds, deadline)
        if not busy:
            ask(canary, server, settings, deadline)
        by = "traffic" if busy else "answer"
    except CanaryRefused as refused:
        code, reason = refused.code, str(refused)
    seconds = round(time.monotonic() - began, 3)
    return Outcome(
        url=url, engine=canary.engine, ready=bool(by), by=by, error_code=code, reason=reason, seconds=seconds
    )


def ask(canary: Canary, server: Target, settings: CanarySettings, deadline: float) -> None:
    """Request one token.

    Raises:
        CanaryRefused: No answer by the deadline, or not a token.
    """
    model = settings.model
    if not model and canary.models_path and settings.payload is None:
        model = _listed_model(canary, server, settings, deadline)
    payload = settings.payload
    if payload is None:
        where = canary.description_path(model)
        description = (
            decoded(http_calls.exchange(server, where, deadline, headers=_headers(settings))) if where else None
        )
        payload = canary.payload(settings, model, description)
    body = json.dumps(payload).encode()
    answer = http_calls.exchange(server, canary.path(model), deadline, body=body, headers=_headers(settings))
    lacks = canary.wrong(decoded(answer))
    if lacks:
        sentence = f"The answer is not that of {canary.description}: {lacks}. Check --engine and the port."
        raise CanaryRefused(error_codes.CANARY_INVALID_ANSWER, sentence)


def has_traffic(
    canary: Canary,
    server: Target,
    settings: CanarySettings,
    window_seconds: float,
    deadline: float,
    pause: Callable[[float], None] = time.sleep,
) -> bool:
    """Return whether the server's own counters grew within a window; False where it does not export them."""
    if not canary.metrics_path:
        return False
    before = _counted(canary, server, settings, deadline)
    if before is None or time.monotonic() + window_seconds >= deadline:
        return False
    pause(window_seconds)
    after = _counted(canary, server, settings, deadline)
    return after is not None and after > before


def _counted(canary: Canary, server: Target, settings: CanarySettings, deadline: float) -> float | None:
    try:
        exporter = dataclasses.replace(server, port=canary.metrics_port or server.port)
        answer = http_calls.exchange(exporter, canary.metrics_path, deadline, headers=_headers(settings))
    except CanaryRefused as refused:
        if refused.code == error_codes.CANARY_TIMEOUT:
            raise
        return None
    return traffic(answer.body, canary.traffic_series) if answer.status == 200 else None


def traffic(text: bytes, series: tuple[str, ...]) -> float | None:
    """Return the sum of counters in a text of metrics; None where it has none of them."""
    total: float | None = None
    for line in text.decode("utf-8", "replace").splitlines():
        name = line.partition("{")[0].partition(" ")[0]
        if name not in series:
            continue
        rest = line.rpartition("}")[2] if "{" in line else line[len(name) :]
        try:
            value = float(rest.split()[0])
        except (IndexError, ValueError):
            continue
        if math.isfinite(value):
            total = (total or 0.0) + value
    return total


def _listed_model(canary: Canary, server: Target, settings: CanarySettings, deadline: float) -> str:
    answer = http_calls.exchange(server, canary.models_path, deadline, headers=_headers(settings))
    return canary.first_model(decoded(answer)) if answer.status != 404 else ""


def _headers(settings: CanarySettings) -> dict[str, str]:
    return {"Authorization": f"Bearer {settings.api_key}"} if settings.api_key else {}


def decoded(answer: http_calls.Answer) -> Any:
    """Return the decoded body of an answer with status 200.

    Raises:
        CanaryRefused: Another status, or not JSON.
    """
    if answer.status != 200:
        said = "".join(
            one if one.isprintable() else " " for one in answer.body[:_LONGEST_REASON].decode("utf-8", "replace")
        )
        raise CanaryRefused(
            error_codes.CANARY_STATUS, f"It answers with status {answer.status}: {said}".rstrip(": ") + "."
        )
    try:
        return json_text.value(answer.body)
    except ValueError:
        sentence = "It answers with what is not JSON. Check --engine and the port."
        raise CanaryRefused(error_codes.CANARY_INVALID_ANSWER, sentence) from None
