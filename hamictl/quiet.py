"""The logs of the extender's code are no part of a command's answer."""

import logging
import sys


def silence() -> None:
    """Leave out the logs of what is imported so far; call it after an import of the extender's code."""
    if "structlog" in sys.modules:  # Small commands do not import it.
        import structlog

        structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.CRITICAL))
