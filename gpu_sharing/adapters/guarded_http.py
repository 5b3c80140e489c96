"""HTTP connections with limits before the parser: of their number, their time, and their buffered bytes.

Unauthenticated callers must not exhaust memory, descriptors or time of listeners that other pods reach. At the limit a
connection with an incomplete request is closed for a new one, so that probes and complete requests are answered.
"""

import asyncio
import collections
import functools
import resource
import select
import socket
import ssl
from collections.abc import Awaitable, Callable, Coroutine, MutableMapping
from typing import Any, TypeVar

import structlog
from uvicorn.protocols.http import httptools_impl

from gpu_sharing.core import error_codes

MOST_HEAD_BYTES = 64 * 1024
"""Of a request without its body: request line, headers, chunk sizes and trailers."""
_REQUEST_SECONDS = 15.0
"""A request must be complete this long after its connection was opened, or after its first byte."""
_WRITE_SECONDS = 15.0
"""Seconds in which a slow caller must read its answer."""
_HANDSHAKE_SECONDS = 5.0
_RETRY_SECONDS = 0.05
_DESCRIPTORS = 65_536
_OTHER_DESCRIPTORS = 256
"""Descriptors for other uses than listeners: connections to the API server, files, the loop."""
_TOO_LARGE = b"HTTP/1.1 431 Request Header Fields Too Large\r\nconnection: close\r\ncontent-length: 0\r\n\r\n"

CALLER_GONE = "hami.caller_gone"
"""The extension of an ASGI scope by which an application learns whether the caller has closed its connection: its
`ask` is a function `() -> bool`."""
_CLOSED = select.POLLHUP | select.POLLERR | getattr(select, "POLLRDHUP", 0)

log = structlog.get_logger("listeners")


