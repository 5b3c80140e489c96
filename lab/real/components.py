"""Programs of Kubernetes as processes of ours: started, waited for, ended, their logs beside their files."""

import concurrent.futures
import contextlib
import ctypes
import http.client
import os
import pathlib
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Sequence

from lab.real import client

_START_SECONDS = 90.0
_PR_SET_PDEATHSIG = 1


_spawner = concurrent.futures.ThreadPoolExecutor(1, "spawner")
"""Starts every program, because one that dies with its parent dies with the thread that started it.

Source: prctl(2), PR_SET_PDEATHSIG: the "parent" is the thread that created the process."""


class NotReady(Exception):
    """A component did not start; the text has the end of its log."""


class Components:
    """Programs that share a folder and end with this process.

    Attributes:
        folder: Where their files and logs are.
        binaries: Where the programs are, kubectl among them.
    """

    def __init__(self, folder: pathlib.Path, binaries: pathlib.Path) -> None:
        self.folder = folder
        self.binaries = binaries
        self._processes: dict[str, subprocess.Popen[bytes]] = {}
        self._wrapped: frozenset[str] = frozenset()

    def start(self, name: str, *arguments: str | pathlib.Path, within: Sequence[str] = (), program: str = "") -> None:
        """Start a program.

        Args:
            name: The program, or another name by which it is known here, as its log is.
            arguments: Its arguments.
            within: A command, such as nsenter, that starts it as its child.
            program: The program, where it is not the name.
        """
        environment = {**os.environ, "PATH": f"{self.binaries}:{os.environ['PATH']}:/usr/sbin:/sbin"}
        with (self.folder / f"{name}.log").open("ab") as log:
            self._processes[name] = _spawner.submit(
                subprocess.Popen,
                [*within, str(self.binaries / (program or name)), *map(str, arguments)],
                stdout=log,
                stderr=log,
                stdin=subprocess.DEVNULL,
                start_new_session=True,
                preexec_fn=die_with_parent,
                env=environment,
            ).result()
        self._wrapped = self._wrapped | {name} if within else self._wrapped - {name}

    def pid(self, name: str) -> int:
        """The program's own process, which is the child where another command started it."""
        pid = self._processes[name].pid
        if name in self._wrapped:
            children = pathlib.Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
            return int(children[0]) if children else pid
        return pid

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

    def end(self, name: str, number: int = signal.SIGTERM) -> None:
        """End a program, if it runs."""
        process = self._processes.get(name)
        if process is None:
            return
        with contextlib.suppress(OSError):
            os.kill(self.pid(name), number)
        del self._processes[name]
        try:
            process.wait(timeout=10)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def free_port() -> int:
    """Return a free loopback port."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def die_with_parent() -> None:
    """For `preexec_fn`: the kernel kills the child when this process ends, in any way."""
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
