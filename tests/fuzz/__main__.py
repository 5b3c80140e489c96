"""Give every reader of outside bytes inputs made at random, for a time, and print what came of them.

`make fuzz ARGS="--minutes 10"`; the seed that is printed repeats a run on the same code: `--seed N`. `--only WORD` runs
the targets with that word in their name. The exit status is 1 if there is a defect.
"""

import argparse
import contextlib
import random
import resource
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import structlog

from tests.fuzz import answers, kubelet_socket, listeners, parsers, targets

_WEIGHT_OF_PROCESSES = 3
"""Shares of the time: a process has to start, and needs milliseconds for an input."""
_MOST_MEMORY_BYTES = 8 << 30
_MOST_CODES = 5


@dataclass(frozen=True, slots=True)
class Run:
    """One line of the table, before it has run."""

    name: str
    weight: int
    run: Callable[[int, float], targets.Tally]
    """Of a seed and seconds."""


def runs(word: str) -> list[Run]:
    """Return every run with a word in its name."""
    every: list[Run] = []
    for target in (*parsers.PARSERS, *answers.ANSWERS, *kubelet_socket.SOCKETS, *listeners.LISTENERS):

        def of_target(seed: int, seconds: float, target: targets.Target = target) -> targets.Tally:
            return targets.run(target, seed=seed, seconds=seconds)

        every.append(Run(target.name, _WEIGHT_OF_PROCESSES if target.of_processes else 1, of_target))
    for described in listeners.DESCRIPTIONS:

        def of_document(seed: int, seconds: float, described: listeners.Description = described) -> targets.Tally:
            return listeners.run_description(described, seed=seed, most_inputs=None, seconds=seconds)

        every.append(Run(described.name, _WEIGHT_OF_PROCESSES, of_document))
    return [one for one in every if word in one.name]


@contextlib.contextmanager
def _bounded_memory() -> Iterator[None]:
    """A reader that allocates without a limit fails here, and not the machine."""
    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (_MOST_MEMORY_BYTES, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, (soft, hard))


def table(tallies: Sequence[targets.Tally]) -> str:
    """Return the counts of each target, as a table in Markdown."""
    lines = ["| target | inputs | accepted | other outcomes | defects |", "| --- | ---: | ---: | --- | ---: |"]
    for tally in tallies:
        others = [(code, count) for code, count in tally.outcomes.most_common() if code != targets.ACCEPTED]
        shown = ", ".join(f"{code} {count:,}" for code, count in others[:_MOST_CODES])
        more = f", {len(others) - _MOST_CODES} more" if len(others) > _MOST_CODES else ""
        accepted = f"{tally.outcomes[targets.ACCEPTED]:,}" if tally.outcomes[targets.ACCEPTED] else ""
        lines.append(f"| {tally.name} | {tally.inputs:,} | {accepted} | {shown}{more} | {len(tally.defects)} |")
    inputs, defects = sum(tally.inputs for tally in tallies), sum(len(tally.defects) for tally in tallies)
    return "\n".join([*lines, f"| all {len(tallies)} | {inputs:,} | | | {defects} |"])


def _drop(*_: object) -> str:
    raise structlog.DropEvent


def main() -> int:
    """Run every target for its share of the time. Returns the exit status: 1 if there is a defect."""
    parser = argparse.ArgumentParser(prog="make fuzz", description=__doc__.partition("\n")[0])
    parser.add_argument("--minutes", type=float, default=10.0, help="in all (default: 10)")
    parser.add_argument("--seed", type=int, help="the inputs of an earlier run")
    parser.add_argument("--only", default="", metavar="WORD", help="the targets with this word in their name")
    options = parser.parse_args()
    seed = random.SystemRandom().randrange(2**32) if options.seed is None else options.seed
    sys.stdout.write(f"=== seed {seed}\n")
    structlog.configure(processors=[_drop])
    chosen, tallies = runs(options.only), []
    whole = sum(one.weight for one in chosen)
    for one in chosen:
        started = time.monotonic()
        with _bounded_memory() if one.weight == 1 else contextlib.nullcontext():
            tally = one.run(seed, options.minutes * 60 * one.weight / whole)
        tallies.append(tally)
        seconds = time.monotonic() - started
        sys.stdout.write(f"{one.name}: {tally.inputs:,} inputs in {seconds:.0f} s, {len(tally.defects)} defects\n")
        sys.stdout.flush()
    for tally in tallies:
        for report in tally.defects.values():
            sys.stdout.write(f"\n--- defect\n{report}\n")
    sys.stdout.write(f"\n{table(tallies)}\n")
    return 1 if any(tally.defects for tally in tallies) or not tallies else 0


if __name__ == "__main__":
    sys.exit(main())
