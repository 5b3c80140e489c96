"""Wait until a file is there: `python -m device_plugin.toolkit_ready FILE`, an init container beside the GPU operator.

The operator's file says that its container toolkit is installed; before, a pod with its RuntimeClass cannot start.
"""

import pathlib
import sys
import time
from collections.abc import Callable, Sequence

_USAGE = "usage: python -m device_plugin.toolkit_ready FILE: wait until the file is there"
_POLL_SECONDS = 5.0
_TURNS_BETWEEN_LINES = 12


def main(arguments: Sequence[str], sleep: Callable[[float], None] = time.sleep) -> int:
    """Wait for as long as it takes, and say so each minute. Returns the exit status."""
    if list(arguments) in (["--help"], ["-h"]):
        _say(_USAGE)
        return 0
    if len(arguments) != 1:
        sys.stderr.write(f"{_USAGE}\n")
        return 2
    path = pathlib.Path(arguments[0])
    turn = 0
    while not path.exists():
        if turn % _TURNS_BETWEEN_LINES == 0:
            _say(f"waiting for {path}, which the GPU operator writes once its toolkit is ready")
        turn += 1
        sleep(_POLL_SECONDS)
    _say(f"{path} is there")
    return 0


def _say(line: str) -> None:
    sys.stdout.write(f"{line}\n")
    sys.stdout.flush()


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
