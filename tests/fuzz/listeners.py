"""Our HTTP listeners as processes: bytes instead of requests, requests with other bodies, and their descriptions."""

import contextlib
import http.client
import itertools
import json
import pathlib
import re
import socket
import ssl
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import hypothesis
import schemathesis
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    response_schema_conformance,
    status_code_conformance,
)

import webui.openapi
from fault_injector import api_types
from gpu_sharing.adapters import read_api_types
from gpu_sharing.core import faults
from lab import (
    api_server,
    certificates,
    extender_process,
    fault_backends,
    fault_service,
    gpus,
    kinds,
    monitor_process,
    service_process,
    webui_process,
)
from tests.component import calls, gpu_node, liar
from tests.fuzz import parsers
from tests.fuzz.targets import Check, Defect, Tally, Target

_WAIT_SECONDS = 0.2
"""For an answer to bytes that may be no request; an answer that comes later is counted as none."""
_DEADLINE_SECONDS = 60.0
_MOST_ANSWER_BYTES = 65_536
_OURS = b"_INTERNAL"
"""In the code of each error that is a defect of ours."""
_DEFECT = re.compile(rb'"event": ?"defect"|Traceback \(most recent call last\)')
_REFUSALS = frozenset({501, 502, 503, 505})
"""Statuses of 500 and above that say what is missing elsewhere."""


@dataclass(frozen=True, slots=True)
class Listener:
    """A running listener.

    Attributes:
        address: Where it listens.
        live_path: Is answered with a status below 500 for as long as the process works.
        process: Has it; None where it is a thread of this process.
        tls: Whether it is reached by TLS.
        defect: In the log of a process that has a defect.
    """

    address: str
    live_path: str
    process: service_process.ServiceProcess | None = None
    tls: bool = False
    defect: re.Pattern[bytes] = _DEFECT

    def connect(self) -> socket.socket:
        """Return a new connection."""
        host, _, port = self.address.rpartition(":")
        plain = socket.create_connection((host.strip("[]"), int(port)), timeout=_DEADLINE_SECONDS)
        if not self.tls:
            return plain
        return ssl._create_unverified_context().wrap_socket(plain)

    def request(self, method: str, path: str, body: bytes | None = None) -> tuple[int, bytes]:
        """Send a request. Returns status and body of the answer."""
        host, _, port = self.address.rpartition(":")
        made = http.client.HTTPConnection(host.strip("[]"), int(port), timeout=_DEADLINE_SECONDS)
        made.sock = self.connect()
        try:
            made.request(method, path, body, {"Content-Type": "application/json"})
            answer = made.getresponse()
            return answer.status, answer.read()
        finally:
            made.close()

    def demand_works(self) -> None:
        """Check that the listener answers a good request, and that its process logged no defect.

        Raises:
            Defect: It does not, or did.
        """
        status, body = self.request("GET", self.live_path)
        if status >= 500:
            raise Defect(f"{self.live_path} is answered with {status}: {body[:300]!r}")
        if self.process is None:
            return
        if not self.process.is_running:
            raise Defect("the process ended")
        log = self.process.log_file.read_bytes()
        if match := self.defect.search(log):
            around = log[max(match.start() - 500, 0) : match.start() + 3000]
            raise Defect(f"its log has {around.decode(errors='replace')}")


def judged(status: int, body: bytes) -> str:
    """Return the outcome of an answer: the code of a refusal, or the status.

    Raises:
        Defect: It is an error of our own.
    """
    if (status >= 500 and status not in _REFUSALS) or _OURS in body:
        raise Defect(f"answered with {status}: {body[:500]!r}")
    code = ""
    with contextlib.suppress(ValueError, AttributeError, RecursionError):
        fields = json.loads(body)
        code = str(fields.get("error_code") or fields.get("Error") or "").partition(":")[0]
    return code or str(status)


def _raw(listener: Listener) -> Check:
    """Return the check of bytes on a connection."""

    def check(data: bytes) -> str:
        received = b""
        with listener.connect() as connection, contextlib.suppress(ConnectionError, ssl.SSLError):
            connection.sendall(data)
            connection.settimeout(_WAIT_SECONDS)
            while len(received) < _MOST_ANSWER_BYTES:
                try:
                    chunk = connection.recv(_MOST_ANSWER_BYTES)
                except TimeoutError:
                    break
                received += chunk
                if not chunk or (b"\r\n\r\n" in received and _is_whole(received)):
                    break
        head, _, body = received.partition(b"\r\n\r\n")
        words = head.split(b" ", 2)
        if len(words) < 2 or not words[1].isdigit():
            return "no answer" if not received else "no HTTP"
        return judged(int(words[1]), body[:4096])

    return check


