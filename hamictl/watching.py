"""What `-w` prints: every item at first, then each one that changed, with the time."""

import datetime
import json
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import msgspec

from hamictl import output

SECONDS = 2.0
"""The pause between two reads."""
_REMOVED = "removed"


def turns(*, watching: bool) -> Iterator[None]:
    """Yield once, or again and again with a pause in between."""
    yield
    while watching:
        sys.stdout.flush()
        time.sleep(SECONDS)
        yield


@dataclass(frozen=True, slots=True)
class Item:
    """One item of a list, such as a pod."""

    value: Any
    """For JSON and YAML; two equal values are no change."""
    row: Mapping[str, str]
    """For a table."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Change:
    """An item that is new, changed or removed."""

    name: str
    change: str
    """`present` at the first read, then `added`, `changed` or `removed`."""
    item: Item


def changes(before: Mapping[str, Item] | None, after: Mapping[str, Item]) -> list[Change]:
    """Return what changed between two reads, in the order of the new one; removed items come last."""
    differing = []
    for name, item in after.items():
        if before is None or name not in before:
            differing.append(Change(name=name, change="present" if before is None else "added", item=item))
        elif before[name].value != item.value:
            differing.append(Change(name=name, change="changed", item=item))
    gone = {name: item for name, item in (before or {}).items() if name not in after}
    return differing + [Change(name=name, change=_REMOVED, item=item) for name, item in gone.items()]


class Printer:
    """Prints the changes between reads; in a table the columns keep their width."""

    def __init__(self, style: output.Style, state_column: str, wide_only: Sequence[str] = ()) -> None:
        self._style = style
        self._state_column = state_column
        self._table = output.GrowingTable(style, wide_only)
        self._before: Mapping[str, Item] | None = None

    def show(self, items: Mapping[str, Item], moment: datetime.datetime) -> None:
        """Print what changed since the last call.

        Args:
            items: By their names, such as `pod/default/train`.
            moment: When they were read.
        """
        differing = changes(self._before, items)
        self._before = dict(items)
        if self._style.is_table:
            for line in self._table.lines([self._row(change, moment) for change in differing]):
                print(line)
            return
        for change in differing:
            print(self._document(change, moment))

    def _row(self, change: Change, moment: datetime.datetime) -> dict[str, str]:
        row = {"TIME": f"{moment:%H:%M:%S}", **change.item.row}
        return row | {self._state_column: _REMOVED} if change.change == _REMOVED else row

    def _document(self, change: Change, moment: datetime.datetime) -> str:
        """Return a change as one line of JSON, one document of YAML, or its name."""
        value = {
            "time": moment.isoformat(timespec="seconds"), "change": change.change, "name": change.name,
            "value": msgspec.to_builtins(change.item.value),
        }  # fmt: skip
        if self._style.form == "json":
            return json.dumps(value, ensure_ascii=False)
        text = output.render(value, [], self._style, names=[change.name])
        return f"---\n{text}" if self._style.form == "yaml" else text


def now() -> datetime.datetime:
    """Return the local time with its offset."""
    return datetime.datetime.now().astimezone()
