"""A task that ends although it never should ends the process."""

import asyncio

import pytest

from scheduler_extender import forever


async def returns() -> None:
    await asyncio.sleep(0)


async def fails() -> None:
    await asyncio.sleep(0)
    raise KeyError("x")


@pytest.mark.parametrize(("work", "text"), [(returns, "waking has returned"), (fails, "waking: KeyError: 'x'")])
def test_the_end_of_a_task_ends_the_group_it_is_in(work: object, text: str) -> None:
    """Also through the groups around it; the text names the task."""

    async def main() -> None:
        async with asyncio.TaskGroup() as outer:
            outer.create_task(forever.forever("lease", asyncio.Event().wait()))  # type: ignore[arg-type]
            async with asyncio.TaskGroup() as inner:
                inner.create_task(forever.forever("waking", work()))  # type: ignore[operator]

    with pytest.raises(BaseExceptionGroup) as raised:
        asyncio.run(main())
    assert str(forever.first(raised.value)) == text


def test_a_task_that_is_cancelled_ends_nothing_else() -> None:
    """That is how the process stops."""

    async def main() -> None:
        task = asyncio.create_task(forever.forever("lease", asyncio.Event().wait()))  # type: ignore[arg-type]
        await asyncio.sleep(0)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    asyncio.run(main())
