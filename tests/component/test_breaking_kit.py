"""What scenarios and tutorials break things with does what it says, and what is broken comes back."""

import asyncio
import json
import pathlib
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from typing import Any

import pytest

from lab import api_server, clock_ahead, http_proxy, kinds, pods, replica_sets
from lab.real import components
from tests.component import calls

pytestmark = pytest.mark.slow

CONFIGMAPS = "/api/v1/namespaces/default/configmaps"


@pytest.fixture
def server() -> Iterator[api_server.Running]:
    with api_server.running() as running:
        yield running


@pytest.fixture
def proxy(server: api_server.Running) -> Iterator[http_proxy.HttpProxy]:
    with http_proxy.running(server.url) as running:
        yield running


class Caller:
    """Calls the lab's API server through the proxy."""

    def __init__(self, server: api_server.Running, proxy: http_proxy.HttpProxy) -> None:
        self._token = server.token
        self._url = proxy.url

    def call(self, method: str, path: str, body: Any = None) -> tuple[int, Any]:
        """Return the status, 0 without an answer, and the decoded body."""
        headers = {"Authorization": f"Bearer {self._token}", "Content-Type": "application/json"}
        data = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(self._url + path, data, headers, method=method)
        try:
            with urllib.request.urlopen(request, timeout=30) as answer:
                return answer.status, json.loads(answer.read())
        except urllib.error.HTTPError as refused:
            return refused.code, json.loads(refused.read())
        except OSError:
            return 0, None


@pytest.fixture
def caller(server: api_server.Running, proxy: http_proxy.HttpProxy) -> Caller:
    return Caller(server, proxy)


def config(name: str, value: str = "1") -> dict[str, Any]:
    return {"metadata": {"name": name}, "data": {"x": value}}


def test_without_a_fault_calls_pass_as_they_are(caller: Caller) -> None:
    """So that a scenario measures the fault, and not the proxy."""
    assert caller.call("POST", CONFIGMAPS, config("a"))[0] == 201
    assert caller.call("GET", f"{CONFIGMAPS}/a")[1]["data"] == {"x": "1"}
    assert caller.call("GET", f"{CONFIGMAPS}/b")[0] == 404


def test_a_share_of_the_calls_is_refused(caller: Caller, proxy: http_proxy.HttpProxy) -> None:
    """As Kubernetes refuses, with a reason; the others pass, and all do at the end."""
    proxy.become(http_proxy.HttpFault(path="configmaps", statuses=(429,), share=0.5))
    answers = [caller.call("GET", CONFIGMAPS) for _ in range(60)]
    statuses = [status for status, _ in answers]
    assert 10 < statuses.count(429) < 50
    assert statuses.count(200) == 60 - statuses.count(429) == 60 - proxy.affected
    assert next(body for status, body in answers if status == 429)["reason"] == "TooManyRequests"

    proxy.become()

    assert [caller.call("GET", CONFIGMAPS)[0] for _ in range(10)] == [200] * 10


def test_a_lost_answer_is_of_a_call_that_was_executed(caller: Caller, proxy: http_proxy.HttpProxy) -> None:
    """The worst of all answers: the caller does not know."""
    proxy.become(http_proxy.HttpFault(method="POST", loses_answer=True))
    assert caller.call("POST", CONFIGMAPS, config("a")) == (0, None)
    assert caller.call("GET", f"{CONFIGMAPS}/a")[0] == 200


def test_a_stale_read_is_what_it_was_at_first(caller: Caller, proxy: http_proxy.HttpProxy) -> None:
    """Until the fault ends."""
    caller.call("POST", CONFIGMAPS, config("a"))
    proxy.become(http_proxy.HttpFault(is_stale=True))
    assert len(caller.call("GET", CONFIGMAPS)[1]["items"]) == 1
    caller.call("POST", CONFIGMAPS, config("b"))
    assert len(caller.call("GET", CONFIGMAPS)[1]["items"]) == 1

    proxy.become()

    assert len(caller.call("GET", CONFIGMAPS)[1]["items"]) == 2


