"""Health and metrics over the standard library's HTTP server, for processes that must stay small on every GPU node.

A thread takes the calls; answers are made on the event loop, so that they see one state, and so that a loop that
hangs fails its probes.
"""

import asyncio
import concurrent.futures
import contextlib
import http.server
import os
import socket
import threading
from collections.abc import AsyncIterator, Callable

import structlog

from gpu_sharing.adapters import flags

_ANSWER_SECONDS = 5.0
_IDLE_SECONDS = 10.0
"""A connection that says nothing for so long is closed."""

Answer = Callable[[str, str], tuple[int, bytes, bytes]]
"""Path and `Accept` to status, body and content type."""

log = structlog.get_logger("listeners")


@contextlib.asynccontextmanager
async def serving(name: str, address: flags.Address, answer: Answer) -> AsyncIterator[None]:
    """Serve GET and HEAD on an address; one log line says where."""
    loop = asyncio.get_running_loop()

    async def on_loop(path: str, accept: str) -> tuple[int, bytes, bytes]:
        return answer(path, accept)

    class Handler(http.server.BaseHTTPRequestHandler):
        timeout = _IDLE_SECONDS

        def do_GET(self) -> None:  # the library's name
            try:
                future = asyncio.run_coroutine_threadsafe(
                    on_loop(self.path.partition("?")[0], self.headers.get("Accept", "")), loop
                )
                status, body, kind = future.result(_ANSWER_SECONDS)
            except (concurrent.futures.TimeoutError, concurrent.futures.CancelledError, RuntimeError):
                status, body, kind = 503, b"the process does not answer\n", b"text/plain"
            self.send_response_only(status)
            self.send_header("Content-Type", kind.decode())
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            if self.command == "GET":
                self.wfile.write(body)

        do_HEAD = do_GET  # noqa: N815

        def log_message(self, format: str, *args: object) -> None:
            log.debug("probe", path=getattr(self, "path", ""))

    class Server(http.server.ThreadingHTTPServer):
        daemon_threads = True
        address_family = socket.AF_INET6 if ":" in address.host else socket.AF_INET

    server = Server((address.host, address.port), Handler)
    host, port = server.server_address[:2]
    shown = f"[{host!s}]:{port}" if ":" in str(host) else f"{host!s}:{port}"
    log.info("listening", pid=os.getpid(), **{name: shown})
    threading.Thread(target=server.serve_forever, name=f"http {name}", daemon=True).start()
    try:
        yield
    finally:
        await asyncio.to_thread(server.shutdown)
        server.server_close()
