"""The examples of Alertmanager and of the Prometheus operator: alerts arrive, and the operator accepts the objects."""

import contextlib
import http.server
import json
import pathlib
import re
import socketserver
import threading
import time
import urllib.request
from collections.abc import Iterator
from typing import Any

import jsonschema  # type: ignore[import-untyped]
import pytest
import yaml

from observability import operator, targets
from tests.observability import alertmanager_process, discovered, operator_schemas

EXAMPLE = discovered.EXAMPLES / "alertmanager.yml"
SCHEMAS = json.loads(operator_schemas.FILE.read_text())


def operators(path: pathlib.Path) -> list[dict[str, Any]]:
    """The objects of the operator's kinds in a file."""
    return [one for one in yaml.safe_load_all(path.read_text()) if one and one["kind"] in SCHEMAS]


@pytest.mark.parametrize(
    "path",
    [discovered.EXAMPLES / "prometheus-operator.yaml", discovered.EXAMPLES / "prometheus-rule.yaml", discovered.CHART],
)
def test_the_operator_accepts_every_object(path: pathlib.Path) -> None:
    """The API server drops a field that its schemas do not have, and refuses a value of another type."""
    found = operators(path)
    assert found
    for one in found:
        if isinstance(one["spec"], dict):
            jsonschema.validate(one["spec"], SCHEMAS[one["kind"]])


def test_an_object_that_is_wrong_is_found() -> None:
    """Else the test above could not fail."""
    for change in ({"retentoin": "30d"}, {"replicas": "two"}, {"retention": "a month"}):
        with pytest.raises(jsonschema.ValidationError):
            jsonschema.validate(operator.prometheus()["spec"] | change, SCHEMAS["Prometheus"])


def test_the_prometheus_of_the_example_selects_what_the_chart_creates() -> None:
    """A selector that nothing matches is a Prometheus without targets and without rules."""
    spec = operator.prometheus()["spec"]
    chart = operators(discovered.CHART)
    for kind, selector in (("ServiceMonitor", "serviceMonitorSelector"), ("PrometheusRule", "ruleSelector")):
        found = [one for one in (*chart, *operator_schemas.ours()) if one["kind"] == kind]
        assert found
        for one in found:
            assert spec[selector]["matchLabels"].items() <= one["metadata"]["labels"].items()
    assert spec["serviceMonitorNamespaceSelector"] == spec["ruleNamespaceSelector"] == {}


def test_data_survives_a_restart_and_a_replica() -> None:
    """Both keep their data on a volume, for a time that is set, in more than one replica."""
    for one in (operator.prometheus(), operator.alertmanager()):
        spec = one["spec"]
        assert spec["replicas"] > 1
        assert re.fullmatch(r"\d+[dh]", spec["retention"])
        assert spec["storage"]["volumeClaimTemplate"]["spec"]["resources"]["requests"]["storage"]


def test_every_secret_of_the_receivers_is_a_file_of_the_mounted_secret() -> None:
    """A secret in the configuration itself is in every copy of it."""
    text = EXAMPLE.read_text()
    config = yaml.safe_load(text)
    files = re.findall(r"_file: (\S+)", text)
    assert len(files) == 3
    assert {pathlib.PurePosixPath(one).parent for one in files} == {pathlib.PurePosixPath(operator.SECRET_FOLDER)}
    assert not re.search(r"(?m)^\s*(api_url|smtp_auth_password|slack_api_url|credentials|password|routing_key):", text)
    kinds = {kind for one in config["receivers"] for kind in one if kind != "name"}
    assert kinds == {"slack_configs", "email_configs", "webhook_configs"}
    assert operator.alertmanager()["spec"]["secrets"] == [operator.RECEIVER_FILES]


class Mailbox(socketserver.StreamRequestHandler):
    """Just enough of SMTP to receive a message of a sender that signs in."""

    received: list[str]

    def handle(self) -> None:
        self.wfile.write(b"220 mailbox\r\n")
        while line := self.rfile.readline():
            word = line.split()[0].upper() if line.split() else b""
            if word in (b"EHLO", b"HELO"):
                self.wfile.write(b"250-mailbox\r\n250 AUTH PLAIN LOGIN\r\n")
            elif word == b"AUTH":
                self.received.append(line.decode())
                self.wfile.write(b"235 welcome\r\n")
            elif word == b"DATA":
                self.wfile.write(b"354 go on\r\n")
                lines = []
                while (line := self.rfile.readline()) not in (b".\r\n", b""):
                    lines.append(line.decode())
                self.received.append("".join(lines))
                self.wfile.write(b"250 received\r\n")
            elif word == b"QUIT":
                self.wfile.write(b"221 bye\r\n")
                return
            else:
                self.wfile.write(b"250 fine\r\n")


