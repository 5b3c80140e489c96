"""`hamictl demo`: a whole cluster in this process, a real extender beside it, and a scenario with expectations.

In the scenario each node has a device plugin and a fake kubelet; with many nodes one task replaces all kubelets.
"""

import argparse
import json
import pathlib
import signal
import statistics
import sys
import threading
import time
from collections.abc import Iterable, Sequence
from typing import Any

import rich.console
import rich.progress

from gpu_sharing.core import records
from hamictl import demo_scenario, flags, rendering
from lab import cluster as clusters
from lab import extender_process, kinds, traces

_SETTLE_SECONDS = 60.0
_POLL_SECONDS = 0.05
_OUTCOMES = ("Scheduled", "FailedScheduling")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the command's flags."""
    parser.add_argument(
        "--once", action="store_true", help="end after the scenario; exit status 0 only if all expectations held"
    )
    parser.add_argument("--output", choices=("text", "json"), default="text", help="json prints one object at the end")
    parser.add_argument(
        "--nodes", type=_positive, metavar="N", help="instead of the scenario: N nodes with 8 GPUs each"
    )
    parser.add_argument("--pods", type=_positive, metavar="M", help="instead of the scenario: M pods of several kinds")
    parser.add_argument(
        "--trace",
        type=pathlib.Path,
        nargs="?",
        const=traces.SMALL,
        metavar="FILE",
        help="replay a trace (an openb pod list with its node list beside it; without FILE a small one)",
    )
    parser.add_argument(
        "--empty", action="store_true", help="instead of the scenario: one node with one GPU and no pods, to experiment"
    )
    parser.add_argument(
        "--show-environment", action="store_true", help="print the environment of each container of the scenario"
    )
    parser.add_argument(
        "--port", type=int, default=0, metavar="PORT", help="port of the API server (default: a free one)"
    )


def _positive(text: str) -> int:
    number = int(text) if text.isdigit() else 0
    if not 0 < number <= 100_000:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number from 1 to 100000")
    return number


def run(options: argparse.Namespace) -> int:
    """Run the scenario. Returns 0 if every expectation held, 1 if not, 2 if the cluster does not start."""
    quiet = options.output == "json"
    console = rich.console.Console(stderr=quiet, highlight=False)
    try:
        nodes, chapters = _plan(options)
    except traces.BadTrace as bad:
        print(f"hamictl demo: {bad}", file=sys.stderr)
        return 2
    stop = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stop.set())
    plugins = not (options.trace or options.nodes or options.pods)
    try:
        with clusters.running(nodes, port=options.port, plugins=plugins) as cluster:
            return _play(options, console, cluster, chapters, stop)
    except (extender_process.ExtenderFailed, clusters.NodesNotReady, OSError) as failed:
        print(f"hamictl demo: the cluster does not start: {failed}", file=sys.stderr)
        return 2


def _plan(options: argparse.Namespace) -> tuple[list[dict[str, Any]], list[demo_scenario.Chapter]]:
    if options.trace:
        trace = traces.read(options.trace)
        return trace.nodes, [demo_scenario.Chapter(f"replaying {options.trace.name}", trace.pods)]
    if options.empty:
        return demo_scenario.one_gpu(), []
    if options.nodes or options.pods:
        return demo_scenario.bulk(options.nodes or 10, options.pods or 50)
    return demo_scenario.nodes(), demo_scenario.chapters()


