"""A network that a test cuts: what it does to connections is what a real one does."""

import contextlib
import socket
import struct
import threading
import time
from collections.abc import Iterator

import pytest

from lab import tcp_proxy


class Echo:
    """A server that keeps what it gets and sends it back."""

    def __init__(self) -> None:
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.address = f"127.0.0.1:{self.listener.getsockname()[1]}"
        self.received = b""
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                connection, _ = self.listener.accept()
                threading.Thread(target=self._serve, args=(connection,), daemon=True).start()

    def _serve(self, connection: socket.socket) -> None:
        with connection, contextlib.suppress(OSError):
            while data := connection.recv(65_536):
                self.received += data
                connection.sendall(data)


@pytest.fixture
def echo() -> Iterator[Echo]:
    server = Echo()
    yield server
    server.listener.close()


@pytest.fixture
def link(echo: Echo) -> Iterator[tcp_proxy.TcpProxy]:
    with tcp_proxy.running(echo.address) as proxy:
        yield proxy


def connected(link: tcp_proxy.TcpProxy, timeout_seconds: float = 30.0) -> socket.socket:
    host, _, port = link.address.rpartition(":")
    return socket.create_connection((host, int(port)), timeout=timeout_seconds)


def wait_for(condition: "object", seconds: float = 60.0) -> None:
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        if condition():  # type: ignore[operator]
            return
        time.sleep(0.01)
    raise AssertionError("not in time")


def test_an_open_network_passes_everything_on(link: tcp_proxy.TcpProxy) -> None:
    """And the end of what is sent."""
    with connected(link) as client:
        client.sendall(b"x" * 1_000_000)
        client.shutdown(socket.SHUT_WR)
        got = b""
        while data := client.recv(65_536):
            got += data
    assert got == b"x" * 1_000_000


def test_what_was_sent_into_a_silent_network_arrives_when_it_is_healed(link: tcp_proxy.TcpProxy, echo: Echo) -> None:
    """So a caller that gave up by closing has written all the same."""
    with connected(link) as client:
        client.sendall(b"before")
        assert client.recv(6) == b"before"
        link.become(tcp_proxy.Network.SILENT)
        client.sendall(b"late")
        client.settimeout(0.3)
        with pytest.raises(TimeoutError):
            client.recv(1)
    assert echo.received == b"before"

    link.become(tcp_proxy.Network.OPEN)

    wait_for(lambda: echo.received == b"beforelate")


def test_what_was_sent_by_a_connection_that_was_reset_never_arrives(link: tcp_proxy.TcpProxy, echo: Echo) -> None:
    """As the extender does with a call that it gives up."""
    client = connected(link)
    client.sendall(b"before")
    assert client.recv(6) == b"before"
    link.become(tcp_proxy.Network.SILENT)
    client.sendall(b"late")
    time.sleep(0.2)  # The data is in the network before the reset.
    client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    client.close()
    time.sleep(0.2)

    link.become(tcp_proxy.Network.OPEN)

    wait_for(lambda: link.connections == 0)
    assert echo.received == b"before"


def test_a_refusing_network_resets_what_is_open_and_what_is_new(link: tcp_proxy.TcpProxy) -> None:
    """As when a machine is gone and its address answers."""
    with connected(link) as client:
        client.sendall(b"x")
        assert client.recv(1) == b"x"
        link.become(tcp_proxy.Network.REFUSING)
        with contextlib.suppress(ConnectionResetError):
            assert client.recv(1) == b""
    with contextlib.suppress(ConnectionResetError), connected(link) as client:
        assert client.recv(1) == b""

    link.become(tcp_proxy.Network.OPEN)

    with connected(link) as client:
        client.sendall(b"x")
        assert client.recv(1) == b"x"


def test_a_slow_network_delays_each_way(link: tcp_proxy.TcpProxy) -> None:
    """So an answer takes twice as long."""
    link.become(tcp_proxy.Network.OPEN, delay_seconds=0.2)
    with connected(link) as client:
        started = time.monotonic()
        client.sendall(b"x")
        assert client.recv(1) == b"x"
    assert time.monotonic() - started >= 0.4
