"""A client of an API server for tests and benchmarks: JSON in, JSON out, without any of our own adapters in between."""

import collections
import concurrent.futures
import contextlib
import http.client
import ssl
from collections.abc import Iterable
from typing import Any
from urllib import parse

import orjson

_PARALLEL = 8


class Refused(Exception):
    """The API server answered with an error.

    Attributes:
        status: The HTTP status.
        body: The decoded `Status`.
    """

    def __init__(self, status: int, body: Any) -> None:
        super().__init__(f"{status}: {body.get('message', body) if isinstance(body, dict) else body}")
        self.status = status
        self.body = body


class Api:
    """A client of one API server: JSON in, JSON out, over a pool of connections. For several threads."""

    def __init__(self, server: str, token: str, context: ssl.SSLContext | None = None) -> None:
        self._server = parse.urlsplit(server)
        self._token = token
        self._context = context
        self._idle: collections.deque[http.client.HTTPConnection] = collections.deque()

    def __call__(self, method: str, path: str, body: Any = None, content_type: str = "application/json") -> Any:
        """Call it.

        Raises:
            Refused: The answer is an error.
        """
        headers = {"Content-Type": content_type}
        if self._token:
            headers["Authorization"] = f"Bearer {self._token}"
        encoded = None if body is None else orjson.dumps(body)
        for attempt in (1, 2):
            connection = self._connection()
            try:
                connection.request(method, path, encoded, headers)
                answer = connection.getresponse()
                content = answer.read()
                self._idle.append(connection)
                break
            except (http.client.HTTPException, OSError):
                connection.close()
                if attempt == 2:
                    raise
        is_json = (answer.getheader("Content-Type") or "").startswith("application/json")
        decoded = orjson.loads(content) if is_json else content.decode()
        if answer.status >= 300:
            raise Refused(answer.status, decoded)
        return decoded

    def close(self) -> None:
        """Close every connection."""
        while self._idle:
            self._idle.pop().close()

    def many(self, calls: Iterable[tuple[str, str, Any]]) -> None:
        """Make many calls, several at a time."""
        with concurrent.futures.ThreadPoolExecutor(_PARALLEL) as pool:
            for done in [pool.submit(self, *call) for call in calls]:
                done.result()

    def pages(self, path: str) -> list[Any]:
        """All items of a list, page by page."""
        items: list[Any] = []
        token = ""
        while True:
            joint = "&" if "?" in path else "?"
            page = self("GET", f"{path}{joint}limit=1000{'&continue=' + parse.quote(token) if token else ''}")
            items += page["items"] or []
            token = page["metadata"].get("continue", "")
            if not token:
                return items

    def _connection(self) -> http.client.HTTPConnection:
        with contextlib.suppress(IndexError):
            return self._idle.pop()
        host, port = self._server.hostname or "", self._server.port
        if self._server.scheme == "https":
            return http.client.HTTPSConnection(host, port, context=self._context, timeout=60)
        return http.client.HTTPConnection(host, port, timeout=60)
