"""Rows as a table, wide, as JSON, as YAML, or names only, as kubectl prints them."""

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import msgspec
import yaml

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
            text: str = yaml.safe_dump(msgspec.to_builtins(value), sort_keys=False, allow_unicode=True, width=1000)
            return text.rstrip("\n")
        case "name":
            return "\n".join(names)
        case form:
            hidden = () if form == "wide" else wide_only
            shown = [{key: cell for key, cell in row.items() if key not in hidden} for row in rows]
            return _table(shown, coloured=style.coloured)


def print_rows(value: Any, rows: list[dict[str, str]], style: Style, nothing: str, **more: Any) -> None:
    """Print the rows, or for a table without rows the sentence `nothing`."""
    print(nothing if not rows and style.is_table else render(value, rows, style, **more))


def _table(rows: Sequence[Mapping[str, str]], *, coloured: bool) -> str:
    if not rows:
        return ""
    columns = list(rows[0])
    cells = [columns, *([_clean(row[column]) for column in columns] for row in rows)]
    widths = [max(len(line[index]) for line in cells) for index in range(len(columns))]
    lines = []
    for line in cells:
        padded = [cell.ljust(width) for cell, width in zip(line, widths, strict=True)]
        padded[-1] = padded[-1].rstrip()
        if coloured:
            padded = [_painted(column, cell) for column, cell in zip(columns, padded, strict=True)]
        lines.append("   ".join(padded).rstrip())
    return "\n".join(lines)


def _painted(column: str, cell: str) -> str:
    """Return the cell in the colour of its state, such as `ok` or `2 unhealthy`; its padding is not coloured."""
    match = re.fullmatch(r"((?:\d+ )?(\w+))( *)", cell) if column in _COLOURED else None
    colour = _WORDS.get(match[2]) if match else None
    return f"\033[{colour}m{match[1]}\033[0m{match[3]}" if match and colour else cell


def _clean(text: str) -> str:
    """Replace control characters, because names come from the cluster."""
    return "".join(one if one.isprintable() else "\N{REPLACEMENT CHARACTER}" for one in text)


def mib(amount: int) -> str:
    """Return an amount with thousands separators."""
    return f"{amount:,} MiB"


def percent(part: float, whole: float) -> str:
    """Return a percentage; a dash if the whole is 0."""
    return f"{100 * part / whole:.0f}%" if whole else "-"
