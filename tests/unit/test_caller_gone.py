"""Work for a caller that has hung up ends, with everything that it awaits."""

import asyncio
import threading
from typing import Any

import pytest

from gpu_sharing.adapters import guarded_http
from scheduler_extender import worker


class Caller:
    """An ASGI `receive`: a body, and the end of the connection when the test wants it."""

    def __init__(self) -> None:
        self.hangs_up = asyncio.Event()
        self._has_sent = False

    async def __call__(self) -> dict[str, Any]:
        if not self._has_sent:
            self._has_sent = True
            return {"type": "http.request", "body": b"", "more_body": False}
        await self.hangs_up.wait()
        return {"type": "http.disconnect"}


def test_work_that_is_done_in_time_is_returned() -> None:
    """And what goes wrong in it is raised as it is."""

    async def main() -> None:
        async def works() -> int:
            await asyncio.sleep(0)
            return 7

        async def fails() -> int:
            raise KeyError("x")

        assert await guarded_http.while_caller_listens(Caller(), works()) == 7
        with pytest.raises(KeyError):
            await guarded_http.while_caller_listens(Caller(), fails())

    asyncio.run(main())


def test_children_end_with_the_caller() -> None:
    """What the work awaits, and tasks that it began in a group."""

    async def main() -> list[str]:
        caller, ended = Caller(), []

        async def child(name: str) -> None:
            try:
                await asyncio.Event().wait()
            finally:
                ended.append(name)

        async def work() -> None:
            async with asyncio.TaskGroup() as tasks:
                tasks.create_task(child("one"))
                tasks.create_task(child("two"))
                await child("awaited")

        asyncio.get_running_loop().call_later(0.01, caller.hangs_up.set)
        with pytest.raises(guarded_http.CallerGone):
            await guarded_http.while_caller_listens(caller, work())
        return ended

    assert sorted(asyncio.run(main())) == ["awaited", "one", "two"]


def test_a_computation_in_the_thread_ends_between_two_steps() -> None:
    """And one that is queued behind it is never begun; the thread serves the next caller."""

    async def main() -> tuple[int, list[str]]:
        one, begun, goes_on, steps = worker.Worker(), threading.Event(), threading.Event(), 0
        queued: list[str] = []

        def compute() -> None:
            nonlocal steps
            for _ in worker.each(range(1000)):
                steps += 1
                begun.set()
                goes_on.wait(30)

        first = asyncio.create_task(one.run(compute))
        second = asyncio.create_task(one.run(lambda: queued.append("second")))
        await asyncio.to_thread(begun.wait, 30)
        first.cancel()
        second.cancel()
        await asyncio.gather(first, second, return_exceptions=True)
        goes_on.set()
        assert await one.run(lambda: "next") == "next"
        return steps, queued

    assert asyncio.run(main()) == (1, [])


def test_outside_a_worker_every_computation_goes_on() -> None:
    """As in tools that have no caller who could hang up."""
    assert list(worker.each("abc")) == ["a", "b", "c"]
    worker.going_on()
