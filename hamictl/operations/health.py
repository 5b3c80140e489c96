"""`hamictl ops health`: the whole installation on one screen. It only reads."""

import argparse
import dataclasses
import datetime
import sys
import urllib.parse
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import msgspec

from gpu_sharing.adapters import kubernetes, objects, prometheus
from gpu_sharing.core import error_codes
from hamictl import cluster_reading, doctor, failures, findings, flags, output, quiet, snapshot
from hamictl.operations import health_rows, installed, writing
from hamictl.operations.health_rows import Row

_PROMETHEUS_SECONDS = 10.0
_FIRING = 'ALERTS{alertstate="firing"}'
_RIGHTS = "list nodes and pods, and get and list deployments, daemonsets and leases in the extender's namespace"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the operation's own flags."""
    parser.add_argument("--prometheus", default="", metavar="URL", help="also show the alerts that fire there")
    parser.add_argument(
        "--health",
        default="",
        metavar="URL",
        help="the extender's health endpoint (default: by kubectl port-forward, unless --extender is set)",
    )
    flags.add_reaching(parser)
    flags.add_output(parser)


@dataclass(frozen=True, slots=True)
class _Seen:
    parts: Sequence[installed.Part]
    pods: Sequence[objects.Pod]


def run(options: argparse.Namespace) -> int:
    """Print the state of every part. Returns the exit status: 1 if one is not well."""
    quiet.silence()
    style = flags.style(options)
    if options.prometheus and urllib.parse.urlsplit(options.prometheus).scheme not in ("http", "https"):
        raise failures.CommandFailed("--prometheus is not an address with http:// or https://")

    async def read(client: kubernetes.Client) -> _Seen:
        return await _read(client, options.system_namespace)

    seen = writing.call(options, read, _RIGHTS)
    where = dataclasses.replace(flags.address(options), health_url=options.health)
    observed, around = cluster_reading.read(flags.kubeconfigs(options), options.context, where)
    found = [(name, list(some)) for name, some in doctor.cluster_findings(observed, around)]
    problems = [one for _, some in found for one in some if one.severity != findings.ABSENT]
    rows = [
        *health_rows.parts(seen.parts),
        health_rows.pods(seen.pods),
        health_rows.leader(around.leases, options.system_namespace, around.server_now),
        health_rows.certificate(around.webhooks, around.now),
        *health_rows.nodes(observed.cluster),
        *_alerts(options.prometheus),
        health_rows.doctor(len(found), problems),
    ]
    _print(rows, style)
    return failures.NEGATIVE if any(row.state in health_rows.BAD for row in rows) else 0


def _print(rows: Sequence[Row], style: output.Style) -> None:
    moment = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
    if style.is_table:
        print(moment, file=sys.stderr)
    value = {"at": moment, "parts": [msgspec.to_builtins(row) for row in rows]}
    table = [{"PART": row.part, "STATE": row.state, "DETAIL": row.detail} for row in rows]
    bad = [row.part for row in rows if row.state in health_rows.BAD]
    print(output.render(value, table, style, names=bad))


async def _read(client: kubernetes.Client, namespace: str) -> _Seen:
    parts = await installed.parts(client, namespace)
    path = f"/api/v1/namespaces/{namespace}/pods?{installed.SELECTED}"
    return _Seen(parts, await snapshot.list_all(client, path, objects.Pod))


def _alerts(url: str) -> Iterator[Row]:
    """Yield the row of the alerts that fire; none where no Prometheus is named."""
    if not url:
        return
    try:
        series = prometheus.ask(url, _FIRING, _PROMETHEUS_SECONDS)
    except prometheus.NoAnswer as cause:
        yield Row("alerts", "error", f"{error_codes.OPS_NO_PROMETHEUS}: {cause}")
        return
    yield health_rows.alerts([labels for labels, _ in series])
