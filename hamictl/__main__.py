"""The program `hamictl`: runs one command, and prints an error as one sentence with a hint."""

import argparse
import os
import signal
import sys

from hamictl import commands, failures, quiet


def main() -> int:
    """Run one command. Returns its exit status: 0 for yes, 1 for no, 2 if there is no answer."""
    with_traceback = "--debug" in sys.argv[1:]
    try:
        options = commands.make_parser(commands.wanted_in(sys.argv[1:])).parse_args()
        return _run(options)
    except failures.CommandFailed as failed:
        if with_traceback:
            raise
        print(f"hamictl: {failed}", file=sys.stderr)
        if failed.hint:
            print(f"  {failed.hint}", file=sys.stderr)
        return failed.status
    except ModuleNotFoundError as missing:
        if with_traceback:
            raise
        package = (missing.name or "a package").partition(".")[0]
        print(f"hamictl: {package} is not installed\nhint: pip install 'hami-py[cli]'", file=sys.stderr)
        return failures.FAILED
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # Closed by the reader, as by `| head`.
        return 0
    except KeyboardInterrupt:
        return 130
    except Exception as defect:
        if with_traceback:
            raise
        print(f"hamictl: a defect: {type(defect).__name__}: {failures.first_line(defect)}", file=sys.stderr)
        print("  run it again with --debug, and report what it prints", file=sys.stderr)
        return failures.FAILED


def _run(options: argparse.Namespace) -> int:
    quiet.silence()
    if sys.argv[1:2] != ["demo"]:  # The demo has its own, and a connection to the cluster is closed on the way out.
        signal.signal(signal.SIGINT, signal.default_int_handler)  # noqa: TID251  # It takes no lock.
    status: int = options.run(options)
    return status


if __name__ == "__main__":
    sys.exit(main())
