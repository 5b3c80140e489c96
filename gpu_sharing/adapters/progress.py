"""Progress of long work: log lines with what remains, and a ratio for Prometheus.

Work that ends within a few seconds writes no line. Longer work writes one every few seconds, so that a start of minutes
can be told from one that hangs, and its end can be estimated.
"""

import contextlib
import time
from collections.abc import Callable, Iterator

import structlog

LINE_SECONDS = 5.0
"""The least time between two log lines about one work."""

log = structlog.get_logger("progress")


class Progress:
    """How far one kind of work is. It may be done again and again.

    Attributes:
        work: Its name, as in the log and as label of the metric.
        done: Steps that are done.
        total: All steps, as far as they are known.
    """

    def __init__(self, work: str, *, is_due: bool = False, clock: Callable[[], float] = time.monotonic) -> None:
        """Start without any work under way.

        Args:
            work: Its name.
            is_due: Whether it must be done once before the process can work: until then its ratio is not 1.
            clock: Monotonic seconds.
        """
        self.work = work
        self.done = self.total = 0
        self._is_due = is_due
        self._is_under_way = False
        self._clock = clock
        self._started_at = self._logged_at = 0.0
        self._lines = 0

    @property
    def ratio(self) -> float:
        """Part that is done, 0 to 1; 1 where no work is under way or due."""
        if not self._is_under_way:
            return 0.0 if self._is_due else 1.0
        return self.done / self.total if self.total else 0.0

    def begin(self, total: int = 0) -> None:
        """Begin from the start, with so many steps; 0 where that is not known yet."""
        self.done, self.total, self._lines = 0, total, 0
        self._is_under_way = True
        self._started_at = self._logged_at = self._clock()

    def reach(self, done: int, total: int) -> None:
        """Note how many steps are done, and how many there are by what is known now."""
        self.done, self.total = min(done, total), total
        now = self._clock()
        if now - self._logged_at >= LINE_SECONDS:
            self._logged_at = now
            self._lines += 1
            self._log("in progress", now)

    def step(self) -> None:
        """Note that one more step is done."""
        self.reach(self.done + 1, self.total)

    def end(self) -> None:
        """Note that all is done."""
        now = self._clock()
        self.done = self.total
        self._is_due = self._is_under_way = False
        if self._lines:
            self._log("progress ended", now)

    def steps(self, steps: Iterator[None]) -> Iterator[None]:
        """Count the steps of an iterator; those beyond the total are not counted."""
        for each in steps:
            self.step()
            yield each

    def add(self, count: int) -> None:
        """Queue pieces of work; `finish` ends one, and the work ends with the last."""
        if not self._is_under_way:
            self.begin()
        self.reach(self.done, self.total + count)

    def finish(self) -> None:
        """Note that one piece of work is done, or has failed."""
        self.step()
        if self.done >= self.total:
            self.end()

    @contextlib.contextmanager
    def piece(self) -> Iterator[None]:
        """Do one piece of work that may be queued behind others."""
        self.add(1)
        try:
            yield
        finally:
            self.finish()

    def _log(self, event: str, now: float) -> None:
        seconds, remaining = now - self._started_at, self.total - self.done
        left = round(seconds * remaining / self.done, 1) if self.done else None
        log.info(
            event, work=self.work, done=self.done, remaining=remaining, seconds=round(seconds, 1), seconds_left=left
        )
