"""In which order calls of kube-scheduler are computed, and when a new one is shed."""

import asyncio
from collections.abc import Callable

import pytest

from scheduler_extender.serve import turns


def never() -> bool:
    return False


async def computed(
    queue: turns.Turns, verbs: list[str], caller_gone: Callable[[str], bool] = lambda verb: False
) -> list[str]:
    """The order in which calls that arrive together are computed."""
    order: list[str] = []

    async def call(verb: str) -> None:
        await queue.take(verb.rstrip("0123456789"), lambda: caller_gone(verb))
        order.append(verb)

    await asyncio.gather(*(call(verb) for verb in verbs), return_exceptions=True)
    return order


def test_a_bind_goes_before_what_arrived_earlier() -> None:
    """It ends the work for a pod; the first call has begun already."""
    verbs = ["filter1", "filter2", "prioritize1", "preempt1", "bind1", "filter3", "bind2"]

    order = asyncio.run(computed(turns.Turns(64, 2.0), verbs))

    assert order == ["filter1", "bind1", "bind2", "preempt1", "prioritize1", "filter2", "filter3"]


def test_a_call_whose_caller_has_gone_is_not_computed() -> None:
    """Its answer would be for nobody, and the others wait for it."""
    order = asyncio.run(
        computed(turns.Turns(64, 2.0), ["filter1", "filter2", "filter3"], lambda verb: verb == "filter2")
    )

    assert order == ["filter1", "filter3"]


def test_a_call_that_is_cancelled_while_it_waits_holds_up_no_other() -> None:
    """Its turn is passed on."""

    async def main() -> list[str]:
        queue = turns.Turns(64, 2.0)
        order: list[str] = []

        async def call(name: str) -> None:
            await queue.take("filter", never)
            order.append(name)

        tasks = [asyncio.create_task(call(name)) for name in ("first", "one", "two", "three")]
        await asyncio.sleep(0)
        tasks[1].cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await queue.take("filter", never)
        return order

    assert asyncio.run(main()) == ["first", "two", "three"]


@pytest.mark.parametrize(
    ("seconds", "calls", "sheds"),
    [(0.001, 64, False), (0.1, 10, False), (0.1, 63, False), (0.1, 64, True)],
    ids=["many but quick", "slow but few", "one less", "many and slow"],
)
def test_a_call_is_shed_when_many_wait_and_what_they_take_is_long(seconds: float, calls: int, sheds: bool) -> None:
    """One of the two alone is no reason: it would refuse what can be served."""

    async def main() -> tuple[bool, bool]:
        queue = turns.Turns(64, 2.0)
        queue.took("filter", seconds)
        waiting = [asyncio.create_task(queue.take("filter", never)) for _ in range(1 + calls)]
        await asyncio.sleep(0)  # The first has its turn now, and the others wait.
        found = queue.sheds("filter"), queue.sheds("bind")
        await asyncio.gather(*waiting)
        assert queue.queued == 0
        assert queue.predicted_seconds == 0
        return found

    assert asyncio.run(main()) == (sheds, False)


def test_the_mean_follows_what_calls_take() -> None:
    """A cluster that grows makes them slower."""

    async def main() -> float:
        queue = turns.Turns(64, 2.0)
        for _ in range(100):
            queue.took("filter", 0.001)
        for _ in range(100):
            queue.took("filter", 0.1)
        calls = [asyncio.create_task(queue.take("filter", never)) for _ in range(2)]
        await asyncio.sleep(0)
        predicted = queue.predicted_seconds
        await asyncio.gather(*calls)
        return predicted

    assert asyncio.run(main()) == pytest.approx(0.1, rel=0.01)
