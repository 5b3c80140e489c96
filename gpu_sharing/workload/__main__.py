"""Shows the slice of this container: `python -m gpu_sharing.workload show`, `top`, `probe URL`, `memory-fraction`."""

import argparse
import sys
from collections.abc import Sequence

from gpu_sharing.workload import memory_fraction, probing, slice_view


def make_parser() -> argparse.ArgumentParser:
    """Return the parser of all commands."""
    parser = argparse.ArgumentParser(prog="python -m gpu_sharing.workload", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for name, text in (("show", "print what the container was given"), ("top", "show what it uses of that")):
        command = commands.add_parser(name, help=text, description=text)
        slice_view.add_arguments(command, is_top=name == "top")
    command = commands.add_parser("probe", help="ask a model server for one token")
    probing.add_arguments(command)
    command.set_defaults(run=probing.run)
    text = "print the --gpu-memory-utilization of vLLM that fits the slice"
    command = commands.add_parser("memory-fraction", help=text, description=text)
    memory_fraction.add_arguments(command)
    command.set_defaults(run=memory_fraction.run)
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command. Returns its exit status."""
    options = make_parser().parse_args(arguments)
    status: int = options.run(options)
    return status


if __name__ == "__main__":
    sys.exit(main())
