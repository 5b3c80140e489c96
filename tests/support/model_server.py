"""A small model server: it answers what a test decides, and keeps what it was asked."""

import contextlib
import http.server
import json
import threading
from collections.abc import Callable, Iterator
from typing import Any

Reply = tuple[int, dict[str, str], bytes]
"""Status, headers and body."""


class ModelServer:
    """Serves on a free port; `answers` has a function for each method and path."""

    def __init__(self) -> None:
        self.answers: dict[str, Callable[[bytes], Reply]] = {}
        self.asked: list[tuple[str, dict[str, str], bytes]] = []
        self.url = ""

    def answer(self, what: str, value: Any, status: int = 200) -> None:
        """Answer one method and path, such as `GET /v1/models`, with JSON."""
        self.answers[what] = lambda _: json_reply(value, status)


def json_reply(value: Any, status: int = 200) -> Reply:
    return status, {"Content-Type": "application/json"}, json.dumps(value).encode()


@contextlib.contextmanager
def running() -> Iterator[ModelServer]:
    model_server = ModelServer()

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            what = f"{self.command} {self.path}"
            body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
            model_server.asked.append((what, dict(self.headers), body))
            known = model_server.answers.get(what)
            status, headers, content = known(body) if known else json_reply({"detail": "Not Found"}, 404)
            self.send_response(status)
            for name, value in headers.items():
                self.send_header(name, value)
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        do_POST = do_GET  # noqa: N815  # the library's name

        def log_message(self, format: str, *args: object) -> None:
            """Write nothing."""

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    model_server.url = f"http://127.0.0.1:{server.server_address[1]}"
    thread = threading.Thread(target=server.serve_forever, args=(0.05,))
    thread.start()
    try:
        yield model_server
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
