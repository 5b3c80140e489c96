"""What every operation that writes has: a dry run, a confirmation, progress, and a rollout that is followed."""

import argparse
import asyncio
import sys
import time
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, TypeVar

from gpu_sharing.adapters import kubernetes
from gpu_sharing.core import error_codes, errors
from hamictl import api_server, failures, flags
from hamictl.operations import rollouts

if TYPE_CHECKING:
    from hamictl.operations import installed

T = TypeVar("T")
DRY_RUN = "dryRun=All"
"""The query by which the API server checks a write, permissions and admission included, and stores nothing."""
_POLL_SECONDS = 0.5
_LONGEST_SECONDS = 86_400.0


def add_flags(parser: argparse.ArgumentParser) -> None:
    """Add the flags of an operation that writes."""
    parser.add_argument("--dry-run", action="store_true", help="show what would be done, and write nothing")
    parser.add_argument("-y", "--yes", action="store_true", help="do not ask for confirmation")


def add_timeout(parser: argparse.ArgumentParser) -> None:
    """Add the flag of the rollout's time."""
    parser.add_argument(
        "--timeout",
        type=seconds,
        default=600.0,
        metavar="SECONDS",
        help="how long a rollout may make no progress (default 600)",
    )


def seconds(text: str) -> float:
    """Return a positive number of seconds, at most a day, for argparse."""
    try:
        number = float(text)
    except ValueError:
        number = 0.0
    if not 0 < number <= _LONGEST_SECONDS:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number of seconds from 1 to {_LONGEST_SECONDS:.0f}")
    return number


def refusal(code: error_codes.Code, detail: str) -> failures.CommandFailed:
    """Return a refusal with its code, and the code's remedy as hint."""
    return failures.CommandFailed(f"{code}: {detail}", error_codes.REGISTRY[code].remedy, failures.NEGATIVE)


def call(options: argparse.Namespace, calls: Callable[[kubernetes.Client], Awaitable[T]], rights: str) -> T:
    """Return the result of calls with a client by the flags of a command.

    Raises:
        CommandFailed: As `api_server.call`; a conflict with another client's write is a refusal with its code.
    """

    async def with_code(client: kubernetes.Client) -> T:
        try:
            return await calls(client)
        except errors.Conflict as cause:
            raise refusal(error_codes.OPS_CHANGED_MEANWHILE, str(cause)) from cause

    return api_server.call(flags.kubeconfigs(options), options.context, with_code, rights=rights)


def confirm(options: argparse.Namespace, question: str) -> None:
    """Ask for confirmation on a terminal.

    Raises:
        CommandFailed: The answer is no, or there is neither a terminal nor `--yes`.
    """
    if options.yes:
        return
    if not sys.stdin.isatty():
        raise refusal(error_codes.OPS_NOT_CONFIRMED, "there is no terminal to ask on")
    print(f"{question} [y/N] ", end="", file=sys.stderr, flush=True)
    if sys.stdin.readline().strip().lower() not in ("y", "yes"):
        raise refusal(error_codes.OPS_NOT_CONFIRMED, "the answer was no")


def progress(line: str) -> None:
    """Print a line of progress, beside the command's output."""
    print(line, file=sys.stderr, flush=True)


def path_of(path: str, *, dry_run: bool) -> str:
    """Return the path of a write, which a dry run only checks."""
    return f"{path}?{DRY_RUN}" if dry_run else path


async def follow(client: kubernetes.Client, part: "installed.Part", timeout_seconds: float) -> rollouts.Rollout:
    """Return the rollout of a part when it is done, has failed, or makes no progress for that time.

    A state that was seen before is no progress: pods that start and crash by turns do not go on for ever. An API server
    that does not answer is waited for, because the rollout goes on without this command.
    """
    deadline, shown, known = time.monotonic() + timeout_seconds, "", set[str]()
    while True:
        try:
            seen = rollouts.rollout(part.kind, await client.get(part.path, rollouts.Workload))
        except errors.NotFound:
            return rollouts.Rollout(rollouts.State.FAILED, "it was deleted")
        except errors.Unavailable:
            seen = rollouts.Rollout(rollouts.State.UNDER_WAY, "the API server does not answer")
        if seen.text != shown:
            shown = seen.text
            progress(f"{part.title}: {shown}")
            if shown not in known:
                known.add(shown)
                deadline = time.monotonic() + timeout_seconds
        if seen.state is not rollouts.State.UNDER_WAY:
            return seen
        if time.monotonic() > deadline:
            return rollouts.Rollout(rollouts.State.FAILED, f"no progress within {timeout_seconds:g} s: {shown}")
        await asyncio.sleep(_POLL_SECONDS)
