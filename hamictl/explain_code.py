"""`hamictl explain-code`: what an error code means and what to do about it."""

import argparse

from gpu_sharing.core import error_codes
from hamictl import failures, flags, output


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the command's own flags."""
    parser.add_argument("code", metavar="CODE", help="such as SCHED_INSUFFICIENT_GPU_MEMORY")
    flags.add_output(parser)


def run(options: argparse.Namespace) -> int:
    """Print the entry of the code. Returns the exit status."""
    entry = error_codes.REGISTRY.get(error_codes.Code(options.code.upper()))
    if entry is None:
        known = "\n  ".join(["known codes:", *sorted(error_codes.REGISTRY)])
        raise failures.unknown(f"no such code: {options.code}", options.code, error_codes.REGISTRY, hint=known)
    if flags.style(options).is_table:
        print(f"{entry.code}\n  {entry.meaning}\n  {entry.remedy}")
    else:
        value = {"code": entry.code, "meaning": entry.meaning, "remedy": entry.remedy}
        print(output.render(value, [], flags.style(options), names=[entry.code]))
    return 0