class Hook(http.server.BaseHTTPRequestHandler):
    """Receives what Alertmanager posts."""

    received: list[tuple[str, str, str]]

    def do_POST(self) -> None:  # the library's name
        body = self.rfile.read(int(self.headers["Content-Length"])).decode()
        self.received.append((self.path, self.headers.get("Authorization", ""), body))
        self.send_response(200)
        self.end_headers()

    def log_message(self, format: str, *args: object) -> None:
        """Write nothing."""


@contextlib.contextmanager
def serving(server: socketserver.TCPServer) -> Iterator[int]:
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield server.server_address[1]
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def test_a_critical_alert_reaches_slack_and_the_pager_and_a_warning_slack_and_the_mailbox(
    tmp_path: pathlib.Path,
) -> None:
    """By a real Alertmanager on the example, with hosts of this machine and without its waiting times."""
    mails: list[str] = []
    posts: list[tuple[str, str, str]] = []
    mailbox = type("OurMailbox", (Mailbox,), {"received": mails})
    hook = type("OurHook", (Hook,), {"received": posts})
    with (
        serving(socketserver.ThreadingTCPServer(("127.0.0.1", 0), mailbox)) as smtp,
        serving(http.server.ThreadingHTTPServer(("127.0.0.1", 0), hook)) as web,
        alertmanager(tmp_path, smtp, web) as url,
    ):
        for name, severity in (("GPUUnhealthy", "critical"), ("GPUTemperatureHigh", "warning")):
            alert = {
                "labels": {"alertname": name, "severity": severity, "node": f"n-{severity}", "device": "GPU-a"},
                "annotations": {"summary": f"{name} on n1.", "runbook_url": "https://runbooks.example/x"},
            }
            request = urllib.request.Request(
                f"{url}/api/v2/alerts", json.dumps([alert]).encode(), {"Content-Type": "application/json"}
            )
            urllib.request.urlopen(request, timeout=10).close()
        deadline = time.monotonic() + 60
        while (len(posts) < 3 or len(mails) < 2) and time.monotonic() < deadline:
            time.sleep(0.2)

    slack = [json.loads(body) for path, _, body in posts if path == "/slack"]
    pager = [(key, json.loads(body)) for path, key, body in posts if path == "/alerts"]
    assert sorted(one["channel"] for one in slack) == ["#gpus", "#gpus-urgent"]
    urgent = next(one for one in slack if one["channel"] == "#gpus-urgent")["attachments"][0]
    assert urgent["title"] == "FIRING: GPUUnhealthy"
    assert urgent["text"] == "GPUUnhealthy on n1. https://runbooks.example/x\n"
    ((key, paged),) = pager
    assert key == "Bearer pager-key"
    assert [one["labels"]["alertname"] for one in paged["alerts"]] == ["GPUUnhealthy"]
    assert mails[0].startswith("AUTH ")
    assert "GPUTemperatureHigh" in mails[1]


@contextlib.contextmanager
def alertmanager(folder: pathlib.Path, smtp_port: int, web_port: int) -> Iterator[str]:
    secrets = folder / "secrets"
    secrets.mkdir()
    (secrets / "slack-url").write_text(f"http://127.0.0.1:{web_port}/slack")
    (secrets / "smtp-password").write_text("mail-key")
    (secrets / "webhook-token").write_text("pager-key")
    text = EXAMPLE.read_text().replace(operator.SECRET_FOLDER, str(secrets))
    text = text.replace("https://pager.example.com", f"http://127.0.0.1:{web_port}").replace(
        "group_wait: 30s", "group_wait: 1s"
    )
    config = yaml.safe_load(text)
    config["global"] |= {"smtp_smarthost": f"localhost:{smtp_port}", "smtp_require_tls": False}
    (folder / "alertmanager.yml").write_text(yaml.safe_dump(config))
    with alertmanager_process.running(folder / "alertmanager.yml", folder / "data") as url:
        yield url


def test_the_examples_select_by_labels_that_exist() -> None:
    """Every component that is scraped is one of the chart's Services."""
    services = [one for one in discovered.chart() if one["kind"] == "Service"]
    for target in targets.TARGETS:
        wanted = targets.CHART_LABEL | {"app.kubernetes.io/component": target.component}
        ports = {
            port["name"]
            for one in services
            if wanted.items() <= one["metadata"]["labels"].items()
            for port in one["spec"]["ports"]
        }
        assert target.port_name in ports
