"""What a listener takes of unauthenticated callers: limits that stand before the parser."""

import asyncio
import logging
import socket
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

import pytest
import uvloop

from gpu_sharing.adapters import flags, guarded_http, listeners
from scheduler_extender.serve import server


async def app(scope: Any, receive: Any, send: Any) -> None:
    """Read the body and answer; at /hang wait until the caller is gone."""
    while True:
        message = await receive()
        if scope["path"] == "/hang" and message["type"] != "http.disconnect":
            continue
        if not message.get("more_body"):
            break
    await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"2")]})
    await send({"type": "http.response.body", "body": b"ok"})


def serving(
    story: Callable[
        [Callable[[], Awaitable[tuple[asyncio.StreamReader, asyncio.StreamWriter]]], listeners.Listener],
        Awaitable[None],
    ],
    most: int = 8,
) -> None:
    """Tell a story of a listener and a way to connect to it."""

    async def run() -> None:
        one = listeners.listener(app, most_connections=most)
        async with listeners.serving({"x": (flags.Address("127.0.0.1", 0), one)}) as shown:
            host, _, port = shown["x"].rpartition(":")
            opened: list[asyncio.StreamWriter] = []

            async def connect() -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
                reader, writer = await asyncio.open_connection(host, int(port))
                opened.append(writer)
                return reader, writer

            try:
                async with asyncio.timeout(60):
                    await story(connect, one)
            finally:
                for writer in opened:
                    writer.close()

    asyncio.run(run())


Connect = Callable[[], Awaitable[tuple[asyncio.StreamReader, asyncio.StreamWriter]]]
GET = b"GET / HTTP/1.1\r\nHost: x\r\n\r\n"


async def answered(connect: Connect) -> bytes:
    reader, writer = await connect()
    writer.write(GET)
    return (await reader.readuntil(b"\r\n")).strip()


@pytest.mark.parametrize(
    ("start", "more"),
    [
        (b"GET / HTTP/1.1\r\n", b"x: %b\r\n" % (b"y" * 1_000)), (b"GET / HTTP/1.1\r\nx: ", b"y" * 1_000),
        (b"GET /", b"y" * 1_000),
        (b"POST / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n", b"1;%b\r\nx\r\n" % (b"y" * 1_000)),
    ],
    ids=["many headers", "one header", "path", "chunk extensions"],
)  # fmt: skip
def test_what_is_no_body_is_refused_once_it_is_large(start: bytes, more: bytes) -> None:
    """400 MiB of headers were kept on one connection."""

    async def story(connect: Connect, one: listeners.Listener) -> None:
        _, writer = await connect()
        writer.write(start)
        sent = 0
        try:
            while sent < 64 * 1024 * 1024:
                writer.write(more * 64)
                await writer.drain()
                sent += 64 * len(more)
                await asyncio.sleep(0)
        except ConnectionError:
            pass
        assert sent < 16 * 1024 * 1024
        assert one.connections.given_up == 1
        assert await answered(connect) == b"HTTP/1.1 200 OK"

    serving(story)


def test_large_bodies_are_none_of_that() -> None:
    """5,000 nodes as whole objects are tens of MiB."""

    async def story(connect: Connect, one: listeners.Listener) -> None:
        reader, writer = await connect()
        writer.write(b"POST / HTTP/1.1\r\nContent-Length: 8000000\r\n\r\n" + b"x" * 8_000_000)
        assert await reader.readuntil(b"\r\n") == b"HTTP/1.1 200 OK\r\n"
        assert one.connections.given_up == 0

    serving(story)


@pytest.mark.parametrize("said", [b"", b"GET / HTTP", b"POST / HTTP/1.1\r\nContent-Length: 9\r\n\r\nx", GET])
def test_connections_that_wait_give_way_to_new_ones(said: bytes) -> None:
    """Probes are answered although one caller holds every connection: unfinished, silent, or kept alive."""

    async def story(connect: Connect, one: listeners.Listener) -> None:
        held = [await connect() for _ in range(30)]
        for _, writer in held:
            writer.write(said)
        for _ in range(10):
            assert await answered(connect) == b"HTTP/1.1 200 OK"
        assert len(one.connections) <= 8
        assert one.connections.given_up >= 20

    serving(story)


def test_a_request_under_way_is_not_given_up_for_a_new_one() -> None:
    """A new caller waits until one of those is answered."""

    async def story(connect: Connect, one: listeners.Listener) -> None:
        held = [await connect() for _ in range(2)]
        for _, writer in held:
            writer.write(b"GET /hang HTTP/1.1\r\nHost: x\r\n\r\n")
        while len(one.server_state.tasks) < 2:
            await asyncio.sleep(0.001)
        waiting = asyncio.create_task(answered(connect))
        await asyncio.sleep(0.05)
        assert not waiting.done()
        assert one.connections.given_up == 0
        held[0][1].close()
        assert await waiting == b"HTTP/1.1 200 OK"

    serving(story, most=2)


