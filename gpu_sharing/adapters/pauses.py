"""Long work on an event loop in short steps, so that calls that arrive in between are answered in time."""

import asyncio
import time
from collections.abc import Iterator

LONGEST_SECONDS = 0.004
"""Seconds of work between two pauses; an answer to kube-scheduler waits for at most a few of them."""


class Pause:
    """Lets other tasks run when the work since the last pause is long enough. Await it between small steps."""

    def __init__(self) -> None:
        self._until = time.perf_counter() + LONGEST_SECONDS

    async def __call__(self) -> None:
        """Continue at once, or after all tasks that are ready."""
        if time.perf_counter() >= self._until:
            await asyncio.sleep(0)
            self._until = time.perf_counter() + LONGEST_SECONDS


async def spread(steps: Iterator[None]) -> None:
    """Run all steps, with pauses between them."""
    pause = Pause()
    for _ in steps:
        await pause()
