"""A proxy before a real API server that fails some calls: as an overloaded, restarting or distant one does.

It speaks plain HTTP to its callers, which keep their own tokens, and is the network's other half beside `tcp_proxy`.
"""

import asyncio
import contextlib
import random
import re
import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import aiohttp
import orjson
from aiohttp import web

_REASONS = {
    409: "Conflict", 410: "Expired", 429: "TooManyRequests", 500: "InternalError", 503: "ServiceUnavailable",
    504: "Timeout",
}  # fmt: skip
_HOP_BY_HOP = {"connection", "transfer-encoding", "content-length", "keep-alive", "host", "content-encoding"}
_MOST_BODY_BYTES = 64 * 1024 * 1024


@dataclass(frozen=True, slots=True, kw_only=True)
class HttpFault:
    """What happens to the calls that match."""

    method: str = ""
    """Of the calls; empty for any."""
    path: str = ""
    """A regular expression that occurs in path and query."""
    share: float = 1.0
    """The part of these calls that are affected, from 0 to 1."""
    statuses: Sequence[int] = ()
    """One of them is answered, without executing the call; none executes it."""
    delay_seconds: float = 0.0
    """Before the call is executed."""
    loses_answer: bool = False
    """The call is executed, and its connection closed without an answer."""
    is_silent: bool = False
    """The answer begins, and then nothing of it passes: a watch that is open and dead."""
    is_stale: bool = False
    """A read is answered as it was when it was first asked during the fault."""


