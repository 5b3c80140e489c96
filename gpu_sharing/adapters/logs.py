"""Structured logs: JSON in a cluster, colours on a terminal, one verbosity scale for all processes.

Verbosity 0 to 6 as users of HAMi know it: 0 to 3 say what happened, 4 adds one line per node considered, 5 the detail
of each device, 6 everything, health probes included.
"""

import logging
import sys
from typing import Any

import orjson
import structlog

FORMATS = ("json", "text", "console")
HIGHEST = 6


def configure(verbosity: int, log_format: str) -> None:
    """Set up logging for this process.

    Args:
        verbosity: 0 to 6.
        log_format: `json`, `text` (key=value) or `console` (colours).
    """
    processors: list[Any] = [
        structlog.contextvars.merge_contextvars,
        structlog.processors.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
        structlog.processors.format_exc_info,
    ]
    logger_factory: Any = structlog.WriteLoggerFactory(sys.stdout)
    if log_format == "json":
        processors.append(structlog.processors.JSONRenderer(serializer=_dumps))
        logger_factory = structlog.BytesLoggerFactory(sys.stdout.buffer)
    elif log_format == "text":
        processors.append(structlog.processors.KeyValueRenderer(key_order=["timestamp", "level", "event"]))
    else:
        processors.append(structlog.dev.ConsoleRenderer(colors=sys.stdout.isatty()))
    structlog.configure(
        processors=processors,
        wrapper_class=structlog.make_filtering_bound_logger(logging.DEBUG if verbosity >= HIGHEST else logging.INFO),
        logger_factory=logger_factory,
        cache_logger_on_first_use=True,
    )
    logging.basicConfig(level=logging.WARNING, stream=sys.stderr, format="%(levelname)s %(name)s %(message)s")


def _dumps(value: Any, **_: Any) -> bytes:
    return orjson.dumps(value, default=str, option=orjson.OPT_NON_STR_KEYS)
