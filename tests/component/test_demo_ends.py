"""The demo ends cleanly at whichever moment it is stopped, and leaves nothing behind."""

import asyncio
import os
import pathlib
import pty
import random
import select
import signal
import sys
import tempfile
import time
from collections.abc import Iterator

import pytest

from hamictl import start
from lab import api_server, cluster

pytestmark = pytest.mark.slow

HAMICTL = str(pathlib.Path(sys.executable).parent / "hamictl")
SECONDS = 60.0
KINDS: tuple[list[str], ...] = (["--once"], [], ["--pods", "500"], ["--empty"], ["--trace"])


class Demo:
    """The demo in a terminal of its own, as a user has it."""

    def __init__(self, folder: pathlib.Path, *arguments: str) -> None:
        self.printed = b""
        self.pid, self._terminal = pty.fork()
        if self.pid == 0:
            os.environ["TMPDIR"] = str(folder)
            os.execv(HAMICTL, ["hamictl", "demo", *arguments])

    def read(self, seconds: float, until: bytes = b"") -> None:
        """Read what it prints, until a text, the end or a time."""
        deadline = time.monotonic() + seconds
        while (left := deadline - time.monotonic()) > 0 and not (until and until in self.printed):
            if select.select([self._terminal], [], [], left)[0]:
                try:
                    part = os.read(self._terminal, 65_536)
                except OSError:  # The other side is closed.
                    return
                self.printed += part

    def press_ctrl_c(self) -> None:
        os.write(self._terminal, b"\x03")

    def ended(self) -> int:
        """Read until its end. Returns the exit status."""
        self.read(SECONDS)
        status = os.waitstatus_to_exitcode(os.waitpid(self.pid, 0)[1])
        os.close(self._terminal)
        return status

    @property
    def text(self) -> str:
        return self.printed.decode(errors="replace").replace("\r\n", "\n")


@pytest.fixture
def folder() -> Iterator[pathlib.Path]:
    """The demo's TMPDIR, short enough for its sockets."""
    with tempfile.TemporaryDirectory(prefix="demo-") as path:
        yield pathlib.Path(path)


def processes(folder: pathlib.Path) -> list[str]:
    """Return the command lines that name a file of the demo's folder."""
    found = []
    for file in pathlib.Path("/proc").glob("[0-9]*/cmdline"):
        try:
            command = file.read_bytes().replace(b"\0", b" ").decode(errors="replace")
        except OSError:
            continue
        if f"{folder}/" in command:
            found.append(command)
    return found


@pytest.mark.parametrize("seed", range(10))
def test_a_signal_at_any_moment_ends_it_without_a_trace(seed: int, folder: pathlib.Path) -> None:
    """Ctrl-C is no fault of the cluster: one word, the status of shells, no process and no folder left."""
    draws = random.Random(seed)
    arguments = draws.choice(KINDS)
    number = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)[seed % 3]
    demo = Demo(folder, *arguments)

    demo.read(draws.uniform(0.1, 1.0 if seed % 2 else 4.0))
    if number == signal.SIGINT:
        demo.press_ctrl_c()
    else:
        os.kill(demo.pid, number)
    status = demo.ended()

    moment = f"{arguments}, {number.name}:\n{demo.text}"
    if "--once" not in arguments or status != 0:  # The scenario may be over before.
        assert status == start.STOPPED, moment
        assert demo.text.endswith("stopped\n"), moment
    assert not any(word in demo.text for word in ("Traceback", "FAILED", "does not start", "destroyed")), moment
    assert list(folder.iterdir()) == [], moment
    assert processes(folder) == [], moment


def test_its_processes_end_with_it_however_it_dies(folder: pathlib.Path) -> None:
    """A killed demo leaves no extender and no WebUI behind."""
    demo = Demo(folder)
    demo.read(SECONDS, until=b"Ctrl-C ends")
    assert any("scheduler_extender" in command for command in processes(folder)), demo.text

    os.kill(demo.pid, signal.SIGKILL)

    assert demo.ended() == -signal.SIGKILL
    deadline = time.monotonic() + SECONDS
    while processes(folder) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert processes(folder) == []


def test_it_prints_nothing_on_stderr_and_invites_to_look_around(folder: pathlib.Path) -> None:
    """The three commands and the URL of the pages, which answer."""
    demo = Demo(folder)
    demo.read(SECONDS, until=b"Ctrl-C ends")

    exports = ("export KUBECONFIG=", "export HAMI_EXTENDER=", "export HAMI_FAULTS=http://127.0.0.1:")
    for expected in (*exports, "hamictl explain too-big", "The WebUI: http://"):
        assert expected in demo.text
    assert "19 of 19 expectations held" in demo.text

    demo.press_ctrl_c()
    assert demo.ended() == start.STOPPED


def test_a_folder_too_long_for_sockets_is_refused_in_one_sentence(tmp_path: pathlib.Path) -> None:
    """And says what to change: TMPDIR is the user's."""
    long = tmp_path / ("long" * 20)
    long.mkdir()
    demo = Demo(long, "--empty")

    assert demo.ended() == 2
    assert demo.text.count("\n") == 1
    assert "set TMPDIR to a shorter folder" in demo.text
    assert list(long.iterdir()) == []


def test_what_the_cluster_runs_has_ended_before_its_event_loop_does() -> None:
    """A kubelet whose end was interrupted left servers of grpc, which end with a traceback after "stopped"."""
    ended = []

    async def serve() -> None:
        try:
            await asyncio.Event().wait()
        finally:
            await asyncio.sleep(0.2)
            ended.append("closed")

    with api_server.running() as server:
        with cluster._task(server, serve):
            pass
        assert ended == ["closed"]
