"""Start the scheduler extender: `python -m scheduler_extender --help`."""

import sys
import time

import structlog
import uvloop

from gpu_sharing.adapters import logs, profiling
from gpu_sharing.core import error_codes, errors
from scheduler_extender import app, settings


def main() -> int:
    """Run until stopped. Returns the exit status: 2 for a setting that the process cannot start with."""
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
    return 0


if __name__ == "__main__":
    sys.exit(main())
