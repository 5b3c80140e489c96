"""One HTTP exchange with an untrusted server: it ends at the deadline, in a bounded number of bytes.

A per-read timeout alone would let a server that drips one byte a second hold the probe for ever, so every read has
what is left of one deadline. Redirects are answers, not addresses: following one could send an API key to another host.
"""

from __future__ import annotations

import io
import socket
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any
from urllib import parse

from gpu_sharing.core import error_codes, errors

MOST_ANSWER_BYTES = 1024 * 1024
"""Of a body; the answer to a request of one token has a few hundred."""
_MOST_HEAD_BYTES = 64 * 1024
_PORTS = {"http": 80, "https": 443}


class CanaryRefused(errors.GpuSharingError):
    """An endpoint that is not ready, or settings that cannot be used; with the code and the reason.

    Attributes:
        code: Of the registry.
    """

    def __init__(self, code: error_codes.Code, sentence: str) -> None:
        super().__init__(sentence)
        self.code = code


@dataclass(frozen=True, slots=True)
class Target:
    """A server's address, with the path before the engine's own."""

    scheme: str
    host: str
    port: int
    path: str

    @property
    def authority(self) -> str:
        """Return host and port as a URL has them."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{host}:{self.port}"


@dataclass(frozen=True, slots=True)
class Answer:
    """Status and body of an answer."""

    status: int
    body: bytes


def target(url: str) -> Target:
    """Return the address that a URL names.

    Raises:
        CanaryRefused: It is not `http://HOST[:PORT][/PATH]` or the same with `https`.
    """
    try:
        parts = parse.urlsplit(url)
        port = parts.port or _PORTS.get(parts.scheme, 0)
    except ValueError:
        raise _bad_url(url) from None
    plain = url.isascii() and url.isprintable() and " " not in url
    if (
        not plain
        or parts.scheme not in _PORTS
        or not port
        or not parts.hostname
        or parts.username is not None
        or parts.query
        or parts.fragment
    ):
        raise _bad_url(url)
    return Target(parts.scheme, parts.hostname, port, parts.path.rstrip("/"))


def _bad_url(url: str) -> CanaryRefused:
    sentence = f"{url[:200]!r} is not an address. Write http://HOST:PORT, without user, query and fragment."
    return CanaryRefused(error_codes.CANARY_BAD_URL, sentence)


def exchange(
    server: Target, path: str, deadline: float, *, body: bytes | None = None, headers: Mapping[str, str] | None = None
) -> Answer:
    """Send GET, or POST with a body, and return the answer.

    Args:
        server: The server to send it to.
        path: Below the server's own path, with a leading slash.
        deadline: By `time.monotonic`, for everything: name, connection, TLS, request and answer.
        body: JSON to send by POST.
        headers: More headers.

    Raises:
        CanaryRefused: No answer by then, or one that cannot be used: not HTTP, a redirect, too large.
    """
    import http.client

    connection = http.client.HTTPConnection(server.authority)
    where = f"{server.scheme}://{server.authority}{server.path}{path}"
    try:
        with _connected(server, deadline) as opened:
            connection.sock = _DeadlineSocket(opened, deadline)
            method = "GET" if body is None else "POST"
            kinds = {"Accept": "*/*", "Connection": "close"} | (
                {} if body is None else {"Content-Type": "application/json"}
            )
            connection.request(method, f"{server.path}{path}", body, {**kinds, **(headers or {})})
            return _answer(connection.getresponse(), where)
    except _TooLarge:
        raise _too_large(where) from None
    except TimeoutError:
        sentence = f"{where} did not answer in time. Check its log, or raise --timeout-seconds."
        raise CanaryRefused(error_codes.CANARY_TIMEOUT, sentence) from None
    except http.client.HTTPException as cause:
        sentence = f"{where} answers with what is not HTTP: {type(cause).__name__}. Check host and port."
        raise CanaryRefused(error_codes.CANARY_INVALID_ANSWER, sentence) from cause
    except (OSError, ValueError) as cause:
        sentence = f"{where} cannot be reached: {str(cause)[:200]}. Check that the server runs and listens there."
        raise CanaryRefused(error_codes.CANARY_NO_CONNECTION, sentence) from cause


def _answer(response: Any, where: str) -> Answer:
    if 300 <= response.status < 400:
        sentence = (
            f"{where} answers with a redirect ({response.status}), which is not followed. Name the final address."
        )
        raise CanaryRefused(error_codes.CANARY_REDIRECT, sentence)
    if response.length is not None and response.length > MOST_ANSWER_BYTES:
        raise _too_large(where)
    body: bytes = response.read(MOST_ANSWER_BYTES + 1)
    if len(body) > MOST_ANSWER_BYTES:
        raise _too_large(where)
    if response.length:  # A limited read does not report a body that was cut.
        sentence = f"{where} closed the connection {response.length} bytes before the end of its answer. Check its log."
        raise CanaryRefused(error_codes.CANARY_INVALID_ANSWER, sentence)
    return Answer(response.status, body)


def _too_large(where: str) -> CanaryRefused:
    most = MOST_ANSWER_BYTES >> 20
    sentence = f"{where} answers with more than {most} MiB, which no answer of one token has. Check the port."
    return CanaryRefused(error_codes.CANARY_ANSWER_TOO_LARGE, sentence)


class _TooLarge(Exception):
    """More bytes came than head and body may have together."""


class _DeadlineReader(io.RawIOBase):
    """Reads from a socket until a deadline, and no more bytes than an answer may have."""

    def __init__(self, opened: socket.socket, deadline: float) -> None:
        self._opened = opened
        self._deadline = deadline
        self._left = MOST_ANSWER_BYTES + _MOST_HEAD_BYTES

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        self._opened.settimeout(_left(self._deadline))
        size = self._opened.recv_into(buffer)
        self._left -= size
        if self._left < 0:
            raise _TooLarge
        return size


class _DeadlineSocket:
    """What `http.client` calls of a socket; its owner closes it."""

    def __init__(self, opened: socket.socket, deadline: float) -> None:
        self._opened = opened
        self._deadline = deadline

    def sendall(self, data: bytes) -> None:
        self._opened.settimeout(_left(self._deadline))
        self._opened.sendall(data)

    def makefile(self, mode: str) -> io.BufferedReader:
        return io.BufferedReader(_DeadlineReader(self._opened, self._deadline))

    def close(self) -> None:
        """Leave it open: the answer is still being read."""


def _left(deadline: float) -> float:
    left = deadline - time.monotonic()
    if left <= 0:
        raise TimeoutError("the deadline has passed")
    return left


def _connected(server: Target, deadline: float) -> socket.socket:
    """Return a connection to the first address of a name that accepts one."""
    refused: OSError = OSError("its name has no address")
    for address in _addresses(server, deadline):
        try:
            opened = socket.create_connection(address, _left(deadline))
        except TimeoutError:
            raise
        except OSError as cause:
            refused = cause
            continue
        if server.scheme == "http":
            return opened
        import ssl

        with opened:  # Closed where the handshake fails; else the wrapped socket owns the descriptor.
            opened.settimeout(_left(deadline))
            return ssl.create_default_context().wrap_socket(opened, server_hostname=server.host)
    raise refused


def _addresses(server: Target, deadline: float) -> Iterator[tuple[str, int]]:
    """Yield what a name resolves to; the resolver knows no deadline, so that it has a thread that is left behind."""
    import queue
    import threading

    found: queue.SimpleQueue[list[str] | OSError] = queue.SimpleQueue()

    def resolve() -> None:
        try:
            infos = socket.getaddrinfo(server.host, server.port, type=socket.SOCK_STREAM)
            found.put([str(info[4][0]) for info in infos])
        except (OSError, UnicodeError) as cause:
            found.put(OSError(f"its name does not resolve: {cause}"))

    threading.Thread(target=resolve, name="canary resolver", daemon=True).start()
    try:
        answer = found.get(timeout=_left(deadline))
    except queue.Empty:
        raise TimeoutError("the name did not resolve in time") from None
    if isinstance(answer, OSError):
        raise answer
    for address in answer:
        yield address, server.port
