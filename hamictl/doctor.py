"""`hamictl doctor`: check a cluster, or the node on which it runs, and report problems and how to fix them.

It only reads. Exit status 0: no problem; 1: problems found; 2: no answer.
"""

import argparse
import dataclasses
import itertools
import pathlib
import sys
from collections.abc import Iterator

from gpu_sharing.core import error_codes
from hamictl import cluster_checks, cluster_reading, failures, flags, node_checks, output, pending_checks, record_checks


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the command's own flags."""
    parser.add_argument("what", nargs="?", choices=("cluster", "node"), default="cluster", help="default cluster")
    parser.add_argument(
        "--kubelet-dir",
        type=pathlib.Path,
        default=pathlib.Path("/var/lib/kubelet"),
        metavar="DIR",
        help="of a node: the kubelet's (default /var/lib/kubelet)",
    )
    parser.add_argument(
        "--root", type=pathlib.Path, default=pathlib.Path("/"), metavar="DIR", help="of a node: the host's root"
    )
    parser.add_argument(
        "--least-free",
        type=int,
        default=1024,
        metavar="MIB",
        help="of a node: report less free space than this (default 1024)",
    )
    parser.add_argument(
        "--health",
        default="",
        metavar="URL",
        help="the extender's health endpoint (default: by kubectl port-forward, unless --extender is set)",
    )
    flags.add_reaching(parser)
    flags.add_output(parser)


def run(options: argparse.Namespace) -> int:
    """Run the checks and print the findings. Returns the exit status."""
    checks = (
        node_checks.checks(node_checks.Node(options.root, options.kubelet_dir, options.least_free))
        if options.what == "node"
        else _cluster(options)
    )
    style = flags.style(options)
    found: list[record_checks.Finding] = []
    count = 0
    for name, findings in checks:
        more = list(findings)
        found += more
        count += 1
        if style.is_table:
            print(f"{'ok  ' if not more else 'bad '} {name}" + (f": {len(more)}" if more else ""), file=sys.stderr)
    failed = sum(one.severity == record_checks.ERROR for one in found)
    value = {
        "summary": {"checks": count, "errors": failed, "warnings": len(found) - failed},
        "findings": [one.to_facts() for one in found],
    }
    rows = [
        {
            "SEVERITY": one.severity,
            "ABOUT": one.about,
            "CODE": one.code,
            "DETAIL": one.detail,
            "WHAT TO DO": error_codes.REGISTRY[one.code].remedy,
        }
        for one in found
    ]
    if style.is_table and not found:
        print("no problems found")
    else:
        print(output.render(value, rows, style, names=[f"{one.code} {one.about}" for one in found]))
    return failures.NEGATIVE if found else 0


def _cluster(options: argparse.Namespace) -> Iterator[record_checks.Check]:
    where = dataclasses.replace(flags.address(options), health_url=options.health)
    observed, seen = cluster_reading.read(flags.kubeconfigs(options), options.context, where)
    names = observed.cluster.resource_names
    return itertools.chain(
        cluster_checks.checks(seen, observed.cluster, names),
        record_checks.checks(observed, names),
        pending_checks.checks(observed, names),
    )
