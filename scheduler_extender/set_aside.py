"""One object's defect stays its own: it is counted and logged, and the round goes on with the next object."""

import contextlib
from collections.abc import Iterator

import structlog

from gpu_sharing.core import error_codes
from scheduler_extender.metrics import Metrics

log = structlog.get_logger("set aside")


def report(kind: str, name: str, defect: Exception, metrics: Metrics) -> None:
    """Count and log an object that could not be handled, planned or woken."""
    metrics.set_aside.inc()
    log.error("object set aside", error_code=error_codes.SET_ASIDE, kind=kind, name=name, exc_info=defect)


@contextlib.contextmanager
def guard(kind: str, name: str, metrics: Metrics) -> Iterator[None]:
    """Report what goes wrong inside, and go on after it."""
    try:
        yield
    except Exception as defect:
        report(kind, name, defect, metrics)
