"""The commands of `hamictl`: one table, and the parser that is made from it.

A command's module has `add_arguments(parser)` and `run(options)`, and is imported when the command is used: to import
the extender's code takes half a second, and `hamictl nodes` does not need it. The module of a command that consists of
others, such as `ops`, has no `run`; it adds them by `add_command`.
"""

import argparse
import importlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from gpu_sharing.core import version
from hamictl import failures

DESCRIPTION = "`hamictl`: inspect, explain and simulate GPU sharing from a shell. `kubectl hami …` is the same program."
_PRINTED = "0 printed, 2 no answer"
_FOUND = "0 printed, 1 nothing has that name, 2 no answer"


@dataclass(frozen=True, slots=True, kw_only=True)
class Command:
    """One command, without its flags."""

    name: str
    text: str
    """For the list of commands."""
    module: str
    """Of this package."""
    statuses: str
    """The exit statuses."""
    examples: Sequence[str]
    aliases: Sequence[str] = ()

    def load(self) -> Any:
        """Return its module.

        Raises:
            ModuleNotFoundError: A dependency is not installed.
        """
        return importlib.import_module(f"hamictl.{self.module}")


COMMANDS = (
    Command(
        name="demo", module="demo", text="run a whole cluster in one process, with a scenario",
        statuses="0 all expectations held, 1 one failed, 2 the cluster does not start",
        examples=("hamictl demo --once",),
    ),
    Command(
        name="nodes", module="nodes", aliases=("node",), text="every node's GPUs: allocated and free",
        statuses=_FOUND, examples=("hamictl nodes -o wide", "hamictl node gpu-7 -w"),
    ),
    Command(
        name="pods", module="pods", aliases=("pod",),
        text="which pods hold which GPUs; of pending pods what they request, for how long, and why they are pending",
        statuses=_FOUND, examples=("hamictl pods -A", "hamictl pods -n ai-team -w", "hamictl pod ai/train-7"),
    ),
    Command(
        name="top", module="top", text="every GPU, the most allocated first, with measured memory and utilization",
        statuses=_PRINTED, examples=("hamictl top --prometheus http://localhost:9090",),
    ),
    Command(
        name="explain", module="explain", text="why a pod is pending, node by node",
        statuses="0 the pod is known, 1 no such pod requests GPUs, 2 no answer",
        examples=("hamictl explain train-7", "hamictl explain ai/train-7"),
    ),
    Command(
        name="doctor", module="doctor",
        text="problems of the cluster, or of the node on which it runs, and how to fix them; nothing is written",
        statuses="0 no problem, 1 problems found, 2 no answer",
        examples=("hamictl doctor", "hamictl doctor -o json", "hamictl doctor node"),
    ),
    Command(
        name="gpu", module="release",
        text="make plugin and monitor close one GPU, so that it can be reset or its MIG mode changed",
        statuses="0 done, 1 not done in time, 2 no answer",
        examples=("hamictl gpu release node-7 0", "hamictl gpu release node-7 0 --cancel"),
    ),
    Command(
        name="ops", module="ops",
        text="operate an installation: health, backup, scale, update, restart, cleanup, disk space, notifications",
        statuses="0 done, 1 refused, failed or not well, 2 no answer",
        examples=("hamictl ops health", "hamictl ops scale 2 --dry-run", "hamictl ops backup hami.json"),
    ),
    Command(
        name="fault", module="fault",
        text="inject faults on purpose, list them, and recover them",
        statuses="0 done, 1 refused or unknown, 2 no answer, or it failed",
        examples=(
            "hamictl fault kinds", "hamictl fault inject xid-79 --node node-7 --gpu 0 --seconds 60",
            "hamictl fault list", "hamictl fault recover f1", "hamictl fault cleanup",
        ),
    ),
    Command(
        name="explain-code", module="explain_code", text="what an error code means and what to do about it",
        statuses="0 the code exists, 1 it does not", examples=("hamictl explain-code SCHED_INSUFFICIENT_GPU_MEMORY",),
    ),
    Command(
        name="snapshot", module="snapshot",
        text="save the cluster as the scheduler reads it, for a bug report or for simulate",
        statuses="0 saved, 2 no answer", examples=("hamictl snapshot --hash-names cluster.json",),
    ),
    Command(
        name="simulate", module="simulate",
        text="whether and where pods would fit, and the allocation afterwards; nothing is written",
        statuses="0 every pod fits, 1 a pod would be pending, 2 no answer",
        examples=(
            "hamictl simulate job.yaml", "hamictl simulate job.yaml --replicas 20 --snapshot cluster.json",
            "hamictl simulate --drain node-7", "hamictl simulate job.yaml --trace openb --until-percent 80",
            "hamictl simulate job.yaml --add-nodes 2:a100:8 --gpu-policy spread",
        ),
    ),
    Command(
        name="completion", module="completion", text="completion for a shell", statuses="0",
        examples=("source <(hamictl completion bash)",),
    ),
)  # fmt: skip


