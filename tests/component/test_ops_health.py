"""`hamictl ops health` and `ops notify`, which read the whole installation, and which tell a person of a failure."""

import http.server
import io
import json
import pathlib
import sys
import threading
import time
import urllib.parse
from collections.abc import Iterator
from typing import Any

import pytest

from hamictl import __main__ as command
from lab import extender_process
from tests.component import calls, liar, ops_world
from tests.component.ops_world import NAMESPACE, PODS, World
from tests.component.test_doctor import guard, register_webhook

pytestmark = pytest.mark.slow


@pytest.fixture
def world(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Iterator[World]:
    with ops_world.running(tmp_path, monkeypatch, capsys) as found:
        yield found


@pytest.fixture
def extender(world: World) -> Iterator[extender_process.ExtenderProcess]:
    with extender_process.running(world.folder / "kubeconfig", world.folder / "extender.log") as running:
        yield running


def lease(world: World, *, seconds_ago: float) -> None:
    moment = time.strftime("%Y-%m-%dT%H:%M:%S.000000Z", time.gmtime(time.time() - seconds_ago))
    spec = {"holderIdentity": "hami-scheduler-0", "renewTime": moment, "leaseDurationSeconds": 15}
    path = f"/apis/coordination.k8s.io/v1/namespaces/{NAMESPACE}/leases"
    world.server.request("POST", path, {"metadata": {"name": "hami-scheduler"}, "spec": spec})


def pod(world: World, name: str, *, is_ready: bool) -> None:
    body = {
        "metadata": {"name": name, "labels": ops_world.labels("scheduler")},
        "spec": {"containers": [{"name": "extender", "image": "i"}]},
    }
    world.server.request("POST", PODS, body)
    status: dict[str, Any] = {"phase": "Running", "conditions": [{"type": "Ready", "status": str(is_ready)}]}
    if not is_ready:
        waiting = {"waiting": {"reason": "CrashLoopBackOff"}}
        status["containerStatuses"] = [{"name": "extender", "state": waiting}]
    found = world.get(f"{PODS}/{name}")
    world.server.request("PUT", f"{PODS}/{name}/status", {**found, "status": status})


def rows(text: str) -> dict[str, tuple[str, str]]:
    found = json.loads(text)["parts"]
    return {one["part"]: (one["state"], one["detail"]) for one in found}


def test_a_healthy_installation_is_one_screen_of_ok(world: World, extender: extender_process.ExtenderProcess) -> None:
    """Status 0, for a probe in cron."""
    register_webhook(world.server, "")
    guard(world.server)
    lease(world, seconds_ago=1)
    pod(world, "hami-scheduler-0", is_ready=True)
    calls.eventually(lambda: world.get(f"{ops_world.APPS}/daemonsets/hami-core").get("status"))
    reach = ("--extender", f"http://{extender.api}", "--health", f"http://{extender.health}")

    done = world.run("health", *reach, "-o", "json")
    table = world.run("health", *reach)

    found = rows(done.out)
    states = {part: state for part, (state, _) in found.items()}
    assert done.status == 0, done.out
    assert states.pop("certificate") == "unknown"
    assert set(states.values()) == {"ok"}
    assert found["pods"] == ("ok", "1 of 1 ready")
    assert found["nodes"] == ("ok", "1 registered, 1 ready")
    assert found["GPUs"] == ("ok", "2, 0 unhealthy, 0 cordoned")
    assert found["leader"][1].startswith("hami-scheduler-0, renewed ")
    assert found["doctor"][1].endswith("0 errors, 0 warnings")
    assert table.out.splitlines()[0].split() == ["PART", "STATE", "DETAIL"]
    assert len(table.out.splitlines()) == len(found) + 1


def test_each_part_that_is_not_well_has_its_row(world: World, extender: extender_process.ExtenderProcess) -> None:
    """A rollout that hangs, a pod that crashes, a leader that is gone, and an alert that fires."""
    lease(world, seconds_ago=300)
    pod(world, "hami-scheduler-0", is_ready=False)
    body = {"spec": {"template": {"spec": {"containers": [{"name": "webui", "image": f"{ops_world.IMAGE}:broken"}]}}}}
    path = f"{ops_world.APPS}/deployments/hami-webui"
    world.server.request("PATCH", path, body, "application/strategic-merge-patch+json")
    calls.eventually(lambda: world.get(path).get("status", {}).get("observedGeneration") == 2)
    firing = [{"metric": {"alertname": "GPUXidError", "severity": "critical"}, "value": [1, "1"]}] * 2
    reach = ("--extender", f"http://{extender.api}", "--health", f"http://{extender.health}")
    query = "/api/v1/query?" + urllib.parse.urlencode({"query": 'ALERTS{alertstate="firing"}'})
    with liar.telling({query: {"data": {"result": firing}}}) as prometheus:
        done = world.run("health", *reach, "--prometheus", prometheus, "-o", "json")
        names = world.run("health", *reach, "-o", "name")
    no_answer = world.run("health", *reach, "--prometheus", "http://127.0.0.1:9", "-o", "json")

    found = rows(done.out)
    assert (done.status, names.status) == (1, 1)
    assert found["deployment/hami-webui"][0] == "error"
    assert found["pods"] == ("warning", "0 of 1 ready; not ready: hami-scheduler-0 (CrashLoopBackOff)")
    assert found["leader"][0] == "error"
    assert found["alerts"] == ("error", "2 fire: GPUXidError (2)")
    assert found["doctor"][0] == "warning"
    assert {"deployment/hami-webui", "pods", "leader"} <= set(names.out.split())
    assert "OPS_NO_PROMETHEUS" in rows(no_answer.out)["alerts"][1]


def test_an_extender_that_is_away_is_a_finding_of_doctor(world: World) -> None:
    """The rest of the screen is still printed."""
    done = world.run("health", "--extender", "http://127.0.0.1:9", "-o", "json")

    assert done.status == 1
    assert "DOCTOR_EXTENDER_AWAY" in rows(done.out)["doctor"][1]


# Notifications


class Receiver:
    """A webhook that records what it is sent.

    Attributes:
        bodies: Each body.
        status: Of its answers.
    """

    def __init__(self) -> None:
        self.bodies: list[Any] = []
        self.status = 200
        receiver = self

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                receiver.bodies.append(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
                self.send_response(receiver.status)
                self.send_header("Location", "http://127.0.0.1:9/other")
                self.end_headers()

            def log_message(self, *words: object) -> None:
                """Quiet."""

        self.server = http.server.HTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}/services/T0/SECRET"


@pytest.fixture
def receiver() -> Iterator[Receiver]:
    found = Receiver()
    thread = threading.Thread(target=found.server.serve_forever)
    thread.start()
    yield found
    found.server.shutdown()
    thread.join()
    found.server.server_close()


def notify(monkeypatch: pytest.MonkeyPatch, *words: str, given: str = "") -> int:
    monkeypatch.setattr(sys, "argv", ["hamictl", "ops", "notify", *words])
    monkeypatch.setattr(sys, "stdin", io.StringIO(given))
    return command.main()


def test_a_notification_reaches_the_address_of_a_file_or_the_environment(
    receiver: Receiver, tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """As JSON with the field text, which Slack reads; a long text is shortened."""
    file = tmp_path / "url"
    file.write_text(f"{receiver.url}\n")

    assert notify(monkeypatch, "--url-file", str(file), "--text", "the nightly run failed") == 0
    monkeypatch.setenv("HAMI_NOTIFY_URL", receiver.url)
    assert notify(monkeypatch, "--text", "-", given="x" * 9000) == 0
    assert notify(monkeypatch, "--text", "none", "--dry-run") == 0

    assert receiver.bodies == [{"text": "the nightly run failed"}, {"text": "x" * 2999 + "…"}]
    shown = "".join(capsys.readouterr())
    assert "sent to 127.0.0.1" in shown
    assert "SECRET" not in shown


@pytest.mark.parametrize("status", [302, 403, 404, 500])
def test_a_refused_notification_is_status_1_and_its_address_stays_secret(
    status: int, receiver: Receiver, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A redirect is not followed: the address would be sent on."""
    receiver.status = status
    monkeypatch.setenv("HAMI_NOTIFY_URL", receiver.url)

    assert notify(monkeypatch, "--text", "x") == 1

    shown = "".join(capsys.readouterr())
    assert f"OPS_NOTIFY_REFUSED: 127.0.0.1 answered status {status}" in shown
    assert "SECRET" not in shown


@pytest.mark.parametrize(
    "address",
    ["", "SECRET", "ftp://h/SECRET", "http://", "http://h:x/SECRET", "http://h /SECRET", "http://h/S\u00e9CRET"],
)
def test_an_address_that_is_none_is_refused_without_being_shown(
    address: str, tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A token pasted into the wrong file must not end up in a log of CI."""
    file = tmp_path / "url"
    file.write_text(address)

    assert notify(monkeypatch, "--url-file", str(file), "--text", "x") == 1

    shown = "".join(capsys.readouterr())
    assert "OPS_NOTIFY_URL" in shown
    assert "CRET" not in shown


def test_a_receiver_that_is_away_is_no_answer(
    monkeypatch: pytest.MonkeyPatch, tmp_path: pathlib.Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """And a file that is missing too."""
    monkeypatch.setenv("HAMI_NOTIFY_URL", "http://127.0.0.1:9/SECRET")

    assert notify(monkeypatch, "--text", "x") == 2
    assert notify(monkeypatch, "--text", "x", "--url-file", str(tmp_path / "none")) == 2

    shown = "".join(capsys.readouterr())
    assert "no answer from 127.0.0.1" in shown
    assert "SECRET" not in shown
