"""A server that answers what it is told to, in place of an extender."""

import contextlib
import http.server
import json
import threading
from collections.abc import Iterator, Mapping
from typing import Any


@contextlib.contextmanager
def telling(answers: Mapping[str, Any], status: int = 200) -> Iterator[str]:
    """Its URL, for as long as the context lasts.

    Args:
        answers: By path; what is not there is answered with 404.
        status: Of what is there.
    """

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(status if self.path in answers else 404)
            self.end_headers()
            self.wfile.write(json.dumps(answers.get(self.path, {})).encode())

        def log_message(self, *_: Any) -> None:
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as served:
        threading.Thread(target=served.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{served.server_address[1]}"
        served.shutdown()
