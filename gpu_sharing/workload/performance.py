"""Measures the named steps of a program, and reports the slowest."""

import functools
import inspect
import math
import resource
import threading
import time
from collections import deque
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from typing import Any, ParamSpec, TypeVar

from gpu_sharing.workload import forks, label_values, summaries
from gpu_sharing.workload.errors import require_range

P = ParamSpec("P")
T = TypeVar("T")
_MOST_DURATIONS = 1024
"""Durations of a step that percentiles are made of: the latest ones."""


def peak_memory_bytes() -> int:
    """Return the largest resident memory that this process ever had."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss << 10


@dataclass(slots=True)
class _Step:
    count: int = 0
    failures: int = 0
    total_seconds: float = 0.0
    growth_bytes: int = 0
    durations: deque[float] = field(default_factory=lambda: deque(maxlen=_MOST_DURATIONS))


@dataclass(frozen=True, slots=True, kw_only=True)
class StepReport:
    """What was measured of one step."""

    name: str
    count: int
    failures: int
    """How often it raised an exception; these count in the durations."""
    mean_seconds: float
    p95_seconds: float
    total_seconds: float
    memory_growth_bytes: int
    """Growth of the process's memory during the step, in total; by default of its peak."""


@dataclass(frozen=True, slots=True)
class Report:
    """All steps, the one with the largest total time first."""

    steps: tuple[StepReport, ...]

    @property
    def slowest(self) -> StepReport | None:
        """The step that took most of the time; None without steps."""
        return self.steps[0] if self.steps else None

    def as_json(self) -> dict[str, Any]:
        """Return values that `json.dumps` accepts."""
        return {"slowest": self.slowest.name if self.slowest else None, "steps": [asdict(one) for one in self.steps]}

    def __str__(self) -> str:
        """Return a table, and a sentence that names the slowest step."""
        if self.slowest is None:
            return "no step was measured"
        rows = [
            f"{one.name:<24} {one.count:>8} {one.mean_seconds * 1000:>10.2f} {one.p95_seconds * 1000:>10.2f} "
            f"{one.total_seconds:>9.2f} {one.memory_growth_bytes >> 20:>12}"
            for one in self.steps
        ]
        whole = sum(one.total_seconds for one in self.steps)
        part = 100 * self.slowest.total_seconds / whole if whole else 0.0
        head = f"{'step':<24} {'count':>8} {'mean ms':>10} {'p95 ms':>10} {'total s':>9} {'growth MiB':>12}"
        return "\n".join([head, *rows, f"slowest: {self.slowest.name}, {part:.0f} % of the measured time"])


class PerformanceAnalyzer:
    """Measures steps, as a decorator or a context manager; steps may nest and run in several threads.

    Args:
        most_steps: Number of distinct names; further ones are measured as `other`.
        read_memory_bytes: What the growth of memory is measured by, such as `torch.cuda.memory_allocated`; without it
            the peak of the process.
        memory_interval_seconds: The memory is read when a step begins and ends, but not more often than this: a read
            takes as long as all else. What grows in a shorter step counts for the step of the next read.

    Raises:
        WorkloadError: A number is out of range.
    """

    def __init__(
        self,
        *,
        most_steps: int = 100,
        read_memory_bytes: Callable[[], int] = peak_memory_bytes,
        memory_interval_seconds: float = 0.001,
    ) -> None:
        require_range("memory_interval_seconds", memory_interval_seconds, 0.0, 3600.0)
        self._memory_interval_seconds = memory_interval_seconds
        self._memory, self._memory_read_at = 0, -math.inf
        self._names = label_values.LabelValues("step", most_steps)
        self._read = read_memory_bytes
        self._steps: dict[str, _Step] = {}
        self.renew_locks()
        forks.watch(self)

    def renew_locks(self) -> None:
        """Replace the lock; see `forks`."""
        self._lock = threading.Lock()

    def step(self, name: str) -> "Measurement":
        """Return what measures a step: `with analyzer.step("load"):`, or `@analyzer.step("load")`."""
        return Measurement(self, name)

    def memory_bytes(self, now: float) -> int:
        """Return the memory as it was read last, or read it if that is long ago."""
        if now - self._memory_read_at >= self._memory_interval_seconds:
            self._memory, self._memory_read_at = self._read(), now
        return self._memory

    def record(self, name: str, seconds: float, growth_bytes: int = 0, *, failed: bool = False) -> None:
        """Record a step that was measured elsewhere."""
        step = self._steps.get(name)
        if step is None:
            label = self._names.bounded(name)
            with self._lock:
                step = self._steps.setdefault(label, _Step())
        with self._lock:
            step.count += 1
            step.failures += failed
            step.total_seconds += seconds
            step.growth_bytes += max(growth_bytes, 0)
            step.durations.append(seconds)

    def report(self) -> Report:
        """Return what was measured until now."""
        with self._lock:
            steps = {name: (step, sorted(step.durations)) for name, step in self._steps.items()}
        found = [_report(name, step, durations) for name, (step, durations) in steps.items()]
        return Report(tuple(sorted(found, key=lambda one: -one.total_seconds)))


class Measurement:
    """One named step of an analyzer: a context manager, and a decorator of functions and coroutine functions."""

    __slots__ = ("_analyzer", "_memory", "_name", "_start")

    def __init__(self, analyzer: PerformanceAnalyzer, name: str) -> None:
        self._analyzer = analyzer
        self._name = name

    def __enter__(self) -> None:
        """Read clock and memory before the step."""
        self._start = time.perf_counter()
        self._memory = self._analyzer.memory_bytes(self._start)

    def __exit__(self, kind: object, *_: object) -> None:
        """Record the step, also one that failed."""
        now, analyzer = time.perf_counter(), self._analyzer
        growth = analyzer.memory_bytes(now) - self._memory
        analyzer.record(self._name, now - self._start, growth, failed=kind is not None)

    def __call__(self, function: Callable[P, T]) -> Callable[P, T]:
        """Return the function, with each of its calls measured."""
        analyzer, name = self._analyzer, self._name
        if inspect.iscoroutinefunction(function):

            @functools.wraps(function)
            async def measured(*args: P.args, **kwargs: P.kwargs) -> Any:
                with Measurement(analyzer, name):
                    return await function(*args, **kwargs)

            return measured  # type: ignore[return-value]

        @functools.wraps(function)
        def measured_call(*args: P.args, **kwargs: P.kwargs) -> T:
            with Measurement(analyzer, name):
                return function(*args, **kwargs)

        return measured_call


def _report(name: str, step: _Step, durations: list[float]) -> StepReport:
    summary = summaries.summarize(durations)
    return StepReport(
        name=name,
        count=step.count,
        failures=step.failures,
        mean_seconds=step.total_seconds / step.count if step.count else 0.0,
        p95_seconds=summary.p95 if summary else 0.0,
        total_seconds=step.total_seconds,
        memory_growth_bytes=step.growth_bytes,
    )
