"""A profile of a process on demand, for a bug report."""

import asyncio
import json
import signal
import subprocess
import sys
import threading
import time

from gpu_sharing.adapters import profiling


def busy(until: threading.Event) -> None:
    while not until.is_set():
        sum(range(100))


def test_a_busy_place_is_the_most_frequent_one_of_its_thread() -> None:
    """With the calls that lead there."""
    until = threading.Event()
    thread = threading.Thread(target=busy, args=(until,), name="worker")
    thread.start()
    try:
        samples, stacks = profiling.sample(0.3)
    finally:
        until.set()
        thread.join()

    seen = [one for one in stacks if one.thread == "worker"]
    assert samples > 0
    assert sum(one.samples for one in seen) == samples
    assert all("test_profiling.py:busy:" in one.frames for one in seen)
    assert all(one.frames.startswith("threading.py:Thread._bootstrap:") for one in seen)


def test_tasks_are_shown_with_where_they_wait() -> None:
    """What the event loop holds is in no thread's stack."""

    async def waits() -> None:
        await asyncio.Event().wait()

    async def main() -> list[str]:
        task = asyncio.create_task(waits(), name="waiting-1")
        await asyncio.sleep(0)
        found = profiling.tasks(asyncio.get_running_loop())
        task.cancel()
        return found

    (line,) = (one for one in asyncio.run(main()) if one.startswith("waiting-1"))
    assert "waits at test_profiling.py:" in line


PROGRAM = """
import time
from gpu_sharing.adapters import logs, profiling
profiling.SECONDS = 0.5
logs.configure(2, "json")
profiling.on_signal()
print("ready", flush=True)
time.sleep(60)
"""


def test_a_signal_writes_a_profile_to_the_log_and_ends_nothing() -> None:
    """`kill -QUIT` in a pod without a shell or a debugger; the default of the signal would end the process."""
    with subprocess.Popen([sys.executable, "-c", PROGRAM], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        process.send_signal(signal.SIGQUIT)
        time.sleep(0.1)
        process.send_signal(signal.SIGQUIT)  # Ignored: one is being taken.
        lines = []
        for line in process.stdout:
            lines.append(json.loads(line))
            if lines[-1]["event"] == "profile ended":
                break
        assert process.poll() is None
        process.kill()

    assert [one["event"] for one in lines].count("profile started") == 1
    stack = next(one for one in lines if one["event"] == "profile" and one["thread"] == "MainThread")
    assert stack["samples"] <= stack["of"]
