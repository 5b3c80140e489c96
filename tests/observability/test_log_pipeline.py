"""The log example on real log lines, by a real OpenTelemetry Collector: nothing is lost, and everything is found."""

import http.server
import json
import pathlib
import threading
import time
from collections.abc import Iterator
from typing import Any

import pytest
import yaml

from lab import api_server, extender_process, gpus, kinds
from lab.real import build, log_collector
from tests import tools
from tests.component import calls

EXAMPLE = pathlib.Path(__file__).parents[2] / "examples/logs/otel-collector.yaml"
SECONDS = 60.0
KLOG = 'W1130 16:23:58.134723       1 feature_gate.go:352] "Setting GA feature gate" gate="X"'
"""As kube-scheduler writes it."""
PLAIN = "panic: runtime error"
UID = "2b6a4c1e-0000-4000-8000-000000000001"


def extender_lines(folder: pathlib.Path) -> list[str]:
    """The log of a real extender that has bound one pod and rejected another."""
    with api_server.running() as server:
        server.call(lambda: server.app.store.create(kinds.NODES, "", gpus.gpu_node("a", gpus.A100, 1)))
        kubeconfig = server.write_kubeconfig(folder / "kubeconfig")
        with extender_process.running(kubeconfig, folder / "log") as extender:
            pod = calls.create(server, "fits")
            calls.filtered(extender, pod, "a")
            assert calls.bind(extender, pod, "a") == ""
            calls.filtered(extender, calls.create(server, "large", {"nvidia.com/gpu": "9"}), "a")
    return (folder / "log").read_text().splitlines()


def as_containerd(lines: list[str]) -> str:
    """The lines as containerd writes them: a long one in parts."""
    written = []
    for line in lines:
        half = line.rfind(" ", 0, len(line) - 20) + 1  # The first part ends with a space.
        stamp = "2026-11-30T16:31:31.123456789Z stdout"
        written += (
            [f"{stamp} P {line[:half]}\n", f"{stamp} F {line[half:]}\n"] if half > 100 else [f"{stamp} F {line}\n"]
        )
    return "".join(written)


def attributes(pairs: list[dict[str, Any]]) -> dict[str, Any]:
    return {one["key"]: next(iter(one["value"].values()), None) for one in pairs}


class Receiver(http.server.ThreadingHTTPServer):
    """Receives the logs in place of Loki, by OpenTelemetry's protocol as JSON."""

    def __init__(self) -> None:
        self.records: list[tuple[dict[str, Any], dict[str, Any]]] = []
        """Every record with the attributes of what wrote it."""
        super().__init__(("127.0.0.1", 0), _Handler)


class _Handler(http.server.BaseHTTPRequestHandler):
    server: Receiver

    def do_POST(self) -> None:  # the library's name
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        assert self.path == "/otlp/v1/logs"
        for resource in body["resourceLogs"]:
            about = attributes(resource["resource"].get("attributes", []))
            self.server.records += [(about, one) for scope in resource["scopeLogs"] for one in scope["logRecords"]]
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", "2")
        self.end_headers()
        self.wfile.write(b"{}")

    def log_message(self, format: str, *args: object) -> None:
        """Write nothing."""


@pytest.fixture
def loki() -> Iterator[Receiver]:
    with Receiver() as receiver:
        threading.Thread(target=receiver.serve_forever, daemon=True).start()
        yield receiver
        receiver.shutdown()


def test_each_line_arrives_with_its_fields_and_its_pod(loki: Receiver, tmp_path: pathlib.Path) -> None:
    """Ours as fields, kube-scheduler's with their text: a crash that is not JSON is found too."""
    try:
        log_collector.program()
    except build.BuildFailed as missing:
        tools.missing(str(missing))
    ours = extender_lines(tmp_path)
    pods = tmp_path / "pods"
    files = {"extender": ours, "kube-scheduler": [KLOG, PLAIN]}
    for container, lines in files.items():
        path = pods / f"hami-system_hami-scheduler-abc_{UID}" / container / "0.log"
        path.parent.mkdir(parents=True)
        path.write_text(as_containerd(lines))
    here = {"include": [f"{pods}/hami-system_*/*/*.log"], "start_at": "beginning"}
    there = {
        "endpoint": f"http://127.0.0.1:{loki.server_address[1]}/otlp", "encoding": "json", "compression": "none",
    }  # fmt: skip
    override = {
        "receivers": {"filelog": here},
        "exporters": {"otlphttp/loki": there},
        "service": {"telemetry": {"metrics": {"level": "none"}}},
    }
    (tmp_path / "override.yaml").write_text(yaml.safe_dump(override))

    log = tmp_path / "otelcol.log"
    with log_collector.running([EXAMPLE, tmp_path / "override.yaml"], log, {"NODE_NAME": "node-7"}) as collector:
        deadline = time.monotonic() + SECONDS
        while len(loki.records) < len(ours) + 2 and time.monotonic() < deadline and collector.poll() is None:
            time.sleep(0.1)
    records = loki.records
    assert len(records) == len(ours) + 2, log.read_text()[-3000:]

    assert sorted(one["body"]["stringValue"] for _, one in records) == sorted([*ours, KLOG, PLAIN])
    for about, _ in records:
        assert about["k8s.namespace.name"] == "hami-system"
        assert about["k8s.pod.name"] == "hami-scheduler-abc"
        assert about["k8s.node.name"] == "node-7"
    by_container = {about["k8s.container.name"] for about, _ in records}
    assert by_container == set(files)
    by_body = {one["body"]["stringValue"]: one for _, one in records}
    (rejected,) = (line for line in ours if "Failed to schedule pod" in line)
    record, written = by_body[rejected], json.loads(rejected)
    fields = attributes(record["attributes"])
    assert {name: fields[name] for name in ("event", "error_code", "pod", "decision_id")} == {
        name: written[name] for name in ("event", "error_code", "pod", "decision_id")
    }
    assert record["severityText"] == "error"
    at = int(record["timeUnixNano"]) / 1e9
    assert time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(at)) == written["timestamp"][:19]
    assert by_body[KLOG]["severityNumber"] == 13
    assert attributes(by_body[KLOG]["attributes"])["source"] == "feature_gate.go:352"
