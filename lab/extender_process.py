"""The extender as a real process, for whoever has an API server for it: the demo, tests and benchmarks."""

import contextlib
import json
import os
import pathlib
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from typing import Any

_START_SECONDS = 60.0
_POLL_SECONDS = 0.02


class ExtenderFailed(Exception):
    """The process ended, or is not ready in time; the text holds the end of its log."""


class ExtenderProcess:
    """One extender.

    Attributes:
        verbs: Where kube-scheduler calls it, `HOST:PORT`.
        api: Where its read API is.
        health: Where its health and metrics are.
    """

    def __init__(self, kubeconfig: pathlib.Path, log_file: pathlib.Path, *arguments: str) -> None:
        self._kubeconfig = kubeconfig
        self.log_file = log_file
        self._arguments = arguments
        self._process: subprocess.Popen[bytes] | None = None
        self.verbs = self.api = self.health = "127.0.0.1:0"

    @property
    def pid(self) -> int:
        """The process's id."""
        assert self._process is not None
        return self._process.pid

    def start(self) -> None:
        """Start, and wait until it listens. Started again, it takes the same ports."""
        command = [
            sys.executable, "-m", "scheduler_extender", "--kubeconfig", str(self._kubeconfig),
            "--http-bind", self.verbs, "--api-bind", self.api, "--health-bind", self.health,
            "--start-delay-seconds", "0", "--log-format", "json", *self._arguments,
        ]  # fmt: skip
        offset = self.log_file.stat().st_size if self.log_file.exists() else 0
        with self.log_file.open("ab") as log:
            self._process = subprocess.Popen(
                command, stdout=log, stderr=log, stdin=subprocess.DEVNULL, env={**os.environ, "PYTHONUNBUFFERED": "1"}
            )
        line = self._wait_for(lambda: self._listening(offset), "listening")
        self.verbs, self.api, self.health = line["verbs"], line["api"], line["health"]

    def wait_ready(self, timeout_seconds: float = _START_SECONDS) -> float:
        """Wait until it has read the cluster. Returns the seconds that took."""
        started = time.monotonic()
        self._wait_for(lambda: self.get("health", "/readyz")[0] == 200, "ready", timeout_seconds)
        return time.monotonic() - started

    def get(self, listener: str, path: str) -> tuple[int, bytes]:
        """Read from one of its listeners; status 0 when there is no answer."""
        try:
            with urllib.request.urlopen(f"http://{getattr(self, listener)}{path}", timeout=10) as answer:
                return answer.status, answer.read()
        except urllib.error.HTTPError as refused:
            return refused.code, refused.read()
        except OSError:
            return 0, b""

    def metric(self, name: str) -> float:
        """The value of a series without labels."""
        for line in self.get("health", "/metrics")[1].decode().splitlines():
            if line.startswith(f"{name} "):
                return float(line.split()[1])
        raise KeyError(name)

    def kill(self) -> None:
        """End it as a crash does."""
        assert self._process is not None
        self._process.kill()
        self._process.wait()

    def stop(self) -> None:
        """End it as Kubernetes does: SIGTERM, and SIGKILL when that does not help."""
        if self._process is None or self._process.poll() is not None:
            return
        self._process.send_signal(signal.SIGTERM)
        try:
            self._process.wait(timeout=30)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()

    def log_lines(self, offset: int = 0) -> Iterator[dict[str, Any]]:
        """Its log, line by line; lines that are no JSON are left out."""
        with self.log_file.open("rb") as log:
            log.seek(offset)
            for line in log:
                with contextlib.suppress(ValueError):
                    yield json.loads(line)

    def _listening(self, offset: int) -> dict[str, Any] | None:
        return next((line for line in self.log_lines(offset) if line.get("event") == "listening"), None)

    def _wait_for(self, condition: Any, what: str, timeout_seconds: float = _START_SECONDS) -> Any:
        assert self._process is not None
        deadline = time.monotonic() + timeout_seconds
        while time.monotonic() < deadline:
            found = condition()
            if found:
                return found
            if self._process.poll() is not None:
                break
            time.sleep(_POLL_SECONDS)
        tail = self.log_file.read_bytes()[-2000:].decode(errors="replace")
        raise ExtenderFailed(f"the extender is not {what}; its log ends:\n{tail}")


@contextlib.contextmanager
def running(kubeconfig: pathlib.Path, log_file: pathlib.Path, *arguments: str) -> Iterator[ExtenderProcess]:
    """A ready extender for as long as the context lasts."""
    extender = ExtenderProcess(kubeconfig, log_file, *arguments)
    extender.start()
    try:
        extender.wait_ready()
        yield extender
    finally:
        extender.stop()
