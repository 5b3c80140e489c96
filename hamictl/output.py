"""Rows as a table, wide, as JSON, as YAML, or names only, as kubectl prints them."""

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import msgspec

FORMATS = ("table", "wide", "json", "yaml", "name")
TABLES = FORMATS[:2]
COLOURS = ("auto", "always", "never")
_GREEN, _YELLOW, _RED = 32, 33, 31
_WORDS = {
    "ok": _GREEN, "running": _GREEN, "fits": _GREEN, "yes": _GREEN, "starting": _YELLOW, "pending": _YELLOW,
    "warning": _YELLOW, "cordoned": _YELLOW, "unhealthy": _RED, "error": _RED, "no": _RED,
}  # fmt: skip
_COLOURED = ("STATE", "HEALTH", "SEVERITY", "FITS", "WHY")
"""The columns in which these words are states; in other columns they may be names."""


@dataclass(frozen=True, slots=True)
class Style:
    """The format and colour of an answer."""

    form: str = "table"
    """One of `FORMATS`."""
    coloured: bool = False
    """Whether tables are coloured; the other formats never are."""

    @property
    def is_table(self) -> bool:
        """Whether the format is a table."""
        return self.form in TABLES


def is_coloured(when: str, environment: Mapping[str, str], on_terminal: bool) -> bool:
    """Return whether to colour tables, by the flag and by the convention of NO_COLOR.

    Source: no-color.org

    Args:
        when: One of `COLOURS`.
        environment: May contain NO_COLOR and TERM.
        on_terminal: Whether the output is a terminal.
    """
    if when == "auto":
        return on_terminal and not environment.get("NO_COLOR") and environment.get("TERM") != "dumb"
    return when == "always"


def render(
    value: Any,
    rows: Sequence[Mapping[str, str]],
    style: Style,
    *,
    wide_only: Sequence[str] = (),
    names: Sequence[str] = (),
) -> str:
    """Return the text to print.

    Args:
        value: For JSON and YAML.
        rows: Column to cell, the columns in order.
        style: The format and colour.
        wide_only: Columns that only `wide` shows.
        names: For `name`, such as `node/a`.
    """
    match style.form:
        case "json":
            return json.dumps(msgspec.to_builtins(value), indent=2, ensure_ascii=False)
        case "yaml":
            import yaml  # Here, because no other format needs it.

            text: str = yaml.safe_dump(msgspec.to_builtins(value), sort_keys=False, allow_unicode=True, width=1000)
            return text.rstrip("\n")
        case "name":
            return "\n".join(names)
        case _:
            return "\n".join(GrowingTable(style, wide_only).lines(rows))


def print_rows(value: Any, rows: list[dict[str, str]], style: Style, nothing: str, **more: Any) -> None:
    """Print the rows, or for a table without rows the sentence `nothing`."""
    print(nothing if not rows and style.is_table else render(value, rows, style, **more))


class GrowingTable:
    """A table that is printed in parts: the header comes once, and no column becomes narrower."""

    def __init__(self, style: Style, wide_only: Sequence[str] = ()) -> None:
        """Start without rows.

        Args:
            style: The format and colour.
            wide_only: Columns that only the format `wide` shows.
        """
        self._coloured = style.coloured
        self._hidden = () if style.form == "wide" else wide_only
        self._widths: list[int] = []

    def lines(self, rows: Sequence[Mapping[str, str]]) -> list[str]:
        """Return the lines of more rows; before the first rows the header."""
        if not rows:
            return []
        columns = [column for column in rows[0] if column not in self._hidden]
        cells = [[clean(row[column]) for column in columns] for row in rows]
        if not self._widths:
            cells.insert(0, columns)
            self._widths = [0] * len(columns)
        self._widths = [max(width, *(len(line[index]) for line in cells)) for index, width in enumerate(self._widths)]
        return [self._line(columns, line) for line in cells]

    def _line(self, columns: Sequence[str], cells: Sequence[str]) -> str:
        padded = [cell.ljust(width) for cell, width in zip(cells, self._widths, strict=True)]
        padded[-1] = padded[-1].rstrip()
        if self._coloured:
            padded = [_painted(column, cell) for column, cell in zip(columns, padded, strict=True)]
        return "   ".join(padded).rstrip()


def painted(column: str, cell: str, style: Style) -> str:
    """Return a cell of a column, in the colour of its state where the style has colours."""
    return _painted(column, cell) if style.coloured else cell


def _painted(column: str, cell: str) -> str:
    """Return the cell in the colour of its state, such as `ok` or `2 unhealthy`; its padding is not coloured."""
    match = re.fullmatch(r"((?:\d+ )?(\w+))( *)", cell) if column in _COLOURED else None
    colour = _WORDS.get(match[2]) if match else None
    return f"\033[{colour}m{match[1]}\033[0m{match[3]}" if match and colour else cell


def clean(text: str) -> str:
    """Return a text without control characters, because names come from the cluster."""
    return "".join(one if one.isprintable() else "\N{REPLACEMENT CHARACTER}" for one in text)


def mib(amount: int) -> str:
    """Return an amount with thousands separators."""
    return f"{amount:,} MiB"


def age(seconds: float) -> str:
    """Return a duration in its two largest units, as kubectl does: `45s`, `12m`, `3h20m`, `5d`."""
    whole = max(int(seconds), 0)
    minutes, hours, days = whole // 60, whole // 3600, whole // 86_400
    if days >= 3:
        return f"{days}d"
    if hours >= 1:
        return f"{hours}h{minutes % 60}m" if hours < 10 and minutes % 60 else f"{hours}h"
    return f"{minutes}m" if minutes >= 2 else f"{whole}s"


def percent(part: float, whole: float) -> str:
    """Return a percentage; a dash if the whole is 0."""
    return f"{100 * part / whole:.0f}%" if whole else "-"
