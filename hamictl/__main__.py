"""`hamictl`: see, understand and try GPU sharing from a shell. `kubectl hami …` is the same program."""

import argparse
import logging
import os
import pathlib
import sys
import time
from collections.abc import Callable, Iterator
from typing import Any

import msgspec
import structlog
import yaml

from gpu_sharing.adapters import prometheus
from gpu_sharing.core import error_codes, errors, requests
from hamictl import completion, demo, doctor, failures, output, reader, simulation, state, views
from scheduler_extender import settings

_WATCH_SECONDS = 2.0
_CLEAR = "\033[H\033[2J"


def main() -> int:
    """Run one command. Returns its exit status: 0 for a yes, 1 for a no, 2 where there is no answer."""
    # What the extender's own code would log here is no part of the answer.
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.CRITICAL))
    parser = make_parser()
    options = parser.parse_args()
    try:
        status: int = options.run(options)
    except failures.CommandFailed as failed:
        if options.debug:
            raise
        print(f"hamictl: {failed}", file=sys.stderr)
        if failed.hint:
            print(f"  {failed.hint}", file=sys.stderr)
        return failed.status
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # Nobody reads any more, as with `| head`.
        return 0
    except KeyboardInterrupt:
        return 130
    return status


def make_parser() -> argparse.ArgumentParser:
    """Every command with its flags."""
    parser = argparse.ArgumentParser(
        prog="hamictl",
        description=__doc__,
        epilog="exit status: 0 yes, 1 no (it does not fit, there is no such pod), 2 no answer",
    )
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    def command(
        name: str, text: str, run: Callable[[argparse.Namespace], int], *examples: str
    ) -> argparse.ArgumentParser:
        epilog = "examples:\n" + "\n".join(f"  {one}" for one in examples) if examples else None
        added = commands.add_parser(
            name, help=text, description=text, epilog=epilog, formatter_class=argparse.RawDescriptionHelpFormatter
        )
        added.add_argument("--debug", action="store_true", help="show where a failure comes from")
        added.set_defaults(run=run)
        return added

    demo.add_arguments(
        command("demo", "a whole cluster in one process, and what it does", demo.run, "hamictl demo --once")
    )
    nodes = command("nodes", "every node's GPUs: promised and free", _nodes, "hamictl nodes -o wide")
    pods = command("pods", "who holds which GPU, and who waits", _pods, "hamictl pods -A", "hamictl pods -n ai-team -w")
    _add_namespace(pods)
    pods.add_argument("-w", "--watch", action="store_true", help="print again whenever something has changed")
    top = command(
        "top",
        "every GPU, the fullest first, with what is really used",
        _top,
        "hamictl top --prometheus http://localhost:9090",
    )
    top.add_argument("--prometheus", default="", metavar="URL", help="asked for what is used (default: nobody is)")
    top.add_argument("-w", "--watch", action="store_true", help="stay, and show it anew every two seconds")
    explain = command(
        "explain", "why a pod waits, node by node", _explain, "hamictl explain train-7", "hamictl explain ai/train-7"
    )
    explain.add_argument("pod", metavar="[NAMESPACE/]POD")
    _add_namespace(explain)
    for one in (nodes, pods, top, explain):
        _add_reaching(one)
        _add_output(one)
    examined = command(
        "doctor", "what is wrong with the cluster, or with the node it runs on, and how to mend it; nothing is written",
        lambda options: doctor.run(options, _kubeconfig(options), _where(options)),
        "hamictl doctor", "hamictl doctor -o json", "hamictl doctor node",
    )  # fmt: skip
    doctor.add_arguments(examined)
    _add_reaching(examined)
    _add_output(examined)
    code = command("explain-code", "what an error code means and what to do about it", _explain_code)
    code.add_argument("code", metavar="CODE", help="such as SCHED_INSUFFICIENT_GPU_MEMORY")
    _add_output(code)
    snapshot = command(
        "snapshot", "save what the scheduler sees of the cluster, for a bug report or for simulate", _snapshot,
        "hamictl snapshot --hash-names cluster.json",
    )  # fmt: skip
    snapshot.add_argument("file", type=pathlib.Path, metavar="FILE")
    snapshot.add_argument("--hash-names", action="store_true", help="hash names of nodes, pods, namespaces and labels")
    _add_cluster(snapshot)
    simulate = command(
        "simulate", "would these pods fit, where, and what would the cluster look like; nothing is written", _simulate,
        "hamictl simulate job.yaml", "hamictl simulate job.yaml --replicas 20 --snapshot cluster.json",
        "hamictl simulate --drain node-7", "hamictl simulate job.yaml --add-nodes 2:a100:8 --gpu-policy spread",
    )  # fmt: skip
    simulate.add_argument(
        "manifest", nargs="?", type=pathlib.Path, metavar="MANIFEST", help="YAML; - is standard input"
    )
    simulate.add_argument("--replicas", type=int, metavar="N", help="so many of each, in place of what it says")
    simulate.add_argument("--snapshot", type=pathlib.Path, metavar="FILE", help="in place of the live cluster")
    simulate.add_argument(
        "--add-nodes", default=[], action="append", metavar="COUNT:MODEL:GPUS", help="such as 2:a100:8"
    )
    simulate.add_argument(
        "--drain", default=[], action="append", metavar="NODE", help="without that node; its pods move"
    )
    simulate.add_argument(
        "--node-policy", default="", metavar="POLICY", help="as --node-scheduler-policy of the extender"
    )
    simulate.add_argument(
        "--gpu-policy", default="", metavar="POLICY", help="as --gpu-scheduler-policy of the extender"
    )
    _add_cluster(simulate)
    _add_output(simulate)
    shell = command(
        "completion", "completion for a shell", lambda options: completion.run(options, parser),
        "source <(hamictl completion bash)",
    )  # fmt: skip
    shell.add_argument("shell", choices=completion.SHELLS)
    return parser


