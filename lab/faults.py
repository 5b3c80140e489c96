"""What the lab's API server is told to do wrong: refuse, dawdle, or do a thing and lose the answer."""

import asyncio
import re
from dataclasses import dataclass

from lab import store


@dataclass(slots=True)
class Fault:
    """One way to go wrong, for calls that match."""

    method: str
    path: str
    """A regular expression that occurs in the path."""
    times: int = 1
    """How many calls it strikes."""
    refuse_with: int = 0
    """Answer this status and do nothing; 0 does what was asked."""
    delay_seconds: float = 0.0
    loses_answer: bool = False
    """Do what was asked, and never answer."""
    answers: store.Object | None = None
    """Answer this, and do nothing."""

    async def before(self) -> None:
        """What happens before the call is served.

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
        clock_ahead_seconds: How far the clock that answers tell is ahead of the true one.
    """

    def __init__(self) -> None:
        self.clock_ahead_seconds = 0.0
        self._armed: list[Fault] = []
        self._expired_before = 0

    def arm(self, fault: Fault) -> None:
        """Let the next matching calls go wrong."""
        self._armed.append(fault)

    @property
    def armed(self) -> bool:
        """Whether another call can go wrong."""
        return bool(self._armed)

    def disarm(self) -> None:
        """Let nothing go wrong any more."""
        self._armed.clear()

    def match(self, method: str, path: str) -> Fault | None:
        """The fault that strikes this call."""
        for fault in self._armed:
            if fault.method == method and re.search(fault.path, path):
                fault.times -= 1
                if fault.times <= 0:
                    self._armed.remove(fault)
                return fault
        return None

    def expire_lists(self, version: int) -> None:
        """Let continue tokens of lists older than that version be refused with 410."""
        self._expired_before = version

    def expired(self, version: int) -> bool:
        """Whether a list of that version may not be continued."""
        return version < self._expired_before
