"""`hamictl pods`: which pods hold which GPUs, and which are pending, why and for how long."""

import argparse
import time

from gpu_sharing.adapters import read_api_types
from hamictl import failures, flags, output, reader, views, watching


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the command's own flags."""
    parser.add_argument("names", nargs="*", metavar="[NAMESPACE/]POD", help="only these (default: all)")
    flags.add_namespace(parser)
    parser.add_argument("-w", "--watch", action="store_true", help="then print each pod that changes, with the time")
    flags.add_reaching(parser)
    flags.add_output(parser)


def run(options: argparse.Namespace) -> int:
    """Print the pods. Returns the exit status."""
    style = flags.style(options)
    namespace = "" if options.all_namespaces else flags.namespace(options)
    printer = watching.Printer(style, "STATE", views.PODS_WIDE_ONLY)
    with reader.reaching(flags.address(options)) as api:
        for _ in watching.turns(watching=options.watch):
            pods = selected(api.pods(), options.names, namespace)
            rows = views.pod_rows(pods, time.time())
            if options.watch:
                names = [f"pod/{one.namespace}/{one.name}" for one in pods]
                items = map(watching.Item, pods, rows)
                printer.show(dict(zip(names, items, strict=True)), watching.now())
                continue
            output.print_rows(
                pods, rows, style, f"no pod in {namespace or 'any namespace'} requests GPUs",
                wide_only=views.PODS_WIDE_ONLY, names=[f"pod/{one.name}" for one in pods],
            )  # fmt: skip
    return 0


def selected(pods: list[read_api_types.Pod], names: list[str], namespace: str) -> list[read_api_types.Pod]:
    """Return the named pods, or all pods of a namespace.

    Args:
        pods: Of all namespaces.
        names: Each alone or after its namespace and a slash.
        namespace: Empty for all.

    Raises:
        CommandFailed: There is no pod with a GPU request of one of the names.
    """
    if not names:
        return [pod for pod in pods if namespace in ("", pod.namespace)]
    chosen = []
    for text in names:
        wanted, _, name = text.rpartition("/")
        same_name = [pod for pod in pods if pod.name == name]
        matching = [pod for pod in same_name if (wanted or namespace) in ("", pod.namespace)]
        if not matching:
            where = f"{wanted or namespace}/{name}" if wanted or namespace else name
            elsewhere = ", ".join(pod.namespace for pod in same_name)
            hint = f"there is one in namespace {elsewhere}" if elsewhere else ""
            known = {one for pod in pods for one in (pod.name, f"{pod.namespace}/{pod.name}")} - {name}
            raise failures.unknown(f"no pod {where} requests GPUs", text, () if elsewhere else known, hint=hint)
        chosen += matching
    return chosen
