"""Signals that a process without an event loop acts on.

Python runs a signal handler between two instructions of the main thread, which may hold the very lock that the handler
needs: the one of a `threading.Event`, of a log, or of the list of threads. The handler would wait for ever, and the
process with it. So a handler only notes the signal, and a thread acts on it.

Source: docs.python.org, `signal`, "Execution of Python signal handlers", and `queue.SimpleQueue`, whose `put` may be
interrupted by itself.
"""

import functools
import queue
import signal
import threading
from collections.abc import Callable, Iterable

_arrived: "queue.SimpleQueue[Callable[[], object]]" = queue.SimpleQueue()


def act_on(numbers: Iterable[signal.Signals], act: Callable[[], object]) -> None:
    """Run a function each time one of these signals arrives; all such functions run in one thread, in order.

    Raises:
        ValueError: Called outside the main thread, which alone may set signal handlers.
    """
    for number in numbers:
        signal.signal(number, lambda *_: _arrived.put(act))  # noqa: TID251
    _start()


@functools.cache
def _start() -> None:
    """Start the thread, once."""
    threading.Thread(target=_act, name="signals", daemon=True).start()


def _act() -> None:
    while True:
        _arrived.get()()
