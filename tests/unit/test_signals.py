"""A signal that arrives while the main thread holds a lock."""

import signal
import subprocess
import sys

PROGRAM = """
import signal, sys, threading, structlog
from gpu_sharing.adapters import logs, profiling, signals
logs.configure(3, "json")
profiling.on_signal()
log = structlog.get_logger("x")
{body}
"""


def output(body: str) -> str:
    """What a process prints; it is ended when it hangs."""
    program = PROGRAM.format(body=body)
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=True)
    return done.stdout


def test_a_signal_that_arrives_just_before_the_wait_for_it_ends_the_wait() -> None:
    """`Event.wait` holds the lock of `Event.set` for a moment: a demo that was just ready never ended on Ctrl-C."""
    body = """
stop = threading.Event()
signals.act_on((signal.SIGTERM,), stop.set)
with stop._cond:
    signal.raise_signal(signal.SIGTERM)
print(stop.wait(30))
"""
    assert output(body) == "True\n"


def test_a_signal_that_arrives_while_a_line_is_logged_does_not_stop_the_process() -> None:
    """The log's lock is held while a line is written: a scheduler whose verbosity was raised stood still."""
    body = """
import io, os, time
class Interrupted(io.RawIOBase):
    written = b""
    def write(self, line):
        Interrupted.written += bytes(line)
        if b"first" in line:
            signal.raise_signal(signal.SIGUSR1)
        return os.write(1, line)
    def writable(self):
        return True
sys.stdout = io.TextIOWrapper(Interrupted())
logs.configure(3, "json")
log.info("first")
while not (logs.shows(4) and b"verbosity changed" in Interrupted.written): time.sleep(0.01)  # The thread writes it.
log.info("second")
"""
    written = output(body)
    assert "first" in written
    assert "verbosity changed" in written
    assert "second" in written


def test_each_signal_counts() -> None:
    """Two raises of the verbosity are two."""
    body = """
import time
count = []
signals.act_on((signal.SIGTERM, signal.SIGHUP), lambda: count.append(1))
for number in (signal.SIGTERM, signal.SIGHUP, signal.SIGTERM): signal.raise_signal(number)
while len(count) < 3: time.sleep(0.01)
print("three")
"""
    assert output(body) == "three\n"
    assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL


def test_signals_of_several_kinds_act_in_the_order_of_their_arrival() -> None:
    """More log and then less is less, whichever way the threads are scheduled."""
    body = """
import time
done = []
signals.act_on((signal.SIGUSR1,), lambda: (time.sleep(0.01), done.append("1")))
signals.act_on((signal.SIGUSR2,), lambda: done.append("2"))
for number in (signal.SIGUSR1, signal.SIGUSR1, signal.SIGUSR2, signal.SIGUSR1): signal.raise_signal(number)
while len(done) < 4: time.sleep(0.01)
print("".join(done))
"""
    assert output(body) == "1121\n"
