"""Measured use of GPUs, as Prometheus tells it, in the choice of a node."""

import asyncio
import http.server
import json
import threading
from collections.abc import Iterator
from typing import Any
from urllib import parse

import pytest

from gpu_sharing.adapters import prometheus
from lab import gpus
from scheduler_extender import settings
from scheduler_extender.cluster import measured_usage
from scheduler_extender.settings import Settings
from tests.support.extender_world import A100, World, held, pod


def sample(node: str | None, value: str) -> dict[str, Any]:
    return {"metric": {"node": node} if node else {}, "value": [1.0, value]}


class FakePrometheus(http.server.ThreadingHTTPServer):
    """Answers every query with `body`, and remembers them."""

    body = b""
    asked: list[str]

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"

    def answers(self, *samples: dict[str, Any]) -> None:
        self.body = json.dumps({"status": "success", "data": {"resultType": "vector", "result": samples}}).encode()


class Handler(http.server.BaseHTTPRequestHandler):
    server: FakePrometheus

    def do_GET(self) -> None:
        self.server.asked.append(parse.parse_qs(parse.urlsplit(self.path).query)["query"][0])
        self.send_response(200)
        self.end_headers()
        self.wfile.write(self.server.body)

    def log_message(self, format: str, *args: Any) -> None:
        """Tests are quiet."""


@pytest.fixture
def server() -> Iterator[FakePrometheus]:
    with FakePrometheus(("127.0.0.1", 0), Handler) as running:
        running.asked = []
        threading.Thread(target=running.serve_forever, daemon=True).start()
        yield running
        running.shutdown()


def world(weight: float, url: str = "http://p") -> World:
    """Two nodes, of which `full` is the better one for binpack."""
    made = World(
        gpus.gpu_node("full", A100, 1), gpus.gpu_node("spare", A100, 1), usage_weight=weight, prometheus_url=url
    )
    made.see(held("other", "full", 0, 8_000))
    return made


def chosen(made: World, name: str = "p") -> str:
    made.filter(pod(name), "full", "spare")
    return max(made.prioritize(pod(name), "full", "spare").items(), key=lambda item: item[1])[0]


def test_a_busy_node_loses_to_an_idle_one_by_the_weight_that_is_set() -> None:
    """With no weight the policy decides alone; a node that nobody measures keeps its own score."""
    for weight, busy, expected in (
        (0.0, {"full": 100, "spare": 0}, "full"),
        (0.5, {"full": 100, "spare": 0}, "spare"),
        (0.5, {"full": 0, "spare": 100}, "full"),
        (0.1, {"full": 20, "spare": 0}, "full"),
        (0.5, {}, "full"),
        (1.0, {"full": 20}, "full"),
        (1.0, {"full": 99}, "spare"),
        (1.0, {"full": 1e9, "spare": 0}, "spare"),
    ):
        made = world(weight)
        made.core.usage.learn(busy)
        assert chosen(made) == expected, (weight, busy)


def test_an_old_measure_counts_for_nothing() -> None:
    """And one that comes anew counts again, also for nodes that came in between."""
    made = world(0.9)
    made.core.usage.learn({"full": 100, "spare": 0})
    assert chosen(made) == "spare"
    made.clock.now += 91
    assert chosen(made, "q") == "full"
    made.core.usage.learn({"full": 100, "spare": 0})
    assert chosen(made, "r") == "spare"


def test_prometheus_is_asked_for_fresh_figures_of_each_node(server: FakePrometheus) -> None:
    """A series without a node, or with a value that is no number, is left out."""
    server.answers(sample("full", "100"), sample("spare", "0"), sample(None, "50"), sample("odd", "NaN"))
    made = world(0.9, server.url)

    asyncio.run(made.core.usage.ask())

    assert chosen(made) == "spare"
    (query,) = server.asked
    assert query.startswith("avg by (node) (hami_gpu_utilization_percent and (time() - timestamp(")


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"{",
        b"[]",
        b'{"status":"error"}',
        b'{"status":"success","data":{"result":[{"metric":{}}]}}',
        b'{"status":"success","data":{"result":[{"metric":{},"value":[1,"many"]}]}}',
    ],
)
def test_no_answer_changes_nothing_and_is_said_once(
    server: FakePrometheus, body: bytes, capsys: pytest.CaptureFixture[str]
) -> None:
    """The last figures count until they are old."""
    server.body = body
    made = world(0.9, server.url)
    made.core.usage.learn({"full": 100, "spare": 0})

    for _ in range(2):
        asyncio.run(made.core.usage.ask())

    assert chosen(made) == "spare"
    assert capsys.readouterr().out.count("SCHED_USAGE_UNKNOWN") == 1
    with pytest.raises(prometheus.NoAnswer):
        asyncio.run(prometheus.query(server.url, "up", 1))


@pytest.mark.parametrize(
    ("flags", "named"),
    [
        (["--usage-weight", "0.5"], "--prometheus-url"),
        (["--usage-weight", "2", "--prometheus-url", "http://p"], "--usage-weight"),
        (["--prometheus-url", "file:///etc/passwd"], "is no URL"),
    ],
)
def test_settings_that_cannot_be_are_refused(flags: list[str], named: str) -> None:
    """Only http and https are ever opened."""
    with pytest.raises(Exception, match=named):
        settings.parse(flags, {})
    assert not measured_usage.MeasuredUsage(Settings()).counts