def _play(
    options: argparse.Namespace,
    console: rich.console.Console,
    cluster: clusters.Cluster,
    chapters: Sequence[demo_scenario.Chapter],
    stop: threading.Event,
) -> int:
    console.print(f"A cluster runs (nodes: {len(cluster.all(kinds.NODES))}). To use it, in another terminal:")
    _print_exports(cluster, console)
    console.print()
    expectations = demo_scenario.common() + (demo_scenario.on_the_nodes() if cluster.gpu_nodes else [])
    started = time.monotonic()
    for chapter in chapters:
        if stop.is_set():
            break
        console.print(f"[bold]{chapter.title}[/bold]")
        _submit(cluster, chapter, console, stop)
        if len(chapter.pods) <= rendering.MOST_PODS_SHOWN:
            world = read_world(cluster)
            for body in chapter.pods:
                console.print(rendering.pod(world, body["metadata"]["name"], environment=options.show_environment))
        expectations += chapter.expectations
    seconds = time.monotonic() - started
    world = read_world(cluster)
    if len(world.nodes) <= rendering.MOST_NODES_SHOWN:
        console.print(rendering.gpus(world))
    if len(world.pods) > rendering.MOST_PODS_SHOWN:
        console.print(_figures(cluster, world, seconds))
    held = [(one.what, _holds(one, world)) for one in expectations]
    for what, holds in held:
        console.print(f"{'[green]held[/green]  ' if holds else '[red]FAILED[/red]'} {what}")
    if options.output == "json":
        print(json.dumps(report(world, held)))
    if not options.once and not stop.is_set():
        console.print()
        _print_exports(cluster, console)
        console.print("Ctrl-C ends the cluster.")
        stop.wait()
    return 0 if all(holds for _, holds in held) else 1


def _print_exports(cluster: clusters.Cluster, console: rich.console.Console) -> None:
    """Print the variables for kubectl, and for hamictl and the WebUI."""
    console.print(f"  export KUBECONFIG={cluster.kubeconfig}", soft_wrap=True)
    console.print(f"  export {flags.EXTENDER_VARIABLE}=http://{cluster.extender.api}", soft_wrap=True)


def _holds(expectation: demo_scenario.Expectation, world: demo_scenario.World) -> bool:
    try:
        return expectation.holds(world)
    except (KeyError, IndexError):
        return False  # The object of the expectation is missing.


def _submit(
    cluster: clusters.Cluster, chapter: demo_scenario.Chapter, console: rich.console.Console, stop: threading.Event
) -> None:
    """Create the pods of a chapter and wait until each is placed or rejected."""
    many = len(chapter.pods) > rendering.MOST_PODS_SHOWN
    columns = (*rich.progress.Progress.get_default_columns(), rich.progress.MofNCompleteColumn())
    with rich.progress.Progress(*columns, console=console, disable=not many) as progress:
        submitting = progress.add_task("submitted", total=len(chapter.pods))
        for body in chapter.pods:
            cluster.create(kinds.PODS, body)
            progress.advance(submitting)
            if stop.is_set():
                return
        settling = progress.add_task("settled", total=len(chapter.pods))
        names = {body["metadata"]["name"] for body in chapter.pods}
        deadline = time.monotonic() + _SETTLE_SECONDS + len(names) / 20
        while time.monotonic() < deadline and not stop.is_set():
            settled = len(names & _settled(cluster))
            progress.update(settling, completed=settled)
            if settled == len(names):
                return
            time.sleep(_POLL_SECONDS if not many else 0.5)


def _settled(cluster: clusters.Cluster) -> set[str]:
    """Return the pods that run or are rejected, and have the events of it."""
    events = [(event["regarding"]["name"], event.get("reason")) for event in cluster.all(kinds.EVENTS)]
    notified = {name for name, reason in events if reason in _OUTCOMES}
    if cluster.gpu_nodes:
        rejected = {name for name, reason in events if reason == "FailedScheduling"}
        notified &= rejected | {name for name, reason in events if reason == "DeviceAllocated"}
    return {
        pod["metadata"]["name"]
        for pod in cluster.all(kinds.PODS)
        if (
            pod["status"]["phase"] == "Running"
            or any(c["status"] == "False" for c in pod["status"].get("conditions", ()))
        )
        and (pod["metadata"]["name"] in notified or not _requests_gpu(pod))
    }


def _requests_gpu(pod: dict[str, Any]) -> bool:
    containers = [*pod["spec"].get("initContainers", ()), *pod["spec"]["containers"]]
    return any("nvidia.com/gpu" in one["resources"].get("limits", {}) for one in containers)


