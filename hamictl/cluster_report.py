"""What a cluster is, beside what is wrong with it: its version, and sizes and conditions of its nodes. Pure."""

from collections.abc import Mapping
from typing import Any

from gpu_sharing.adapters import objects
from gpu_sharing.core import errors, quantities, records
from hamictl import snapshot

_MIB = 1 << 20


def facts(cluster: snapshot.State, version: str) -> dict[str, Any]:
    """Return the report of the cluster, with units in the names.

    Args:
        cluster: Its objects.
        version: Of its API server.
    """
    return {
        "kind": "cluster",
        "api_server": version,
        "resource_names": cluster.resource_names.managed(),
        "nodes": [_node(node) for node in cluster.nodes],
        "pods_with_gpus": len(cluster.pods),
    }


def lines(report: Mapping[str, Any]) -> list[str]:
    """Return the report as lines for a table: sums, and nodes that are not ready."""
    nodes = report["nodes"]
    cpus = sum(node["cpu_thousandths"] for node in nodes) // 1000
    memory, disk = (sum(node[key] for node in nodes) for key in ("memory_mib", "ephemeral_storage_mib"))
    gpus = sum(node["gpus"] for node in nodes)
    ready = sum(node["conditions"].get("Ready") == "True" for node in nodes)
    version = report["api_server"] or "of unknown version"
    sizes = f"{cpus:,} CPUs, memory {memory:,} MiB, disk {disk:,} MiB, {gpus:,} GPUs"
    pods = f"{report['pods_with_gpus']:,} pods with GPU requests"
    return [f"Kubernetes {version}, {len(nodes):,} nodes ({ready:,} ready): {sizes}; {pods}"]


def _node(node: objects.Node) -> dict[str, Any]:
    capacity = node.status.capacity or {}
    try:
        gpus = len(records.decode_inventory((node.metadata.annotations or {}).get(records.INVENTORY, "[]")))
    except errors.CorruptRecord:
        gpus = 0
    return {
        "name": node.metadata.name,
        "conditions": {one.type: one.status for one in node.status.conditions or ()},
        "cordoned": bool(node.spec.unschedulable),
        "cpu_thousandths": _thousandths(capacity.get("cpu", 0)),
        "memory_mib": _thousandths(capacity.get("memory", 0)) // 1000 // _MIB,
        "ephemeral_storage_mib": _thousandths(capacity.get("ephemeral-storage", 0)) // 1000 // _MIB,
        "gpus": gpus,
    }


def _thousandths(amount: quantities.Raw) -> int:
    try:
        return quantities.thousandths(amount)
    except errors.BadQuantity:
        return 0