def _is_whole(received: bytes) -> bool:
    head, _, body = received.partition(b"\r\n\r\n")
    lengths = [line for line in head.lower().split(b"\r\n") if line.startswith(b"content-length:")]
    return bool(lengths) and len(body) >= int(lengths[0].partition(b":")[2])


def _bodies(paths: Sequence[str]) -> Callable[[Listener], Check]:
    """Return the check of bodies, sent to the paths by turns."""
    turns = itertools.cycle(paths)

    def made(listener: Listener) -> Check:
        def check(data: bytes) -> str:
            try:
                return judged(*listener.request("POST", next(turns), data))
            except (http.client.HTTPException, ConnectionError, ssl.SSLError) as gone:
                return type(gone).__name__

        return check

    return made


# The processes


@contextlib.contextmanager
def _extender(listener: str) -> Iterator[Listener]:
    with contextlib.ExitStack() as stack:
        folder = pathlib.Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="fuzz-")))
        server = stack.enter_context(api_server.running())
        for name in ("a", "b"):
            node = gpus.gpu_node(name, gpus.Model("NVIDIA A100", 16_000), 2)
            server.call(lambda node=node: server.app.store.create(kinds.NODES, "", node))  # type: ignore[misc]
        flags: tuple[str, ...] = ()
        if listener == "webhook":
            certificates.write(folder / "tls.crt", folder / "tls.key")
            flags = ("--tls-cert", str(folder / "tls.crt"), "--tls-key", str(folder / "tls.key"))
            flags = (*flags, "--secure-api-bind", "127.0.0.1:0")
        kubeconfig = server.write_kubeconfig(folder / "kubeconfig")
        process = stack.enter_context(extender_process.running(kubeconfig, folder / "log", *flags))
        if not flags:
            calls.bind(process, calls.create(server, "p"), "a")
            calls.create(server, "q", {"nvidia.com/gpu": "1", "nvidia.com/gpumem": "99000"})
        live = {"verbs": "/", "api": "/api/v1/cluster", "health": "/readyz", "webhook": "/"}[listener]
        yield Listener(process.addresses[listener], live, process, tls=listener == "webhook")


@contextlib.contextmanager
def _webui(listener: str) -> Iterator[Listener]:
    answers: dict[str, Any] = {"/api/v1/nodes": {"nodes": []}, "/api/v1/pods": {"pods": []}, "/api/v1/remediation": {}}
    with tempfile.TemporaryDirectory(prefix="fuzz-") as folder, liar.telling(answers) as url:
        process = webui_process.WebUIProcess(pathlib.Path(folder), url)
        with webui_process.running(process):
            pages = process.url.removeprefix("http://")
            yield (
                Listener(pages, "/", process)
                if listener == "pages"
                else Listener(process.addresses["health"], "/livez", process)
            )


@contextlib.contextmanager
def _plugin() -> Iterator[Listener]:
    with gpu_node.running() as node:
        yield Listener(node.plugin.addresses["health"], "/readyz", node.plugin)


@contextlib.contextmanager
def _monitor() -> Iterator[Listener]:
    with gpu_node.running() as node:
        flags = [
            "--kubeconfig", str(node.kubeconfig), "--node-name", gpu_node.NODE, "--interval", "0.5",
            "--kubelet-dir", str(node.folder / "kubelet"), "--proc-dir", str(node.folder / "proc"),
        ]  # fmt: skip
        process = monitor_process.MonitorProcess(node.folder, node.driver, flags)
        with monitor_process.running(process):
            yield Listener(process.addresses["health"], "/readyz", process)


class _NoGpus:
    """A node's GPUs that accept every fault."""

    def uuids(self) -> Sequence[str]:
        return ["GPU-1", "GPU-2"]

    async def set(self, uuid: str, in_effect: Sequence[faults.Fault], new: faults.Fault | None) -> None:
        """Change nothing."""

    def reboot(self) -> None:
        """Change nothing."""


