"""What the pages tell readers to type does what the pages say. Each page gets a cluster of its own, the demo's."""

import contextlib
import os
import pathlib
import re
import subprocess
import sys
import time
from collections.abc import Iterator

import pytest

from tests import tools
from tests.docs import blocks

ROOT = pathlib.Path(__file__).parents[2]
PAGES = {str(page.relative_to(ROOT / "docs")): page.read_text() for page in sorted(ROOT.glob("docs/**/*.md"))}
RUN = [name for name, page in PAGES.items() if any(block.is_run for block in blocks.blocks(page))]
_MARK = "--- status of the command:"
_LOOKS = ("kubectl get ", "kubectl describe ", "hamictl ")
"""Commands that change nothing: asked again until they show what the reader sees, who types more slowly."""
_PATIENCE_SECONDS = 15.0


@pytest.mark.parametrize("name", PAGES)
def test_every_block_is_run_or_says_why_not(name: str) -> None:
    """A command that nobody has tried is one that does not work."""
    neither = [
        f"line {block.line}: ```{block.language}"
        for block in blocks.blocks(PAGES[name])
        if block.language not in (*blocks.DATA, blocks.RUN) and not block.excused
    ]

    assert neither == []


@contextlib.contextmanager
def demo(page: str) -> Iterator[dict[str, str]]:
    """The demo's cluster, with the flags that the page gives it; the variables that it tells its user to export."""
    flags = re.search(r'^make demo ARGS="?([^"\n]*)"?$', page, re.M)
    command = [sys.executable, "-m", "hamictl", "demo", *(flags[1] if flags else "--empty").split()]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True) as running:
        assert running.stdout is not None
        try:
            told = ""
            for line in running.stdout:
                told += line
                if "Ctrl-C" in line:
                    break
            yield dict(re.findall(r"export (\w+)=(\S+)", told))
        finally:
            running.terminate()


class Shell:
    """A reader's terminal."""

    def __init__(self, process: "subprocess.Popen[str]") -> None:
        self._process = process

    def run(self, command: str) -> tuple[int, str]:
        """Type a command. Returns its status and what it printed."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(f"{{ {command}\n}} </dev/null\nprintf '\\n%s %s\\n' '{_MARK}' $?\n")
        self._process.stdin.flush()
        printed = ""
        for line in self._process.stdout:
            if line.startswith(_MARK):
                return int(line.removeprefix(_MARK)), printed
            printed += line
        raise AssertionError(f"{command!r} has ended the shell:\n{printed}")


@pytest.fixture
def shell(name: str, tmp_path: pathlib.Path) -> Iterator[Shell]:
    """A terminal beside the cluster of a page, in an empty folder."""
    folders = [str(pathlib.Path(sys.executable).parent), str(pathlib.Path(tools.kubectl()).parent)]
    with demo(PAGES[name]) as variables:
        path = os.pathsep.join([*folders, os.environ["PATH"]])
        environment = {**os.environ, **variables, "PATH": path, "HOME": str(tmp_path), "NO_COLOR": "1"}
        with subprocess.Popen(
            ["bash", "--noprofile", "--norc"],
            cwd=tmp_path,
            env=environment,
            text=True,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
        ) as process:
            yield Shell(process)
            assert process.stdin is not None
            process.stdin.close()


@pytest.mark.parametrize("name", RUN)
def test_commands_do_what_the_page_says(name: str, shell: Shell) -> None:
    """In the order of the page: each succeeds, and prints the lines that are shown under it."""
    for block in blocks.blocks(PAGES[name]):
        if not block.is_run:
            continue
        for command in blocks.commands(block):
            deadline = time.monotonic() + _PATIENCE_SECONDS
            while True:
                status, printed = shell.run(command.text)
                absent = blocks.missing(command.shown, printed)
                again = command.text.startswith(_LOOKS) and time.monotonic() < deadline
                if (status == 0 and not absent) or not again:
                    break
                time.sleep(0.3)
            where = f"{name}, block at line {block.line}: {command.text}\nprinted:\n{printed}"
            assert status == 0, f"status {status} of {where}"
            assert not absent, f"this line was not printed: {absent!r}\n{where}"
