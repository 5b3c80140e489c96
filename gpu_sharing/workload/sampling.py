"""A thread that does something periodically: started on request, stopped cleanly, absent in the child of a fork.

A child of a fork has no threads but one, and its locks are as they were at that instant. So it gets new locks, and
`is_running` is false there until `start` is called in it.
"""

import logging
import threading
from collections.abc import Callable

from gpu_sharing.core import error_codes
from gpu_sharing.workload import forks
from gpu_sharing.workload.errors import require_range

LEAST_SECONDS, MOST_SECONDS = 0.01, 3600.0
log = logging.getLogger("gpu_sharing.workload")


class Periodic:
    """A thread that calls a function, then waits for an interval, until it is stopped.

    Args:
        act: Called without arguments; its exceptions are logged and counted, and the thread goes on.
        interval_seconds: Time between the end of a call and the next.
        name: Name of the thread.

    Attributes:
        failures: How often `act` raised an exception.

    Raises:
        WorkloadError: The interval is out of range.
    """

    def __init__(self, act: Callable[[], object], *, interval_seconds: float, name: str) -> None:
        require_range("interval_seconds", interval_seconds, LEAST_SECONDS, MOST_SECONDS)
        self._act = act
        self._interval_seconds = interval_seconds
        self._name = name
        self.failures = 0
        self.renew_locks()
        forks.watch(self)

    def renew_locks(self) -> None:
        """Forget the thread; see `forks`."""
        self._lock = threading.Lock()
        self._stopping = threading.Event()
        self._thread: threading.Thread | None = None

    @property
    def is_running(self) -> bool:
        """Whether the thread lives, in this process."""
        thread = self._thread
        return thread is not None and thread.is_alive()

    def start(self) -> None:
        """Start the thread, unless it runs. It does not keep the process alive."""
        with self._lock:
            if self.is_running:
                return
            self._stopping = threading.Event()
            self._thread = threading.Thread(target=self._run, args=(self._stopping,), name=self._name, daemon=True)
            self._thread.start()

    def stop(self, timeout_seconds: float = 10.0) -> bool:
        """Stop the thread. Returns whether it has ended; it has not while the driver does not answer."""
        with self._lock:
            thread = self._thread
            self._stopping.set()
        if thread is not None and thread is not threading.current_thread():
            thread.join(timeout_seconds)
        return not self.is_running

    def _run(self, stopping: threading.Event) -> None:
        while not stopping.is_set():
            try:
                self._act()
            except Exception:
                self.failures += 1
                if self.failures & (self.failures - 1) == 0:  # The first, second, fourth …: not a line each second.
                    log.exception(
                        "%s: %s failed %d times", error_codes.WORKLOAD_SAMPLE_FAILED, self._name, self.failures
                    )
            stopping.wait(self._interval_seconds)
