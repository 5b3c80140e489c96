"""Structured logs: JSON in a cluster, colours on a terminal, one verbosity scale for all processes.

| verbosity | what is written |
| --- | --- |
| 0 | errors |
| 1 | also warnings |
| 2 | also changes: starts, stops, lists, health, preemptions |
| 3 | also one line for each pod bound and each container started (the default); independent of the number of nodes |
| 4 | also one line for each node considered |
| 5 | also the detail of each of its GPUs, and how each node's score came about |
| 6 | everything: calls of the API server, uses of caches, plans, probes |

The level can be changed while a process runs: SIGUSR1 raises it by one, SIGUSR2 lowers it.
"""

import contextlib
import logging
import os
import signal
import sys
import time
from collections.abc import Callable, MutableMapping
from typing import Any

import orjson
import structlog

from gpu_sharing.adapters import signals

FORMATS = ("json", "text", "console")
DECISIONS, NODES, DEVICES, HIGHEST = 3, 4, 5, 6
_OF_LEVEL = {"debug": HIGHEST, "info": 2, "warning": 1, "error": 0, "critical": 0}
_LETTERS = {"debug": "I", "info": "I", "warning": "W", "error": "E", "critical": "F"}
_REPEAT_SECONDS = 10.0
_MOST_REMEMBERED = 1000
_CALLSITE = (
    structlog.processors.CallsiteParameter.FILENAME,
    structlog.processors.CallsiteParameter.LINENO,
)
_OF_HEADER = frozenset({"timestamp", "level", "event", "filename", "lineno"})
_NOT_COMPARED = frozenset({"timestamp", "decision_id", "seconds"})


class _Level:
    """The verbosity of this process now."""

    def __init__(self) -> None:
        self.verbosity = DECISIONS

    def change(self, by: int) -> None:
        self.verbosity = min(max(self.verbosity + by, 0), HIGHEST)


_level = _Level()
log = structlog.get_logger("logs")


def shows(verbosity: int) -> bool:
    """Return whether lines of that verbosity are written now; check before computing one."""
    return _level.verbosity >= verbosity


class Repeats:
    """Drops repeats of a warning or error, and adds their number to the next line written.

    Args:
        clock: Monotonic seconds.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._seen: dict[str, tuple[float, int]] = {}

    def __call__(self, logger: Any, method: str, line: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
        """See structlog's processors."""
        if _OF_LEVEL.get(line["level"], 0) > 1:
            return line
        key = repr(sorted((name, str(value)) for name, value in line.items() if name not in _NOT_COMPARED))
        now = self._clock()
        written_at, left_out = self._seen.get(key, (float("-inf"), 0))
        if now - written_at < _REPEAT_SECONDS:
            self._seen[key] = (written_at, left_out + 1)
            raise structlog.DropEvent
        self._seen.pop(key, None)
        self._seen[key] = (now, 0)
        if len(self._seen) > _MOST_REMEMBERED:
            del self._seen[next(iter(self._seen))]
        if left_out:
            line["repeated"] = left_out
        return line


def configure(verbosity: int, log_format: str) -> None:
    """Set up logging for this process.

    Args:
        verbosity: 0 to 6, see above.
        log_format: `json`, `text` (as klog) or `console` (colours).
    """
    _level.verbosity = verbosity
    processors: list[Any] = [
        structlog.contextvars.merge_contextvars,
        structlog.processors.add_log_level,
        _by_level,
        structlog.processors.format_exc_info,
        Repeats(),
        structlog.processors.TimeStamper(fmt="iso", utc=True),
    ]
    if log_format == "text":
        processors.append(structlog.processors.CallsiteParameterAdder(_CALLSITE))
    logger_factory: Any = structlog.WriteLoggerFactory(sys.stdout)
    if log_format == "json":
        processors.append(structlog.processors.JSONRenderer(serializer=_dumps))
        logger_factory = structlog.BytesLoggerFactory(sys.stdout.buffer)
    elif log_format == "text":
        processors.append(as_text)
    else:
        processors.append(structlog.dev.ConsoleRenderer(colors=sys.stdout.isatty()))
    structlog.configure(
        processors=processors,
        wrapper_class=structlog.make_filtering_bound_logger(logging.DEBUG),
        logger_factory=logger_factory,
        cache_logger_on_first_use=True,
    )
    logging.basicConfig(level=logging.WARNING, stream=sys.stderr, format="%(levelname)s %(name)s %(message)s")
    with contextlib.suppress(ValueError):  # Only the main thread may set signal handlers; elsewhere the level is fixed.
        signals.act_on((signal.SIGUSR1,), lambda: _change(1))
        signals.act_on((signal.SIGUSR2,), lambda: _change(-1))


def as_text(logger: Any, method: str, line: MutableMapping[str, Any]) -> str:
    """Return a line in klog's format, with the process's id where klog has it.

    Texts are quoted as in Go, with escaped newlines, so that each event is one line; klog itself writes a text of
    several lines as a block. Numbers and booleans are bare, lists and maps are JSON.

    Example: `E0604 10:20:30.123456       1 verbs.py:724] "Failed to schedule pod" pod="ai/train" gpus=2`

    Source: k8s.io/klog/v2, `klog.go` (header) and `internal/serialize` (keys and values).
    """
    date, _, moment = str(line["timestamp"]).rstrip("Z").partition("T")
    head = f"{_LETTERS.get(line['level'], 'I')}{date[5:7]}{date[8:10]} {moment} {os.getpid():7d}"
    place = f"{line.get('filename', 'unknown')}:{line.get('lineno', 1)}"
    rest = [f"{key}={_text(line[key])}" for key in line if key not in _OF_HEADER]
    return " ".join([head, f"{place}] {_text(str(line['event']))}", *rest])


def _text(value: Any) -> str:
    """Return a value as klog writes it."""
    if value is None:
        return "<nil>"
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, str) or not isinstance(value, (int, float, list, tuple, dict, set, frozenset)):
        return orjson.dumps(str(value)).decode()
    plain = sorted(value) if isinstance(value, (set, frozenset)) else value
    return orjson.dumps(plain, default=str, option=orjson.OPT_NON_STR_KEYS).decode()


def _change(by: int) -> None:
    _level.change(by)
    log.warning("verbosity changed", verbosity=_level.verbosity)


def _by_level(logger: Any, method: str, line: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
    if _level.verbosity < _OF_LEVEL.get(line["level"], 0):
        raise structlog.DropEvent
    return line


def _dumps(value: Any, **_: Any) -> bytes:
    return orjson.dumps(value, default=str, option=orjson.OPT_NON_STR_KEYS)
