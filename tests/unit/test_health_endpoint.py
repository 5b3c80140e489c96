"""What probes are told."""

import asyncio
import json
import time
from collections.abc import Callable, Mapping
from typing import Any

import pytest

from device_plugin import settings as plugin_settings
from device_plugin.monitor import settings as monitor_settings
from gpu_sharing.adapters import health_endpoint, metrics_registry
from gpu_sharing.core import errors
from scheduler_extender import settings as extender_settings
from webui import settings as webui_settings

GOOD, BAD = health_endpoint.Component(True, "watching"), health_endpoint.Component(False, "not listed yet", 3.0)
ASIDE = health_endpoint.Component(False, "2 waiting", required=False)


PROCESSES: tuple[tuple[Callable[..., Any], str, str], ...] = (
    (extender_settings.parse, "pods", "verbs"),
    (plugin_settings.parse, "pods", "socket"),
    (monitor_settings.parse, "pods", "scrape"),
    (webui_settings.parse, "extender", "pages"),
)
"""How each process reads its flags, one of its components, and the one of its canary."""


def endpoint(components: Mapping[str, health_endpoint.Component], **options: object) -> health_endpoint.HealthEndpoint:
    return health_endpoint.HealthEndpoint(
        health_endpoint.ProbeSettings(**options),  # type: ignore[arg-type]
        lambda: components,
        lambda accept: (b"series", "text/plain"),
        lambda: {"leading": False},
    )


def statuses(found: health_endpoint.HealthEndpoint, *paths: str) -> list[int]:
    return [found.answer(path)[0] for path in paths]


def test_liveness_startup_and_readiness_are_three_things() -> None:
    """A process that is not ready is alive; one that was ready once has started, whatever comes."""
    components = {"pods": BAD, "events": ASIDE}
    found = endpoint(components)
    assert statuses(found, "/livez", "/live", "/startupz", "/readyz", "/ready", "/healthz") == [
        200, 200, 503, 503, 503, 503,
    ]  # fmt: skip
    assert found.answer("/readyz")[1] == b"pods: not listed yet\n"

    components["pods"] = GOOD
    assert statuses(found, "/startupz", "/readyz", "/healthz", "/health") == [200, 200, 200, 200]
    components["pods"] = BAD
    assert statuses(found, "/livez", "/startupz", "/readyz") == [200, 200, 503]


def test_health_says_of_each_component_how_it_is_why_and_since_when() -> None:
    """As JSON, with what else there is to know."""
    status, body, kind = endpoint({"pods": BAD, "events": ASIDE}).answer("/healthz")

    assert (status, kind) == (503, b"application/json")
    assert json.loads(body) == {
        "status": "degraded",
        "leading": False,
        "components": {
            "pods": {"healthy": False, "required": True, "reason": "not listed yet", "ageSeconds": 3.0},
            "events": {"healthy": False, "required": False, "reason": "2 waiting", "ageSeconds": 0.0},
        },
    }


def test_what_readiness_needs_how_it_begins_and_where_it_is_are_settings() -> None:
    """The aliases stay."""
    needs_events = endpoint({"pods": BAD, "events": ASIDE}, required=frozenset({"events"}))
    assert needs_events.answer("/readyz")[1] == b"events: 2 waiting\n"

    components = {"pods": BAD}
    optimist = endpoint(components, initial=health_endpoint.READY)
    assert statuses(optimist, "/readyz", "/startupz") == [200, 503]
    components["pods"] = GOOD
    assert statuses(optimist, "/readyz") == [200]
    components["pods"] = BAD
    assert statuses(optimist, "/readyz") == [503]

    moved = endpoint({"pods": GOOD}, ready_path="/my/ready", live_path="/my/live", health_path="/my/health")
    assert statuses(moved, "/my/ready", "/my/live", "/my/health") == [200, 200, 200]
    assert statuses(moved, "/readyz", "/ready", "/livez", "/live", "/healthz", "/health") == [200] * 6
    assert moved.answer("/nowhere")[1].startswith(b"no such page: /my/live /startupz /my/ready /my/health /metrics")


