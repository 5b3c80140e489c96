"""A server that answers what it is told to, in place of an extender, a monitor or a Prometheus."""

import contextlib
import http.server
import json
import pathlib
import ssl
import threading
from collections.abc import Callable, Iterator, Mapping
from typing import Any


@contextlib.contextmanager
def serving(
    answer: Callable[[http.server.BaseHTTPRequestHandler], tuple[int, bytes]],
    tls: tuple[pathlib.Path, pathlib.Path] | None = None,
) -> Iterator[str]:
    """Its URL, for as long as the context lasts; each request is answered by the status and body that come back."""

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            status, body = answer(self)
            self.send_response(status)
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: Any) -> None:
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as served:
        if tls:
            context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
            context.load_cert_chain(*tls)
            served.socket = context.wrap_socket(served.socket, server_side=True)
        threading.Thread(target=served.serve_forever, daemon=True).start()
        yield f"{'https' if tls else 'http'}://127.0.0.1:{served.server_address[1]}"
        served.shutdown()


def telling(
    answers: Mapping[str, Any], status: int = 200, tls: tuple[pathlib.Path, pathlib.Path] | None = None
) -> contextlib.AbstractContextManager[str]:
    """The same with JSON.

    Args:
        answers: By path; what is not there is answered with 404.
        status: Of what is there.
        tls: A certificate and its key, for https.
    """

    def told(request: http.server.BaseHTTPRequestHandler) -> tuple[int, bytes]:
        found = request.path in answers
        return status if found else 404, json.dumps(answers.get(request.path, {})).encode()

    return serving(told, tls)
