"""Start the scheduler extender: `python -m scheduler_extender --help`."""

import sys
import time

import structlog
import uvloop

from gpu_sharing.adapters import logs, profiling
from gpu_sharing.core import error_codes, errors
from scheduler_extender import app, forever, settings

_FATAL = 70
"""Source: sysexits.h, EX_SOFTWARE."""


def main() -> int:
    """Run until stopped.

    Returns:
        The exit status: 2 for a setting that the process cannot start with, 70 for an inner state that it cannot go on
        with; Kubernetes starts it again then.
    """
    started_at = time.monotonic()
    try:
        parsed = settings.parse(sys.argv[1:])
        logs.configure(parsed.verbosity, parsed.log_format)
        profiling.on_signal()
        uvloop.run(app.run(parsed, started_at))
    except errors.SettingsError as refused:
        sys.stderr.write(f"scheduler_extender: {error_codes.INVALID_SETTING}: {refused}\n")
        return 2
    except OSError as refused:
        structlog.get_logger("extender").error("cannot start", cause=str(refused))
        sys.stderr.write(f"scheduler_extender: cannot listen: {refused}\n")
        return 2
    except BaseExceptionGroup as group:
        ended = forever.first(group)
        if not isinstance(ended, forever.TaskEnded):
            raise
        structlog.get_logger("extender").error("ending", error_code=error_codes.FATAL, cause=str(ended), exc_info=ended)
        return _FATAL
    return 0


if __name__ == "__main__":
    sys.exit(main())
