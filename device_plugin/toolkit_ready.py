"""Wait until a file exists: `python -m device_plugin.toolkit_ready FILE`, an init container beside the GPU operator.

The operator writes the file once its container toolkit is installed; before that, no pod with its RuntimeClass starts.
"""

import pathlib
import sys
import time
from collections.abc import Callable, Sequence

_USAGE = "usage: python -m device_plugin.toolkit_ready FILE: wait until the file exists"
_POLL_SECONDS = 5.0
_TURNS_BETWEEN_LINES = 12


def main(arguments: Sequence[str], sleep: Callable[[float], None] = time.sleep) -> int:
    """Wait until the file exists, with one line a minute. Returns the exit status."""
    if list(arguments) in (["--help"], ["-h"]):
        _print(_USAGE)
        return 0
    if len(arguments) != 1:
        sys.stderr.write(f"{_USAGE}\n")
        return 2
    path = pathlib.Path(arguments[0])
    turn = 0
    while not path.exists():
        if turn % _TURNS_BETWEEN_LINES == 0:
            _print(f"waiting for {path}, which the GPU operator writes once its toolkit is ready")
        turn += 1
        sleep(_POLL_SECONDS)
    _print(f"{path} exists")
    return 0


def _print(line: str) -> None:
    sys.stdout.write(f"{line}\n")
    sys.stdout.flush()


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
