"""`hamictl`: inspect, explain and simulate GPU sharing from a shell. `kubectl hami …` is the same program."""

import argparse
import logging
import math
import os
import pathlib
import sys
import time
from collections.abc import Callable, Iterator
from typing import Any

import structlog

from gpu_sharing.adapters import prometheus
from gpu_sharing.core import error_codes
from hamictl import (
    absent_pods,
    completion,
    demo,
    doctor,
    failures,
    flags,
    output,
    reader,
    release,
    simulate,
    snapshot,
    views,
)

_WATCH_SECONDS = 2.0
_STATUSES = "0 printed, 2 no answer"
_CLEAR = "\033[H\033[2J"


def main() -> int:
    """Run one command. Returns its exit status: 0 for yes, 1 for no, 2 if there is no answer."""
    # The logs of the extender's code are not part of the answer.
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
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # Closed by the reader, as by `| head`.
        return 0
    except KeyboardInterrupt:
        return 130
    except Exception as defect:
        if options.debug:
            raise
        message = str(defect).partition("\n")[0]
        print(f"hamictl: a defect: {type(defect).__name__}: {message}", file=sys.stderr)
        print("  run it again with --debug, and report what it prints", file=sys.stderr)
        return failures.FAILED
    return status


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


def make_parser() -> argparse.ArgumentParser:
    """Return the parser of every command with its flags."""
    parser = argparse.ArgumentParser(
        prog="hamictl",
        description=__doc__,
        epilog="hamictl COMMAND --help has examples\n\n"
        "exit status: 0 yes, 1 no (it does not fit, there is no such pod), 2 no answer",
        formatter_class=_Help,
    )
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    def command(
        name: str, text: str, run: Callable[[argparse.Namespace], int], statuses: str, *examples: str
    ) -> argparse.ArgumentParser:
        shown = "\n".join(["examples:", *(f"  {one}" for one in examples)])
        added = commands.add_parser(
            name, help=text, description=text, epilog=f"{shown}\n\nexit status: {statuses}", formatter_class=_Help
        )
        added.add_argument("--debug", action="store_true", help="show where a failure comes from")
        added.set_defaults(run=run)
        return added

    demonstrated = command(
        "demo", "run a whole cluster in one process, with a scenario", demo.run,
        "0 all expectations held, 1 one failed, 2 the cluster does not start", "hamictl demo --once",
    )  # fmt: skip
    demo.add_arguments(demonstrated)
    nodes = command("nodes", "every node's GPUs: allocated and free", _nodes, _STATUSES, "hamictl nodes -o wide")
    pods = command(
        "pods", "which pods hold which GPUs, and which are pending", _pods, _STATUSES,
        "hamictl pods -A", "hamictl pods -n ai-team -w",
    )  # fmt: skip
    flags.add_namespace(pods)
    pods.add_argument("-w", "--watch", action="store_true", help="print again on every change")
    top = command(
        "top", "every GPU, the most allocated first, with measured memory and utilization", _top, _STATUSES,
        "hamictl top --prometheus http://localhost:9090",
    )  # fmt: skip
    top.add_argument("--prometheus", default="", metavar="URL", help="Prometheus with the used memory (default: none)")
    top.add_argument("-w", "--watch", action="store_true", help="print again every two seconds")
    explain = command(
        "explain", "why a pod is pending, node by node", _explain,
        "0 the pod is known, 1 no such pod requests GPUs, 2 no answer",
        "hamictl explain train-7", "hamictl explain ai/train-7",
    )  # fmt: skip
    explain.add_argument("pod", metavar="[NAMESPACE/]POD")
    explain.add_argument("--all", action="store_true", help="list every node, not only the nearest five")
    flags.add_namespace(explain)
    for subparser in (nodes, pods, top, explain):
        flags.add_reaching(subparser)
        flags.add_output(subparser)
    examined = command(
        "doctor", "problems of the cluster, or of the node on which it runs, and how to fix them; nothing is written",
        doctor.run, "0 no problem, 1 problems found, 2 no answer",
        "hamictl doctor", "hamictl doctor -o json", "hamictl doctor node",
    )  # fmt: skip
    doctor.add_arguments(examined)
    flags.add_reaching(examined)
    flags.add_output(examined)
    one_gpu = command(
        "gpu", "make plugin and monitor close one GPU, so that it can be reset or its MIG mode changed",
        release.run, "0 done, 1 not done in time, 2 no answer",
        "hamictl gpu release node-7 0", "hamictl gpu release node-7 0 --cancel",
    )  # fmt: skip
    release.add_arguments(one_gpu)
    flags.add_cluster(one_gpu)
    code = command(
        "explain-code", "what an error code means and what to do about it", _explain_code,
        "0 the code exists, 1 it does not", "hamictl explain-code SCHED_INSUFFICIENT_GPU_MEMORY",
    )  # fmt: skip
    code.add_argument("code", metavar="CODE", help="such as SCHED_INSUFFICIENT_GPU_MEMORY")
    flags.add_output(code)
    snapshot = command(
        "snapshot", "save the cluster as the scheduler reads it, for a bug report or for simulate", _snapshot,
        "0 saved, 2 no answer", "hamictl snapshot --hash-names cluster.json",
    )  # fmt: skip
    snapshot.add_argument("file", type=pathlib.Path, metavar="FILE")
    snapshot.add_argument("--hash-names", action="store_true", help="hash names of nodes, pods, namespaces and labels")
    flags.add_cluster(snapshot)
    simulated = command(
        "simulate", "whether and where pods would fit, and the allocation afterwards; nothing is written",
        simulate.run, "0 every pod fits, 1 a pod would be pending, 2 no answer",
        "hamictl simulate job.yaml", "hamictl simulate job.yaml --replicas 20 --snapshot cluster.json",
        "hamictl simulate --drain node-7", "hamictl simulate job.yaml --trace openb --until-percent 80",
        "hamictl simulate job.yaml --add-nodes 2:a100:8 --gpu-policy spread",
    )  # fmt: skip
    simulate.add_arguments(simulated)
    flags.add_cluster(simulated)
    flags.add_output(simulated)
    shell = command(
        "completion", "completion for a shell", lambda options: completion.run(options, parser), "0",
        "source <(hamictl completion bash)",
    )  # fmt: skip
    shell.add_argument("shell", choices=completion.SHELLS)
    return parser


