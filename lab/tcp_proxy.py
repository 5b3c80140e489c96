"""A TCP proxy that stands for a network between two processes, and can be cut, slowed and healed.

A cut network is silent: connections stay open, nothing passes, and what was sent waits. When it is healed what waits is
delivered, as a kernel sends again what was not acknowledged, unless the sender has reset its connection meanwhile.
"""

import asyncio
import contextlib
import enum
import threading
from collections.abc import Iterator

_CHUNK = 65_536


class Network(enum.Enum):
    """What the network does with connections."""

    OPEN = "open"
    SILENT = "silent"
    """Nothing passes; new connections are accepted, and nothing is heard from the other side."""
    REFUSING = "refusing"
    """All connections are reset, and new ones too."""


class TcpProxy:
    """One link. Use `running`.

    Attributes:
        address: Where it listens, `HOST:PORT`.
        connections: The number of open connections.
    """

    def __init__(self, target: str) -> None:
        """Make a link to `HOST:PORT`."""
        host, _, port = target.rpartition(":")
        self._target = host, int(port)
        self._loop = asyncio.new_event_loop()
        self._network = Network.OPEN
        self._is_open = asyncio.Event()
        self._is_open.set()
        self._delay_seconds = 0.0
        self._tasks: set[asyncio.Task[None]] = set()
        self._server: asyncio.Server | None = None
        self._thread = threading.Thread(target=self._loop.run_forever, name=f"link to {target}", daemon=True)
        self.address = ""
        self.connections = 0

    def start(self) -> None:
        """Listen on a free loopback port."""
        self._thread.start()
        asyncio.run_coroutine_threadsafe(self._listen(), self._loop).result(30)

    def stop(self) -> None:
        """Close the listener and all connections."""
        asyncio.run_coroutine_threadsafe(self._close(), self._loop).result(30)
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(30)
        self._loop.close()

    def become(self, network: Network, delay_seconds: float = 0.0) -> None:
        """Change the network; with a delay, each piece of data takes so long in each direction."""
        asyncio.run_coroutine_threadsafe(self._become(network, delay_seconds), self._loop).result(30)

    async def _become(self, network: Network, delay_seconds: float) -> None:
        self._network, self._delay_seconds = network, delay_seconds
        if network is Network.SILENT:
            self._is_open.clear()
        else:
            self._is_open.set()
        if network is Network.REFUSING:
            await self._end_all()

    async def _listen(self) -> None:
        self._server = await asyncio.start_server(self._accept, "127.0.0.1", 0, limit=_CHUNK)
        host, port = self._server.sockets[0].getsockname()
        self.address = f"{host}:{port}"

    async def _close(self) -> None:
        assert self._server is not None
        self._server.close()
        await self._end_all()

    async def _end_all(self) -> None:
        tasks = [*self._tasks]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if self._network is Network.REFUSING:
            writer.transport.abort()
            return
        task = asyncio.create_task(self._serve(reader, writer))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        to_target: asyncio.StreamWriter | None = None
        try:
            await self._is_open.wait()
            from_target, to_target = await asyncio.open_connection(*self._target, limit=_CHUNK)
            there = asyncio.create_task(self._pass_on(reader, to_target))
            back = asyncio.create_task(self._pass_on(from_target, writer))
            try:
                await asyncio.gather(there, back)
            finally:
                for task in (there, back):
                    task.cancel()
                await asyncio.gather(there, back, return_exceptions=True)
        except OSError:
            pass  # One side has reset the connection, so the other is reset too.
        finally:
            self.connections -= 1
            for end in (writer, to_target):
                if end is not None:
                    end.transport.abort()

    async def _pass_on(self, source: asyncio.StreamReader, sink: asyncio.StreamWriter) -> None:
        """Pass on what comes, and the end of it.

        Raises:
            OSError: The source was reset; what waits is dropped.
        """
        while True:
            data = await source.read(_CHUNK)
            if self._delay_seconds:
                await asyncio.sleep(self._delay_seconds)
            while not self._is_open.is_set():
                await self._is_open.wait()
                if source.exception() is not None:
                    raise ConnectionResetError
            if not data:
                with contextlib.suppress(OSError):
                    sink.write_eof()
                return
            sink.write(data)
            await sink.drain()


@contextlib.contextmanager
def running(target: str) -> Iterator[TcpProxy]:
    """Run a link to `HOST:PORT` until the context ends."""
    proxy = TcpProxy(target)
    proxy.start()
    try:
        yield proxy
    finally:
        proxy.stop()
