"""`hamictl ops disk`: free disk space of nodes, by their kubelets and by the condition DiskPressure."""

import argparse
import asyncio
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import msgspec

from gpu_sharing.adapters import kubernetes, objects
from gpu_sharing.core import error_codes, errors, records
from hamictl import failures, flags, output, snapshot
from hamictl.operations import installed, writing

_GIB = 1 << 30
_AT_ONCE = 8
_KUBELET_SECONDS = 15.0
_PRESSURE = "DiskPressure"
_RIGHTS = "list nodes, and get deployments and list deployments and daemonsets in the extender's namespace"
_NO_STATS = "not readable: it needs get on nodes/proxy"


class _FileSystem(msgspec.Struct, rename="camel"):
    available_bytes: int | None = None
    capacity_bytes: int | None = None


class _Runtime(msgspec.Struct, rename="camel"):
    image_fs: _FileSystem | None = None
    container_fs: _FileSystem | None = None


class _NodeStats(msgspec.Struct):
    fs: _FileSystem | None = None
    runtime: _Runtime | None = None


class Summary(msgspec.Struct):
    """The kubelet's summary, with the file systems of the node.

    Source: k8s.io/kubelet pkg/apis/stats/v1alpha1.
    """

    node: _NodeStats = msgspec.field(default_factory=_NodeStats)


@dataclass(frozen=True, slots=True, kw_only=True)
class Disk:
    """One file system of a node, or what is known without its kubelet."""

    node: str
    what: str
    """`kubelet`, `images` or `containers`; empty where only the condition is known."""
    free_bytes: int = 0
    size_bytes: int = 0
    has_pressure: bool = False
    note: str = ""

    @property
    def free_percent(self) -> float:
        """Free space in percent of the size; 100 where the size is not known."""
        return 100 * self.free_bytes / self.size_bytes if self.size_bytes else 100.0

    def is_low(self, least_percent: int) -> bool:
        """Return whether the space is short."""
        return self.has_pressure or self.free_percent < least_percent


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the operation's own flags."""
    parser.add_argument(
        "--least-free", type=_percent, default=15, metavar="PERCENT", help="report less free space (default 15)"
    )
    parser.add_argument("--all-nodes", action="store_true", help="also nodes without GPUs")
    flags.add_cluster(parser)
    flags.add_output(parser)


def _percent(text: str) -> int:
    number = int(text) if text.isascii() and text.isdecimal() and len(text) < 4 else -1
    if not 0 <= number <= 100:
        raise argparse.ArgumentTypeError(f"{text!r} is not a percentage from 0 to 100")
    return number


def run(options: argparse.Namespace) -> int:
    """Print the disks. Returns the exit status: 1 if the space of a node is short."""

    async def read(client: kubernetes.Client) -> list[Disk]:
        await installed.parts(client, options.system_namespace)
        nodes = await snapshot.list_all(client, "/api/v1/nodes", objects.Node)
        chosen = [one for one in nodes if options.all_nodes or (one.metadata.annotations or {}).get(records.INVENTORY)]
        return await _disks(client, chosen)

    disks = writing.call(options, read, _RIGHTS)
    low = [one for one in disks if one.is_low(options.least_free)]
    value = {"disks": [_facts(one, options.least_free) for one in disks], "low": len(low)}
    names = [f"node/{one.node}" for one in low]
    rows = [_row(one, options.least_free) for one in disks]
    output.print_rows(value, rows, flags.style(options), "no node has GPUs", names=names)
    return failures.NEGATIVE if low else 0


async def _disks(client: kubernetes.Client, nodes: Sequence[objects.Node]) -> list[Disk]:
    turns = asyncio.Semaphore(_AT_ONCE)

    async def of_node(node: objects.Node) -> list[Disk]:
        async with turns:
            return await _of_node(client, node)

    found = await asyncio.gather(*map(of_node, nodes))
    return [disk for some in found for disk in some]


async def _of_node(client: kubernetes.Client, node: objects.Node) -> list[Disk]:
    name = node.metadata.name
    pressure = any(one.type == _PRESSURE and one.status == "True" for one in node.status.conditions or ())
    try:
        path = f"/api/v1/nodes/{name}/proxy/stats/summary"
        summary = await client.get(path, Summary, _KUBELET_SECONDS)
    except errors.Forbidden:
        return [Disk(node=name, what="", has_pressure=pressure, note=_NO_STATS)]
    except (errors.KubernetesError, msgspec.MsgspecError) as cause:
        note = f"{error_codes.OPS_NO_STATS}: {failures.first_line(cause)}"
        return [Disk(node=name, what="", has_pressure=pressure, note=note)]
    return file_systems(name, summary, has_pressure=pressure)


def file_systems(name: str, summary: Summary, *, has_pressure: bool) -> list[Disk]:
    """Return the file systems of a node, each once: images and containers often lie on the kubelet's."""
    runtime = summary.node.runtime or _Runtime()
    disks: list[Disk] = []
    seen: set[tuple[int, int]] = set()
    named = (("kubelet", summary.node.fs), ("images", runtime.image_fs), ("containers", runtime.container_fs))
    for what, one in named:
        if one is None or one.capacity_bytes is None or one.available_bytes is None:
            continue
        size = (one.available_bytes, one.capacity_bytes)
        if size not in seen:
            seen.add(size)
            disks.append(Disk(
                node=name, what=what, free_bytes=size[0], size_bytes=size[1], has_pressure=has_pressure
            ))  # fmt: skip
    note = "the kubelet reports no file system"
    return disks or [Disk(node=name, what="", has_pressure=has_pressure, note=note)]


def _row(disk: Disk, least_percent: int) -> dict[str, str]:
    state = "low" if disk.is_low(least_percent) else "ok" if disk.size_bytes else "unknown"
    return {
        "NODE": disk.node,
        "DISK": disk.what or "-",
        "FREE": f"{disk.free_bytes / _GIB:,.1f} GiB" if disk.size_bytes else "-",
        "SIZE": f"{disk.size_bytes / _GIB:,.1f} GiB" if disk.size_bytes else "-",
        "FREE%": f"{disk.free_percent:.0f}%" if disk.size_bytes else "-",
        "STATE": state,
        "NOTE": "; ".join(filter(None, (_PRESSURE if disk.has_pressure else "", disk.note))) or "-",
    }


def _facts(disk: Disk, least_percent: int) -> dict[str, Any]:
    return {
        "node": disk.node, "disk": disk.what or None, "free_bytes": disk.free_bytes if disk.size_bytes else None,
        "size_bytes": disk.size_bytes or None, "disk_pressure": disk.has_pressure, "low": disk.is_low(least_percent),
        "note": disk.note,
    }  # fmt: skip
