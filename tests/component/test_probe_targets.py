"""Targets of a probe that do not behave: each ends at the deadline, within bounds, as a refusal with its code."""

import contextlib
import re
import socket
import threading
import time
from collections.abc import Callable, Iterator

import pytest

from gpu_sharing.core import error_codes
from gpu_sharing.workload.canaries import asking, engines, http_calls, settings
from tests.support import model_server

SECONDS = 60.0
SHORT = 1.0
"""A time-out that a target reaches on purpose."""
Serve = Callable[[socket.socket, threading.Event], None]


@contextlib.contextmanager
def serving(serve: Serve) -> Iterator[str]:
    """Serve connections by a function, which ends when the event is set or the caller closes."""
    ended = threading.Event()
    listener = socket.create_server(("127.0.0.1", 0))
    threads: list[threading.Thread] = []

    def one(connection: socket.socket) -> None:
        with connection, contextlib.suppress(OSError):
            serve(connection, ended)

    def accept() -> None:
        while True:
            try:
                connection, _ = listener.accept()
            except OSError:
                return
            threads.append(threading.Thread(target=one, args=(connection,)))
            threads[-1].start()

    acceptor = threading.Thread(target=accept)
    acceptor.start()
    try:
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"
    finally:
        ended.set()
        listener.shutdown(socket.SHUT_RDWR)
        listener.close()
        for thread in [acceptor, *threads]:
            thread.join(SECONDS)
            assert not thread.is_alive()


def request_of(connection: socket.socket) -> bytes:
    """Read a request with its body: closing before that resets the connection, and the answer may be lost."""
    with connection.makefile("rb") as file:
        head = b"".join(iter(file.readline, b"\r\n"))
        size = re.search(rb"(?i)content-length: (\d+)", head)
        return head + file.read(int(size[1]) if size else 0)


def hangs(connection: socket.socket, ended: threading.Event) -> None:
    request_of(connection)
    ended.wait(SECONDS)


def drips_head(connection: socket.socket, ended: threading.Event) -> None:
    request_of(connection)
    connection.sendall(b"HTTP/1.1 200 OK\r\nX: ")
    while not ended.wait(0.05):
        connection.sendall(b"x")


def drips_body(connection: socket.socket, ended: threading.Event) -> None:
    request_of(connection)
    connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 100000\r\n\r\n")
    while not ended.wait(0.05):
        connection.sendall(b" ")


def drips_continue(connection: socket.socket, ended: threading.Event) -> None:
    request_of(connection)
    while not ended.wait(0.01):
        connection.sendall(b"HTTP/1.1 100 Continue\r\n\r\n")


def closes_at_once(connection: socket.socket, ended: threading.Event) -> None:
    connection.close()


def answers(*parts: bytes) -> Serve:
    def serve(connection: socket.socket, ended: threading.Event) -> None:
        request_of(connection)
        for part in parts:
            connection.sendall(part)

    return serve


def endless_body(connection: socket.socket, ended: threading.Event) -> None:
    request_of(connection)
    connection.sendall(b"HTTP/1.1 200 OK\r\n\r\n")
    while not ended.is_set():
        connection.sendall(b"x" * 65536)


