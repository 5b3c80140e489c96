"""Which call of kube-scheduler is computed next, which waits, and which is answered `busy`.

Calls are computed on the event loop, one at a time. While several are ready, a bind goes first: it ends work that was
done already, and a filter begins new work. A call whose caller has hung up while it waited is dropped before it starts.
A new one is shed when both kinds of capacity are gone: many calls wait, and what they will take is long. A few slow
calls, or many quick ones, are no reason.
"""

import asyncio
import collections
from collections.abc import Callable

from gpu_sharing.adapters import guarded_http

_ORDER = ("bind", "preempt", "prioritize", "filter")
"""What is nearest to its end goes first."""
_WEIGHT = 0.1
"""Of the newest duration in the mean."""


class Turns:
    """The queue of the calls that are ready."""

    def __init__(self, most_queued: int, longest_seconds: float) -> None:
        """Make an empty queue.

        Args:
            most_queued: From how many waiting calls on new ones may be shed.
            longest_seconds: From which predicted wait on they are.
        """
        self.most_queued = most_queued
        self.longest_seconds = longest_seconds
        self._waiting: dict[str, collections.deque[asyncio.Future[None]]] = {
            verb: collections.deque() for verb in _ORDER
        }
        self._mean_seconds = dict.fromkeys(_ORDER, 0.0)
        self._is_taken = False

    @property
    def queued(self) -> int:
        """The number of calls that wait."""
        return sum(map(len, self._waiting.values()))

    @property
    def predicted_seconds(self) -> float:
        """How long the calls that wait will take, by how long such calls took."""
        return sum(len(waiting) * self._mean_seconds[verb] for verb, waiting in self._waiting.items())

    def sheds(self, verb: str) -> bool:
        """Whether a new call is answered `busy`; never a bind, as that would waste what was done for its pod."""
        return verb != "bind" and self.queued >= self.most_queued and self.predicted_seconds >= self.longest_seconds

    async def take(self, verb: str, caller_gone: Callable[[], bool]) -> None:
        """Wait until it is this call's turn; it then has the loop until its next `await`.

        Raises:
            CallerGone: The caller hung up meanwhile.
        """
        if self._is_taken:
            turn = asyncio.get_running_loop().create_future()
            self._waiting[verb].append(turn)
            await turn
            if caller_gone():
                raise guarded_http.CallerGone
        else:
            self._is_taken = True
            self._pass_on_soon()

    def took(self, verb: str, seconds: float) -> None:
        """Learn how long a call was computed."""
        mean = self._mean_seconds[verb]
        self._mean_seconds[verb] = mean + _WEIGHT * (seconds - mean) if mean else seconds

    def _pass_on_soon(self) -> None:
        # After what is ready now: calls that arrive meanwhile are sorted before the next is chosen.
        asyncio.get_running_loop().call_soon(self._pass_on)

    def _pass_on(self) -> None:
        for waiting in self._waiting.values():
            while waiting:
                turn = waiting.popleft()
                if not turn.done():
                    turn.set_result(None)
                    self._pass_on_soon()
                    return
        self._is_taken = False
