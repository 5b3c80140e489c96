"""Log lines as one JSON object each, with the slice and the trace: for the standard library and for structlog.

A line is bounded: so many fields of so many characters. A value that JSON does not know becomes text, and a line break
in a text is escaped, so that no text of a user makes a line of its own.
"""

import contextlib
import contextvars
import datetime
import json
import logging
import math
import re
import sys
import traceback
from collections.abc import Iterator, Mapping, MutableMapping
from typing import Any, TextIO

from gpu_sharing.workload import slices

_MOST_FIELDS = 64
_LONGEST_TEXT = 8192
_LONGEST_NAME = 64
_DEEPEST = 4
_TRACEPARENT = re.compile(r"[0-9a-f]{2}-([0-9a-f]{32})-[0-9a-f]{16}-[0-9a-f]{2}(-.*)?")
_NO_TRACE = "0" * 32
_OF_RECORD = frozenset(logging.makeLogRecord({}).__dict__) | {"message", "asctime", "taskName"}

_trace_id: contextvars.ContextVar[str] = contextvars.ContextVar("gpu_sharing_trace_id", default="")


@contextlib.contextmanager
def traced(traceparent: str) -> Iterator[str]:
    """Set the trace id of log lines by a header `traceparent` until the block ends; a malformed one sets none."""
    match = _TRACEPARENT.fullmatch(traceparent[:256])
    trace_id = match[1] if match and match[1] != _NO_TRACE else ""
    token = _trace_id.set(trace_id)
    try:
        yield trace_id
    finally:
        with contextlib.suppress(ValueError):  # A generator that is closed in another context.
            _trace_id.reset(token)


def slice_fields(my: slices.Slice | None = None) -> dict[str, str]:
    """Return what of the slice stands in each line; parts that are not known are left out."""
    found = my or slices.my_slice()
    names = ("namespace", "pod", "container", "node", "slice_id", "decision_id")
    return {name: value for name in names if (value := getattr(found, name))}


def exception_fields(cause: BaseException) -> dict[str, str]:
    """Return type, message and traceback of an exception."""
    return {
        "exception_type": type(cause).__qualname__,
        "exception_message": _text(str(cause)),
        "exception_traceback": "".join(traceback.format_exception(cause))[-_LONGEST_TEXT:],
    }


class JsonFormatter(logging.Formatter):
    """Formats the records of the standard library; `extra` becomes fields.

    Args:
        service: Name of the program.
        my: The slice; without it the one of this container.
    """

    def __init__(self, service: str, my: slices.Slice | None = None) -> None:
        super().__init__()
        self._fields = {"service": service, **slice_fields(my)}

    def format(self, record: logging.LogRecord) -> str:
        """Return the line, without a line break."""
        extra = {name: value for name, value in record.__dict__.items() if name not in _OF_RECORD}
        try:
            message = record.getMessage()
        except Exception:  # Arguments that do not fit the text.
            message = f"{record.msg} {record.args!r}"
        fields = {"level": record.levelname.lower(), "logger": record.name, "event": message}
        cause = record.exc_info[1] if record.exc_info else None
        return line(self._fields, fields, extra, cause, record.created)