def _add_output(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("-o", "--output", choices=output.FORMATS, default="table", help="default table")


def _add_namespace(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("-n", "--namespace", default="", help="default: that of the kubeconfig's context, else default")
    parser.add_argument("-A", "--all-namespaces", action="store_true")


def _add_cluster(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--kubeconfig", default="", metavar="FILE", help="default: $KUBECONFIG, else ~/.kube/config")
    parser.add_argument("--context", default="", help="of the kubeconfig (default: its current one)")


def _add_reaching(parser: argparse.ArgumentParser) -> None:
    _add_cluster(parser)
    parser.add_argument(
        "--extender", default="", metavar="URL", help="the read API (default: by kubectl port-forward into its pod)"
    )
    parser.add_argument("--token-file", type=pathlib.Path, metavar="FILE", help="a bearer token for --extender")
    parser.add_argument("--ca-file", type=pathlib.Path, metavar="FILE", help="who signed its certificate")
    parser.add_argument(
        "--system-namespace", default="hami-system", help="where the extender runs (default hami-system)"
    )


def _where(options: argparse.Namespace) -> reader.Where:
    return reader.Where(
        options.extender, options.token_file, options.ca_file, options.kubeconfig, options.context,
        options.system_namespace,
    )  # fmt: skip


def _kubeconfig(options: argparse.Namespace) -> pathlib.Path | None:
    """The file that kubectl would read; None in a pod."""
    for text in (options.kubeconfig, os.environ.get("KUBECONFIG", "").partition(os.pathsep)[0], "~/.kube/config"):
        path = pathlib.Path(text).expanduser() if text else None
        if path is not None and (path.exists() or text == options.kubeconfig):
            return path
    return None


def _namespace(options: argparse.Namespace) -> str:
    """The namespace that kubectl would look in."""
    if options.namespace:
        return str(options.namespace)
    path = _kubeconfig(options)
    try:
        config = yaml.safe_load(path.read_text()) if path else {}
        name = options.context or config["current-context"]
        contexts = {one["name"]: one["context"] for one in config["contexts"]}
        return contexts[name].get("namespace") or "default"
    except (OSError, yaml.YAMLError, KeyError, TypeError, AttributeError):
        return "default"


def _nodes(options: argparse.Namespace) -> int:
    with reader.reaching(_where(options)) as api:
        nodes = api.get("nodes")["nodes"]
    _print_rows(
        nodes, views.node_rows(nodes), options.output, "no node has GPUs yet",
        wide_only=views.NODES_WIDE_ONLY, names=[f"node/{one['name']}" for one in nodes],
    )  # fmt: skip
    return 0


def _pods(options: argparse.Namespace) -> int:
    wanted = None if options.all_namespaces else _namespace(options)
    with reader.reaching(_where(options)) as api:
        before: Any = None
        for _ in _turns(watching=options.watch):
            pods = [one for one in api.get("pods")["pods"] if wanted in (None, one["namespace"])]
            if pods == before:
                continue
            before = pods
            _print_rows(
                pods, views.pod_rows(pods), options.output, f"no pod in {wanted or 'any namespace'} asks for GPUs",
                wide_only=views.PODS_WIDE_ONLY, names=[f"pod/{one['name']}" for one in pods],
            )  # fmt: skip
    return 0


def _top(options: argparse.Namespace) -> int:
    with reader.reaching(_where(options)) as api:
        for _ in _turns(watching=options.watch):
            nodes, pods = api.get("nodes")["nodes"], api.get("pods")["pods"]
            rows = views.gpu_rows(nodes, pods, _used(options.prometheus))
            if options.watch and sys.stdout.isatty():
                sys.stdout.write(_CLEAR)
            names = [f"gpu/{gpu['uuid']}" for node in nodes for gpu in node["gpus"]]
            _print_rows(rows, rows, options.output, "no node has GPUs yet", names=names)
    return 0


def _turns(*, watching: bool) -> Iterator[None]:
    yield
    while watching:
        sys.stdout.flush()
        time.sleep(_WATCH_SECONDS)
        yield


def _used(url: str) -> dict[str, dict[str, float]]:
    found: dict[str, dict[str, float]] = {}
    for name in ("memory_used_bytes", "utilization_percent") if url else ():
        try:
            answer = prometheus.ask(url, f"hami_gpu_{name}", 10.0)
        except prometheus.NoAnswer as cause:
            raise failures.CommandFailed(f"--prometheus {url}: {cause}") from cause
        for labels, value in answer:
            found.setdefault(labels.get("device", ""), {})[name.replace("_used", "")] = value
    return found


def _explain(options: argparse.Namespace) -> int:
    namespace, _, name = options.pod.rpartition("/")
    with reader.reaching(_where(options)) as api:
        found = api.get("explain", namespace or _namespace(options), name)
    if options.output == "table":
        print(views.explanation(found))
    else:
        _print_rows(
            found, views.explanation_rows(found), options.output, views.explanation(found),
            names=[f"node/{one['node']}" for one in found["nodes"] if one["fits"]],
        )  # fmt: skip
    return 0


def _explain_code(options: argparse.Namespace) -> int:
    entry = error_codes.REGISTRY.get(error_codes.Code(options.code.upper()))
    if entry is None:
        known = "\n  ".join(["there are:", *sorted(error_codes.REGISTRY)])
        raise failures.CommandFailed(f"no such code: {options.code}", known, failures.NEGATIVE)
    if options.output in ("table", "wide"):
        print(f"{entry.code}\n  {entry.meaning}\n  {entry.remedy}")
    else:
        value = {"code": entry.code, "meaning": entry.meaning, "remedy": entry.remedy}
        print(output.render(value, [], options.output, names=[entry.code]))
    return 0


def _snapshot(options: argparse.Namespace) -> int:
    found = _state(options)
    state.save(state.hashed(found) if options.hash_names else found, options.file)
    gpus = sum(len(node.metadata.annotations or {}) > 0 for node in found.nodes)
    print(f"{options.file}: {len(found.nodes)} nodes ({gpus} with records), {len(found.pods)} pods with GPUs")
    return 0


def _state(options: argparse.Namespace) -> state.State:
    return state.read_cluster(_kubeconfig(options), options.context, requests.ResourceNames())


def _simulate(options: argparse.Namespace) -> int:
    found = state.load(options.snapshot) if options.snapshot else _state(options)
    pods: list[dict[str, Any]] = []
    for name in options.drain:
        found, moved = simulation.drained(found, name)
        pods += moved
    for text in options.add_nodes:
        found = simulation.with_more_nodes(found, text)
    if options.manifest:
        pods += simulation.pods_of(options.manifest, _read(options.manifest), options.replicas)
    elif not pods and not options.drain:
        raise failures.CommandFailed("nothing to simulate", "give a MANIFEST, or --drain NODE")
    policies = {"--node-scheduler-policy": options.node_policy, "--gpu-scheduler-policy": options.gpu_policy}
    arguments = [part for flag, value in policies.items() if value for part in (flag, value)]
    try:
        world = simulation.Simulation(found, settings.parse(arguments, {}))
    except errors.SettingsError as cause:
        raise failures.CommandFailed(str(cause)) from cause
    before = world.models()
    outcomes = [world.place(pod) for pod in pods]
    after = world.models()
    value = {
        "pods": [msgspec.to_builtins(one) for one in outcomes],
        "models": {
            "before": [msgspec.to_builtins(one) for one in before],
            "after": [msgspec.to_builtins(one) for one in after],
        },
    }
    _print_rows(
        value, simulation.rows(outcomes), options.output, "the node has no pods with GPUs",
        names=[f"pod/{one.pod}" for one in outcomes if one.node],
    )  # fmt: skip
    if options.output in ("table", "wide"):
        print()
        print(output.render(None, simulation.model_rows(before, after), "table"))
    return 0 if all(one.node or not one.code for one in outcomes) else failures.NEGATIVE


def _read(path: pathlib.Path) -> str:
    try:
        return sys.stdin.read() if str(path) == "-" else path.read_text()
    except (OSError, UnicodeDecodeError) as cause:
        raise failures.CommandFailed(f"{path}: {cause}") from cause


def _print_rows(value: Any, rows: list[dict[str, str]], form: str, nothing: str, **more: Any) -> None:
    if not rows and form in ("table", "wide"):
        print(nothing)
        return
    print(output.render(value, rows, form, **more))


if __name__ == "__main__":
    sys.exit(main())
