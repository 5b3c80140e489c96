"""The API server for threads: the client runs on an event loop of its own."""

import asyncio
import pathlib
import threading
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any, TypeVar

from gpu_sharing.adapters import kubernetes
from gpu_sharing.core import errors

_TIMEOUT_SECONDS = 10.0
T = TypeVar("T")


class Cluster:
    """Calls the API server for threads.

    Args:
        kubeconfig: How to reach it; None for the pod's service account.

    Raises:
        SettingsError: It cannot be reached that way.
    """

    def __init__(self, kubeconfig: pathlib.Path | None) -> None:
        self._client = kubernetes.Client(kubeconfig, "hami-webui")
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="cluster", daemon=True)

    def start(self) -> None:
        """Run the loop, in a thread of its own."""
        self._thread.start()
        asyncio.run_coroutine_threadsafe(self._client.__aenter__(), self._loop).result()

    def stop(self) -> None:
        """Close the connections."""
        asyncio.run_coroutine_threadsafe(self._client.__aexit__(None, None, None), self._loop).result()
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    def ask(self, question: Callable[[kubernetes.Client], Awaitable[T]]) -> T:
        """The answer to a question. Errors of the question, and

        Raises:
            Unavailable: It takes too long.
        """

        async def asked() -> T:
            return await asyncio.wait_for(question(self._client), _TIMEOUT_SECONDS)

        coroutine: Coroutine[Any, Any, T] = asked()
        try:
            return asyncio.run_coroutine_threadsafe(coroutine, self._loop).result()
        except TimeoutError as cause:
            raise errors.Unavailable(f"no answer within {_TIMEOUT_SECONDS:g} s") from cause
