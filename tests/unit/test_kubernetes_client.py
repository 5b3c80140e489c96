"""The pool of connections to the API server: what callers make it ask never stands in the way of a Binding."""

import asyncio
import pathlib
from collections.abc import Awaitable, Callable

import orjson

from gpu_sharing.adapters import kubernetes
from gpu_sharing.core import errors


def with_client(
    folder: pathlib.Path, story: Callable[[kubernetes.Client, list[str]], Awaitable[None]], answers: bytes = b"{}"
) -> None:
    """Tell a story with a client of a server that never answers a review. The list has the paths of all calls."""
    asked: list[str] = []

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while line := await reader.readline():
            path = line.split(b" ")[1].decode()
            asked.append(path)
            length = 0
            while (header := await reader.readline()) not in (b"\r\n", b""):
                if header.lower().startswith(b"content-length:"):
                    length = int(header.partition(b":")[2])
            await reader.readexactly(length)
            if "reviews" in path:
                continue
            writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%b" % (len(answers), answers))
        writer.close()

    async def run() -> None:
        server = await asyncio.start_server(serve, "127.0.0.1", 0)
        url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
        config = folder / "kubeconfig"
        config.write_bytes(
            orjson.dumps({
                "apiVersion": "v1", "kind": "Config", "current-context": "x",
                "clusters": [{"name": "x", "cluster": {"server": url}}], "users": [{"name": "x", "user": {}}],
                "contexts": [{"name": "x", "context": {"cluster": "x", "user": "x"}}],
            })
        )  # fmt: skip
        async with kubernetes.Client(config, "test") as client, asyncio.timeout(60):
            await story(client, asked)
        server.close()

    asyncio.run(run())


def test_a_binding_does_not_wait_behind_reviews(tmp_path: pathlib.Path) -> None:
    """Anybody can send tokens; 128 of them took every connection, and a Binding timed out."""

    async def story(client: kubernetes.Client, asked: list[str]) -> None:
        reviews = [asyncio.create_task(client.review("/apis/tokenreviews", b"{}", 30)) for _ in range(300)]
        while asked.count("/apis/tokenreviews") < 4:
            await asyncio.sleep(0.001)
        assert await client.post("/api/v1/pods/p/binding", b"{}", 10) == b"{}"
        refused = [one for one in reviews if one.done() and isinstance(one.exception(), errors.Unavailable)]
        assert len(refused) == 300 - 64
        assert asked.count("/apis/tokenreviews") == 4
        for one in reviews:
            one.cancel()
        await asyncio.gather(*reviews, return_exceptions=True)

    with_client(tmp_path, story)


def test_an_answer_that_is_no_list_is_a_failure_that_is_tried_again(tmp_path: pathlib.Path) -> None:
    """A proxy's page in between ended the process."""

    async def story(client: kubernetes.Client, asked: list[str]) -> None:
        try:
            async for _ in client.pages("/api/v1/pods", 10):
                raise AssertionError
        except errors.Unavailable as told:
            assert "the answer is no list" in str(told)

    with_client(tmp_path, story, b"<html>")
