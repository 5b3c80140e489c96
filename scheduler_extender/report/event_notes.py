"""The sentences of pod events: what `kubectl describe pod` shows of a decision. Pure.

Continuation lines start with four spaces, because kubectl puts them at column 0; the first line stands for itself,
because `kubectl get events` cuts there.
"""

import collections
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from gpu_sharing.core import allocations, identifiers, placement, rejections, requests

MOST_NODES_LISTED = 10


@dataclass(frozen=True, slots=True)
class Group:
    """Nodes that refuse for one reason, and the one that came nearest."""

    count: int
    nearest_node: identifiers.NodeName
    nearest: rejections.Rejection


def scheduled(
    node: identifiers.NodeName,
    gpus_on_node: int,
    request: requests.PodRequest,
    placed: placement.Placement,
    score: float,
    policy_name: str,
) -> str:
    """The note of a `Scheduled` event.

    Args:
        node: Where the pod goes.
        gpus_on_node: How many GPUs the node has.
        request: What was asked for.
        placed: Which GPUs it gets.
        score: 0 to 1, of the policy that chose.
        policy_name: That policy.
    """
    shares = [share for container in placed.shares for share in container]
    memory = sorted({share.memory_mib for share in shares})
    amounts = f"{memory[0]}MB" if len(memory) == 1 else f"{memory[0]}-{memory[-1]}MB"
    lines = [
        "Successfully assigned pod to " + node,
        f"GPU: {placed.gpu_count}/{gpus_on_node}, Memory: {amounts}",
        f"Score: {round(score * 100)}, Policy: {policy_name}",
    ]
    by_gpu: dict[str, list[allocations.Share]] = collections.defaultdict(list)
    for share in shares:
        by_gpu[share.uuid].append(share)
    for uuid, held in by_gpu.items():
        lines.append(f"{uuid}: " + " + ".join(f"{share.memory_mib}MB, cores {_cores(share)}" for share in held))
    lines += [f"note: {warning}" for warning in request.warnings]
    return "\n    ".join(lines)


def _cores(share: allocations.Share) -> str:
    return f"{share.cores_percent}%" if share.cores_percent else "not limited"


def refused_everywhere(total: int, invalid: requests.InvalidRequest) -> str:
    """The note of a `FailedScheduling` event for a request that no node can serve."""
    return f"0/{total} nodes available: {total} invalid GPU request\n    {invalid.sentence} ({invalid.code})"


def refused(
    total: int, counts: Sequence[tuple[rejections.Reason, int]], lines: Iterable[tuple[str, rejections.Rejection]]
) -> str:
    """The note of a `FailedScheduling` event.

    Args:
        total: All nodes of the cluster.
        counts: How many nodes refuse for each reason.
        lines: A node, or a phrase for several, and what it says.
    """
    ordered = sorted(counts, key=lambda count: (-count[1], count[0]))
    summary = ", ".join(f"{count} {rejections.REASONS[reason].phrase}" for reason, count in ordered)
    head = f"0/{total} nodes available: {summary or 'there are no nodes'}"
    return "\n    ".join([head, *(f"{who}: {rejection}" for who, rejection in lines)])


def grouped(groups: Iterable[Group]) -> list[tuple[str, rejections.Rejection]]:
    """The lines of `refused` for more nodes than can be listed: one a reason, with the nearest miss."""
    return [
        (
            f"{group.count} nodes, nearest {group.nearest_node}" if group.count > 1 else str(group.nearest_node),
            group.nearest,
        )
        for group in sorted(groups, key=lambda group: (-group.count, group.nearest.reason))
    ]
