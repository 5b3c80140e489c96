"""Listeners of the other processes: a request that is not finished stops no other."""

import asyncio
import contextlib
import pathlib
import socket
import urllib.request
from collections.abc import Iterator

import pytest

from gpu_sharing.adapters import flags, stdlib_http
from lab import api_server, certificates, extender_process, webui_process
from tests.component import calls, liar

pytestmark = pytest.mark.slow

GET = b"GET /livez HTTP/1.1\r\nHost: localhost\r\n\r\n"
UNFINISHED = (
    b"", b"GET / HT", b"GET / HTTP/1.1\r\nHost: localhost\r\nX: ", GET + b"GET / HTTP/1.1\r\n",
    b"POST /login HTTP/1.1\r\nHost: localhost\r\nContent-Length: 40000\r\n\r\ntoken=",
    b"GET /livez HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n",
)  # fmt: skip


@contextlib.contextmanager
def holding(address: str, said: bytes, count: int) -> Iterator[None]:
    """Hold connections on which a request is not finished."""
    host, _, port = address.rpartition(":")
    held = [socket.create_connection((host.strip("[]"), int(port)), timeout=60) for _ in range(count)]
    try:
        for one in held:
            with contextlib.suppress(ConnectionError):
                one.sendall(said)
        yield
    finally:
        for one in held:
            one.close()


def status(address: str, said: bytes) -> bytes:
    """Return the first line of an answer, or nothing."""
    host, _, port = address.rpartition(":")
    with socket.create_connection((host.strip("[]"), int(port)), timeout=60) as one:
        received = b""
        with contextlib.suppress(ConnectionError):
            one.sendall(said)
        with contextlib.suppress(ConnectionError):
            while b"\r\n" not in received and (chunk := one.recv(4096)):
                received += chunk
    return received.partition(b"\r\n")[0]


def read(url: str) -> int:
    with urllib.request.urlopen(url, timeout=60) as answer:
        return int(answer.status)


@pytest.fixture(scope="module")
def webui(tmp_path_factory: pytest.TempPathFactory) -> Iterator[webui_process.WebUIProcess]:
    folder = tmp_path_factory.mktemp("webui")
    with liar.telling({"/api/v1/nodes": {"nodes": []}, "/api/v1/pods": {"pods": []}}) as url:
        process = webui_process.WebUIProcess(folder, url, "--threads", "4")
        with webui_process.running(process):
            yield process


@pytest.mark.parametrize("said", UNFINISHED)
def test_unfinished_requests_stop_no_page(webui: webui_process.WebUIProcess, said: bytes) -> None:
    """40 of them took every thread of the WebUI."""
    address = webui.url.removeprefix("http://")
    with holding(address, said, 300):
        for _ in range(8):
            assert read(webui.url) == 200


def test_requests_in_pieces_kept_alive_and_pipelined_are_answered(webui: webui_process.WebUIProcess) -> None:
    """As slow networks and proxies send them."""
    host, _, port = webui.url.removeprefix("http://").rpartition(":")
    page = b"GET /api/v1/openapi.json HTTP/1.1\r\nHost: localhost\r\n\r\n"
    with socket.create_connection((host, int(port)), timeout=60) as one:
        for part in (page[:9], page[9:40], page[40:] + page + page[:20], page[20:]):
            one.sendall(part)
        received = b""
        while received.count(b"HTTP/1.1 200 OK") < 3:
            chunk = one.recv(65_536)
            assert chunk
            received += chunk


def test_requests_that_are_too_large_are_refused(webui: webui_process.WebUIProcess) -> None:
    """Before anything is made of them."""
    address = webui.url.removeprefix("http://")
    assert status(address, b"GET / HTTP/1.1\r\nX: " + b"y" * 40_000) == b"HTTP/1.1 431 Request Header Fields Too Large"
    large = b"POST /login HTTP/1.1\r\nContent-Length: 100000000\r\n\r\n"
    assert status(address, large) == b"HTTP/1.1 413 Content Too Large"
    chunked = b"POST /login HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n"
    assert status(address, chunked) == b"HTTP/1.1 411 Length Required"


@pytest.mark.parametrize("said", [*UNFINISHED, b"GET / HTTP/1.1\r\n" + b"X: %b\r\n" % (b"y" * 60_000)])
def test_probes_of_the_nodes_agents_are_answered_beside_unfinished_requests(said: bytes) -> None:
    """A thread each was kept for every one of them, for ever."""

    async def run() -> None:
        address = flags.Address("127.0.0.1", 0)
        async with stdlib_http.serving("health", address, lambda path, accept: (200, b"ok", b"text/plain")) as shown:

            def attacked() -> list[bytes]:
                with holding(shown, said, 200):
                    return [status(shown, GET) for _ in range(3)]

            assert await asyncio.to_thread(attacked) == [b"HTTP/1.0 200 OK"] * 3

    asyncio.run(run())


