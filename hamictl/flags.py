"""The flags that several commands share, and what they mean."""

import argparse
import os
import pathlib
import sys

import yaml

from hamictl import output, reader, snapshot

EXTENDER_VARIABLE = "HAMI_EXTENDER"
"""The WebUI's variable too, so that saying it once serves both."""


def add_output(parser: argparse.ArgumentParser) -> None:
    """In which format, and whether in colour."""
    parser.add_argument("-o", "--output", choices=output.FORMATS, default="table", help="default table")
    parser.add_argument(
        "--color", choices=output.COLOURS, default="auto", help="default auto: on a terminal, unless NO_COLOR is set"
    )


def look(options: argparse.Namespace) -> output.Look:
    """How the answer is to look here."""
    return output.Look(options.output, output.wants_colour(options.color, os.environ, sys.stdout.isatty()))


def add_namespace(parser: argparse.ArgumentParser) -> None:
    """As kubectl has them."""
    parser.add_argument("-n", "--namespace", default="", help="default: that of the kubeconfig's context, else default")
    parser.add_argument("-A", "--all-namespaces", action="store_true", help="look in all of them")


def add_cluster(parser: argparse.ArgumentParser) -> None:
    """Which API server, and where in it the chart is installed."""
    parser.add_argument("--kubeconfig", default="", metavar="FILE", help="default: $KUBECONFIG, else ~/.kube/config")
    parser.add_argument("--context", default="", help="of the kubeconfig (default: its current one)")
    parser.add_argument(
        "--system-namespace",
        default="hami-system",
        metavar="NAMESPACE",
        help="where the extender runs (default hami-system)",
    )


def add_reaching(parser: argparse.ArgumentParser) -> None:
    """Which API server, and which extender."""
    add_cluster(parser)
    parser.add_argument(
        "--extender",
        default="",
        metavar="URL",
        help=f"the read API (default: ${EXTENDER_VARIABLE}, else by kubectl port-forward into its pod)",
    )
    parser.add_argument("--token-file", type=pathlib.Path, metavar="FILE", help="a bearer token for --extender")
    parser.add_argument("--ca-file", type=pathlib.Path, metavar="FILE", help="who signed its certificate")


def where(options: argparse.Namespace) -> reader.Where:
    """How the extender is to be reached."""
    return reader.Where(
        url=options.extender or os.environ.get(EXTENDER_VARIABLE, ""),
        token_file=options.token_file,
        ca_file=options.ca_file,
        kubeconfig=options.kubeconfig,
        context=options.context,
        system_namespace=options.system_namespace,
    )


def kubeconfig(options: argparse.Namespace) -> pathlib.Path | None:
    """The file that kubectl would read; None in a pod."""
    for text in (options.kubeconfig, os.environ.get("KUBECONFIG", "").partition(os.pathsep)[0], "~/.kube/config"):
        path = pathlib.Path(text).expanduser() if text else None
        if path is not None and (path.exists() or text == options.kubeconfig):
            return path
    return None


def namespace(options: argparse.Namespace) -> str:
    """The namespace that kubectl would look in."""
    if options.namespace:
        return str(options.namespace)
    path = kubeconfig(options)
    try:
        config = yaml.safe_load(path.read_text()) if path else {}
        name = options.context or config["current-context"]
        contexts = {one["name"]: one["context"] for one in config["contexts"]}
        return contexts[name].get("namespace") or "default"
    except (OSError, yaml.YAMLError, KeyError, TypeError, AttributeError):
        return "default"


def cluster_state(options: argparse.Namespace) -> snapshot.State:
    """What the scheduler sees of the live cluster."""
    return snapshot.read_cluster(kubeconfig(options), options.context, options.system_namespace)
