"""The documents as a newcomer reads them: every command exists, and what the demo prints fits the terminal."""

import contextlib
import fcntl
import io
import itertools
import os
import pathlib
import pty
import re
import select
import shlex
import signal
import struct
import subprocess
import sys
import termios
import time

import pytest

from hamictl import commands as hamictl_commands
from tests.chart import rendering
from tests.docs.test_commands import PAGES, ROOT

HAMICTL = str(pathlib.Path(sys.executable).parent / "hamictl")
SECONDS = 120.0
DOCUMENTS = PAGES | {name: (ROOT / name).read_text() for name in ("README.md", "CONTRIBUTING.md")}
_PLACEHOLDER = re.compile(r"…|\.\.\.|\[|<|\bCODE\b|COMMAND")


def commands(first: str) -> list[tuple[str, list[str]]]:
    """Every command of the documents that begins with this word: the page, and its words."""
    found = []
    for name, page in DOCUMENTS.items():
        text = page.replace("\\\n", " ")
        shown = re.findall(rf"^\s*(?:\$ )?({first} [^\n]*)$", text, re.M)
        shown += [" ".join(one.split()) for one in re.findall(rf"`({first} [^`]*)`", text)]
        for command in shown:
            words = shlex.split(command, comments=True) if command.count("'") % 2 == 0 else command.split()
            found.append((name, words))
    return found


def test_every_make_target_exists() -> None:
    """`make x` in a page is in the Makefile."""
    targets = set(re.findall(r"^([a-z0-9-]+):", (ROOT / "Makefile").read_text(), re.M))
    words = {(page, word) for page, found in commands("make") for word in found[1:]}
    used = {(page, word) for page, word in words if re.fullmatch(r"[a-z][a-z-]*", word)}
    assert len(used) > 10
    assert {(page, word) for page, word in used if word not in targets} == set()


def refusal(words: list[str]) -> str:
    """What the parser of hamictl objects to in a command; a text that only names one may leave out arguments."""
    own = list(itertools.takewhile(lambda word: word not in ("||", "&&", "|", ";"), words))
    said = io.StringIO()
    with contextlib.redirect_stderr(said), contextlib.redirect_stdout(said):
        try:
            hamictl_commands.make_parser().parse_args(own[1:])
        except SystemExit as ended:
            text = said.getvalue()
            return text if ended.code and "are required" not in text and "expected one argument" not in text else ""
    return ""


def test_every_hamictl_command_is_understood() -> None:
    """Its parser takes each command as the page shows it."""
    plain = [
        (page, words)
        for page, words in commands("hamictl")
        if not any(_PLACEHOLDER.search(word) for word in words) and not set(words) & {"|", ">", "&&"}
    ]
    assert len(plain) > 15
    assert [(page, words, said) for page, words in plain if (said := refusal(words))] == []


def test_every_value_in_a_helm_command_is_one_of_the_chart(tmp_path: pathlib.Path) -> None:
    """A value that was renamed is refused here, and not at the reader's installation."""
    for page, words in commands("helm"):
        if words[1] not in ("install", "upgrade"):
            continue
        arguments = [part for one, two in itertools.pairwise(words) if one == "--set" for part in (one, two)]
        assert rendering.objects(4, *arguments), (page, words)


class Terminal:
    """A command in a terminal of some columns; its standard error is read apart."""

    def __init__(self, columns: int, *arguments: str) -> None:
        self._master, slave = pty.openpty()
        fcntl.ioctl(slave, termios.TIOCSWINSZ, struct.pack("HHHH", 50, columns, 0, 0))
        environment = {**os.environ, "TERM": "xterm", "NO_COLOR": "1"}
        environment.pop("COLUMNS", None)
        self._process = subprocess.Popen(
            [HAMICTL, *arguments], stdin=slave, stdout=slave, stderr=subprocess.PIPE, env=environment, cwd=ROOT
        )
        os.close(slave)

    def read(self, until: str = "") -> str:
        """Return what it prints, until a text or its end."""
        printed = b""
        deadline = time.monotonic() + SECONDS
        while time.monotonic() < deadline and not (until and until.encode() in printed):
            if select.select([self._master], [], [], 0.2)[0]:
                try:
                    part = os.read(self._master, 65_536)
                except OSError:  # The other side is closed.
                    break
                printed += part
        return re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", printed.decode()).replace("\r\n", "\n")

    def end(self, number: signal.Signals | None = None) -> tuple[int, str]:
        """End it. Returns its status and what it wrote to standard error."""
        if number is not None:
            self._process.send_signal(number)
        while self.read():
            pass
        _, errors = self._process.communicate(timeout=SECONDS)
        os.close(self._master)
        return self._process.returncode, errors.decode()


def too_long(text: str, columns: int) -> list[str]:
    """Return the lines that do not fit; paths and bars that are drawn over themselves may."""
    lines = [part for line in text.split("\n") for part in line.split("\r")]
    return [line for line in lines if len(line.rstrip()) > columns and "export " not in line]


@pytest.mark.parametrize("columns", [80, 140])
@pytest.mark.parametrize("arguments", [["--once"], ["--once", "--trace"], ["--once", "--nodes", "5", "--pods", "50"]])
def test_the_demo_fits_the_terminal_and_says_nothing_on_standard_error(arguments: list[str], columns: int) -> None:
    """As the README shows it, in a small and in a wide terminal."""
    terminal = Terminal(columns, "demo", *arguments)
    printed = terminal.read()

    status, errors = terminal.end()

    assert (status, errors) == (0, ""), printed
    assert too_long(printed, columns) == []
    assert "expectations held" in printed


@pytest.mark.parametrize("columns", [80, 140])
def test_the_demo_that_stays_is_ended_by_a_signal(columns: int) -> None:
    """With what to try next, and one word at the end."""
    terminal = Terminal(columns, "demo", "--empty")
    printed = terminal.read(until="Ctrl-C ends")

    status, errors = terminal.end(signal.SIGINT)

    assert (status, errors) == (130, "")
    assert "hamictl nodes" in printed
    assert too_long(printed, columns) == []
