"""What probes are told."""

import asyncio
import json
from collections.abc import Mapping

import pytest

from device_plugin import settings as plugin_settings
from device_plugin.monitor import settings as monitor_settings
from gpu_sharing.adapters import health_endpoint
from gpu_sharing.core import errors
from scheduler_extender import settings as extender_settings

GOOD, BAD = health_endpoint.Component(True, "watching"), health_endpoint.Component(False, "not listed yet", 3.0)
ASIDE = health_endpoint.Component(False, "2 waiting", required=False)


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
    assert statuses(moved, "/my/ready", "/my/live", "/my/health", "/ready", "/readyz") == [200, 200, 200, 200, 404]
    assert moved.answer("/nowhere")[1].startswith(b"no such page: /my/live /startupz /my/ready /my/health /metrics")


def test_settings_of_probes_that_make_no_sense_are_refused_by_every_process() -> None:
    """With what there is."""
    environment = {"NODE_NAME": "n"}
    for parse in (extender_settings.parse, plugin_settings.parse, monitor_settings.parse):
        given = ["--readyz-path", "/r", "--health-initial", "ready", "--health-required", "pods"]
        assert parse(given, environment).health == health_endpoint.ProbeSettings(
            ready_path="/r", initial="ready", required=frozenset({"pods"})
        )
        for wrong in (["--livez-path", "live"], ["--health-required", "pods,moon"], ["--health-initial", "perhaps"]):
            with pytest.raises(errors.SettingsError):
                parse(wrong, environment)
    options = extender_settings.parse(["--canary-interval", "1", "--canary-timeout", "0.5"], environment).health
    assert (options.canary_interval_seconds, options.canary_timeout_seconds) == (1.0, 0.5)


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