def raise_descriptor_limit() -> int:
    """Raise the descriptor limit of this process to its maximum, up to some ten thousands. Return the limit."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = _DESCRIPTORS if hard == resource.RLIM_INFINITY else min(_DESCRIPTORS, hard)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
        return wanted
    return _DESCRIPTORS if soft == resource.RLIM_INFINITY else soft


def shares(wanted: dict[str, int], descriptors: int, reserved: str) -> dict[str, int]:
    """Return how many connections each listener may have, so that all together never exhaust the descriptors.

    Args:
        wanted: The preferred number of connections of each listener.
        descriptors: The descriptor limit of the process.
        reserved: The listener that gets its preferred number first.
    """
    left = descriptors - _OTHER_DESCRIPTORS - wanted.get(reserved, 0)
    others = sum(most for name, most in wanted.items() if name != reserved)
    return {
        name: most if name == reserved or others <= left else max(most * left // others, 4)
        for name, most in wanted.items()
    }


class Connections:
    """The connections of one listener, each with the address it comes from.

    Attributes:
        most: The limit.
        given_up: The number of connections closed at the limit, or because they were too large or too slow.
    """

    def __init__(self, most: int) -> None:
        self.most = most
        self.given_up = 0
        self._open: dict[object, str] = {}
        self._idle: dict[str, dict[object, Callable[[], object]]] = collections.defaultdict(dict)
        self._room = asyncio.Event()

    def __len__(self) -> int:
        return len(self._open)

    def opened(self, connection: object, host: str, close: Callable[[], object]) -> None:
        """Count a connection, whose request is not complete."""
        self._open[connection] = host
        self._idle[host][connection] = close

    def waits(self, connection: object, close: Callable[[], object]) -> None:
        """Mark the request of a connection as incomplete, so that the connection may be closed for another."""
        if connection in self._open:
            self._idle[self._open[connection]][connection] = close
            self._room.set()

    def works(self, connection: object) -> None:
        """Mark the request of a connection as complete, so that the connection stays open until it is answered."""
        host = self._open.get(connection, "")
        self._idle[host].pop(connection, None)
        if not self._idle[host]:
            del self._idle[host]

    def closed(self, connection: object) -> None:
        """Forget a connection."""
        self.works(connection)
        self._open.pop(connection, None)
        self._room.set()

    async def room(self) -> None:
        """Wait until one more connection may be opened; at the limit close an incomplete one, as `give_way`."""
        while len(self._open) >= self.most:
            if not self.give_way():
                self._room.clear()
                await self._room.wait()

    def give_way(self) -> bool:
        """Close the oldest incomplete connection of the address with the most of them. Return whether there was one."""
        if not self._idle:
            return False
        host = max(self._idle, key=lambda one: len(self._idle[one]))
        connection, close = next(iter(self._idle[host].items()))
        self.tell("too many connections", host)
        close()
        self.closed(connection)
        return True

    def tell(self, why: str, host: str) -> None:
        """Count a connection that is closed at a limit, and log it."""
        self.given_up += 1
        log.warning("connection given up", error_code=error_codes.LISTENER_LIMIT, cause=why, address=host)


class Protocol(httptools_impl.HttpToolsProtocol):
    """uvicorn's protocol, with limits on the headers and on the time until a request is complete."""

    def __init__(self, *arguments: Any, counted: Connections, accepted: object, **more: Any) -> None:
        super().__init__(*arguments, **more)
        self._counted = counted
        self._accepted = accepted
        self._overhead = 0
        self._deadline: asyncio.TimerHandle | None = None
        self._write_deadline: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Count the connection, and expect a request."""
        super().connection_made(transport)
        self._counted.closed(self._accepted)  # It was counted as that until now.
        self._counted.opened(self, self.client[0] if self.client else "", transport.abort)
        self._arm()

    def connection_lost(self, exc: Exception | None) -> None:
        """Forget the connection."""
        self._disarm()
        self.resume_writing()
        self._counted.closed(self)
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """Parse the data, unless the headers are too large."""
        if self._deadline is None:
            self._arm()
        self._overhead += len(data)
        super().data_received(data)
        if self._overhead > MOST_HEAD_BYTES and not self.transport.is_closing():
            self._give_up(f"more than {MOST_HEAD_BYTES} bytes beside the body", _TOO_LARGE)

    def on_message_begin(self) -> None:
        """Offer the application `CALLER_GONE`."""
        super().on_message_begin()
        self.scope["extensions"] = {CALLER_GONE: {"ask": self._caller_gone}}

    def on_headers_complete(self) -> None:
        """Have an answer dropped whose connection is closed: uvicorn marks only the last of pipelined requests."""
        before = self.cycle
        super().on_headers_complete()
        cycle: httptools_impl.RequestResponseCycle | None = self.cycle
        if cycle is not None and cycle is not before:
            cycle.send = functools.partial(self._send, cycle, cycle.send)  # type: ignore[method-assign]

    async def _send(
        self, cycle: httptools_impl.RequestResponseCycle, send: Callable[[Any], Awaitable[None]], message: Any
    ) -> None:
        if self.transport.is_closing():
            cycle.disconnected = True
        await send(message)

    def on_body(self, body: bytes) -> None:
        """Leave bodies to the application."""
        self._overhead -= len(body)
        super().on_body(body)

    def on_message_complete(self) -> None:
        """Keep the connection until its request is answered."""
        self._overhead = 0
        self._disarm()
        if not self._is_answered():
            self._counted.works(self)
        super().on_message_complete()

    def on_response_complete(self) -> None:
        """Mark the connection as idle, so that it may be closed for another."""
        super().on_response_complete()
        if not self.pipeline:
            self._counted.waits(self, self.transport.abort)

    def pause_writing(self) -> None:
        """Expect the caller to read."""
        super().pause_writing()
        self._write_deadline = self.loop.call_later(_WRITE_SECONDS, self._give_up, "the answer is not read")

    def resume_writing(self) -> None:
        """Continue to read from the connection."""
        if self._write_deadline is not None:
            self._write_deadline.cancel()
            self._write_deadline = None
        if self.flow is not None:
            super().resume_writing()

    def _caller_gone(self) -> bool:
        """Ask the kernel: after a long pause of the process, the loop has not read the end of the connection yet."""
        sock = self.transport.get_extra_info("socket")
        if self.transport.is_closing() or sock is None:
            return True
        poll = select.poll()
        poll.register(sock.fileno(), _CLOSED)
        return bool(poll.poll(0))

    def _is_answered(self) -> bool:
        cycle: httptools_impl.RequestResponseCycle | None = self.cycle
        return cycle is None or cycle.response_complete

    def _is_answering(self) -> bool:
        cycle: httptools_impl.RequestResponseCycle | None = self.cycle
        return cycle is not None and cycle.response_started

    def _arm(self) -> None:
        self._deadline = self.loop.call_later(_REQUEST_SECONDS, self._give_up, "the request is not finished")

    def _disarm(self) -> None:
        if self._deadline is not None:
            self._deadline.cancel()
            self._deadline = None

    def _give_up(self, why: str, answer: bytes = b"") -> None:
        self._counted.tell(why, self.client[0] if self.client else "")
        if answer and (self._is_answered() or not self._is_answering()):
            self.transport.write(answer)
            self.transport.close()
        else:
            self.transport.abort()


Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]
T = TypeVar("T")


class CallerGone(Exception):
    """The caller hung up before the answer."""


async def while_caller_listens(receive: Receive, work: Coroutine[Any, Any, T]) -> T:
    """Return what some work returns; it is cancelled, with all that it awaits, when the caller hangs up.

    Args:
        receive: Of a request whose body was read, or has none.
        work: What is done for the caller.

    Raises:
        CallerGone: The caller hung up.
    """
    hung_up, task = asyncio.ensure_future(_hung_up(receive)), asyncio.ensure_future(work)
    try:
        await asyncio.wait({hung_up, task}, return_when=asyncio.FIRST_COMPLETED)
        if task.done():
            return task.result()
        raise CallerGone
    finally:
        for one in (hung_up, task):
            one.cancel()
        await asyncio.gather(hung_up, task, return_exceptions=True)


async def _hung_up(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        await asyncio.sleep(0)  # A body, which is not read, must not keep the loop.


ProtocolFactory = Callable[[object], asyncio.Protocol]
"""Makes the protocol of an accepted socket, as which the connection is counted until the protocol counts it."""


async def accept(
    sock: socket.socket,
    connections: Connections,
    protocol: ProtocolFactory,
    tls: ssl.SSLContext | None,
) -> None:
    """Accept connections of a listening socket up to its limit; ends only by cancellation."""
    loop = asyncio.get_running_loop()
    sock.setblocking(False)
    handshakes: set[asyncio.Task[None]] = set()
    try:
        while True:
            try:
                taken, address = await loop.sock_accept(sock)
            except OSError as problem:
                # No descriptor is left, or the caller has hung up already.
                log.warning("not accepted", error_code=error_codes.LISTENER_LIMIT, cause=str(problem))
                connections.give_way()
                await asyncio.sleep(_RETRY_SECONDS)
                continue
            await connections.room()
            task = loop.create_task(_begin(taken, protocol, tls, connections))
            connections.opened(taken, str(address[0]), task.cancel)
            handshakes.add(task)
            task.add_done_callback(handshakes.discard)
    finally:
        for task in handshakes:
            task.cancel()
        await asyncio.gather(*handshakes, return_exceptions=True)


async def _begin(
    taken: socket.socket,
    protocol: ProtocolFactory,
    tls: ssl.SSLContext | None,
    connections: Connections,
) -> None:
    """Open a connection on an accepted socket; a failed or slow handshake closes it."""
    loop = asyncio.get_running_loop()
    more: dict[str, Any] = {"ssl": tls, "ssl_handshake_timeout": _HANDSHAKE_SECONDS} if tls else {}
    try:
        taken.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        await loop.connect_accepted_socket(lambda: protocol(taken), taken, **more)
    except OSError as cause:  # ssl.SSLError and a handshake that lasts too long among them.
        log.debug("no connection", cause=str(cause))
        taken.close()
    finally:
        connections.closed(taken)
