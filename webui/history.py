"""The last hour of the cluster and of each node, in a ring of fixed size: it forgets, and never grows."""

import array
import threading
from collections.abc import Sequence
from dataclasses import dataclass

from webui import models

STEP_SECONDS = 30.0
LENGTH = 120
WINDOWS = {"1h": 3_600.0, "6h": 6 * 3_600.0, "1d": 86_400.0, "7d": 7 * 86_400.0}
"""Windows of a history, in seconds; those longer than the ring need a Prometheus."""
_UNKNOWN = -1


@dataclass(frozen=True, slots=True)
class Series:
    """Memory over time, oldest first."""

    at: tuple[float, ...]
    """Unix seconds."""
    allocated_mib: tuple[int | None, ...]
    used_mib: tuple[int | None, ...]
    """None where it was not known."""
    words: str
    """The same as a sentence."""


class _Track:
    """Two numbers over time."""

    __slots__ = ("allocated", "used")

    def __init__(self) -> None:
        self.allocated = array.array("q", [_UNKNOWN]) * LENGTH
        self.used = array.array("q", [_UNKNOWN]) * LENGTH

    def put(self, slot: int, allocated_mib: int, used_mib: int | None) -> None:
        self.allocated[slot] = allocated_mib
        self.used[slot] = _UNKNOWN if used_mib is None else used_mib


class Ring:
    """One sample every half minute."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._at: list[float] = []
        self._next = 0
        self._cluster = _Track()
        self._nodes: dict[str, _Track] = {}

    def put(self, view: models.View) -> None:
        """Take a sample, if it is time."""
        with self._lock:
            if view.overview is None or (self._at and view.taken_at - self._newest() < STEP_SECONDS):
                return
            slot = self._next % LENGTH
            self._at[slot : slot + 1] = [view.taken_at]
            self._next += 1
            self._cluster.put(slot, view.overview.allocated_mib, view.overview.used_mib)
            for name in self._nodes.keys() - view.nodes_by_name.keys():
                del self._nodes[name]
            for node in view.nodes:
                used = models.sum_known(gpu.used_mib for gpu in node.gpus)
                self._nodes.setdefault(node.name, _Track()).put(slot, node.allocated_mib, used)

    def _newest(self) -> float:
        return self._at[(self._next - 1) % LENGTH]

    def series(self, node: str = "") -> Series:
        """Of a node, or of the cluster; empty where nothing is known."""
        with self._lock:
            track = self._nodes.get(node) if node else self._cluster
            if track is None:
                return series_of((), (), ())
            count = len(self._at)
            oldest_first = [(self._next - count + index) % LENGTH for index in range(count)]
            slots = [slot for slot in oldest_first if track.allocated[slot] != _UNKNOWN]
            used = [None if track.used[slot] == _UNKNOWN else track.used[slot] for slot in slots]
            return series_of([self._at[slot] for slot in slots], [track.allocated[slot] for slot in slots], used)


def series_of(at: Sequence[float], allocated_mib: Sequence[int | None], used_mib: Sequence[int | None]) -> Series:
    """A series with its words."""
    if not at:
        return Series((), (), (), "Nothing has been measured yet.")
    minutes = max(round((at[-1] - at[0]) / 60), 1)
    span = "minute" if minutes == 1 else f"{minutes} minutes" if minutes < 120 else f"{round(minutes / 60)} hours"
    words = f"In the last {span}: allocated {_range(allocated_mib)}; used {_range(used_mib)}."
    return Series(tuple(at), tuple(allocated_mib), tuple(used_mib), words)


def _range(amounts: Sequence[int | None]) -> str:
    known = [one for one in amounts if one is not None]
    if not known:
        return "unknown"
    now = f"{known[-1]:,} MiB" if amounts[-1] is not None else "unknown"
    return f"{min(known):,} to {max(known):,} MiB, now {now}"
