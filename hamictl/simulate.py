"""`hamictl simulate`: whether and where pods would fit, and the allocation afterwards.

On a copy of the live cluster, of a saved one, or of a public trace's cluster. Nothing is written.
"""

import argparse
import collections
import dataclasses
import pathlib
import sys
import time
from collections.abc import Mapping, Sequence
from typing import Any

from gpu_sharing.adapters import read_api_types
from gpu_sharing.core import errors
from hamictl import failures, flags, manifests, outcomes, output, simulation, snapshot
from lab import traces
from scheduler_extender import settings
from scheduler_extender.settings import Settings

_OVER = "\r\033[K"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the command's own flags."""
    parser.add_argument("manifest", nargs="?", type=pathlib.Path, metavar="MANIFEST", help="YAML; - is standard input")
    parser.add_argument(
        "--replicas",
        "--count",
        type=flags.whole(1, manifests.MOST_PODS),
        metavar="N",
        help="N pods of each, instead of the manifest's number",
    )
    parser.add_argument("--gpus", metavar="N", help="without a MANIFEST: pods of one container with N GPUs")
    parser.add_argument("--gpumem", metavar="MIB", help="of each GPU; also with a suffix, such as 4Gi")
    parser.add_argument("--gpumem-percentage", metavar="PERCENT", help="likewise: percent of each GPU's memory")
    parser.add_argument("--gpucores", metavar="PERCENT", help="percent of each GPU's cores")
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
    flags.add_cluster_and_names(parser)
    flags.add_output(parser)


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
    manifest = _manifest(options, state)
    if not (manifest.pods or pods or options.drain or options.trace):
        raise failures.CommandFailed("nothing to simulate", "pass a MANIFEST, --gpus N, --drain NODE or --trace DIR")
    state, replaced = simulation.without_exported(state, manifest)
    if replaced:
        print(f"{replaced} pods of {options.manifest} exist in the cluster: they are placed anew", file=sys.stderr)
    extender_settings = dataclasses.replace(extender_settings, resource_names=state.resource_names)
    world = simulation.Simulation(state, extender_settings)
    before = world.models()
    result = outcomes.Result(world.place_all([*pods, *manifest.pods]), before, world.models(), filling)
    _warn(result.pods)
    _print(result, world.explanations, flags.style(options), drains=bool(options.drain))
    return 0 if all(group.fitting == len(group.outcomes) for group in result.groups) else failures.NEGATIVE


def _manifest(options: argparse.Namespace, state: snapshot.State) -> manifests.Manifest:
    """Return the pods of the file, or those that the flags describe."""
    request = {name: getattr(options, name) for name in ("gpus", "gpumem", "gpumem_percentage", "gpucores")}
    described = [name for name, quantity in request.items() if quantity is not None]
    if options.manifest and described:
        raise failures.CommandFailed(f"pass a MANIFEST or --{described[0].replace('_', '-')}, not both")
    if options.manifest:
        return manifests.read(options.manifest, _read(options.manifest), options.replicas, state.nodes)
    return (
        manifests.described(request, options.replicas or 1, state.resource_names) if described else manifests.Manifest()
    )


def _print(
    result: outcomes.Result, explained: Mapping[str, read_api_types.Explanation], style: output.Style, *, drains: bool
) -> None:
    """Print the result; a table is followed by each no with its numbers, and by the allocation of each model."""
    shows_pods = bool(result.pods) or drains
    if shows_pods or not style.is_table:
        rows = outcomes.pod_rows(result.pods) if style.form == "wide" else outcomes.group_rows(result.groups)
        names = [f"pod/{one.pod}" for one in result.pods if one.node]
        output.print_rows(result.to_facts(), rows, style, "the node has no pods with GPUs", names=names)
    if not style.is_table:
        return
    rejected = outcomes.rejections(result.groups, explained)
    if rejected:
        print(f"\n{rejected}")
    if shows_pods:
        print()
    print(output.render(None, simulation.model_rows(result.models_before, result.models_after), style))


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
        return (snapshot.load(options.snapshot) if options.snapshot else snapshot.read_live(options)), None
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