@contextlib.contextmanager
def _faults() -> Iterator[Listener]:
    node = gpus.gpu_node("a", gpus.A100, 1, labels={faults.CONSENT_LABEL: faults.CONSENT})
    with contextlib.ExitStack() as stack:
        folder = pathlib.Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="fuzz-")))
        server = stack.enter_context(api_server.running())
        server.call(lambda: server.app.store.create(kinds.NODES, "", node))
        kubeconfig = server.write_kubeconfig(folder / "kubeconfig")
        backends = [fault_backends.LabGpus({"a": _NoGpus()})]
        service = stack.enter_context(fault_service.running(kubeconfig, folder / "faults.json", backends))
        yield Listener(service.url.removeprefix("http://"), "/health")


# The targets

_HEAD = "Host: localhost\r\nAccept: application/json\r\n"


def _requests(*paths: str, body: str = "") -> list[str]:
    """Return requests on the wire, among them pipelined, chunked and unusual ones."""
    gets = [f"GET {path} HTTP/1.1\r\n{_HEAD}\r\n" for path in paths]
    return [
        *gets,
        *(f"HEAD {path} HTTP/1.0\r\n\r\n" for path in paths[:1]),
        f"OPTIONS * HTTP/1.1\r\n{_HEAD}\r\n",
        "".join(gets[:2]),
        f"POST {paths[0]} HTTP/1.1\r\n{_HEAD}Content-Length: {len(body)}\r\n\r\n{body}",
        f"POST {paths[0]} HTTP/1.1\r\n{_HEAD}Transfer-Encoding: chunked\r\n\r\n5\r\nabcde\r\n0\r\n\r\n",
        f"PUT {paths[-1]} HTTP/1.1\r\n{_HEAD}Expect: 100-continue\r\nContent-Length: 2\r\n\r\n{{}}",
        f"GET {paths[-1]}?a=%00&nodes=-1 HTTP/1.1\r\n{_HEAD}Connection: Upgrade\r\nUpgrade: websocket\r\n\r\n",
    ]


def _target(
    name: str,
    started: Callable[[], contextlib.AbstractContextManager[Listener]],
    check_of: Callable[[Listener], Check],
    samples: Sequence[str],
    covers: Sequence[str] = (),
) -> Target:
    @contextlib.contextmanager
    def opened() -> Iterator[Check]:
        with started() as listener:
            yield check_of(listener)
            listener.demand_works()

    return Target(
        name=name, covers=tuple(covers), samples=[text.encode() for text in samples], open=opened, of_processes=True
    )


_VERBS = ("/filter", "/prioritize", "/bind", "/preempt")
_POD = {
    "metadata": {"name": "q", "namespace": "default", "uid": "u-1"},
    "spec": {"containers": [{"name": "c", "resources": {"limits": {"nvidia.com/gpu": "1"}}}]},
}
_FILTER = {"Pod": _POD, "Nodes": None, "NodeNames": ["a", "b"]}
_REVIEW = {"request": {"uid": "u-1", "operation": "CREATE", "namespace": "default", "object": _POD}}
_PROBES = ("/livez", "/readyz", "/healthz", "/startupz", "/metrics", "/livez?verbose", "//", "/../x")
_XID = {"kind": "xid", "xid": 79, "node": "a", "gpu": "0", "duration_seconds": 1}

