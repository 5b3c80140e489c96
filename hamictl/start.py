"""Where the installed command begins: says what is missing where the package was installed without its extra."""

import sys


def main() -> int:
    """Run `hamictl`. Returns its exit status; 2 where what it needs is not installed."""
    try:
        from hamictl import __main__ as command
    except ModuleNotFoundError as missing:
        sys.stderr.write(f"hamictl: {missing.name} is not installed\nhint: pip install 'hami-py[cli]'\n")
        return 2
    return command.main()
