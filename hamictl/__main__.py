"""The program `hamictl`: runs one command, and prints an error as one sentence with a hint."""

import argparse
import logging
import os
import sys

from hamictl import commands, failures


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
    if "structlog" in sys.modules:  # Only commands that run the extender's code import it.
        import structlog

        # The logs of the extender's code are not part of the answer.
        structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.CRITICAL))
    status: int = options.run(options)
    return status


if __name__ == "__main__":
    sys.exit(main())
