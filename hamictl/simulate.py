"""`hamictl simulate`: whether and where pods would fit, and the allocation afterwards.

On a copy of the live cluster, of a saved one, or of a public trace's cluster. Nothing is written.
"""

import argparse
import collections
import dataclasses
import pathlib
import sys
import time
from collections.abc import Sequence
from typing import Any

import msgspec

from gpu_sharing.core import errors
from hamictl import failures, flags, output, simulation, snapshot
from lab import traces
from scheduler_extender import settings
from scheduler_extender.settings import Settings

_OVER = "\r\033[K"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the command's own flags."""
    parser.add_argument("manifest", nargs="?", type=pathlib.Path, metavar="MANIFEST", help="YAML; - is standard input")
    parser.add_argument("--replicas", type=int, metavar="N", help="N pods of each, instead of the manifest's number")
    origin = parser.add_mutually_exclusive_group()
    origin.add_argument("--snapshot", type=pathlib.Path, metavar="FILE", help="a saved cluster instead of the live one")
    origin.add_argument(
        "--trace",
        type=pathlib.Path,
        metavar="DIR",
        help="likewise: an openb trace with its pods placed (or FILE: a pod list, with the node list beside it)",
    )
    parser.add_argument(
        "--until-percent",
        type=_percent,
        default=100.0,
        metavar="N",
        help="only the trace's first pods, which together request N percent of its GPUs (default 100)",
    )
    parser.add_argument("--add-nodes", default=[], action="append", metavar="COUNT:MODEL:GPUS", help="such as 2:a100:8")
    parser.add_argument(
        "--drain", default=[], action="append", metavar="NODE", help="remove this node; its pods are placed again"
    )
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
    """Place the pods and print the result. Returns the exit status: 1 if a pod would be pending."""
    extender_settings = _extender_settings(options)
    state, filling = _origin(options, extender_settings)
    pods: list[dict[str, Any]] = []
    for name in options.drain:
        state, moved = simulation.drained(state, name)
        pods += moved
    for text in options.add_nodes:
        state = simulation.with_more_nodes(state, text)
    extender_settings = dataclasses.replace(extender_settings, resource_names=state.resource_names)
    if options.manifest:
        pods += simulation.pods_of(options.manifest, _read(options.manifest), options.replicas, state.nodes)
    elif not (pods or options.drain or options.trace):
        raise failures.CommandFailed("nothing to simulate", "pass a MANIFEST, --drain NODE or --trace DIR")
    world = simulation.Simulation(state, extender_settings)
    before = world.models()
    outcomes = world.place_all(pods)
    _warn(outcomes)
    after = world.models()
    value = {
        "pods": [msgspec.to_builtins(one) for one in outcomes],
        "models": {
            "before": [msgspec.to_builtins(one) for one in before],
            "after": [msgspec.to_builtins(one) for one in after],
        },
    } | ({"trace": msgspec.to_builtins(filling)} if filling else {})
    style = flags.style(options)
    if outcomes or options.drain or not style.is_table:
        output.print_rows(
            value,
            simulation.rows(outcomes),
            style,
            "the node has no pods with GPUs",
            names=[f"pod/{one.pod}" for one in outcomes if one.node],
        )
    if style.is_table:
        if outcomes or options.drain:
            print()
        print(output.render(None, simulation.model_rows(before, after), style))
    return 0 if all(one.node or not one.code for one in outcomes) else failures.NEGATIVE


def _warn(outcomes: Sequence[simulation.Outcome]) -> None:
    """Print each warning once, with the number of pods that it concerns."""
    for text, count in collections.Counter(text for outcome in outcomes for text in outcome.warnings).items():
        print(f"warning: {text} ({count} pods)" if count > 1 else f"warning: {text}", file=sys.stderr)


def _extender_settings(options: argparse.Namespace) -> Settings:
    """Return the settings of the simulated extender."""
    policies = {"--node-scheduler-policy": options.node_policy, "--gpu-scheduler-policy": options.gpu_policy}
    arguments = [part for flag, value in policies.items() if value for part in (flag, value)]
    try:
        return settings.parse(arguments, {})
    except errors.SettingsError as cause:
        raise failures.CommandFailed(str(cause)) from cause


def _origin(
    options: argparse.Namespace, extender_settings: Settings
) -> tuple[snapshot.State, simulation.Filling | None]:
    """Return the cluster at the start, and the statistics of a trace."""
    if options.trace is None:
        return (snapshot.load(options.snapshot) if options.snapshot else flags.cluster_state(options)), None
    try:
        trace = traces.read(options.trace)
    except traces.BadTrace as cause:
        raise failures.CommandFailed(str(cause), "the README of lab/traces names a source") from cause
    started = time.monotonic()
    # On a terminal one line that is overwritten; elsewhere only the last line, so that a log stays short.
    watched = sys.stderr.isatty()

    def tell(count: int, of: int) -> None:
        if watched:
            print(f"\rtrace: {count:,} of {of:,} pods placed or rejected", end="", file=sys.stderr, flush=True)

    state, filling = simulation.filled(trace, options.until_percent, extender_settings, tell)
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
