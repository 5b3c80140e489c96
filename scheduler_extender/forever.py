"""Tasks that run as long as the process: the end of one is a defect that ends the process, which is started again.

Otherwise the process would look alive, and not follow the cluster, wake pods or read the Lease any more.
"""

from collections.abc import Coroutine
from typing import Any


class TaskEnded(Exception):
    """A task has ended that never should; the text names it, and the cause is what ended it, if anything did."""


async def forever(name: str, work: Coroutine[Any, Any, None]) -> None:
    """Run a task that ends only by cancellation.

    Raises:
        TaskEnded: It has ended in another way.
    """
    try:
        await work
    except Exception as defect:
        raise TaskEnded(f"{name}: {type(defect).__name__}: {defect}") from defect
    raise TaskEnded(f"{name} has returned")


def first(group: BaseExceptionGroup[BaseException]) -> BaseException:
    """Return the first failure of a group that holds groups."""
    failure: BaseException = group.exceptions[0]
    return first(failure) if isinstance(failure, BaseExceptionGroup) else failure