class _Help(argparse.RawDescriptionHelpFormatter):
    """Format help as argparse does since Python 3.13: a flag's value once, and the column fits the longest command."""

    def add_argument(self, action: argparse.Action) -> None:
        super().add_argument(action)
        for command in self._iter_indented_subactions(action):
            length = len(self._format_action_invocation(command)) + self._current_indent
            self._action_max_length = max(self._action_max_length, length)

    def _format_action_invocation(self, action: argparse.Action) -> str:
        if not action.option_strings or action.nargs == 0:
            return super()._format_action_invocation(action)
        return f"{', '.join(action.option_strings)} {self._format_args(action, action.dest.upper())}"


def make_parser(wanted: str | None = None) -> argparse.ArgumentParser:
    """Return the parser.

    Args:
        wanted: The command to which flags are added, by its name or an alias; None for all commands.

    Raises:
        ModuleNotFoundError: A dependency of a command with flags is not installed.
    """
    parser = argparse.ArgumentParser(
        prog="hamictl",
        description=DESCRIPTION,
        epilog="hamictl COMMAND --help has examples\n\n"
        "exit status: 0 yes, 1 no (it does not fit, there is no such pod), 2 no answer",
        formatter_class=_Help,
    )
    parser.add_argument("--version", action="version", version=f"hamictl {version.VERSION}")
    added = parser.add_subparsers(required=True, metavar="COMMAND")
    for command in COMMANDS:
        add_command(added, command, with_flags=wanted is None or wanted in (command.name, *command.aliases))
    return parser


def add_command(
    added: "argparse._SubParsersAction[argparse.ArgumentParser]", command: Command, *, with_flags: bool = True
) -> None:
    """Add one command to the parser, or to the parser of a command that consists of others.

    Args:
        added: Of the parser.
        command: With its module.
        with_flags: Whether to import its module and add its flags.
    """
    shown = "\n".join(["examples:", *(f"  {one}" for one in command.examples)])
    subparser = added.add_parser(
        command.name, help=command.text, description=command.text, aliases=command.aliases,
        epilog=f"{shown}\n\nexit status: {command.statuses}", formatter_class=_Help,
    )  # fmt: skip
    subparser.add_argument("--debug", action="store_true", help="show where a failure comes from")
    if with_flags:
        module = command.load()
        module.add_arguments(subparser)
        if hasattr(module, "run"):
            subparser.set_defaults(run=module.run)


def subparsers(parser: argparse.ArgumentParser) -> Iterator[tuple[str, argparse.ArgumentParser]]:
    """Yield each command's name, without its aliases, with its parser; after `ops` its operations, as `ops scale`."""
    for name, subparser in _choices(parser):
        if any(name == command.name for command in COMMANDS):
            yield name, subparser
            yield from ((f"{name} {inner}", its_parser) for inner, its_parser in _choices(subparser))


def _choices(parser: argparse.ArgumentParser) -> Iterator[tuple[str, argparse.ArgumentParser]]:
    for action in parser._actions:  # argparse has no public access to subparsers.
        if isinstance(action, argparse._SubParsersAction):
            yield from action.choices.items()


def wanted_in(arguments: Sequence[str]) -> str:
    """Return the command in a command line; empty if its first word is a flag.

    Raises:
        CommandFailed: There is no such command.
    """
    word = arguments[0] if arguments and not arguments[0].startswith("-") else ""
    known = [name for command in COMMANDS for name in (command.name, *command.aliases)]
    if word and word not in known:
        hint = "hamictl --help lists the commands"
        raise failures.unknown(f"no command {word}", word, known, hint=hint, status=failures.FAILED)
    return word
