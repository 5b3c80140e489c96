"""Start the fault injection service: `python -m fault_injector --help`."""

import asyncio
import sys

import structlog

from fault_injector import app, settings
from gpu_sharing.adapters import logs
from gpu_sharing.core import error_codes, errors


def main() -> int:
    """Run until stopped. Returns the exit status: 2 for what the process cannot start with."""
    try:
        parsed = settings.parse(sys.argv[1:])
        logs.configure(parsed.verbosity, parsed.log_format)
        asyncio.run(app.run(parsed))
    except errors.SettingsError as refused:
        sys.stderr.write(f"fault_injector: {error_codes.INVALID_SETTING}: {refused}\n")
        return 2
    except errors.FaultRefused as refused:
        sys.stderr.write(f"fault_injector: {refused.code}: {refused}\n")
        return 2
    except OSError as refused:
        structlog.get_logger("faults").error("cannot start", cause=str(refused))
        sys.stderr.write(f"fault_injector: cannot listen: {refused}\n")
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
