"""Faults of the lab's API server: refusals, delays, and lost answers of calls that were executed."""

import asyncio
import re
from dataclasses import dataclass

from lab import store


@dataclass(slots=True)
class Fault:
    """One fault, for calls that match."""

    method: str
    path: str
    """A regular expression that occurs in the path."""
    times: int = 1
    """The number of calls that it affects."""
    refuse_with: int = 0
    """Answer this status without executing the call; 0 executes it."""
    delay_seconds: float = 0.0
    loses_answer: bool = False
    """Execute the call, and never answer."""
    answers: store.Object | None = None
    """Answer this body without executing the call."""

    async def before(self) -> None:
        """Apply the fault before the call is served.

        Raises:
            ApiError: The call is refused.
        """
        if self.delay_seconds:
            await asyncio.sleep(self.delay_seconds)
        if self.refuse_with:
            raise store.ApiError(self.refuse_with, "InternalError", "told to refuse")


class Faults:
    """The faults that are armed.

    Attributes:
        clock_ahead_seconds: Seconds by which the clock in answers is ahead of the true one.
    """

    def __init__(self) -> None:
        self.clock_ahead_seconds = 0.0
        self._armed: list[Fault] = []
        self._expired_before = 0

    def arm(self, fault: Fault) -> None:
        """Arm a fault for the next matching calls."""
        self._armed.append(fault)

    @property
    def armed(self) -> bool:
        """Whether a fault is armed."""
        return bool(self._armed)

    def disarm(self) -> None:
        """Remove all armed faults."""
        self._armed.clear()

    def match(self, method: str, path: str) -> Fault | None:
        """Return the fault that affects this call."""
        for fault in self._armed:
            if fault.method == method and re.search(fault.path, path):
                fault.times -= 1
                if fault.times <= 0:
                    self._armed.remove(fault)
                return fault
        return None

    def expire_lists(self, version: int) -> None:
        """Refuse continue tokens of lists older than that version with 410."""
        self._expired_before = version

    def expired(self, version: int) -> bool:
        """Return whether a list of that version cannot be continued."""
        return version < self._expired_before