def read_world(cluster: clusters.Cluster) -> demo_scenario.World:
    """Read the current objects of the API server."""
    notes: dict[str, list[str]] = {}
    for event in cluster.all(kinds.EVENTS):
        notes.setdefault(event["regarding"]["name"], []).append(f"{event['reason']}: {event['note']}")
    return demo_scenario.World(
        {pod["metadata"]["name"]: pod for pod in cluster.all(kinds.PODS)},
        {
            node["metadata"]["name"]: records.decode_inventory(
                node["metadata"]["annotations"].get(records.INVENTORY, "[]")
            )
            for node in cluster.all(kinds.NODES)
        },
        notes,
        _environments(cluster),
    )


def _environments(cluster: clusters.Cluster) -> dict[str, dict[str, dict[str, str]]]:
    environments: dict[str, dict[str, dict[str, str]]] = {}
    for node in cluster.gpu_nodes.values():
        for key, started in list(node.kubelet.started.items()):
            given = node.kubelet.given[key]
            environments.setdefault(given.pod, {})[given.container] = dict(started.environment)
    return environments


def report(world: demo_scenario.World, held: Iterable[tuple[str, bool]]) -> dict[str, Any]:
    """Return the object that `--output json` prints."""
    allocated = rendering.allocated(world)
    return {
        "pods": [
            {
                "name": name,
                "phase": pod["status"]["phase"],
                "node": pod["spec"].get("nodeName"),
                "gpus": [
                    {"uuid": share.uuid, "memory_mib": share.memory_mib, "cores_percent": share.cores_percent}
                    for shares in world.shares(name)
                    for share in shares
                ],
                "reason": world.note(name, "FailedScheduling").split("\n")[0],
                "events": list(world.notes.get(name, ())),
                "containers": world.environments.get(name, {}),
            }
            for name, pod in sorted(world.pods.items())
        ],
        "nodes": [
            {
                "name": name,
                "gpus": [
                    {
                        "uuid": gpu.uuid,
                        "type": gpu.type,
                        "memory_mib": gpu.memory_mib,
                        "allocated_memory_mib": allocated[gpu.uuid].memory_mib,
                        "allocated_cores_percent": allocated[gpu.uuid].cores_percent,
                        "slots_allocated": allocated[gpu.uuid].slots,
                    }
                    for gpu in inventory
                ],
            }
            for name, inventory in sorted(world.nodes.items())
        ],
        "expectations": [{"what": what, "held": holds} for what, holds in held],
    }


def _figures(cluster: clusters.Cluster, world: demo_scenario.World, seconds: float) -> str:
    """Return allocation, speed and latencies of a run with many pods."""
    allocated = rendering.allocated(world)
    total = sum(gpu.cores_percent for inventory in world.nodes.values() for gpu in inventory)
    cores = sum(allocation.cores_percent for allocation in allocated.values())
    memory_total = sum(gpu.memory_mib for inventory in world.nodes.values() for gpu in inventory)
    memory = sum(allocation.memory_mib for allocation in allocated.values())
    placed = sum(1 for pod in world.pods.values() if pod["spec"].get("nodeName"))
    cores_share, memory_share = 100 * cores / max(total, 1), 100 * memory / max(memory_total, 1)
    lines = [
        f"placed {placed} of {len(world.pods)} pods in {seconds:.1f} s, {placed / max(seconds, 0.001):.0f} pods/s",
        f"allocated {cores_share:.1f} % of all cores, {memory_share:.1f} % of all memory",
    ]
    latencies = cluster.scheduler.latencies
    for verb in ("filter", "prioritize", "bind"):
        durations = sorted(getattr(latencies, verb))
        if len(durations) > 1:
            cuts = statistics.quantiles(durations, n=100, method="inclusive")
            lines.append(
                f"{verb}: p50 {1000 * cuts[49]:.1f} ms, p95 {1000 * cuts[94]:.1f} ms, p99 {1000 * cuts[98]:.1f} ms"
            )
    return "\n".join(lines)