def test_a_head_that_is_too_large_is_no_request(monkeypatch: pytest.MonkeyPatch) -> None:
    """A hundred headers of 64 KiB were taken."""
    head = b"GET / HTTP/1.1\r\n" + b"".join(b"X-%d: %b\r\n" % (one, b"y" * 4_000) for one in range(50)) + b"\r\n"

    async def run() -> None:
        address = flags.Address("127.0.0.1", 0)
        async with stdlib_http.serving("health", address, lambda path, accept: (200, b"ok", b"text/plain")) as shown:
            assert await asyncio.to_thread(status, shown, head) == b""

    asyncio.run(run())


def test_a_request_that_takes_too_long_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    """Also where a byte comes from time to time."""
    monkeypatch.setattr(stdlib_http, "_CONNECTION_SECONDS", 0.3)
    monkeypatch.setattr(stdlib_http, "_LOOK_SECONDS", 0.05)

    def trickle(shown: str) -> bool:
        host, _, port = shown.rpartition(":")
        with socket.create_connection((host, int(port)), timeout=0.05) as one:
            for _ in range(200):
                try:
                    one.sendall(b"x")
                    if one.recv(1) == b"":
                        return True
                except TimeoutError:
                    continue
                except ConnectionError:
                    return True
        return False

    async def run() -> None:
        address = flags.Address("127.0.0.1", 0)
        async with stdlib_http.serving("health", address, lambda path, accept: (200, b"ok", b"text/plain")) as shown:
            assert await asyncio.to_thread(trickle, shown)

    asyncio.run(run())


def test_the_verbs_are_answered_although_every_descriptor_is_asked_for(
    server: api_server.Running, tmp_path: pathlib.Path
) -> None:
    """Once connections to the probes' port had taken all descriptors, filter was reset for good."""
    few = ("sh", "-c", 'ulimit -n 800 && exec "$@"', "sh")
    extender = extender_process.ExtenderProcess(server.write_kubeconfig(tmp_path / "k"), tmp_path / "log", within=few)
    extender.start()
    try:
        extender.wait_ready()
        with holding(extender.health, b"GET / HT", 300), holding(extender.api, b"", 300):
            pod = calls.create(server, "p")
            assert calls.filtered(extender, pod, "a")["NodeNames"] == ["a"]
            assert calls.bind(extender, pod, "a") == ""
            assert read(f"http://{extender.health}/readyz") == 200
            assert len(list(pathlib.Path(f"/proc/{extender.pid}/fd").iterdir())) < 400
    finally:
        extender.stop()


def test_every_process_listens_on_both_families(server: api_server.Running, tmp_path: pathlib.Path) -> None:
    """On an IPv6-only cluster probes and the API server come by IPv6, with the very flags of the chart."""
    certificate, key = tmp_path / "tls.crt", tmp_path / "tls.key"
    certificates.write(certificate, key)
    more = ("--tls-cert", str(certificate), "--tls-key", str(key), "--secure-api-bind", ":0")
    extender = extender_process.ExtenderProcess(server.write_kubeconfig(tmp_path / "k"), tmp_path / "log", *more)
    extender.addresses |= {"health": ":0", "webhook": ":0", "api": "[::1]:0"}
    extender.start()
    try:
        extender.wait_ready()
        for name in ("health", "webhook"):
            port = extender.addresses[name].rpartition(":")[2]
            for host in ("127.0.0.1", "[::1]"):
                socket.create_connection((host.strip("[]"), int(port)), timeout=60).close()
                if name == "health":
                    assert read(f"http://{host}:{port}/readyz") == 200
        assert read(f"http://{extender.api}/api/v1/cluster") == 200
    finally:
        extender.stop()
    with liar.telling({"/api/v1/nodes": {"nodes": []}, "/api/v1/pods": {"pods": []}}) as url:
        pages = webui_process.WebUIProcess(tmp_path, url, "--bind", "[::1]:0")
        pages.addresses["health"] = ":0"
        with webui_process.running(pages):
            assert pages.url.startswith("http://[::1]:")
            assert read(pages.url) == 200
            assert read(f"http://[::1]:{pages.addresses['health'].rpartition(':')[2]}/livez") == 200