def test_settings_of_probes_that_make_no_sense_are_refused_by_every_process() -> None:
    """With what there is."""
    environment = {"NODE_NAME": "n"}
    for parse, component, canary in PROCESSES:
        given = ["--readyz-path", "/r", "--health-initial", "ready", "--health-required", component]
        given += ["--canary-idle", "3", "--canary-interval", "1", "--canary-timeout", "0.5"]
        assert parse(given, environment).health == health_endpoint.ProbeSettings(
            ready_path="/r", initial="ready", required=frozenset({component}),
            canary_idle_seconds=3.0, canary_interval_seconds=1.0, canary_timeout_seconds=0.5,
        )  # fmt: skip
        for wrong in (
            ["--livez-path", "live"], ["--livez-path", "/readyz"], ["--readyz-path", "/metrics"],
            ["--livez-path", "/x", "--healthz-path", "/x"], ["--health-required", f"{component},moon"],
            ["--health-initial", "perhaps"], ["--canary", "false", "--health-required", canary],
        ):  # fmt: skip
            with pytest.raises(errors.SettingsError):
                parse(wrong, environment)
        assert parse(["--canary", "false"], environment).health.canary is False


def test_a_canary_tells_a_deaf_listener_from_one_that_answers() -> None:
    """It hangs, it refuses, it answers."""

    async def story() -> list[tuple[bool, str]]:
        answers = asyncio.Event()

        async def call() -> None:
            if not answers.is_set():
                await answers.wait()

        options = health_endpoint.ProbeSettings(canary_interval_seconds=0.01, canary_timeout_seconds=0.05)
        canary = health_endpoint.Canary(call, options)
        found = [canary.component()]
        task = asyncio.create_task(canary.run())
        for answered in (False, True):
            if answered:
                answers.set()
            while canary.component().reason == found[-1].reason:
                await asyncio.sleep(0.01)
            found.append(canary.component())
        task.cancel()
        return [(one.healthy, one.reason) for one in found]

    assert asyncio.run(story()) == [
        (False, "not called yet"),
        (False, "no answer within 0.05 s"),
        (True, "answers"),
    ]


def test_a_canary_is_silent_while_others_are_answered_and_when_it_is_off() -> None:
    """An answer to a caller proves as much; calls on top of it cost a busy process time."""

    async def story() -> tuple[int, health_endpoint.Component, bool | None, int]:
        calls = 0
        others_answered_at = time.monotonic() + 3600

        async def call() -> None:
            nonlocal calls
            calls += 1

        options = health_endpoint.ProbeSettings(canary_idle_seconds=1800, canary_interval_seconds=0.01)
        canary = health_endpoint.Canary(call, options, lambda: others_answered_at)
        task = asyncio.create_task(canary.run())
        while not canary.success:
            await asyncio.sleep(0.01)
        busy_calls, busy = calls, canary.component()
        others_answered_at = float("-inf")
        while not calls:
            await asyncio.sleep(0.01)
        task.cancel()

        off = health_endpoint.Canary(call, health_endpoint.ProbeSettings(canary=False))
        calls = 0
        await off.run()
        return busy_calls, busy, off.success, calls

    busy_calls, busy, off, off_calls = asyncio.run(story())
    assert (busy_calls, busy.healthy, busy.reason) == (0, True, "answers")
    assert (off, off_calls) == (None, 0)


def test_the_result_of_the_canary_is_a_metric_that_is_absent_while_it_is_off() -> None:
    """An alert on 0 must not fire where the canary is switched off."""

    async def call() -> None:
        raise OSError("refused")

    async def series(options: health_endpoint.ProbeSettings) -> list[str]:
        canary = health_endpoint.Canary(call, options)
        metrics = metrics_registry.Series("x")
        metrics.watch_canary(canary)
        task = asyncio.create_task(canary.run())
        while options.canary and canary.seconds is None:
            await asyncio.sleep(0.01)
        task.cancel()
        text = metrics.exposition()[0].decode()
        return [line for line in text.splitlines() if line.startswith("hami_canary")]

    assert asyncio.run(series(health_endpoint.ProbeSettings()))[0] == "hami_canary_success 0.0"
    assert asyncio.run(series(health_endpoint.ProbeSettings(canary=False))) == []
