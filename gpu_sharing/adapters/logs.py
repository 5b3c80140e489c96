"""Structured logs: JSON in a cluster, colours on a terminal, one verbosity scale for all processes.

| verbosity | what is written |
| --- | --- |
| 0 | errors |
| 1 | also warnings |
| 2 | also changes: starts, stops, lists, health, preemptions |
| 3 | also one line for each pod bound and each container started (the default); independent of the number of nodes |
| 4 | also one line for each node considered |
| 5 | also the detail of each of its GPUs |
| 6 | everything, probes included |

The level can be changed while a process runs: SIGUSR1 raises it by one, SIGUSR2 lowers it.
"""

import contextlib
import json
import logging
import signal
import sys
import time
from collections.abc import Callable, Mapping, MutableMapping
from typing import Any

import orjson
import structlog

FORMATS = ("json", "text", "console")
DECISIONS, NODES, DEVICES, HIGHEST = 3, 4, 5, 6
_OF_LEVEL = {"debug": HIGHEST, "info": 2, "warning": 1, "error": 0, "critical": 0}
_LETTERS = {"debug": "I", "info": "I", "warning": "W", "error": "E", "critical": "F"}
_REPEAT_SECONDS = 10.0
_MOST_REMEMBERED = 1000
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
        log_format: `json`, `text` (as klog, key=value) or `console` (colours).
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
        signal.signal(signal.SIGUSR1, lambda *_: _change(1))
        signal.signal(signal.SIGUSR2, lambda *_: _change(-1))


def as_text(logger: Any, method: str, line: Mapping[str, Any]) -> str:
    """Return a line in klog's format: `E1128 16:50:05.123456 rejected error_code=… pod=default/train gpus=2`.

    Values with spaces, quotes or newlines are quoted as in JSON, so that each event is one line.
    """
    date, _, moment = str(line["timestamp"]).rstrip("Z").partition("T")
    head = f"{_LETTERS.get(line['level'], 'I')}{date[5:7]}{date[8:10]} {moment} {_text(line['event'])}"
    rest = [f"{key}={_text(line[key])}" for key in line if key not in ("timestamp", "level", "event")]
    return " ".join([head, *rest])


def _text(value: Any) -> str:
    text = value if isinstance(value, str) else orjson.dumps(value, default=str).decode()
    return json.dumps(text, ensure_ascii=False) if not text or any(one in text for one in ' "\n\r\t=') else text


def _change(by: int) -> None:
    _level.change(by)
    log.warning("verbosity changed", verbosity=_level.verbosity)


def _by_level(logger: Any, method: str, line: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
    if _level.verbosity < _OF_LEVEL.get(line["level"], 0):
        raise structlog.DropEvent
    return line


def _dumps(value: Any, **_: Any) -> bytes:
    return orjson.dumps(value, default=str, option=orjson.OPT_NON_STR_KEYS)
