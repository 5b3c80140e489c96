"""Computes what takes long beside the event loop, in one thread, on values that do not change.

The loop answers kube-scheduler within milliseconds; which pods to evict, or whose end a pod waits for, may take a
second. A question is read from the ledger on the loop, as immutable values, and answered here.
"""

import asyncio
import concurrent.futures
import sys
from collections.abc import Callable
from typing import TypeVar

T = TypeVar("T")

_MOST_QUEUED = 16
_SWITCH_SECONDS = 0.001
"""How long the thread may hold the interpreter while the loop needs it; Python's default is five times that."""


class Busy(Exception):
    """The queue of computations is full."""


class Worker:
    """One thread, and a short queue before it."""

    def __init__(self) -> None:
        self._thread = concurrent.futures.ThreadPoolExecutor(1, "worker")
        self._queued = 0
        sys.setswitchinterval(_SWITCH_SECONDS)

    async def run(self, compute: Callable[[], T]) -> T:
        """Return what `compute` returns. It must not read anything that the loop changes.

        Raises:
            Busy: The queue is full.
        """
        if self._queued >= _MOST_QUEUED:
            raise Busy
        self._queued += 1
        try:
            return await asyncio.get_running_loop().run_in_executor(self._thread, compute)
        finally:
            self._queued -= 1
