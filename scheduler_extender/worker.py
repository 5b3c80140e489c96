"""Computes what takes long beside the event loop, in one thread, on values that do not change.

The loop answers kube-scheduler within milliseconds; which pods to evict, or whose end a pod waits for, may take a
second. A question is read from the ledger on the loop, as immutable values, and answered here.
"""

import asyncio
import concurrent.futures
import sys
import threading
from collections.abc import Callable, Iterable, Iterator
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

        Where its caller is cancelled, it is not begun, or ends at the next `going_on`.

        Raises:
            Busy: The queue is full.
        """
        if self._queued >= _MOST_QUEUED:
            raise Busy
        self._queued += 1
        stop = threading.Event()

        def stoppable() -> T:
            _of_thread.stop = stop
            going_on()
            return compute()

        try:
            return await asyncio.get_running_loop().run_in_executor(self._thread, stoppable)
        finally:
            stop.set()
            self._queued -= 1


def each(items: Iterable[T]) -> Iterator[T]:
    """Yield the items of a long computation, while its result is wanted.

    Raises:
        Stopped: See `going_on`.
    """
    for item in items:
        going_on()
        yield item


class Stopped(Exception):
    """The caller of a computation has gone."""


class _OfThread(threading.local):
    stop: threading.Event | None = None


_of_thread = _OfThread()


def going_on() -> None:
    """Call it between the steps of a long computation.

    Raises:
        Stopped: Its caller has gone. Never raised outside a `Worker`.
    """
    if _of_thread.stop is not None and _of_thread.stop.is_set():
        raise Stopped
