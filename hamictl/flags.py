"""The flags that several commands share, and what they mean."""

import argparse
import os
import pathlib
import sys
from collections.abc import Callable

from gpu_sharing.adapters import cluster_access
from hamictl import output, reader

EXTENDER_VARIABLE = "HAMI_EXTENDER"
"""Also the WebUI's variable, so that one setting serves both."""


_MOST_DIGITS = 20


def whole_number(text: str, lowest: int, highest: int) -> int | None:
    """Return the number in a text; None if it is not a whole one in that range."""
    is_number = text.isascii() and text.isdigit() and len(text) <= _MOST_DIGITS
    return int(text) if is_number and lowest <= int(text) <= highest else None


def whole(lowest: int, highest: int, what: str = "a number") -> Callable[[str], int]:
    """Return the reader of a flag with a whole number in that range, for `type` of `add_argument`.

    Args:
        lowest: Accepted too.
        highest: Accepted too.
        what: For the message, such as `a port`.
    """

    def read(text: str) -> int:
        number = whole_number(text, lowest, highest)
        if number is None:
            raise argparse.ArgumentTypeError(f"{text[:40]!r} is not {what} from {lowest:,} to {highest:,}")
        return number

    return read


def add_output(parser: argparse.ArgumentParser) -> None:
    """Add the flags of format and colour."""
    parser.add_argument("-o", "--output", choices=output.FORMATS, default="table", help="default table")
    parser.add_argument(
        "--color", choices=output.COLOURS, default="auto", help="default auto: on a terminal, unless NO_COLOR is set"
    )


def style(options: argparse.Namespace) -> output.Style:
    """Return the format and colour of the output."""
    return output.Style(options.output, output.is_coloured(options.color, os.environ, sys.stdout.isatty()))


def add_namespace(parser: argparse.ArgumentParser) -> None:
    """Add kubectl's flags of the namespace."""
    parser.add_argument("-n", "--namespace", default="", help="default: that of the kubeconfig's context, else default")
    parser.add_argument("-A", "--all-namespaces", action="store_true", help="in all namespaces")


def add_cluster(parser: argparse.ArgumentParser) -> None:
    """Add the flags of the API server, and of the chart's namespace."""
    parser.add_argument("--kubeconfig", default="", metavar="FILE", help="default: $KUBECONFIG, else ~/.kube/config")
    parser.add_argument("--context", default="", help="of the kubeconfig (default: its current one)")
    parser.add_argument(
        "--system-namespace",
        default="hami-system",
        metavar="NAMESPACE",
        help="where the extender runs (default hami-system)",
    )


def add_reaching(
    parser: argparse.ArgumentParser, text: str = "the read API", fallback: str = "by kubectl port-forward into its pod"
) -> None:
    """Add the flags of the API server and of the extender.

    Args:
        parser: Of the command.
        text: What the extender's URL is for.
        fallback: What is done without it.
    """
    add_cluster(parser)
    parser.add_argument(
        "--extender",
        default="",
        metavar="URL",
        help=f"{text} (default: ${EXTENDER_VARIABLE}, else {fallback})",
    )
    parser.add_argument("--token-file", type=pathlib.Path, metavar="FILE", help="a bearer token for --extender")
    parser.add_argument("--ca-file", type=pathlib.Path, metavar="FILE", help="the authority of its certificate")


def add_cluster_and_names(parser: argparse.ArgumentParser) -> None:
    """Add the flags of the API server, and of the extender that knows the names of the GPU resources."""
    add_reaching(parser, "the read API, for the names of the GPU resources", "from the arguments of its Deployment")


def address(options: argparse.Namespace) -> reader.Address:
    """Return how to reach the extender."""
    return reader.Address(
        url=options.extender or os.environ.get(EXTENDER_VARIABLE, ""),
        token_file=options.token_file,
        ca_file=options.ca_file,
        kubeconfig=options.kubeconfig,
        context=options.context,
        system_namespace=options.system_namespace,
        reachable=bool(kubeconfigs(options)) or cluster_access.is_pod(os.environ),
    )


def kubeconfigs(options: argparse.Namespace) -> tuple[pathlib.Path, ...]:
    """Return the files that kubectl would read; none in a pod."""
    return cluster_access.files(options.kubeconfig, os.environ)


def namespace(options: argparse.Namespace) -> str:
    """Return the namespace that kubectl would use."""
    if options.namespace:
        return str(options.namespace)
    files = kubeconfigs(options)
    return (cluster_access.namespace(files, options.context) if files else cluster_access.own_namespace()) or "default"
