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


REASONS = {
    409: "Conflict", 410: "Expired", 429: "TooManyRequests", 500: "InternalError", 503: "ServiceUnavailable",
}  # fmt: skip
"""The reasons of a real API server, by status."""


@dataclass(slots=True, kw_only=True)
class Lasting:
    """A fault that affects a share of the matching calls until it is removed."""

    method: str = ""
    """Empty: any."""
    path: str = "/"
    """The start of the path."""
    share: float = 1.0
    """Of 1; the affected calls are spread evenly."""
    refuse_with: int = 0
    delay_seconds: float = 0.0
    loses_answer: bool = False
    drops_watches: bool = False
    """Whether watches end within a second of their start."""
    silences_watches: bool = False
    """Whether nothing is sent on watches; those that were silent end with the fault."""
    stale: store.Store | None = None
    """What reads are answered from."""
    calls: int = 0
    """Matching calls so far."""

    def affects(self, method: str, path: str) -> bool:
        """Return whether a call is affected, and count it."""
        if self.method not in ("", method) or not path.startswith(self.path):
            return False
        before, self.calls = int(self.calls * self.share), self.calls + 1
        return int(self.calls * self.share) > before

    async def before(self) -> None:
        """Apply the fault before the call is served.

        Raises:
            ApiError: The call is refused.
        """
        if self.delay_seconds:
            await asyncio.sleep(self.delay_seconds)
        if self.refuse_with:
            raise store.ApiError(self.refuse_with, REASONS[self.refuse_with], "a fault is injected")


class Faults:
    """The faults that are armed.

    Attributes:
        clock_ahead_seconds: Seconds by which the clock in answers is ahead of the true one.
        lasting: Faults that stay until they are removed, by name.
        spared: The `User-Agent` of the client that they do not affect: the one that injects them.
    """

    def __init__(self) -> None:
        self.clock_ahead_seconds = 0.0
        self.lasting: dict[str, Lasting] = {}
        self.spared = "hami-fault-injector"
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

    def affecting(self, method: str, path: str, user_agent: str) -> list[Lasting]:
        """Return the lasting faults that affect a call."""
        if user_agent == self.spared:
            return []
        return [one for one in self.lasting.values() if one.affects(method, path)]

    @property
    def drops_watches(self) -> bool:
        """Whether watches end within a second."""
        return any(one.drops_watches for one in self.lasting.values())

    @property
    def silences_watches(self) -> bool:
        """Whether nothing is sent on watches."""
        return any(one.silences_watches for one in self.lasting.values())

    def expire_lists(self, version: int) -> None:
        """Refuse continue tokens of lists older than that version with 410."""
        self._expired_before = version

    def expired(self, version: int) -> bool:
        """Return whether a list of that version cannot be continued."""
        return version < self._expired_before
