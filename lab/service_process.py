"""One of our services as a real process: start, wait until ready, read, kill and restart."""

import contextlib
import json
import os
import pathlib
import signal
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

_START_SECONDS = 60.0
_POLL_SECONDS = 0.02
# Without packages of the developers' environment, as in the images: structlog loads rich if it is installed. The
# standard input is a pipe of the parent, which is closed when the parent dies, however that happens.
_PROGRAM = """
import os, runpy, signal, stat, sys, threading, time

def end_with_parent():
    os.read(0, 1)
    os.kill(os.getpid(), signal.SIGTERM)
    time.sleep(30)
    os._exit(1)

if stat.S_ISFIFO(os.fstat(0).st_mode):
    threading.Thread(target=end_with_parent, daemon=True).start()
sys.modules['rich'] = None
runpy.run_module({module!r}, run_name='__main__')
"""


class Stopped(Exception):
    """The user ends the program while it waits for a process."""


class ServiceFailed(Exception):
    """The process ended, or is not ready in time; the text has the end of its log."""


class ServiceProcess:
    """A service.

    Attributes:
        addresses: The address of each listener, `HOST:PORT`; a restart uses the same ports.
        log_file: Its log, JSON lines.
    """

    def __init__(
        self,
        module: str,
        listeners: Mapping[str, str],
        arguments: Sequence[str],
        log_file: pathlib.Path,
        environment: Mapping[str, str] | None = None,
        within: Sequence[str] = (),
        stop: threading.Event | None = None,
    ) -> None:
        """Make a process; `start` runs it, and it ends with this process.

        Args:
            module: As in `python -m`.
            listeners: The flag of each listener, by the name under which the process logs it.
            arguments: More flags.
            log_file: The file of its output.
            environment: More variables.
            within: A command in which it runs.
            stop: Ends the waits for it when it is set.
        """
        self._module = module
        self._listeners = listeners
        self._arguments = list(arguments)
        self.log_file = log_file
        self._environment = dict(environment or {})
        self._within = within
        self._stop = stop
        self._process: subprocess.Popen[bytes] | None = None
        self.addresses = dict.fromkeys(listeners, "127.0.0.1:0")

    @property
    def pid(self) -> int:
        """The id of the running process."""
        assert self._process is not None
        return self._process.pid

    @property
    def is_running(self) -> bool:
        """Whether the process was started and has not ended."""
        return self._process is not None and self._process.poll() is None

    def command(self) -> list[str]:
        """The command line of the process."""
        binds = [part for name, flag in self._listeners.items() for part in (flag, self.addresses[name])]
        program = [*self._within, sys.executable, "-c", _PROGRAM.format(module=self._module)]
        return [*program, *binds, "--log-format", "json", *self._arguments]

    def environment(self) -> dict[str, str]:
        """Return its environment variables."""
        return {**os.environ, "PYTHONUNBUFFERED": "1", **self._environment}

    def start(self) -> None:
        """Start, and wait until it listens.

        Raises:
            ServiceFailed: It does not listen in time.
            Stopped: `stop` is set.
        """
        offset = self.log_file.stat().st_size if self.log_file.exists() else 0
        with self.log_file.open("ab") as log:
            # In a session of its own, so that Ctrl-C reaches this process alone, which then ends it.
            self._process = subprocess.Popen(
                self.command(),
                stdout=log,
                stderr=log,
                stdin=subprocess.PIPE,
                env=self.environment(),
                start_new_session=True,
            )
        line = self._wait_for(lambda: self.logged("listening", offset), "listening")
        self.addresses |= {name: line[name] for name in self._listeners if name in line}

    def wait_ready(self, timeout_seconds: float = _START_SECONDS) -> float:
        """Wait until it is ready. Returns the seconds until then.

        Raises:
            ServiceFailed: It is not ready in time.
            Stopped: `stop` is set.
        """
        started = time.monotonic()
        self._wait_for(lambda: self.get("health", "/readyz")[0] == 200, "ready", timeout_seconds)
        return time.monotonic() - started

    def get(self, listener: str, path: str) -> tuple[int, bytes]:
        """Read from one of its listeners; status 0 if there is no answer."""
        try:
            with urllib.request.urlopen(f"http://{self.addresses[listener]}{path}", timeout=10) as answer:
                return answer.status, answer.read()
        except urllib.error.HTTPError as refused:
            return refused.code, refused.read()
        except OSError:
            return 0, b""

    def metric(self, name: str) -> float:
        """Return the value of a series, with its labels as printed."""
        for line in self.get("health", "/metrics")[1].decode().splitlines():
            if line.startswith(f"{name} "):
                return float(line.rpartition(" ")[2])
        raise KeyError(name)

    def kill(self) -> None:
        """Kill it, as a crash would."""
        assert self._process is not None
        self._process.kill()
        self._ended()

    def wait_ended(self, timeout_seconds: float = 30.0) -> int:
        """Wait until it ends by itself. Returns its exit status."""
        return self._ended(timeout_seconds)

    def stop(self) -> None:
        """End it as Kubernetes does: SIGTERM, then SIGKILL."""
        if self._process is None:
            return
        self._process.send_signal(signal.SIGTERM)
        try:
            self._ended(30.0)
        except subprocess.TimeoutExpired:
            self.kill()

    def _ended(self, timeout_seconds: float | None = None) -> int:
        """Wait until it has ended, then close its standard input. Returns its exit status."""
        assert self._process is not None
        assert self._process.stdin is not None
        status = self._process.wait(timeout_seconds)
        self._process.stdin.close()
        return status

    def log_lines(self, offset: int = 0) -> Iterator[dict[str, Any]]:
        """Return its log, line by line; lines that are not JSON are skipped."""
        with self.log_file.open("rb") as log:
            log.seek(offset)
            for line in log:
                with contextlib.suppress(ValueError):
                    yield json.loads(line)

    def logged(self, event: str, offset: int = 0) -> dict[str, Any] | None:
        """Return the first line of its log with that event."""
        return next((line for line in self.log_lines(offset) if line.get("event") == event), None)

    def _wait_for(self, condition: Any, what: str, timeout_seconds: float = _START_SECONDS) -> Any:
        assert self._process is not None
        deadline = time.monotonic() + timeout_seconds
        while time.monotonic() < deadline:
            found = condition()
            if found:
                return found
            if self._stop is not None and self._stop.is_set():
                raise Stopped
            if self._process.poll() is not None:
                break
            time.sleep(_POLL_SECONDS)
        tail = self.log_file.read_bytes()[-3000:].decode(errors="replace")
        raise ServiceFailed(f"{self._module} is not {what}; its log ends:\n{tail}")
