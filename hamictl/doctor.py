"""`hamictl doctor`: check a cluster, or the node on which it runs, and report problems and how to fix them.

It only reads. Exit status 0: no problem; 1: problems found; 2: no answer.
"""

import argparse
import dataclasses
import datetime
import pathlib
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from hamictl import failures, findings, flags, node_checks, node_driver, node_report, output, quiet

if TYPE_CHECKING:
    from hamictl import cluster_checks, record_checks


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the command's own flags."""
    parser.add_argument("what", nargs="?", choices=("cluster", "node"), default="cluster", help="default cluster")
    parser.add_argument(
        "--kubelet-dir",
        type=pathlib.Path,
        metavar="DIR",
        help="of a node: the kubelet's (default: the one with its socket of /var/lib/kubelet, k0s's and MicroK8s's)",
    )
    parser.add_argument(
        "--root", type=pathlib.Path, default=pathlib.Path("/"), metavar="DIR", help="of a node: the host's root"
    )
    parser.add_argument(
        "--least-free",
        type=flags.whole(0, 1_000_000_000, "a number of MiB"),
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


@dataclass(frozen=True, slots=True)
class _Subject:
    """The checks of a cluster or a node, and its report."""

    checks: Iterable[findings.Check]
    report: Mapping[str, Any]
    lines: Sequence[str]
    """The report for a table."""


def run(options: argparse.Namespace) -> int:
    """Run the checks and print the findings. Returns the exit status."""
    moment = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
    style = flags.style(options)
    subject = _node(options) if options.what == "node" else _cluster(options)
    if style.is_table:
        print("\n".join((moment, *subject.lines)), file=sys.stderr)
    every: list[findings.Finding] = []
    count = 0
    for name, some in subject.checks:
        more = list(some)
        every += more
        count += 1
        if style.is_table:
            print(findings.line(name, more), file=sys.stderr)
    problems = [one for one in every if one.severity != findings.ABSENT]
    summary = findings.summary(count, problems)
    if style.is_table:
        print(f"{count} checks: {summary['errors']:,} errors, {summary['warnings']:,} warnings", file=sys.stderr)
    if style.is_table and not problems:
        print("no problems found")
    else:
        value = {
            "summary": summary, "at": moment, "report": subject.report,
            "not_installed": [one.to_facts() for one in every if one.severity == findings.ABSENT],
            "findings": [one.to_facts() for one in problems],
        }  # fmt: skip
        if style.form == "table":
            print("\n".join(findings.blocks(problems, style)))
        else:
            rows = findings.rows(problems)
            print(output.render(value, rows, style, names=[f"{one.code} {one.about}" for one in problems]))
    return failures.NEGATIVE if problems else 0


def _node(options: argparse.Namespace) -> _Subject:
    kubelet_dir = options.kubelet_dir or node_checks.kubelet_dir(options.root)
    node = node_checks.Node(options.root, kubelet_dir, options.least_free)
    driver = node_driver.read(options.root)
    report = node_report.facts(options.root, node_checks.file_systems(node), driver)
    return _Subject(node_checks.checks(node, driver), report, node_report.lines(report))


def _cluster(options: argparse.Namespace) -> _Subject:
    # Here, because a GPU node has neither the extender's code nor what it needs.
    from hamictl import cluster_reading, cluster_report

    quiet.silence()
    where = dataclasses.replace(flags.address(options), health_url=options.health)
    observed, seen = cluster_reading.read(flags.kubeconfigs(options), options.context, where)
    report = cluster_report.facts(observed.cluster, seen.ping.version)
    return _Subject(cluster_findings(observed, seen), report, cluster_report.lines(report))


def cluster_findings(
    observed: "record_checks.Observation", seen: "cluster_checks.Environment"
) -> Iterator[findings.Check]:
    """Yield every check of a cluster with its findings."""
    from hamictl import cluster_checks, pending_checks, record_checks

    names = observed.cluster.resource_names
    yield from cluster_checks.checks(seen, observed.cluster, names)
    yield from record_checks.checks(observed, names)
    yield from pending_checks.checks(observed, names)
