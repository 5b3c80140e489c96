"""`hamictl simulate`: would these pods fit, where, and what would the cluster look like?

Asked of the live cluster, of a saved one, or of a public trace's. Nothing is written.
"""

import argparse
import dataclasses
import pathlib
import sys
import time
from typing import Any

import msgspec

from gpu_sharing.core import errors
from hamictl import failures, flags, output, simulation, snapshot
from lab import traces
from scheduler_extender import settings
from scheduler_extender.settings import Settings

_OVER = "\r\033[K"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The command's own flags."""
    parser.add_argument("manifest", nargs="?", type=pathlib.Path, metavar="MANIFEST", help="YAML; - is standard input")
    parser.add_argument("--replicas", type=int, metavar="N", help="so many of each, in place of what it says")
    origin = parser.add_mutually_exclusive_group()
    origin.add_argument("--snapshot", type=pathlib.Path, metavar="FILE", help="in place of the live cluster")
    origin.add_argument(
        "--trace",
        type=pathlib.Path,
        metavar="DIR",
        help="likewise: an openb trace, after its pods have come (or FILE: a pod list, with the node list beside it)",
    )
    parser.add_argument(
        "--until-percent",
        type=_percent,
        default=100.0,
        metavar="N",
        help="of the trace only the first pods, that request N percent of its GPUs together (default 100)",
    )
    parser.add_argument("--add-nodes", default=[], action="append", metavar="COUNT:MODEL:GPUS", help="such as 2:a100:8")
    parser.add_argument("--drain", default=[], action="append", metavar="NODE", help="without that node; its pods move")
    parser.add_argument(
        "--node-policy", default="", metavar="POLICY", help="as --node-scheduler-policy of the extender"
    )
    parser.add_argument("--gpu-policy", default="", metavar="POLICY", help="as --gpu-scheduler-policy of the extender")


def _percent(text: str) -> float:
    try:
        number = float(text)
    except ValueError:
        number = 0.0
    if not 0 < number <= 1000:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number above 0, up to 1000")
    return number


def run(options: argparse.Namespace) -> int:
    """Place, and tell. Returns the exit status: 1 where a pod would wait."""
    decides = _deciding(options)
    state, filling = _origin(options, decides)
    pods: list[dict[str, Any]] = []
    for name in options.drain:
        state, moved = simulation.drained(state, name)
        pods += moved
    for text in options.add_nodes:
        state = simulation.with_more_nodes(state, text)
    decides = dataclasses.replace(decides, resource_names=state.resource_names)
    if options.manifest:
        pods += simulation.pods_of(options.manifest, _read(options.manifest), options.replicas, state.nodes)
    elif not (pods or options.drain or options.trace):
        raise failures.CommandFailed("nothing to simulate", "give a MANIFEST, --drain NODE or --trace DIR")
    world = simulation.Simulation(state, decides)
    before = world.models()
    outcomes = world.place_all(pods)
    after = world.models()
    value = {
        "pods": [msgspec.to_builtins(one) for one in outcomes],
        "models": {
            "before": [msgspec.to_builtins(one) for one in before],
            "after": [msgspec.to_builtins(one) for one in after],
        },
    } | ({"trace": msgspec.to_builtins(filling)} if filling else {})
    look = flags.look(options)
    if outcomes or options.drain or not look.is_table:
        output.print_rows(
            value,
            simulation.rows(outcomes),
            look,
            "the node has no pods with GPUs",
            names=[f"pod/{one.pod}" for one in outcomes if one.node],
        )
    if look.is_table:
        if outcomes or options.drain:
            print()
        print(output.render(None, simulation.model_rows(before, after), look))
    return 0 if all(one.node or not one.code for one in outcomes) else failures.NEGATIVE


def _deciding(options: argparse.Namespace) -> Settings:
    """The settings of the extender that is imitated."""
    policies = {"--node-scheduler-policy": options.node_policy, "--gpu-scheduler-policy": options.gpu_policy}
    arguments = [part for flag, value in policies.items() if value for part in (flag, value)]
    try:
        return settings.parse(arguments, {})
    except errors.SettingsError as cause:
        raise failures.CommandFailed(str(cause)) from cause


def _origin(options: argparse.Namespace, decides: Settings) -> tuple[snapshot.State, simulation.Filling | None]:
    """The cluster to begin with, and how a trace has filled it."""
    if options.trace is None:
        return (snapshot.load(options.snapshot) if options.snapshot else flags.cluster_state(options)), None
    try:
        trace = traces.read(options.trace)
    except traces.BadTrace as cause:
        raise failures.CommandFailed(str(cause), "the README of lab/traces says where to find one") from cause
    started = time.monotonic()
    # On a terminal one line that is written over; elsewhere only the last, so that a log stays short.
    watched = sys.stderr.isatty()

    def tell(count: int, of: int) -> None:
        if watched:
            print(f"\rtrace: {count:,} of {of:,} pods have come", end="", file=sys.stderr, flush=True)

    state, filling = simulation.filled(trace, options.until_percent, decides, tell)
    print(
        f"{_OVER if watched else ''}trace: {filling.placed:,} of {filling.pods:,} pods with GPUs placed on "
        f"{filling.nodes:,} nodes with {filling.gpus:,} GPUs, in {time.monotonic() - started:.0f} s",
        file=sys.stderr,
    )
    return state, filling


def _read(path: pathlib.Path) -> str:
    try:
        return sys.stdin.read() if str(path) == "-" else path.read_text()
    except (OSError, UnicodeDecodeError) as cause:
        raise failures.CommandFailed(f"{path}: {cause}") from cause
