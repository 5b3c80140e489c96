"""`hamictl demo`: a whole cluster in this process, real extender and WebUI beside it, a scenario with expectations.

In the scenario each node has a device plugin and a fake kubelet; with many nodes one task replaces all kubelets.
"""

import argparse
import contextlib
import errno
import importlib.util
import json
import os
import pathlib
import shutil
import signal
import statistics
import sys
import threading
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import rich.console
import rich.progress

from gpu_sharing.adapters import signals
from gpu_sharing.core import faults, records
from hamictl import demo_scenario, fault_client, flags, rendering, start
from lab import cluster as clusters
from lab import fault_backends, fault_service, kinds, service_process, traces, webui_process

_COUNT = flags.whole(1, 100_000)

_SETTLE_SECONDS = 60.0
_POLL_SECONDS = 0.05
_SLOW_POLL_SECONDS = 0.5
_OUTCOMES = ("Scheduled", "FailedScheduling")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the command's flags."""
    parser.add_argument(
        "--once", action="store_true", help="end after the scenario; exit status 0 only if all expectations held"
    )
    parser.add_argument("--output", choices=("text", "json"), default="text", help="json prints one object at the end")
    parser.add_argument("--nodes", type=_COUNT, metavar="N", help="instead of the scenario: N nodes with 8 GPUs each")
    parser.add_argument("--pods", type=_COUNT, metavar="M", help="instead of the scenario: M pods of several kinds")
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
        "--remediation",
        action="store_true",
        help="the extender acts on GPUs that fail; with --empty there are two nodes with two GPUs each",
    )
    parser.add_argument(
        "--show-environment", action="store_true", help="print the environment of each container of the scenario"
    )
    parser.add_argument(
        "--port",
        type=flags.whole(0, 65_535, "a port"),
        default=0,
        metavar="PORT",
        help="port of the API server (default: a free one)",
    )


def run(options: argparse.Namespace) -> int:
    """Run the scenario.

    Returns:
        0 if every expectation held, 1 if not, 2 if the cluster does not start, `start.STOPPED` after a signal.
    """
    console = rich.console.Console(stderr=options.output == "json", highlight=False)
    stop = threading.Event()
    signals.act_on((signal.SIGTERM, signal.SIGINT, signal.SIGHUP), stop.set)
    try:
        nodes, chapters = _plan(options)
        nodes = [_consenting(node) for node in nodes]
        plugins = not (options.trace or options.nodes or options.pods)
        linked = plugins and not options.once
        more = ["--remediation", "on"] if options.remediation else []
        with clusters.running(nodes, more, options.port, plugins=plugins, linked=linked, stop=stop) as cluster:
            status = _play(_Session(options, console, cluster, stop), chapters)
    except service_process.Stopped:
        status = start.STOPPED
    except traces.BadTrace as bad:
        return _refused(str(bad))
    except (service_process.ServiceFailed, clusters.NodesNotReady) as failed:
        return _refused(f"the cluster does not start: {failed}")
    except BrokenPipeError:
        raise
    except OSError as failed:
        if not stop.is_set():
            return _refused(f"the cluster does not start: {_sentence(failed, options.port)}")
    if stop.is_set():
        _print_stopped(console)
        return start.STOPPED
    return status


def _consenting(node: dict[str, Any]) -> dict[str, Any]:
    """Return a node into which faults may be injected: those of the demo are for that."""
    labels = {**node["metadata"]["labels"], faults.CONSENT_LABEL: faults.CONSENT}
    return {**node, "metadata": {**node["metadata"], "labels": labels}}


def _refused(sentence: str) -> int:
    print(f"hamictl demo: {sentence}", file=sys.stderr)
    return 2


def _sentence(failed: OSError, port: int) -> str:
    if failed.errno == errno.EADDRINUSE:
        return f"port {port} is in use; give another one, or no --port for a free one"
    if failed.errno == errno.EACCES and port:
        return f"port {port} is not permitted to this user; give one above 1023, or no --port for a free one"
    return failed.strerror or str(failed)


def _print_stopped(console: rich.console.Console) -> None:
    try:
        console.print("stopped")
        sys.stdout.flush()
    except OSError:  # The terminal is gone, as after SIGHUP.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _plan(options: argparse.Namespace) -> tuple[list[dict[str, Any]], list[demo_scenario.Chapter]]:
    given = [flag for flag in ("empty", "trace") if getattr(options, flag)]
    given += ["nodes or --pods"] if options.nodes or options.pods else []
    if len(given) > 1:
        raise traces.BadTrace(f"--{given[0]} and --{given[1]} exclude each other; give one of them")
    if options.trace:
        trace = traces.read(options.trace)
        return trace.nodes, [demo_scenario.Chapter(f"Replaying {options.trace.name}", trace.pods)]
    if options.empty:
        return demo_scenario.two_by_two() if options.remediation else demo_scenario.one_gpu(), []
    if options.nodes or options.pods:
        return demo_scenario.bulk(options.nodes or 10, options.pods or 50)
    return demo_scenario.nodes(), demo_scenario.chapters()


@dataclass(frozen=True, slots=True)
class _Session:
    """One run of the command, while its cluster runs."""

    options: argparse.Namespace
    console: rich.console.Console
    cluster: clusters.Cluster
    stop: threading.Event


