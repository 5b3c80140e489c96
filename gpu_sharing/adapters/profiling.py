"""A sampled profile of this process and a dump of its tasks, for bug reports. Only places in code are shown, no values.

SIGQUIT starts one of a minute, which ends as log lines; the extender's read API answers one too. The stacks of all
threads are read a hundred times a second, which costs a few percent of one CPU. The WebUI has none by signal, because
gunicorn has a meaning for each.
"""

import asyncio
import collections
import contextlib
import pathlib
import signal
import sys
import threading
import time
from types import FrameType

import structlog

from gpu_sharing.adapters import read_api_types, signals

SECONDS = 60.0
"""How long the profile of a signal lasts."""
_SAMPLES_PER_SECOND = 100
_MOST_STACKS = 100
_DEEPEST = 60
log = structlog.get_logger("profiling")


def sample(seconds: float, stop: threading.Event | None = None) -> tuple[int, list[read_api_types.Stack]]:
    """Sample the stacks of all threads but this one. Returns the number of samples and the most frequent stacks.

    Args:
        seconds: How long.
        stop: Ends it early.
    """
    stop = stop or threading.Event()
    seen: collections.Counter[tuple[str, str]] = collections.Counter()
    deadline, samples = time.monotonic() + seconds, 0
    while time.monotonic() < deadline and not stop.wait(1 / _SAMPLES_PER_SECOND):
        names = {thread.ident: thread.name for thread in threading.enumerate()}
        for ident, frame in sys._current_frames().items():
            if ident != threading.get_ident():
                seen[names.get(ident, str(ident)), _frames(frame)] += 1
        samples += 1
    stacks = [read_api_types.Stack(count, thread, frames) for (thread, frames), count in seen.most_common(_MOST_STACKS)]
    return samples, stacks


def _frames(frame: FrameType | None) -> str:
    found: list[str] = []
    while frame is not None and len(found) < _DEEPEST:
        code = frame.f_code
        found.append(f"{pathlib.PurePath(code.co_filename).name}:{code.co_qualname}:{frame.f_lineno}")
        frame = frame.f_back
    return ";".join(reversed(found))


def tasks(loop: asyncio.AbstractEventLoop) -> list[str]:
    """Return each task of a loop, from its own thread: name, coroutine, and where it waits."""
    found = []
    for task in asyncio.all_tasks(loop):
        stack = task.get_stack(limit=1)
        name = getattr(task.get_coro(), "__qualname__", "?")
        found.append(f"{task.get_name()} {name}" + (f" at {_frames(stack[0]).rpartition(';')[2]}" if stack else ""))
    return sorted(found)


async def profile(seconds: float) -> read_api_types.Profile:
    """Return a profile of this process, sampled by a thread beside the running loop."""
    samples, stacks = await asyncio.to_thread(sample, seconds)
    return read_api_types.Profile(seconds, samples, stacks, tasks(asyncio.get_running_loop()))


def on_signal() -> None:
    """Have SIGQUIT start a profile of a minute that is logged at its end; a second one in this time is ignored."""
    running = threading.Lock()

    def start() -> None:
        if running.acquire(blocking=False):
            threading.Thread(target=_log_profile, args=(running,), name="profiler", daemon=True).start()

    with contextlib.suppress(ValueError):  # Only the main thread may set signal handlers.
        signals.act_on((signal.SIGQUIT,), start)


def _log_profile(running: threading.Lock) -> None:
    log.info("profile started", seconds=SECONDS)
    samples, stacks = sample(SECONDS)
    for stack in stacks:
        log.info("profile", samples=stack.samples, of=samples, thread=stack.thread, frames=stack.frames)
    log.info("profile ended", samples=samples, stacks=len(stacks))
    running.release()
