"""Programs of Kubernetes as processes of ours: started, waited for, ended, their logs beside their files."""

import contextlib
import ctypes
import http.client
import pathlib
import signal
import socket
import subprocess
import time
from collections.abc import Callable

from lab.real import client

_START_SECONDS = 90.0
_PR_SET_PDEATHSIG = 1


class NotReady(Exception):
    """A component did not come up; the text holds the end of its log."""


class Components:
    """Programs that share a folder and die with this process.

    Attributes:
        folder: Where their files and logs are.
        binaries: Where the programs are, kubectl among them.
    """

    def __init__(self, folder: pathlib.Path, binaries: pathlib.Path) -> None:
        self.folder = folder
        self.binaries = binaries
        self._processes: dict[str, subprocess.Popen[bytes]] = {}

    def start(self, name: str, *arguments: str | pathlib.Path) -> None:
        """Start a program."""
        with (self.folder / f"{name}.log").open("ab") as log:
            self._processes[name] = subprocess.Popen(
                [str(self.binaries / name), *map(str, arguments)],
                stdout=log, stderr=log, stdin=subprocess.DEVNULL, start_new_session=True,
                preexec_fn=_die_with_parent,
            )  # fmt: skip

    def wait(self, name: str, condition: Callable[[], bool]) -> None:
        """Wait until a started program is ready.

        Raises:
            NotReady: It ended, or is not ready in time.
        """
        deadline = time.monotonic() + _START_SECONDS
        while time.monotonic() < deadline and self._processes[name].poll() is None:
            with contextlib.suppress(OSError, http.client.HTTPException, client.Refused):
                if condition():
                    return
            time.sleep(0.05)
        tail = (self.folder / f"{name}.log").read_bytes()[-3000:].decode(errors="replace")
        raise NotReady(f"{name} is not ready; its log ends:\n{tail}")

    def end(self, name: str) -> None:
        """End a program, if it runs."""
        process = self._processes.pop(name, None)
        if process is None:
            return
        process.terminate()
        try:
            process.wait(timeout=10)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def free_port() -> int:
    """A loopback port that nobody has now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def _die_with_parent() -> None:
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
