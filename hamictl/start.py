"""The entry point of the installed command: a signal while its modules load ends it without a traceback."""

import os
import signal
import sys
from types import FrameType

STOPPED = 130
"""The exit status after Ctrl-C, as shells have it; the demo has it after SIGTERM and SIGHUP too."""


def main() -> int:
    """Run `hamictl`. Returns its exit status."""
    # While the modules load, a signal would end in a traceback. There is nothing to clean up yet.
    others = (signal.SIGTERM, signal.SIGHUP) if sys.argv[1:2] == ["demo"] else ()
    for number in (signal.SIGINT, *others):
        signal.signal(number, _stop)  # noqa: TID251  # It takes no lock.
    from hamictl import __main__ as command

    return command.main()


def _stop(number: int, frame: FrameType | None) -> None:
    try:
        os.write(sys.stdout.fileno(), b"stopped\n")
    finally:
        os._exit(STOPPED)