class HttpProxy:
    """The proxy. Use `running`.

    Attributes:
        url: Where it listens.
        affected: The number of calls that a fault affected.
    """

    def __init__(self, server: str, seed: int = 42) -> None:
        """Make a proxy before the API server of this URL."""
        self._server = server
        self._random = random.Random(seed)
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="http proxy", daemon=True)
        self._faults: Sequence[HttpFault] = ()
        self._ended = asyncio.Event()
        """Ends the silent answers when the faults change."""
        self._answers: dict[str, tuple[int, bytes]] = {}
        self.url = ""
        self.affected = 0

    def start(self) -> None:
        """Listen on a free loopback port."""
        self._thread.start()
        asyncio.run_coroutine_threadsafe(self._start(), self._loop).result(30)

    def stop(self) -> None:
        """Close the listener and all connections."""
        asyncio.run_coroutine_threadsafe(self._stop(), self._loop).result(60)
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(30)
        self._loop.close()

    def become(self, *faults: HttpFault, drops_watches: bool = False) -> None:
        """Replace the faults; the first that matches a call affects it.

        Args:
            faults: The new ones; none for a healthy server.
            drops_watches: Whether the watches that are open are closed now.
        """
        asyncio.run_coroutine_threadsafe(self._become(faults, drops_watches), self._loop).result(30)

    async def _become(self, faults: Sequence[HttpFault], drops_watches: bool) -> None:
        self._faults = faults
        self._answers.clear()
        self._ended.set()
        self._ended = asyncio.Event()
        if drops_watches:
            for task in self._watches:
                task.cancel()

    async def _start(self) -> None:
        self._watches: set[asyncio.Task[None]] = set()
        self._session = aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(limit=0, ssl=False),
            timeout=aiohttp.ClientTimeout(total=None, sock_connect=5),
            auto_decompress=False,
        )
        app = web.Application(client_max_size=_MOST_BODY_BYTES)
        app.router.add_route("*", "/{path:.*}", self._serve)
        self._runner = web.AppRunner(app, access_log=None, shutdown_timeout=1)
        await self._runner.setup()
        site = web.TCPSite(self._runner, "127.0.0.1", 0)
        await site.start()
        port = self._runner.addresses[0][1]
        self.url = f"http://127.0.0.1:{port}"

    async def _stop(self) -> None:
        await self._become((), drops_watches=True)
        await self._runner.cleanup()
        await self._session.close()

    def _fault(self, request: web.Request) -> HttpFault:
        for fault in self._faults:
            if fault.method in ("", request.method) and re.search(fault.path, request.path_qs):
                if self._random.random() < fault.share:
                    self.affected += 1
                    return fault
                break
        return HttpFault()

    async def _serve(self, request: web.Request) -> web.StreamResponse:
        fault = self._fault(request)
        if fault.delay_seconds:
            await asyncio.sleep(fault.delay_seconds)
        if fault.statuses:
            return _refusal(self._random.choice(fault.statuses))
        if fault.is_stale and _is_read(request) and request.path_qs in self._answers:
            status, body = self._answers[request.path_qs]
            return web.Response(status=status, body=body, content_type="application/json")
        headers = {name: value for name, value in request.headers.items() if name.lower() not in _HOP_BY_HOP}
        try:
            async with self._session.request(
                request.method, self._server + request.path_qs, headers=headers, data=await request.read()
            ) as answer:
                if fault.loses_answer:
                    await answer.read()
                    return _hung_up(request)
                return await self._pass_on(request, answer, fault)
        except aiohttp.ClientError:
            return _hung_up(request)

    async def _pass_on(
        self, request: web.Request, answer: aiohttp.ClientResponse, fault: HttpFault
    ) -> web.StreamResponse:
        passed = web.StreamResponse(status=answer.status)
        for name, value in answer.headers.items():
            if name.lower() not in _HOP_BY_HOP or name.lower() == "content-encoding":
                passed.headers[name] = value
        if "watch=" in request.query_string and answer.status == 200:
            await passed.prepare(request)
            await self._follow(passed, answer)
            return passed
        body = await answer.read()
        if fault.is_stale and _is_read(request) and "gzip" not in answer.headers.get("Content-Encoding", ""):
            self._answers[request.path_qs] = answer.status, body
        passed.content_length = len(body)
        await passed.prepare(request)
        await passed.write(body)
        return passed

    async def _follow(self, passed: web.StreamResponse, answer: aiohttp.ClientResponse) -> None:
        """Pass a watch on until it ends, or is dropped, or while it is silent."""

        async def pass_on() -> None:
            async for data in answer.content.iter_any():
                while self._is_silenced(answer):
                    await self._ended.wait()
                await passed.write(data)

        task = asyncio.create_task(pass_on())
        self._watches.add(task)
        try:
            with contextlib.suppress(asyncio.CancelledError, ConnectionError, aiohttp.ClientError):
                await task
        finally:
            task.cancel()
            self._watches.discard(task)

    def _is_silenced(self, answer: aiohttp.ClientResponse) -> bool:
        """Whether a watch is silent: by a fault of now, whenever the watch began."""
        path = answer.url.raw_path_qs
        return any(one.is_silent and re.search(one.path, path) for one in self._faults)


def _is_read(request: web.Request) -> bool:
    return request.method == "GET" and "watch=" not in request.query_string


def _refusal(status: int) -> web.Response:
    reason = _REASONS.get(status, "InternalError")
    body = {"kind": "Status", "apiVersion": "v1", "status": "Failure", "code": status, "reason": reason,
            "message": f"{reason}: by a fault on purpose"}  # fmt: skip
    headers = {"Retry-After": "1"} if status == 429 else {}
    return web.Response(status=status, body=orjson.dumps(body), content_type="application/json", headers=headers)


def _hung_up(request: web.Request) -> web.StreamResponse:
    """Close the connection without an answer."""
    if request.transport is not None:
        request.transport.abort()
    return web.Response(status=502)


@contextlib.contextmanager
def running(server: str, seed: int = 42) -> Iterator[HttpProxy]:
    """Run a proxy before the API server of this URL until the context ends."""
    proxy = HttpProxy(server, seed)
    proxy.start()
    try:
        yield proxy
    finally:
        proxy.stop()
