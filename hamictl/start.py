"""The entry point of the installed command: reports a missing dependency if the extra `cli` is not installed."""

import os
import signal
import sys
from types import FrameType

STOPPED = 130
"""The exit status after Ctrl-C, as shells have it; the demo has it after SIGTERM and SIGHUP too."""


def main() -> int:
    """Run `hamictl`. Returns its exit status; 2 if a dependency is not installed."""
    # While the modules load, a signal would end in a traceback. There is nothing to clean up yet.
    signal.signal(signal.SIGINT, _stop)
    if sys.argv[1:2] == ["demo"]:
        signal.signal(signal.SIGTERM, _stop)
        signal.signal(signal.SIGHUP, _stop)
    try:
        from hamictl import __main__ as command
    except ModuleNotFoundError as missing:
        sys.stderr.write(f"hamictl: {missing.name} is not installed\nhint: pip install 'hami-py[cli]'\n")
        return 2
    return command.main()


def _stop(number: int, frame: FrameType | None) -> None:
    try:
        os.write(sys.stdout.fileno(), b"stopped\n")
    finally:
        os._exit(STOPPED)
