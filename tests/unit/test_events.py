"""The recorder of events: what it folds, holds back, gives up and counts."""

import asyncio
import json
import re
from typing import Any

import pytest

from gpu_sharing.adapters import events
from gpu_sharing.core import errors, event_reasons
from tests import inputs


class FakeServer:
    """Takes events, and refuses what it is told to refuse."""

    def __init__(self) -> None:
        self.written: list[dict[str, Any]] = []
        self.folded: list[dict[str, Any]] = []
        self.refuses = False

    async def post(self, path: str, body: bytes, timeout_seconds: float = 1.0) -> bytes:
        if self.refuses:
            raise errors.Forbidden("no", 403)
        self.written.append(json.loads(body))
        return b""

    async def patch(self, path: str, body: bytes, timeout_seconds: float = 1.0) -> bytes:
        self.folded.append(json.loads(body))
        return b""


def event(note: str, reason: str = event_reasons.FAILED_SCHEDULING, pod: str = "p") -> events.Event:
    return events.Event(events.Regarding("Pod", pod, "default", f"uid-{pod}"), reason, note, "GPUScheduling")


def record(*told: events.Event, refuses: bool = False, queue_length: int = 10_000) -> tuple[FakeServer, Any]:
    """What becomes of events that are told at once."""
    server = FakeServer()
    server.refuses = refuses

    async def story() -> events.EventRecorder:
        client: Any = server
        recorder = events.EventRecorder(client, "hami-scheduler", "me", 10_000.0, queue_length=queue_length)
        for one in told:
            recorder.record(one)
        task = asyncio.create_task(recorder.run())
        await recorder.drain(60.0)
        await asyncio.sleep(0.05)
        task.cancel()
        return recorder

    return server, asyncio.run(story())


def test_warnings_go_first_and_carry_what_the_api_wants() -> None:
    """In the words of events.k8s.io/v1."""
    server, recorder = record(event("yes", event_reasons.SCHEDULED), event("no"))

    assert [one["note"] for one in server.written] == ["no", "yes"]
    assert [(one["type"], one["reason"]) for one in server.written] == [
        ("Warning", "FailedScheduling"),
        ("Normal", "Scheduled"),
    ]
    assert server.written[0]["regarding"]["uid"] == "uid-p"
    assert (recorder.written, recorder.dropped) == (2, 0)


def test_a_repeat_of_the_same_text_is_no_second_event() -> None:
    """Within ten seconds it is only counted."""
    server, _ = record(event("no"), event("no"), event("no", pod="other"))

    assert [one["regarding"]["name"] for one in server.written] == ["p", "other"]


def test_one_object_cannot_crowd_out_the_others() -> None:
    """Fifty texts about one pod at once; the rest is given up, and counted."""
    server, recorder = record(*(event(f"no {number}") for number in range(80)), event("no", pod="other"))

    assert len(server.written) == 51
    assert server.written[-1]["regarding"]["name"] == "other"
    assert recorder.dropped == 30


@pytest.mark.parametrize("count", [3])
def test_an_api_server_that_refuses_events_stops_nothing_and_is_counted(count: int) -> None:
    """Nobody loses an event silently."""
    _, recorder = record(*(event(f"no {number}") for number in range(count)), refuses=True)

    assert (recorder.written, recorder.dropped, recorder.queued) == (0, count, 0)


def test_a_queue_that_is_full_gives_up_the_oldest_ordinary_event() -> None:
    """Warnings stay."""
    told = [event("yes", event_reasons.SCHEDULED, pod=str(number)) for number in range(3)]
    server, recorder = record(*told, event("no"), queue_length=3)

    assert [one["regarding"]["name"] for one in server.written] == ["p", "1", "2"]
    assert recorder.dropped == 1


def test_a_pod_with_the_longest_name_gets_its_events() -> None:
    """The API server refuses an event whose name is longer than 253 letters, so that its owner heard nothing."""
    name = inputs.pod("04-long-name.yaml")["metadata"]["name"]
    long = name[:235] + "-.-" + "b" * 15

    for pod in (name, long):
        server, _ = record(event("waits", pod=pod))
        (written,) = server.written
        assert len(written["metadata"]["name"]) <= 253
        assert re.fullmatch(
            r"[a-z0-9]([-a-z0-9]*[a-z0-9])?(\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*", written["metadata"]["name"]
        )
        assert written["regarding"]["name"] == pod