class StructlogProcessor:
    """A processor of structlog that adds the same fields; a renderer for JSON follows it.

    Args:
        service: Name of the program.
        my: The slice; without it the one of this container.
    """

    def __init__(self, service: str, my: slices.Slice | None = None) -> None:
        self._fields = {"service": service, **slice_fields(my)}

    def __call__(self, logger: object, method: str, event: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
        """Add service, slice and trace, and the fields of an exception in place of `exc_info`."""
        cause = _cause_of(event.pop("exc_info", None))
        own = {**self._fields, **_trace_fields(), **(exception_fields(cause) if cause else {})}
        for name, value in own.items():
            event.setdefault(name, value)
        return event


class StructuredLogger:
    """A logger for programs that have none: `log = StructuredLogger("trainer")`, `log.info("epoch", number=3)`.

    Args:
        service: Name of the program.
        stream: Where the lines go; without it to stdout.
        my: The slice; without it the one of this container.
        fields: Fields of each line.
    """

    def __init__(
        self,
        service: str,
        *,
        stream: TextIO | None = None,
        my: slices.Slice | None = None,
        fields: Mapping[str, Any] | None = None,
    ) -> None:
        # A handler of its own: its lock is renewed after a fork by the standard library, and its lines are whole.
        self._handler = logging.StreamHandler(stream or sys.stdout)
        self._handler.setFormatter(JsonFormatter(service, my))
        self._fields = dict(fields or {})
        self._name = service

    def bind(self, **fields: Any) -> "StructuredLogger":
        """Return a logger whose lines have these fields, too."""
        bound = object.__new__(StructuredLogger)
        bound._handler, bound._name = self._handler, self._name
        bound._fields = {**self._fields, **fields}
        return bound

    def debug(self, event: str, **fields: Any) -> None:
        """Write a line of level debug."""
        self._write(logging.DEBUG, event, fields)

    def info(self, event: str, **fields: Any) -> None:
        """Write a line of level info."""
        self._write(logging.INFO, event, fields)

    def warning(self, event: str, **fields: Any) -> None:
        """Write a line of level warning."""
        self._write(logging.WARNING, event, fields)

    def error(self, event: str, **fields: Any) -> None:
        """Write a line of level error."""
        self._write(logging.ERROR, event, fields)

    def exception(self, event: str, **fields: Any) -> None:
        """Write a line of level error, with the exception that is being handled."""
        self._write(logging.ERROR, event, fields, sys.exception())

    def _write(self, level: int, event: str, fields: Mapping[str, Any], cause: BaseException | None = None) -> None:
        info = (type(cause), cause, cause.__traceback__) if cause else None
        record = logging.LogRecord(self._name, level, "", 0, "%s", (event,), info)
        for name, value in {**self._fields, **fields}.items():
            # A name of a record's own attribute would change the record.
            record.__dict__[f"{name}_" if name in _OF_RECORD else name] = value
        self._handler.handle(record)


def line(
    own: Mapping[str, str],
    fields: Mapping[str, Any],
    extra: Mapping[str, Any],
    cause: BaseException | None,
    unix_seconds: float,
) -> str:
    """Return one JSON object without a line break; the fields of the program do not replace ours."""
    moment = datetime.datetime.fromtimestamp(unix_seconds, datetime.UTC).isoformat(timespec="milliseconds")
    ours = {"timestamp": moment, **fields, **own, **_trace_fields(), **(exception_fields(cause) if cause else {})}
    more = {str(name)[:_LONGEST_NAME]: value for name, value in list(extra.items())[:_MOST_FIELDS]}
    whole = {name: _value(value, 0) for name, value in {**more, **ours}.items()}
    return json.dumps(whole, allow_nan=False)


def _trace_fields() -> dict[str, str]:
    trace_id = _trace_id.get()
    return {"trace_id": trace_id} if trace_id else {}


def _cause_of(info: Any) -> BaseException | None:
    if isinstance(info, BaseException):
        return info
    if isinstance(info, tuple):
        found = info[1] if len(info) > 1 else None
        return found if isinstance(found, BaseException) else None
    return sys.exception() if info else None


def _value(value: Any, depth: int) -> Any:
    """Return a value that JSON has, bounded in size and depth."""
    if value is None or isinstance(value, bool):
        return value
    if isinstance(value, int):
        return value if -(2**63) <= value < 2**63 else _text(hex(value))
    if isinstance(value, float):
        return value if math.isfinite(value) else str(value)
    if depth < _DEEPEST and isinstance(value, Mapping):
        return {_text(name)[:_LONGEST_NAME]: _value(one, depth + 1) for name, one in list(value.items())[:_MOST_FIELDS]}
    if depth < _DEEPEST and isinstance(value, list | tuple):
        return [_value(one, depth + 1) for one in value[:_MOST_FIELDS]]
    return _text(value)


def _text(value: object) -> str:
    try:
        text = value if isinstance(value, str) else str(value)
    except Exception as cause:
        text = f"<{type(value).__name__} without text: {type(cause).__name__}>"
    return text if len(text) <= _LONGEST_TEXT else f"{text[:_LONGEST_TEXT]}… ({len(text)} characters)"
