"""The fenced blocks of a page, and the commands in them.

A block marked `console` holds commands after `$ ` and, under each, what it prints. It is run, as is everything that a
reader would type; what is not run says why, in a comment before it: `<!-- not run: it needs a GPU -->`.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass

DATA = ("json", "promql", "text", "yaml")
"""Blocks that nobody types."""
RUN = "console"
_FENCE = re.compile(r"(\s*)```(\w*)\s*")
_NOT_RUN = re.compile(r"\s*<!-- not run: \S.* -->")
_HERE = re.compile(r"<<'(\w+)'")


@dataclass(frozen=True, slots=True)
class Block:
    """A fenced block."""

    language: str
    line: int
    """Where it starts, from 1."""
    excused: bool
    """Whether a comment says why it is not run."""
    lines: tuple[str, ...]

    @property
    def is_run(self) -> bool:
        """Whether its commands are typed by the test."""
        return self.language == RUN and not self.excused


@dataclass(frozen=True, slots=True)
class Command:
    """What a reader types, and what they are told to see."""

    text: str
    shown: tuple[str, ...]


def blocks(page: str) -> Iterator[Block]:
    """Every fenced block of a page."""
    before, lines = "", iter(enumerate(page.splitlines(), 1))
    for number, line in lines:
        opened = _FENCE.fullmatch(line)
        if opened:
            inside: list[str] = []
            for _, one in lines:
                if one.strip() == "```":
                    break
                inside.append(one.removeprefix(opened[1]))
            yield Block(opened[2], number, _NOT_RUN.fullmatch(before) is not None, tuple(inside))
        before = line if line.strip() else before


def commands(block: Block) -> Iterator[Command]:
    """The commands of a block, each with what stands under it; a here-document belongs to its command."""
    text: list[str] = []
    shown: list[str] = []
    end = ""
    for line in block.lines:
        if end:
            text.append(line)
            end = "" if line == end else end
        elif line.startswith("$ "):
            if text:
                yield Command("\n".join(text), tuple(shown))
            text, shown = [line[2:]], []
            here = _HERE.search(line)
            end = here[1] if here else ""
        else:
            assert text, f"line {block.line}: a console block starts with a command after `$ `"
            shown.append(line)
    if text:
        yield Command("\n".join(text), tuple(shown))


def missing(shown: tuple[str, ...], printed: str) -> str:
    """The first line of what is shown that was not printed after those before it; empty if all were.

    Width of gaps does not count, and `…` stands for anything.
    """
    rest = iter(" ".join(line.split()) for line in printed.splitlines())
    for line in shown:
        words = " ".join(line.split())
        pattern = re.compile(".*".join(re.escape(part) for part in words.split("…")))
        if words and not any(pattern.fullmatch(one) for one in rest):
            return line
    return ""
