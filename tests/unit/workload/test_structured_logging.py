"""Log lines of a workload: one JSON object each, whatever is logged."""

import io
import json
import logging
import math
from typing import Any

import pytest
import structlog

from gpu_sharing.workload import StructuredLogger, slices, structured_logging
from tests.unit.workload import test_slices

MINE = slices.slice_from(test_slices.ONE)
TRACE = "4bf92f3577b34da6a3ce929d0e0e4736"
OF_SLICE = {
    "service": "trainer", "namespace": "team", "pod": "train", "container": "main", "node": "node-01",
    "slice_id": "x-1", "decision_id": "4e89f4b82e97303b",
}  # fmt: skip


def lines(stream: io.StringIO) -> list[dict[str, Any]]:
    return [json.loads(one) for one in stream.getvalue().splitlines()]


def test_a_line_names_service_slice_decision_and_trace() -> None:
    """The operator finds the scheduler's decision by it, the developer the request."""
    stream = io.StringIO()
    log = StructuredLogger("trainer", stream=stream, my=MINE).bind(run=7)
    with structured_logging.traced(f"00-{TRACE}-00f067aa0ba902b7-01"):
        log.info("epoch", number=3)
    log.warning("after")

    first, second = lines(stream)
    assert first.items() >= {**OF_SLICE, "trace_id": TRACE, "event": "epoch", "number": 3, "run": 7}.items()
    assert first["level"] == "info"
    assert "trace_id" not in second


@pytest.mark.parametrize("header", ["", "x", f"00-{'0' * 32}-00f067aa0ba902b7-01", f"00-{TRACE}", "\n" * 500])
def test_a_malformed_trace_sets_none(header: str) -> None:
    """A client's header is text of anybody."""
    with structured_logging.traced(header) as trace_id:
        assert trace_id == ""


def test_an_exception_is_fields_and_not_lines() -> None:
    stream = io.StringIO()
    log = StructuredLogger("trainer", stream=stream, my=MINE)
    try:
        raise ValueError("two\nlines")
    except ValueError:
        log.exception("failed")

    (line,) = lines(stream)
    assert (line["exception_type"], line["exception_message"]) == ("ValueError", "two\nlines")
    assert line["exception_traceback"].startswith("Traceback")
    assert line["level"] == "error"


class Unprintable:
    def __str__(self) -> str:
        raise RuntimeError


def deep(levels: int) -> object:
    return [deep(levels - 1)] if levels else "end"


HARD = [
    math.nan, math.inf, 10**5000, b"\xff", {1: {2: object()}}, {"a"}, deep(50), "\ud800", "x" * 10**6, Unprintable(),
    '\n{"level": "error"}', ["y" * 10**4] * 1000,
]  # fmt: skip


@pytest.mark.parametrize("value", HARD, ids=range(len(HARD)))
def test_whatever_is_logged_is_one_bounded_line_of_json(value: object) -> None:
    """A log line that cannot be written must not end the request that writes it, and none can be forged."""
    stream = io.StringIO()
    StructuredLogger("trainer", stream=stream, my=MINE).info("value", value=value, level="forged", msg="x", args="y")

    (line,) = lines(stream)
    assert line["level"] == "info"
    assert len(stream.getvalue()) < 2_000_000
    assert json.dumps(line, allow_nan=False)


def test_the_loggers_of_the_standard_library_write_the_same_lines() -> None:
    """Libraries use them; a program sets one formatter."""
    stream = io.StringIO()
    handler = logging.StreamHandler(stream)
    handler.setFormatter(structured_logging.JsonFormatter("trainer", MINE))
    logger = logging.Logger("library")
    logger.addHandler(handler)

    logger.info("read %d files", 3, extra={"path": "/data"})
    logger.info("bad %d", "x")

    first, second = lines(stream)
    assert first.items() >= {**OF_SLICE, "event": "read 3 files", "path": "/data", "logger": "library"}.items()
    assert second["event"].startswith("bad %d")


def test_structlog_gets_the_same_fields_by_one_processor() -> None:
    stream = io.StringIO()
    log = structlog.wrap_logger(
        structlog.PrintLogger(stream),
        processors=[structured_logging.StructlogProcessor("trainer", MINE), structlog.processors.JSONRenderer()],
    )
    try:
        raise KeyError("k")
    except KeyError:
        log.error("failed", exc_info=True, node="own")

    (line,) = lines(stream)
    assert line["exception_type"] == "KeyError"
    assert line.items() >= {**OF_SLICE, "node": "own"}.items()
    assert "exc_info" not in line


def test_outside_kubernetes_a_line_has_no_empty_fields() -> None:
    stream = io.StringIO()
    StructuredLogger("trainer", stream=stream, my=slices.Slice()).info("event")

    assert lines(stream)[0].keys() == {"timestamp", "level", "logger", "event", "service"}
