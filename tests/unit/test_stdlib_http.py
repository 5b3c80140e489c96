"""The small HTTP server of the node's processes: how it ends."""

import asyncio
import contextlib
import socket

import pytest

from gpu_sharing.adapters import flags, stdlib_http


def test_a_server_whose_end_is_cancelled_listens_no_more() -> None:
    """A process that is told twice to stop would keep its port, and its successor could not start."""

    async def run() -> str:
        shown: asyncio.Future[str] = asyncio.get_running_loop().create_future()

        async def serve() -> None:
            async with stdlib_http.serving(
                "health", flags.Address("127.0.0.1", 0), lambda path, accept: (200, b"", b"text/plain")
            ) as address:
                shown.set_result(address)
                await asyncio.Event().wait()

        task = asyncio.create_task(serve())
        address = await shown
        task.cancel()
        await asyncio.sleep(0)  # Now it waits for the end of the server's thread.
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task
        return address

    host, _, port = asyncio.run(run()).rpartition(":")
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection((host, int(port)), timeout=5)
