"""A target, the run of one, and what came of it."""

import collections
import contextlib
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

from tests.fuzz import mutations

ACCEPTED = "accepted"
MOST_CPU_SECONDS = 5.0
"""Of the processor, for one input: more is a way to keep a process from its work."""
_SHOWN_BYTES = 400
_MOST_DEFECTS = 5

Check = Callable[[bytes], str]
"""Reads one input. Returns `accepted`, or the code of its refusal; every exception is a defect."""


class Defect(Exception):
    """An input is answered in a way that it must not be; the text has the reason."""


@dataclass(slots=True)
class Tally:
    """What came of the inputs of one target."""

    name: str
    inputs: int = 0
    outcomes: collections.Counter[str] = field(default_factory=collections.Counter)
    defects: dict[str, str] = field(default_factory=dict)
    """A report on each, with the input; by place in the code."""

    def add_defect(self, place: str, report: str) -> None:
        """Record a defect; of each place the first one."""
        if len(self.defects) < _MOST_DEFECTS:
            self.defects.setdefault(place, report)


@dataclass(frozen=True, slots=True, kw_only=True)
class Target:
    """Something that reads bytes from outside.

    Attributes:
        name: As the table of counts has it.
        covers: The readers that it calls, as `module:function`, or a module with all of its readers.
        samples: Accepted inputs.
        open: Starts what the check needs, and yields the check.
        of_processes: Whether it starts processes; then an input takes milliseconds.
    """

    name: str
    covers: tuple[str, ...]
    samples: Sequence[bytes]
    open: Callable[[], contextlib.AbstractContextManager[Check]]
    of_processes: bool = False


def parser(name: str, check: Check, covers: Sequence[str], *samples: bytes | str) -> Target:
    """Return the target of a function in this process."""

    @contextlib.contextmanager
    def opened() -> Iterator[Check]:
        yield check

    encoded = [sample.encode() if isinstance(sample, str) else sample for sample in samples]
    return Target(name=name, covers=tuple(covers), samples=encoded, open=opened)


def run(target: Target, *, seed: int, most_inputs: int | None = None, seconds: float | None = None) -> Tally:
    """Give a target inputs until there were so many, or until the time is over."""
    tally = Tally(target.name)
    deadline = None if seconds is None else time.monotonic() + seconds
    try:
        with target.open() as check:
            for data in mutations.Mutator(target.samples, seed).inputs():
                _try(check, data, tally)
                is_over = deadline is not None and time.monotonic() > deadline
                if is_over or tally.inputs == most_inputs or len(tally.defects) == _MOST_DEFECTS:
                    break
    except Defect as after:  # Found at the end, for example in a log.
        tally.add_defect("end", f"{target.name}: {after}")
    return tally


def _try(check: Check, data: bytes, tally: Tally) -> None:
    tally.inputs += 1
    started = time.thread_time()
    try:
        outcome = check(data)
    except Exception as broken:
        frames = traceback.extract_tb(broken.__traceback__)
        place = f"{type(broken).__name__} at {frames[-1].filename}:{frames[-1].lineno}"
        tally.outcomes["defect"] += 1
        tally.add_defect(place, f"{tally.name}: {_shown(data)}\n{_trace(broken)}")
        return
    tally.outcomes[outcome] += 1
    if (used := time.thread_time() - started) > MOST_CPU_SECONDS:
        tally.add_defect(f"slow: {outcome}", f"{tally.name}: {used:.1f} s of the processor: {_shown(data)}")


def _trace(broken: Exception) -> str:
    return "".join(traceback.format_exception(broken, limit=-6))[-3000:]


def _shown(data: bytes) -> str:
    more = f" … of {len(data)} bytes" if len(data) > _SHOWN_BYTES else ""
    return f"{data[:_SHOWN_BYTES]!r}{more}"