def _play(session: _Session, chapters: Sequence[demo_scenario.Chapter]) -> int:
    """Play the scenario, print its result, and stay unless `--once`. Returns the exit status."""
    console, cluster = session.console, session.cluster
    nodes = len(cluster.all(kinds.NODES))
    console.print(f"A cluster runs in this process: {nodes} {'node' if nodes == 1 else 'nodes'}.\n")
    started = time.monotonic()
    for chapter in chapters:
        _play_chapter(session, chapter)
        if session.stop.is_set():
            return start.STOPPED
    seconds = time.monotonic() - started
    world = read_world(cluster)
    if len(world.nodes) <= rendering.MOST_NODES_SHOWN:
        console.print(rendering.gpus(world))
    if len(world.pods) > rendering.MOST_PODS_SHOWN:
        console.print(_figures(cluster, world, seconds))
        console.print(rendering.pending(world))
    expectations = demo_scenario.common() + (demo_scenario.on_the_nodes() if cluster.gpu_nodes else [])
    expectations += [one for chapter in chapters for one in chapter.expectations]
    held = [(one.what, _holds(one, world)) for one in expectations] if chapters else []
    if held:
        console.print(rendering.expectations(held))
    if session.options.output == "json":
        print(json.dumps(report(world, held)), flush=True)
    if not session.options.once:
        _stay(session, world)
    return 0 if all(holds for _, holds in held) else 1


def _play_chapter(session: _Session, chapter: demo_scenario.Chapter) -> None:
    """Create the pods of a chapter, wait for their outcome and print it; returns early on a signal."""
    session.console.print(f"[bold]{chapter.title}[/bold]", soft_wrap=True)
    _submit(session, chapter)
    if session.stop.is_set() or len(chapter.pods) > rendering.MOST_PODS_SHOWN:
        return
    world = read_world(session.cluster)
    for body in chapter.pods:
        session.console.print(rendering.pod(world, body, environment=session.options.show_environment))
    session.console.print()


def _stay(session: _Session, world: demo_scenario.World) -> None:
    """Print what to do with the cluster, serve the WebUI, and wait for a signal."""
    console, cluster = session.console, session.cluster
    with contextlib.ExitStack() as stack:
        processes: dict[str, service_process.ServiceProcess] = {"extender": cluster.extender}
        pages = "needs Flask: pip install 'hami-py[webui]'"
        if importlib.util.find_spec("flask"):
            webui = webui_process.WebUIProcess(cluster.folder, cluster.read_api, stop=session.stop)
            pages = stack.enter_context(webui_process.running(webui)).url
            processes["webui"] = webui
        backends = fault_backends.of_cluster(cluster, processes)
        record = cluster.folder / "faults.json"
        service = stack.enter_context(fault_service.running(cluster.kubeconfig, record, backends))
        console.print("\nIn another terminal:\n")
        commands = pathlib.Path(sys.executable).parent
        if shutil.which("hamictl") is None and (commands / "hamictl").exists():
            console.print(f"  export PATH={commands}:$PATH", soft_wrap=True)
        console.print(f"  export KUBECONFIG={cluster.kubeconfig}", soft_wrap=True)
        console.print(f"  export {flags.EXTENDER_VARIABLE}=http://{cluster.extender.api}", soft_wrap=True)
        console.print(f"  export {fault_client.URL_VARIABLE}={service.url}\n", soft_wrap=True)
        console.print(rendering.commands(_suggested(world)))
        console.print(f"\nThe WebUI: {pages}", soft_wrap=True)
        console.print("Ctrl-C ends the cluster.")
        session.stop.wait()


def _suggested(world: demo_scenario.World) -> list[tuple[str, str]]:
    """Return three commands for this cluster, with the purpose of each."""
    pending = sorted(name for name in world.pods if world.note(name, "FailedScheduling") and not world.uuids(name))
    first = pending[-1:] if "too-big" not in pending else ["too-big"]
    explain = [(f"hamictl explain {name}", "why this pod is pending") for name in first]
    return [
        *(explain or [("hamictl nodes", "the GPUs of each node, allocated and free")]),
        ("hamictl pods", "which pod holds which GPUs"),
        ("hamictl top", "every GPU, the most allocated first"),
    ]


def _holds(expectation: demo_scenario.Expectation, world: demo_scenario.World) -> bool:
    try:
        return expectation.holds(world)
    except (KeyError, IndexError):
        return False  # The object of the expectation is missing.


def _submit(session: _Session, chapter: demo_scenario.Chapter) -> None:
    """Create the pods of a chapter and wait until each is placed or rejected, or a signal comes."""
    many = len(chapter.pods) > rendering.MOST_PODS_SHOWN
    columns = (*rich.progress.Progress.get_default_columns(), rich.progress.MofNCompleteColumn())
    with rich.progress.Progress(*columns, console=session.console, disable=not many) as progress:
        submitting = progress.add_task("submitted", total=len(chapter.pods))
        for body in chapter.pods:
            session.cluster.create(kinds.PODS, body)
            progress.advance(submitting)
            if session.stop.is_set():
                return
        settling = progress.add_task("settled", total=len(chapter.pods))
        names = {body["metadata"]["name"] for body in chapter.pods}
        deadline = time.monotonic() + _SETTLE_SECONDS + len(names) / 20
        while time.monotonic() < deadline:
            settled = len(names & _settled(session.cluster))
            progress.update(settling, completed=settled)
            if settled == len(names) or session.stop.wait(_SLOW_POLL_SECONDS if many else _POLL_SECONDS):
                return


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
