"""A gunicorn worker whose threads get whole requests only: an unfinished one costs a descriptor, and no thread.

gunicorn's own worker hands a connection to a thread before a byte was received, so that as many unfinished requests as
there are threads stop all pages. Here the worker's loop collects a request, with limits on its size and its time.
"""

import contextlib
import errno
import functools
import re
import selectors
import socket
import time
from typing import Any

import structlog
from gunicorn import http
from gunicorn.workers import gthread

from gpu_sharing.core import error_codes

_MOST_HEAD_BYTES = 32 * 1024
"""Browsers' cookies and bearer tokens fit easily."""
_MOST_BODY_BYTES = 64 * 1024
"""The pages take a form with a token."""
_REQUEST_SECONDS = 10.0
_STOP_SECONDS = 2.0
_GRACE_SECONDS = 0.5
_ANSWER_SECONDS = 15.0
"""For a caller that does not read."""
_CHUNK = 64 * 1024
_LENGTH = re.compile(rb"\r\ncontent-length:[ \t]*(\d{1,18})[ \t]*\r\n", re.IGNORECASE)
_CHUNKED = re.compile(rb"\r\ntransfer-encoding:", re.IGNORECASE)

log = structlog.get_logger("pages")


class TooLarge(Exception):
    """A request that is refused.

    Attributes:
        status: The HTTP status line's code and phrase.
    """

    def __init__(self, status: str) -> None:
        super().__init__(status)
        self.status = status


def is_whole(received: bytes) -> bool:
    """Return whether a request is complete.

    Raises:
        TooLarge: Its head or its body is too large, or the body's length is not given.
    """
    end = received.find(b"\r\n\r\n")
    if end < 0:
        if len(received) > _MOST_HEAD_BYTES:
            raise TooLarge("431 Request Header Fields Too Large")
        return False
    head = received[: end + 2]
    if len(head) > _MOST_HEAD_BYTES:
        raise TooLarge("431 Request Header Fields Too Large")
    if _CHUNKED.search(head):
        raise TooLarge("411 Length Required")
    length = _LENGTH.search(head)
    wanted = int(length[1]) if length else 0
    if wanted > _MOST_BODY_BYTES:
        raise TooLarge("413 Content Too Large")
    return len(received) >= end + 4 + wanted


class _Connection(gthread.TConn):  # type: ignore[misc]  # it has no types
    def init(self) -> None:
        """Prepare for a thread, which waits for its caller only for some seconds."""
        super().init()
        self.sock.settimeout(_ANSWER_SECONDS)

    def close(self, graceful: bool = False) -> None:
        """Read what was received, so that the answer arrives, and close."""
        with contextlib.suppress(OSError):
            if graceful:
                self.sock.shutdown(socket.SHUT_WR)
                self.sock.setblocking(False)
                self.sock.recv(_CHUNK)
        super().close()


class PatientWorker(gthread.ThreadWorker):  # type: ignore[misc]  # it has no types
    """Collects requests in its loop, and passes whole ones to its threads."""

    def __init__(self, *arguments: Any, **more: Any) -> None:
        super().__init__(*arguments, **more)
        self._unfinished: dict[Any, bytes] = {}

    def accept(self, listener: Any) -> None:
        """Accept a connection, and wait for its request."""
        try:
            taken, client = listener.accept()
        except OSError as cause:
            if cause.errno in (errno.EMFILE, errno.ENFILE):
                self._give_way()
            elif cause.errno not in (errno.EAGAIN, errno.ECONNABORTED, errno.EWOULDBLOCK):
                raise
            return
        if self.nr_conns >= self.worker_connections - 1:
            self._give_way()
        self.nr_conns += 1
        self._collect(_Connection(self.cfg, taken, client, listener.getsockname()))

    def on_client_socket_readable(self, conn: Any, client: Any) -> None:
        """Wait for the next request of a connection that was kept."""
        if conn not in self.keepalived_conns:
            return  # It gave way after its event was found.
        self.poller.unregister(client)
        self.keepalived_conns.remove(conn)
        self._collect(conn)

    def murder_pending(self) -> None:
        """Close what is not finished in time; soon where the worker stops."""
        super().murder_pending()
        now = time.monotonic() + (0.0 if self.alive else _REQUEST_SECONDS - _STOP_SECONDS)
        for conn in [one for one in self._unfinished if one.timeout <= now]:
            self._drop(conn, "the request is not finished")

    def finish_request(self, conn: Any, fs: Any) -> None:
        """Keep a connection or close it; what came of the next request is collected like any other."""
        rest = conn.parser.unreader.take_buffered() if conn.parser else b""
        super().finish_request(conn, fs)
        if rest and conn in self.keepalived_conns:
            self.on_client_socket_readable(conn, conn.sock)
            self._add(conn, rest)

    def _collect(self, conn: Any) -> None:
        conn.sock.setblocking(False)
        conn.timeout = time.monotonic() + _REQUEST_SECONDS
        self._unfinished[conn] = b""
        self.poller.register(conn.sock, selectors.EVENT_READ, functools.partial(self._read, conn))

    def _read(self, conn: Any, client: Any) -> None:
        if conn not in self._unfinished:
            return  # It gave way after its event was found.
        try:
            chunk = client.recv(_CHUNK)
        except (BlockingIOError, InterruptedError):
            return
        except OSError:
            chunk = b""
        if chunk:
            self._add(conn, chunk)
        else:
            self._drop(conn)

    def _add(self, conn: Any, chunk: bytes) -> None:
        """Add to what came of a request; a whole one goes to a thread."""
        received = self._unfinished[conn] = self._unfinished[conn] + chunk
        try:
            if not is_whole(received):
                return
        except TooLarge as refused:
            with contextlib.suppress(OSError):
                answer = f"HTTP/1.1 {refused.status}\r\nConnection: close\r\nContent-Length: 0\r\n\r\n"
                conn.sock.send(answer.encode())
            self._drop(conn, refused.status)
            return
        self.poller.unregister(conn.sock)
        del self._unfinished[conn]
        conn.data_ready = True
        conn.parser = conn.parser or http.get_parser(self.cfg, conn.sock, conn.client)
        conn.parser.unreader.unread(received)
        self.enqueue_req(conn)

    def _give_way(self) -> None:
        """Close a connection for a new one: the oldest unfinished one, or an idle one where none is old.

        A caller that has just connected is about to send its request.
        """
        oldest = next(iter(self._unfinished), None)
        old = oldest is not None and oldest.timeout - _REQUEST_SECONDS + _GRACE_SECONDS <= time.monotonic()
        if oldest is not None and (old or not self.keepalived_conns):
            self._drop(oldest, "too many connections")
        elif self.keepalived_conns:
            kept = self.keepalived_conns.popleft()
            with contextlib.suppress(OSError, KeyError, ValueError):
                self.poller.unregister(kept.sock)
            self.nr_conns -= 1
            kept.close()

    def _drop(self, conn: Any, why: str = "") -> None:
        if why:
            log.warning("connection closed", error_code=error_codes.LISTENER_LIMIT, cause=why, address=conn.client[0])
        del self._unfinished[conn]
        with contextlib.suppress(OSError, KeyError, ValueError):
            self.poller.unregister(conn.sock)
        self.nr_conns -= 1
        conn.close()
