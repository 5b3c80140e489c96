"""A token goes to the server that it was meant for, and to no other."""

import asyncio
import contextlib
import http.server
import pathlib
import threading
import urllib.error
from collections.abc import Iterator

import orjson
import pytest

from gpu_sharing.adapters import http_get, kubernetes, read_api_types
from gpu_sharing.core import errors
from hamictl import failures, reader
from webui import extender_poller


class Trap:
    """A server that keeps what it is sent, and one that redirects there.

    Attributes:
        url: Of the one that redirects.
        caught: The headers that reached the other one.
    """

    def __init__(self, code: int) -> None:
        self.caught: list[str] = []
        caught = self.caught

        class Elsewhere(http.server.BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                caught.append(self.headers.get("Authorization", ""))
                self.send_response(200)
                self.end_headers()
                self.wfile.write(b"{}")

            do_POST = do_GET  # noqa: N815

            def log_message(self, *_: object) -> None:
                pass

        self._servers = [http.server.ThreadingHTTPServer(("127.0.0.1", 0), Elsewhere)]
        target = f"http://127.0.0.1:{self._servers[0].server_address[1]}/"

        class Redirects(Elsewhere):
            def do_GET(self) -> None:
                self.send_response(code)
                self.send_header("Location", target)
                self.send_header("Content-Length", "0")
                self.end_headers()

            do_POST = do_GET  # noqa: N815

        self._servers.append(http.server.ThreadingHTTPServer(("127.0.0.1", 0), Redirects))
        self.url = f"http://127.0.0.1:{self._servers[1].server_address[1]}"

    @contextlib.contextmanager
    def running(self) -> Iterator[None]:
        for one in self._servers:
            threading.Thread(target=one.serve_forever, daemon=True).start()
        try:
            yield
        finally:
            for one in self._servers:
                one.shutdown()
                one.server_close()


@pytest.mark.parametrize("code", [301, 302, 303, 307, 308])
def test_no_client_takes_its_token_to_where_it_is_redirected(code: int, tmp_path: pathlib.Path) -> None:
    """Whoever answers in place of the extender or the API server would get it."""
    trap = Trap(code)
    token = tmp_path / "token"
    token.write_text("secret-token")
    with trap.running():
        with pytest.raises(urllib.error.HTTPError):
            http_get.read(trap.url, 5.0, {"Authorization": "Bearer secret-token"})
        with pytest.raises(extender_poller.NoAnswer, match=f"answers {code}"):
            extender_poller.Extender(trap.url, None, token).get(read_api_types.Cluster, "cluster")
        with pytest.raises(failures.CommandFailed, match=str(code)):
            reader.Reader(trap.url, "secret-token").nodes()
        asyncio.run(_ask_the_api_server(trap.url, tmp_path))

    assert trap.caught == []


async def _ask_the_api_server(url: str, folder: pathlib.Path) -> None:
    config = folder / "kubeconfig"
    config.write_bytes(
        orjson.dumps({
            "apiVersion": "v1", "kind": "Config", "current-context": "x",
            "clusters": [{"name": "x", "cluster": {"server": url}}],
            "users": [{"name": "x", "user": {"token": "secret-token"}}],
            "contexts": [{"name": "x", "context": {"cluster": "x", "user": "x"}}],
        })
    )  # fmt: skip
    async with kubernetes.Client(config, "test") as client:
        with pytest.raises(errors.KubernetesError):
            await client.get("/version", dict)
        with pytest.raises(errors.KubernetesError):
            await client.post("/api/v1/x", b"{}")
        with pytest.raises(errors.KubernetesError):
            await client.review("/apis/x", b"{}")
        with pytest.raises(errors.KubernetesError):
            async for _ in client.watch("/api/v1/pods", "1", 5):
                pass
