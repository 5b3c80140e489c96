"""What our clients read from other servers: an answer over HTTP, well-formed with another body, or not even that."""

import asyncio
import contextlib
import functools
import json
import pathlib
import socket
import tempfile
import threading
import zlib
from collections.abc import Callable, Coroutine, Iterator, Sequence
from typing import Any

import msgspec

from fault_injector import measurements, tracker
from gpu_sharing.adapters import (
    access_reviews,
    discovery,
    kubernetes,
    objects,
    prometheus,
    read_api_types,
    watching,
)
from gpu_sharing.core import errors
from hamictl import cluster_reading, failures, fault_client, reader, snapshot
from tests.fuzz.targets import ACCEPTED, Check, Target
from webui import extender_poller, meters

_TIMEOUT_SECONDS = 60.0
_Calls = Sequence[Callable[[], object]]


class _Server:
    """Answers each connection with the same bytes, then closes it."""

    def __init__(self) -> None:
        self._listener = socket.create_server(("127.0.0.1", 0), backlog=64)
        self.answer = b""
        self.url = f"http://127.0.0.1:{self._listener.getsockname()[1]}"
        self._thread = threading.Thread(target=self._serve, daemon=True)
        self._thread.start()

    def _serve(self) -> None:
        while True:
            try:
                connection, _ = self._listener.accept()
            except OSError:
                return
            with connection, contextlib.suppress(OSError):
                connection.settimeout(_TIMEOUT_SECONDS)
                received = b""
                while b"\r\n\r\n" not in received and (chunk := connection.recv(65536)):
                    received += chunk
                connection.sendall(self.answer)
                connection.shutdown(socket.SHUT_WR)
                while connection.recv(65536):  # Else a reset may overtake the answer.
                    pass

    def close(self) -> None:
        # A thread in accept keeps the descriptor: shutdown wakes it.
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self._thread.join()


def _as_answer(data: bytes) -> bytes:
    """Return the bytes as they are, of each fourth input, else as the body of an answer."""
    if data.startswith(b"HTTP/") or zlib.crc32(data) % 4 == 0:
        return data
    return b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n%b" % (len(data), data)


def _client(
    name: str,
    covers: Sequence[str],
    calls: Callable[[str], _Calls | contextlib.AbstractContextManager[_Calls]],
    refusals: tuple[type[Exception], ...],
    *bodies: object,
) -> Target:
    """Return the target of a client's calls, which may fail by these errors alone."""

    @contextlib.contextmanager
    def opened() -> Iterator[Check]:
        server, stack = _Server(), contextlib.ExitStack()
        made = calls(server.url)
        called = made if isinstance(made, Sequence) else stack.enter_context(made)

        def check(data: bytes) -> str:
            server.answer = _as_answer(data)
            outcomes = []
            for call in called:
                try:
                    call()
                    outcomes.append(ACCEPTED)
                except refusals as refused:
                    outcomes.append(type(refused).__name__)
            # Some calls report a refusal by an empty result: the first two decide.
            return ACCEPTED if ACCEPTED in outcomes[:2] else outcomes[0]

        try:
            with stack:
                yield check
        finally:
            server.close()

    texts = [body.encode() if isinstance(body, str) else json.dumps(body).encode() for body in bodies]
    heads = [
        b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\nConnection: close\r\n\r\n%b" % (len(text), text) for text in texts
    ]
    refused = (
        b"HTTP/1.1 403 Forbidden\r\nContent-Length: 33\r\n\r\n" + b'{"error_code":"X","message":"no"}',
        b"HTTP/1.1 302 Found\r\nLocation: file:///etc/passwd\r\n\r\n",
        b'HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\n{"a":\r\n2\r\n1}\r\n0\r\n\r\n',
    )
    return Target(name=name, covers=tuple(covers), samples=[*texts, *heads, *refused], open=opened)


_SAMPLE = {"metric": {"device": "GPU-1", "namespace": "n", "pod": "p"}, "value": [1.5, "7"]}
_VECTOR = {"status": "success", "data": {"resultType": "vector", "result": [_SAMPLE]}}
_MATRIX = {"status": "success", "data": {"resultType": "matrix", "result": [{"values": [[1, "2"], [3, "NaN"]]}]}}
_EXPOSITION = (
    '# TYPE hami_gpu_memory_used_bytes gauge\nhami_gpu_memory_used_bytes{device="GPU-1",node="a"} 5e9\n'
    'hami_gpu_utilization_percent{device="GPU-1"} 50\n'
    'hami_vgpu_memory_usage_bytes{namespace="n",pod="p",device="GPU-1"} 1e9 1700000000\n'
)
_NODES = {"nodes": [{"name": "a", "standing": "none", "foreign_slots": 0, "gpus": [], "labels": {"a": "b"}}]}
_PODS: dict[str, Any] = {"pods": []}


def _monitors(url: str) -> Sequence[Callable[[], object]]:
    monitors = meters.Monitors(lambda: {"a": url}, clock=iter(range(10**9)).__next__)
    monitors._urls = {"a": url}

    def measure() -> object:
        monitors._known = {}
        return monitors.measure("a")

    return (measure,)


def _extender(url: str) -> Sequence[Callable[[], object]]:
    extender = extender_poller.Extender(url, None, None)
    return (
        extender.nodes, extender.pods, extender.remediation,
        lambda: extender.get(read_api_types.Explanation, "explain", "n", "p"),
    )  # fmt: skip