LISTENERS: tuple[Target, ...] = (
    _target("extender verbs: wire", lambda: _extender("verbs"), _raw,
            _requests(*_VERBS, body=json.dumps(_FILTER)), ["scheduler_extender.serve.server"]),
    _target("extender verbs: bodies", lambda: _extender("verbs"), _bodies(_VERBS),
            [json.dumps(_FILTER), json.dumps({"Pod": parsers._POD, "NodeNames": ["a"]}),
             json.dumps({"PodName": "q", "PodNamespace": "default", "PodUID": "u-1", "Node": "ghost"}),
             json.dumps({"Pod": _POD, "NodeNameToMetaVictims": {"a": {"Pods": [{"UID": "u"}]}}})],
            ["scheduler_extender.serve.server", "scheduler_extender.serve.wire"]),
    _target("read API: wire", lambda: _extender("api"), _raw,
            _requests("/api/v1/cluster", "/api/v1/nodes", "/api/v1/pods", "/api/v1/explain/default/q?nodes=5",
                      "/api/v1/events/default/p", "/api/v1/remediation", "/api/v1/openapi.json", "/api/v1/profile/1"),
            ["scheduler_extender.serve.read_api"]),
    _target("extender health: wire", lambda: _extender("health"), _raw, _requests(*_PROBES),
            ["gpu_sharing.adapters.health_endpoint"]),
    _target("webhook: wire", lambda: _extender("webhook"), _raw, _requests("/webhook", body=json.dumps(_REVIEW)),
            ["scheduler_extender.serve.webhook"]),
    _target("webhook: bodies", lambda: _extender("webhook"), _bodies(["/webhook"]),
            [json.dumps(_REVIEW), json.dumps({"request": {**_REVIEW["request"], "object": parsers._POD}})],
            ["scheduler_extender.serve.webhook"]),
    _target("WebUI: wire", lambda: _webui("pages"), _raw,
            _requests("/", "/nodes", "/pods?page=2&free=1", "/nodes/a", "/pods/default/p", "/changes", "/remediation",
                      "/api/v1/overview", "/api/v1/history?window=1h", "/static/style.css", "/login"),
            ["webui.filters:from_url", "webui.patient_worker"]),
    _target("WebUI health: wire", lambda: _webui("health"), _raw, _requests(*_PROBES),
            ["gpu_sharing.adapters.stdlib_http"]),
    _target("monitor: wire", _monitor, _raw, _requests(*_PROBES)),
    _target("plugin health: wire", _plugin, _raw, _requests(*_PROBES)),
    _target("fault injection API: wire", _faults, _raw,
            _requests("/api/v1/faults", "/api/v1/faults/f1", "/api/v1/metrics/gpu", "/health", "/openapi.json",
                      "/metrics", body=json.dumps(_XID)),
            ["fault_injector.server"]),
    _target("fault injection API: bodies", _faults,
            _bodies(["/api/v1/faults/gpu/inject", "/api/v1/faults/gpu/xid-79", "/api/v1/faults/network/inject",
                     "/api/v1/faults/f1/recover", "/api/v1/faults/cleanup"]),
            [json.dumps(_XID), json.dumps({"pair": "scheduler-extender", "node": "a"})],
            ["fault_injector.server"]),
)  # fmt: skip


# The descriptions


@dataclass(frozen=True, slots=True)
class Description:
    """An OpenAPI document, and the listener that it describes."""

    name: str
    document: Callable[[], Mapping[str, Any]]
    open: Callable[[], contextlib.AbstractContextManager[Listener]]


DESCRIPTIONS = (
    Description("read API: its OpenAPI document", read_api_types.openapi, lambda: _extender("api")),
    Description("WebUI: its OpenAPI document", webui.openapi.document, lambda: _webui("pages")),
    Description("fault injection API: its OpenAPI document", api_types.openapi, _faults),
)
_CHECKS = [status_code_conformance, content_type_conformance, response_schema_conformance]
_EXAMPLES = 20


def run_description(described: Description, *, seed: int, most_inputs: int | None, seconds: float | None) -> Tally:
    """Send requests of a description, in rounds, until there were so many or the time is over."""
    tally = Tally(described.name)
    deadline = None if seconds is None else time.monotonic() + seconds
    with described.open() as listener:
        schema: Any = schemathesis.openapi.from_dict(dict(described.document()))
        operations = [one.ok() for one in schema.get_all_operations()]
        for number in itertools.count(seed):
            for operation in operations:
                _round(operation, listener, number, tally)
            is_over = deadline is not None and time.monotonic() > deadline
            if is_over or tally.defects or (most_inputs is not None and tally.inputs >= most_inputs):
                break
        try:
            listener.demand_works()
        except Defect as after:
            tally.add_defect("end", f"{tally.name}: {after}")
    return tally


def _round(operation: Any, listener: Listener, seed: int, tally: Tally) -> None:
    @hypothesis.seed(seed)
    @hypothesis.settings(
        max_examples=_EXAMPLES, deadline=None, database=None, suppress_health_check=list(hypothesis.HealthCheck)
    )
    @hypothesis.given(case=operation.as_strategy())
    def check(case: Any) -> None:
        tally.inputs += 1
        answer = case.call_and_validate(base_url=f"http://{listener.address}", checks=_CHECKS)
        tally.outcomes[judged(answer.status_code, answer.content[:4096])] += 1

    try:
        check()
    except Exception as broken:
        tally.outcomes["defect"] += 1
        tally.add_defect(f"{operation.method} {operation.path}", f"{tally.name}: {broken}"[:3000])
