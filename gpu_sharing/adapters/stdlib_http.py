"""Health and metrics over the standard library's HTTP server, for processes that must stay small on every GPU node.

A thread accepts the calls; answers are computed on the event loop, so that they read one state, and so that a loop that
hangs fails its probes.
"""

import asyncio
import concurrent.futures
import contextlib
import http.server
import io
import os
import socket
import sys
import threading
import time
from collections.abc import AsyncIterator, Callable

import structlog

from gpu_sharing.adapters import flags, sockets
from gpu_sharing.core import error_codes

_ANSWER_SECONDS = 5.0
_CONNECTION_SECONDS = 15.0
"""A connection has one request, and is closed this long after it was opened in any case."""
_MOST_CONNECTIONS = 32
"""The limit of connections, with a thread each. At the limit the oldest is closed for a new one."""
_MOST_HEAD_BYTES = 32 * 1024
_LOOK_SECONDS = 0.5

Answer = Callable[[str, str], tuple[int, bytes, bytes]]
"""Path and `Accept` to status, body and content type."""

log = structlog.get_logger("listeners")


@contextlib.asynccontextmanager
async def serving(name: str, address: flags.Address, answer: Answer) -> AsyncIterator[str]:
    """Serve GET and HEAD on an address; log and yield it."""
    loop = asyncio.get_running_loop()

    async def on_loop(path: str, accept: str) -> tuple[int, bytes, bytes]:
        return answer(path, accept)

    class Handler(_Handler):
        def answer(self, path: str, accept: str) -> tuple[int, bytes, bytes]:
            try:
                return asyncio.run_coroutine_threadsafe(on_loop(path, accept), loop).result(_ANSWER_SECONDS)
            except (concurrent.futures.TimeoutError, concurrent.futures.CancelledError, RuntimeError):
                return 503, b"the process does not answer\n", b"text/plain"

    server = _Server(sockets.bound(address), Handler)
    shown = sockets.shown(server.socket)
    log.info("listening", pid=os.getpid(), **{name: shown})
    thread = threading.Thread(target=server.serve_forever, args=(_LOOK_SECONDS,), name=f"http {name}", daemon=True)
    thread.start()
    try:
        yield shown
    finally:
        try:
            await asyncio.to_thread(server.shutdown)
        finally:  # Also where this wait is cancelled.
            server.server_close()


class _Head(io.BufferedReader):
    """Reads lines of a request, up to a limit of bytes."""

    left = _MOST_HEAD_BYTES

    def readline(self, size: int | None = -1, /) -> bytes:
        limit = self.left + 1
        line = super().readline(limit if size is None or size < 0 else min(size, limit))
        self.left -= len(line)
        if self.left < 0:
            raise TimeoutError("the request is too large")  # Then the handler closes the connection.
        return line


class _Handler(http.server.BaseHTTPRequestHandler):
    timeout = _CONNECTION_SECONDS

    def answer(self, path: str, accept: str) -> tuple[int, bytes, bytes]:
        raise NotImplementedError

    def setup(self) -> None:
        super().setup()
        self.rfile = _Head(self.connection.makefile("rb", buffering=0))

    def do_GET(self) -> None:  # the library's name
        status, body, kind = self.answer(self.path.partition("?")[0], self.headers.get("Accept", ""))
        self.send_response_only(status)
        self.send_header("Content-Type", kind.decode())
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(body)

    do_HEAD = do_GET  # noqa: N815

    def log_message(self, format: str, *args: object) -> None:
        """Write nothing: the endpoint logs each answer."""


class _Server(http.server.ThreadingHTTPServer):
    """Serves a few connections at a time, each for a few seconds."""

    daemon_threads = True
    request_queue_size = 128

    def __init__(self, sock: socket.socket, handler: type[_Handler]) -> None:
        super().__init__(("", 0), handler, bind_and_activate=False)
        self.socket.close()
        self.socket = sock
        self._opened: dict[socket.socket, float] = {}
        self._lock = threading.Lock()
        self.server_activate()

    def process_request(self, request: socket.socket, client_address: object) -> None:  # type: ignore[override]
        with self._lock:
            while len(self._opened) >= _MOST_CONNECTIONS:
                self._give_up(next(iter(self._opened)), "too many connections")
            self._opened[request] = time.monotonic()
        super().process_request(request, client_address)

    def shutdown_request(self, request: socket.socket) -> None:  # type: ignore[override]
        with self._lock:
            self._opened.pop(request, None)
        super().shutdown_request(request)

    def service_actions(self) -> None:
        """Close connections that are too old."""
        horizon = time.monotonic() - _CONNECTION_SECONDS
        with self._lock:
            for connection in [one for one, opened_at in self._opened.items() if opened_at < horizon]:
                self._give_up(connection, "the request is not finished, or its answer not read")

    def _give_up(self, connection: socket.socket, why: str) -> None:
        del self._opened[connection]
        log.warning("connection given up", error_code=error_codes.LISTENER_LIMIT, cause=why)
        with contextlib.suppress(OSError):
            connection.shutdown(socket.SHUT_RDWR)  # This wakes its thread, which closes it.

    def handle_error(self, request: object, client_address: object) -> None:
        """Ignore a caller that closed its connection."""
        log.debug("connection broke", cause=repr(sys.exc_info()[1]))