def _reader(url: str) -> Sequence[Callable[[], object]]:
    read = reader.Reader(url)
    where = reader.Address(url=url, health_url=url)
    return (
        read.nodes, read.pods, read.cluster, read.remediation, lambda: read.explain("n", "p"),
        lambda: reader.components(where),
    )  # fmt: skip


def _faults(url: str) -> Sequence[Callable[[], object]]:
    client = fault_client.FaultClient(url)
    return (client.faults, lambda: client.fault("f1"))


class _Sink:
    """Receives objects, and forgets them."""

    def replaced(self, items: list[objects.Node], listed_at: float) -> Iterator[None]:
        """Forget the list."""
        yield from ()

    def changed(self, item: objects.Node) -> None:
        """Forget the object."""

    def deleted(self, item: objects.Node) -> None:
        """Forget the object."""

    def undecodable(self, raw: bytes, error: Exception) -> None:
        """Forget the object."""


@contextlib.contextmanager
def _api_server(url: str) -> Iterator[Sequence[Callable[[], object]]]:
    """Yield the calls of our client, on one event loop."""
    with tempfile.TemporaryDirectory(prefix="fuzz-") as folder, asyncio.Runner() as runner:
        config = pathlib.Path(folder) / "kubeconfig"
        config.write_text(json.dumps({
            "apiVersion": "v1", "kind": "Config", "current-context": "x",
            "clusters": [{"name": "x", "cluster": {"server": url}}], "users": [{"name": "u", "user": {"token": "t"}}],
            "contexts": [{"name": "x", "context": {"cluster": "x", "user": "u"}}],
        }))  # fmt: skip
        client = kubernetes.Client(config, "fuzz")
        runner.run(client.__aenter__())
        reflector = watching.Reflector(
            client, "/api/v1/nodes", objects.Node, _Sink(), lambda node: node.metadata.resource_version
        )
        keep = tracker.ConfigMapKeep(client, "n", "x")
        measured = measurements.Measurements(client, lambda: ())

        async def bind() -> object:
            return await client.post("/api/v1/namespaces/n/pods/p/binding", b"{}")

        calls: Sequence[Callable[[], Coroutine[Any, Any, object]]] = (
            lambda: client.get("/api/v1/nodes/a", objects.Node), reflector._list, reflector._watch, client.ping, bind,
            lambda: discovery.path_of(client, "scheduling.k8s.io", "podgroups"),
            lambda: access_reviews.user_of(client, "t"),
            lambda: snapshot.list_all(client, "/api/v1/nodes", objects.Node),
            lambda: cluster_reading._plugin_pods(client), keep.load, lambda: keep.save("{}"),
            lambda: measured._all("nodes", objects.Node),
        )  # fmt: skip
        yield [functools.partial(lambda call: runner.run(call()), call) for call in calls]
        runner.run(client.__aexit__(None, None, None))


ANSWERS: tuple[Target, ...] = (
    _client(
        "answers of Prometheus", ["gpu_sharing.adapters.prometheus"],
        lambda url: (
            lambda: prometheus.ask(url, "up", _TIMEOUT_SECONDS),
            lambda: prometheus.ask_range(url, "up", 0, 10, 1, _TIMEOUT_SECONDS),
        ),
        (prometheus.NoAnswer,), _VECTOR, _MATRIX,
    ),
    _client(
        "answers of a monitor", ["webui.meters:read_exposition", "webui.meters:Monitors.measure"], _monitors,
        (meters.NoAnswer,), _EXPOSITION,
    ),
    _client(
        "answers of the extender to the WebUI", ["webui.extender_poller"], _extender, (extender_poller.NoAnswer,),
        _NODES, _PODS,
    ),
    _client(
        "answers of the extender to hamictl", ["hamictl.reader", "gpu_sharing.adapters.http_get:read"], _reader,
        (failures.CommandFailed,), _NODES, _PODS, {"components": {"a": {"ok": True}}},
    ),
    _client(
        "answers of the fault injection service", ["hamictl.fault_client"], _faults, (failures.CommandFailed,),
        {"faults": []},
    ),
    _client(
        "answers of the API server",
        [
            "gpu_sharing.adapters.kubernetes", "gpu_sharing.adapters.discovery", "gpu_sharing.adapters.watching",
            "gpu_sharing.adapters.access_reviews", "hamictl.snapshot:list_all", "hamictl.cluster_reading:_plugin_pods",
            "fault_injector.tracker:ConfigMapKeep.load", "fault_injector.tracker:ConfigMapKeep.save",
            "fault_injector.measurements:Measurements._all",
        ],
        _api_server, (errors.KubernetesError, msgspec.MsgspecError),
        {"kind": "NodeList", "metadata": {"resourceVersion": "1"}, "items": [{"metadata": {"name": "a"}}]},
        {"kind": "Status", "status": "Failure", "reason": "Expired", "code": 410, "message": "x"},
        {"type": "ADDED", "object": {"metadata": {"name": "a", "resourceVersion": "5"}}},
        {"type": "BOOKMARK", "object": {"metadata": {"resourceVersion": "7"}}},
        {"type": "ERROR", "object": {"code": 410, "message": "too old"}},
        {"metadata": {"resourceVersion": "1"}, "data": {"faults": "{}"}},
        {"status": {"authenticated": True, "user": {"username": "u", "groups": ["g"], "extra": {"k": ["v"]}}}},
        {"kind": "APIGroupList", "groups": [{"name": "scheduling.k8s.io", "versions": [{"version": "v1"}]}]},
    ),
)  # fmt: skip