def test_a_silent_watch_is_open_and_delivers_when_it_is_healed(
    server: api_server.Running, caller: Caller, proxy: http_proxy.HttpProxy
) -> None:
    """And one that is dropped ends at once."""
    headers = {"Authorization": f"Bearer {server.token}"}
    request = urllib.request.Request(f"{proxy.url}{CONFIGMAPS}?watch=true&resourceVersion=0", headers=headers)
    with urllib.request.urlopen(request, timeout=1) as lines:
        proxy.become(http_proxy.HttpFault(path="watch=", is_silent=True))
        server.request("POST", CONFIGMAPS, config("a"))
        with pytest.raises(TimeoutError):
            lines.readline()
    with urllib.request.urlopen(request, timeout=30) as lines:
        proxy.become()
        assert json.loads(lines.readline())["object"]["metadata"]["name"] == "a"
        proxy.become(drops_watches=True)
        assert lines.read() == b""


def test_a_clock_jumps_for_its_processes_alone(tmp_path: pathlib.Path) -> None:
    """The wall clock, and not the monotonic one, while the process runs."""
    clock = clock_ahead.Clock(tmp_path)
    program = "import time, sys\nfor _ in sys.stdin: print(time.time(), time.monotonic(), flush=True)"
    with subprocess.Popen(
        [sys.executable, "-c", program],
        env=clock.environment(),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdin is not None
        assert process.stdout is not None

        def read() -> tuple[float, float]:
            assert process.stdin is not None
            assert process.stdout is not None
            process.stdin.write("\n")
            process.stdin.flush()
            wall, monotonic = process.stdout.readline().split()
            return float(wall) - time.time(), float(monotonic) - time.monotonic()

        for ahead in (0, 3600, -3600, 0):
            clock.jump(ahead)
            wall, monotonic = read()
            assert wall == pytest.approx(ahead, abs=30)
            assert monotonic == pytest.approx(0, abs=30)
        process.stdin.close()


def test_a_program_outlives_the_thread_that_started_it(tmp_path: pathlib.Path) -> None:
    """It dies with this process, which the kernel takes for its starting thread: a fault's thread ends much earlier."""
    (tmp_path / "sleeper").write_text("#!/bin/sh\nexec sleep 60\n")
    (tmp_path / "sleeper").chmod(0o755)
    parts = components.Components(tmp_path, tmp_path)
    thread = threading.Thread(target=parts.start, args=("sleeper",))
    thread.start()
    thread.join()
    pid = parts.pid("sleeper")
    time.sleep(0.5)
    assert pathlib.Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    parts.end("sleeper")


def replica_set(name: str, replicas: int) -> dict[str, Any]:
    containers = [{"name": "c", "image": "i", "resources": {}}]
    return {
        "metadata": {"name": name},
        "spec": {
            "replicas": replicas,
            "template": {"metadata": {"labels": {"app": name}}, "spec": {"containers": containers}},
        },
    }


def test_a_replica_set_keeps_as_many_pods_as_it_wants(server: api_server.Running) -> None:
    """One that is deleted or has failed is made again; a broken set costs no other."""
    sets = "/apis/apps/v1/namespaces/default/replicasets"
    task = asyncio.run_coroutine_threadsafe(replica_sets.run(server.app), server.loop)
    server.request("POST", sets, {"metadata": {"name": "broken"}, "spec": {"replicas": 1, "template": {"spec": {}}}})
    server.request("POST", sets, replica_set("train", 2))

    def living() -> list[Any]:
        found = server.call(lambda: [pod for _, pod in server.app.store.all(kinds.PODS)])
        return [pod for pod in found if not pod["metadata"].get("deletionTimestamp")]

    calls.eventually(lambda: len(living()) == 2)
    first = living()[0]
    assert first["metadata"]["name"].startswith("train-")
    assert first["metadata"]["ownerReferences"][0]["kind"] == "ReplicaSet"
    assert first["spec"]["schedulerName"] == pods.with_defaults({"spec": first["spec"]}, {})["spec"]["schedulerName"]

    server.request("DELETE", f"{calls.PODS}/{first['metadata']['name']}", {"gracePeriodSeconds": 0})
    calls.eventually(lambda: len(living()) == 2 and first["metadata"]["uid"] not in str(living()))
    server.request("PATCH", f"{sets}/train", {"spec": {"replicas": 1}}, "application/merge-patch+json")
    calls.eventually(lambda: len(living()) == 1)
    task.cancel()