def _nodes(options: argparse.Namespace) -> int:
    with reader.reaching(flags.address(options)) as api:
        nodes = api.nodes()
    output.print_rows(
        nodes, views.node_rows(nodes), flags.style(options), "no node has GPUs yet",
        wide_only=views.NODES_WIDE_ONLY, names=[f"node/{one.name}" for one in nodes],
    )  # fmt: skip
    return 0


def _pods(options: argparse.Namespace) -> int:
    wanted = None if options.all_namespaces else flags.namespace(options)
    with reader.reaching(flags.address(options)) as api:
        before: Any = None
        for _ in _turns(watching=options.watch):
            pods = [one for one in api.pods() if wanted in (None, one.namespace)]
            if pods == before:
                continue
            before = pods
            output.print_rows(
                pods, views.pod_rows(pods), flags.style(options),
                f"no pod in {wanted or 'any namespace'} requests GPUs",
                wide_only=views.PODS_WIDE_ONLY, names=[f"pod/{one.name}" for one in pods],
            )  # fmt: skip
    return 0


def _top(options: argparse.Namespace) -> int:
    with reader.reaching(flags.address(options)) as api:
        for _ in _turns(watching=options.watch):
            nodes, pods = api.nodes(), api.pods()
            rows = views.gpu_rows(nodes, pods, _used(options.prometheus))
            if options.watch and sys.stdout.isatty():
                sys.stdout.write(_CLEAR)
            names = [f"gpu/{gpu.uuid}" for node in nodes for gpu in node.gpus]
            output.print_rows(
                rows, rows, flags.style(options), "no node has GPUs yet", wide_only=views.GPUS_WIDE_ONLY, names=names
            )
    return 0


def _turns(*, watching: bool) -> Iterator[None]:
    yield
    while watching:
        sys.stdout.flush()
        time.sleep(_WATCH_SECONDS)
        yield


def _used(url: str) -> dict[str, dict[str, float]]:
    used: dict[str, dict[str, float]] = {}
    for name in ("memory_used_bytes", "utilization_percent") if url else ():
        try:
            answer = prometheus.ask(url, f"hami_gpu_{name}", 10.0)
        except prometheus.NoAnswer as cause:
            raise failures.CommandFailed(f"--prometheus {url}: {cause}") from cause
        for labels, value in filter(lambda sample: math.isfinite(sample[1]), answer):
            used.setdefault(labels.get("device", ""), {})[name.replace("_used", "")] = value
    return used


def _explain(options: argparse.Namespace) -> int:
    named, _, name = options.pod.rpartition("/")
    namespace = named or flags.namespace(options)
    try:
        with reader.reaching(flags.address(options)) as api:
            explanation = api.explain(namespace, name, views.most_nodes_read(options.output, every_node=options.all))
    except failures.CommandFailed as refused:
        raise absent_pods.refusal(options, namespace, name, refused) from refused
    text = views.explanation(explanation, every_node=options.all)
    if options.output == "table":
        print(text)
    else:
        output.print_rows(
            explanation, views.explanation_rows(explanation), flags.style(options), text,
            names=[f"node/{one.node}" for one in explanation.nodes if one.fits],
        )  # fmt: skip
    return 0


def _explain_code(options: argparse.Namespace) -> int:
    entry = error_codes.REGISTRY.get(error_codes.Code(options.code.upper()))
    if entry is None:
        known = "\n  ".join(["known codes:", *sorted(error_codes.REGISTRY)])
        raise failures.CommandFailed(f"no such code: {options.code}", known, failures.NEGATIVE)
    if flags.style(options).is_table:
        print(f"{entry.code}\n  {entry.meaning}\n  {entry.remedy}")
    else:
        value = {"code": entry.code, "meaning": entry.meaning, "remedy": entry.remedy}
        print(output.render(value, [], flags.style(options), names=[entry.code]))
    return 0


def _snapshot(options: argparse.Namespace) -> int:
    state = flags.cluster_state(options)
    snapshot.save(snapshot.hashed(state) if options.hash_names else state, options.file)
    gpus = sum(len(node.metadata.annotations or {}) > 0 for node in state.nodes)
    print(f"{options.file}: {len(state.nodes)} nodes ({gpus} with records), {len(state.pods)} pods with GPUs")
    return 0


if __name__ == "__main__":
    sys.exit(main())
