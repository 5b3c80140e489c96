"""Rows as a table, wide, as JSON, as YAML, or names only, as kubectl prints them."""

import json
from collections.abc import Mapping, Sequence
from typing import Any

import yaml

FORMATS = ("table", "wide", "json", "yaml", "name")


def render(
    value: Any,
    rows: Sequence[Mapping[str, str]],
    form: str,
    *,
    wide_only: Sequence[str] = (),
    names: Sequence[str] = (),
) -> str:
    """The text to print.

    Args:
        value: What JSON and YAML show.
        rows: Column to cell, the columns in order.
        form: One of `FORMATS`.
        wide_only: Columns that only `wide` shows.
        names: What `name` shows, such as `node/a`.
    """
    match form:
        case "json":
            return json.dumps(value, indent=2, ensure_ascii=False)
        case "yaml":
            text: str = yaml.safe_dump(value, sort_keys=False, allow_unicode=True, width=1000)
            return text.rstrip("\n")
        case "name":
            return "\n".join(names)
        case _:
            hidden = () if form == "wide" else wide_only
            return _table([{key: cell for key, cell in row.items() if key not in hidden} for row in rows])


def _table(rows: Sequence[Mapping[str, str]]) -> str:
    if not rows:
        return ""
    columns = list(rows[0])
    cells = [columns, *([_clean(row[column]) for column in columns] for row in rows)]
    widths = [max(len(line[index]) for line in cells) for index in range(len(columns))]
    return "\n".join(
        "   ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip() for line in cells
    )


def _clean(text: str) -> str:
    """Without what moves the cursor: names come from the cluster."""
    return "".join(one if one.isprintable() else "\N{REPLACEMENT CHARACTER}" for one in text)


def mib(amount: int) -> str:
    """MiB with thousands separators."""
    return f"{amount:,} MiB"


def percent(part: float, whole: float) -> str:
    """A share of 100; a dash of nothing."""
    return f"{100 * part / whole:.0f}%" if whole else "-"