def test_a_request_that_is_not_finished_in_time_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    """Also where a byte comes from time to time."""
    monkeypatch.setattr(guarded_http, "_REQUEST_SECONDS", 0.2)

    async def story(connect: Connect, one: listeners.Listener) -> None:
        reader, writer = await connect()
        writer.write(b"GET /")
        try:
            while not reader.at_eof():
                writer.write(b"x")
                await writer.drain()
                await asyncio.sleep(0.01)
        except ConnectionError:
            pass
        assert one.connections.given_up == 1

    serving(story)


def test_the_address_with_the_most_connections_gives_way_first() -> None:
    """One pod that floods a listener does not cost others their connections."""
    connections = guarded_http.Connections(4)
    closed: list[str] = []
    for name, host in (("ours", "10.0.0.1"), ("a", "10.0.0.2"), ("b", "10.0.0.2"), ("c", "10.0.0.2")):
        connections.opened(name, host, lambda name=name: closed.append(name))  # type: ignore[misc]
    connections.works("a")

    assert [connections.give_way() for _ in range(3)] == [True] * 3
    assert (closed[0], sorted(closed)) == ("b", ["b", "c", "ours"])
    assert not connections.give_way()
    assert len(connections) == 1


@pytest.mark.parametrize("descriptors", [400, 700, 1_024, 65_536])
def test_all_listeners_together_never_take_all_descriptors_and_the_verbs_keep_theirs(descriptors: int) -> None:
    """Once all were taken, filter was reset for good."""
    wanted = {"verbs": 512, "webhook": 256, "health": 64, "api": 64}
    found = guarded_http.shares(wanted, descriptors, "verbs")

    assert found["verbs"] == 512
    assert all(4 <= found[name] <= most for name, most in wanted.items())
    if descriptors >= 1_024:
        assert sum(found.values()) <= descriptors - 128


def test_bodies_that_are_not_finished_give_way_to_those_that_are() -> None:
    """60 bodies of 7 MiB were kept at one time."""

    async def run() -> None:
        budget = server.BodyBudget(1_000)
        never = asyncio.Event()

        def receiving(*chunks: bytes) -> Callable[[], Awaitable[MutableMapping[str, Any]]]:
            left = list(chunks)

            async def receive() -> MutableMapping[str, Any]:
                if not left:
                    await never.wait()
                chunk = left.pop(0)
                return {"type": "http.request", "body": chunk, "more_body": bool(left) or chunk == b"x" * 600}

            return receive

        async def read(*chunks: bytes) -> bytes:
            async with budget.reading(receiving(*chunks), 900) as body:
                return body

        first = asyncio.create_task(read(b"x" * 600))
        await asyncio.sleep(0)
        assert await read(b"y" * 500, b"z" * 300) == b"y" * 500 + b"z" * 300
        with pytest.raises(guarded_http.CallerGone):
            await first
        with pytest.raises(server.BodyTooLarge):
            await read(b"y" * 901)
        async with budget.reading(receiving(b"w" * 800), 900):
            with pytest.raises(server.TooManyBodies):
                await read(b"y" * 300)
        assert await read(b"y" * 900) == b"y" * 900

    asyncio.run(run())


def test_as_many_descriptors_as_possible_are_asked_for() -> None:
    assert guarded_http.raise_descriptor_limit() >= 256
    with socket.socket():
        pass


def test_the_answers_of_pipelined_requests_are_dropped_when_no_http_follows_them(
    caplog: pytest.LogCaptureFixture,
) -> None:
    """Any caller could write tracebacks into the log, one for each 60 bytes that it sent."""
    caplog.set_level(logging.ERROR)
    answered = asyncio.Event()

    async def slow(scope: Any, receive: Any, send: Any) -> None:
        """Answer after the connection is closed."""
        while not scope["extensions"][guarded_http.CALLER_GONE]["ask"]():
            await asyncio.sleep(0)
        for _ in range(100):  # Until the loop has closed the connection.
            await asyncio.sleep(0)
        try:
            await app(scope, receive, send)
        finally:
            answered.set()

    async def run() -> None:
        one = listeners.listener(slow)
        async with listeners.serving({"x": (flags.Address("127.0.0.1", 0), one)}) as shown:
            host, _, port = shown["x"].rpartition(":")
            _, writer = await asyncio.open_connection(host, int(port))
            writer.write(2 * GET + b"\0\0\r\n\r\n")
            await asyncio.wait_for(answered.wait(), 60)
            writer.close()

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(run())

    assert [record.getMessage() for record in caplog.records] == []