def endless_chunks(connection: socket.socket, ended: threading.Event) -> None:
    request_of(connection)
    connection.sendall(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n")
    while not ended.is_set():
        connection.sendall(b"10000\r\n" + b"x" * 65536 + b"\r\n")


def endless_head(connection: socket.socket, ended: threading.Event) -> None:
    request_of(connection)
    connection.sendall(b"HTTP/1.1 200 OK\r\n")
    while not ended.is_set():
        connection.sendall(b"X: " + b"x" * 60000 + b"\r\n")


OK = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\n"
MOVED = b"HTTP/1.1 307 T\r\nLocation: http://169.254.169.254/\r\nContent-Length: 0\r\n\r\n"
GIBS_3 = OK + b"Content-Length: 3221225472\r\n\r\n" + b"{" * 4096
SLOW: dict[str, Serve] = {
    "hangs": hangs, "drips its head": drips_head, "drips its body": drips_body, "only continues": drips_continue,
}  # fmt: skip
INVALID, LARGE = error_codes.CANARY_INVALID_ANSWER, error_codes.CANARY_ANSWER_TOO_LARGE
STATUS, NONE = error_codes.CANARY_STATUS, error_codes.CANARY_NO_CONNECTION
BAD: dict[str, tuple[Serve, set[error_codes.Code]]] = {
    # A close while the request is in the buffer is a reset or an end, as the kernel has it.
    "closes at once": (closes_at_once, {NONE, INVALID}),
    "redirects": (answers(MOVED), {error_codes.CANARY_REDIRECT}),
    "is not HTTP": (answers(b"\x16\x03\x01 SSH-2.0-garbage\r\n\r\n"), {INVALID}),
    "is nothing": (answers(b""), {NONE, INVALID}),
    "is not JSON": (answers(OK + b"Content-Length: 5\r\n\r\nhello"), {INVALID}),
    "is not UTF-8": (answers(OK + b"Content-Length: 4\r\n\r\n\xff\xfe\xfd\xfc"), {INVALID}),
    "is nested deeply": (answers(OK + b"Content-Length: 200000\r\n\r\n" + b"[" * 200_000), {INVALID}),
    "has a huge number": (answers(OK + b"Content-Length: 9000\r\n\r\n" + b"9" * 9000), {INVALID}),
    "is another API's": (answers(OK + b'Content-Length: 13\r\n\r\n{"hello": {}}'), {INVALID}),
    "is a list": (answers(OK + b"Content-Length: 2\r\n\r\n[]"), {INVALID}),
    "is cut": (answers(OK + b'Content-Length: 99\r\n\r\n{"text": "'), {INVALID}),
    "has a cut chunk": (answers(OK + b"Transfer-Encoding: chunked\r\n\r\nff\r\n{"), {INVALID}),
    "has no chunk": (answers(OK + b"Transfer-Encoding: chunked\r\n\r\nzz\r\n{"), {INVALID}),
    "has 3 GiB": (answers(GIBS_3), {LARGE}),
    "never ends": (endless_body, {LARGE}),
    "has chunks for ever": (endless_chunks, {LARGE}),
    "has headers for ever": (endless_head, {LARGE, INVALID}),
    "is an error": (answers(b"HTTP/1.1 500 E\r\nContent-Length: 9\r\n\r\nout of \x1b["), {STATUS}),
    "has nothing to say": (answers(b"HTTP/1.1 204 N\r\n\r\n"), {STATUS}),
}  # fmt: skip


def outcome(url: str, timeout_seconds: float = SECONDS) -> asking.Outcome:
    return asking.outcome(engines.ENGINES["sglang"], url, settings.CanarySettings(), timeout_seconds)


@pytest.mark.parametrize("name", SLOW)
def test_a_target_that_never_completes_its_answer_ends_at_the_deadline(name: str) -> None:
    """The kubelet kills a probe that is late, and its sentence is lost; one that drips must not hold it for ever."""
    with serving(SLOW[name]) as url:
        began = time.monotonic()
        refused = outcome(url, SHORT)
        assert time.monotonic() - began < SECONDS
    assert (refused.ready, refused.error_code) == (False, error_codes.CANARY_TIMEOUT)
    assert "--timeout-seconds" in refused.reason


@pytest.mark.parametrize("name", BAD)
def test_a_bad_answer_is_a_refusal_with_its_code(name: str) -> None:
    """The pod's owner sees what the server did, in one printable line."""
    serve, codes = BAD[name]
    with serving(serve) as url:
        refused = outcome(url)
    assert not refused.ready
    assert refused.error_code in codes
    assert refused.reason.isprintable()
    assert len(refused.reason) < 600


def test_a_redirect_is_not_followed() -> None:
    """It could send the API key to another host."""
    with model_server.running() as other, model_server.running() as first:
        first.answers["POST /generate"] = lambda _: (307, {"Location": f"{other.url}/generate"}, b"")
        other.answer("POST /generate", {"text": "!"})
        assert outcome(first.url).error_code == error_codes.CANARY_REDIRECT
        assert other.asked == []


def test_a_closed_port_is_a_refusal() -> None:
    """The server is not up yet: the usual case of a startup probe."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    refused = outcome(f"http://127.0.0.1:{port}")
    assert refused.error_code == error_codes.CANARY_NO_CONNECTION
    assert f"127.0.0.1:{port}" in refused.reason


def test_a_name_that_does_not_resolve_in_time_ends_at_the_deadline(monkeypatch: pytest.MonkeyPatch) -> None:
    """The resolver's own limit is half a minute, and knows nothing of the probe's."""
    ended = threading.Event()

    def resolve(*_: object, **__: object) -> list[object]:
        ended.wait(SECONDS)
        raise OSError("too late")

    monkeypatch.setattr(socket, "getaddrinfo", resolve)
    try:
        assert outcome("http://model.default.svc:8000", SHORT).error_code == error_codes.CANARY_TIMEOUT
    finally:
        ended.set()


def test_a_name_that_does_not_resolve_is_a_refusal(monkeypatch: pytest.MonkeyPatch) -> None:
    """A typing error in the Service's name is found in its sentence."""

    def resolve(*_: object, **__: object) -> list[object]:
        raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")

    monkeypatch.setattr(socket, "getaddrinfo", resolve)
    refused = outcome("http://modle:8000")
    assert refused.error_code == error_codes.CANARY_NO_CONNECTION
    assert "does not resolve" in refused.reason


def test_a_plain_server_behind_https_is_a_refusal() -> None:
    """The scheme is a frequent mistake."""
    with model_server.running() as server:
        refused = outcome(server.url.replace("http:", "https:"))
    assert refused.error_code in (error_codes.CANARY_NO_CONNECTION, error_codes.CANARY_INVALID_ANSWER)


def test_metrics_that_hang_end_at_the_deadline_too() -> None:
    """The look for traffic is a part of the probe."""
    with serving(hangs) as url:
        canary = engines.ENGINES["sglang"]
        refused = asking.outcome(canary, url, settings.CanarySettings(), SHORT, traffic_window_seconds=0.1)
    assert refused.error_code == error_codes.CANARY_TIMEOUT


def test_an_ipv6_address_is_an_address() -> None:
    """Clusters with IPv6 alone exist."""
    assert http_calls.target("http://[::1]:8000/base/") == http_calls.Target("http", "::1", 8000, "/base")
    assert http_calls.target("https://host").authority == "host:443"
