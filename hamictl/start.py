"""The entry point of the installed command: reports a missing dependency if the extra `cli` is not installed."""

import sys


def main() -> int:
    """Run `hamictl`. Returns its exit status; 2 if a dependency is not installed."""
    try:
        from hamictl import __main__ as command
    except ModuleNotFoundError as missing:
        sys.stderr.write(f"hamictl: {missing.name} is not installed\nhint: pip install 'hami-py[cli]'\n")
        return 2
    return command.main()
