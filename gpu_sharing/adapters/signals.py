"""Signals that a process without an event loop acts on.

Python runs a signal handler between two instructions of the main thread, which may hold the very lock that the handler
needs: the one of a `threading.Event`, of a log, or of the list of threads. The handler would wait for ever, and the
process with it. So a handler only notes the signal, and a thread acts on it.

Source: docs.python.org, `signal`, "Execution of Python signal handlers", and `queue.SimpleQueue`, whose `put` may be
interrupted by itself.
"""

import queue
import signal
import threading
from collections.abc import Callable, Iterable


def act_on(numbers: Iterable[signal.Signals], act: Callable[[], object]) -> None:
    """Run a function in a thread of its own each time one of these signals arrives.

    Raises:
        ValueError: Called outside the main thread, which alone may set signal handlers.
    """
    arrived: queue.SimpleQueue[None] = queue.SimpleQueue()
    for number in numbers:
        signal.signal(number, lambda *_: arrived.put(None))  # noqa: TID251
    threading.Thread(target=_act, args=(arrived, act), name="signals", daemon=True).start()


def _act(arrived: queue.SimpleQueue[None], act: Callable[[], object]) -> None:
    while True:
        arrived.get()
        act()
