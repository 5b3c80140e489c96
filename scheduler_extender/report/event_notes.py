"""The sentences of pod events: what `kubectl describe pod` shows of a decision. Pure.

Continuation lines start with four spaces, because kubectl puts them at column 0; the first line stands for itself,
because `kubectl get events` cuts there.
"""

import collections
from collections.abc import Sequence

from gpu_sharing.core import allocations, identifiers, near_misses, placement, policies, records, rejections, requests
from scheduler_extender.cluster import pending

_MOST_UUIDS = 3


def scheduled(
    node: identifiers.NodeName,
    gpus_on_node: int,
    request: requests.PodRequest,
    placed: placement.Placement,
    *,
    score: float,
    node_policy: policies.NodePolicy,
    gpu_policy: policies.GpuPolicy,
    room: int | None = None,
) -> str:
    """Return the note of a `Scheduled` event.

    Args:
        node: Where the pod is bound.
        gpus_on_node: How many GPUs the node has.
        request: What the pod requested.
        placed: The GPUs it gets.
        score: 0 to 1, of the node by the node policy.
        node_policy: The policy by which the node was chosen.
        gpu_policy: The policy by which the GPUs of the node were chosen.
        room: How many more pods with the same request fit on its GPU, where the policy looks at that.
    """
    shares = [share for container in placed.shares for share in container]
    memory = sorted({share.memory_mib for share in shares})
    amounts = f"{memory[0]}MB" if len(memory) == 1 else f"{memory[0]}-{memory[-1]}MB"
    lines = [
        "Successfully assigned pod to " + node,
        f"GPU: {placed.gpu_count}/{gpus_on_node}, Memory: {amounts}",
        f"Score: {round(score * 100)}, Policy: {node_policy.name}",
        f"node policy {node_policy.name}, GPU policy {gpu_policy.name}",
    ]
    by_gpu: dict[str, list[allocations.Share]] = collections.defaultdict(list)
    for share in shares:
        by_gpu[share.uuid].append(share)
    for uuid, held in by_gpu.items():
        lines.append(f"{uuid}: " + " + ".join(f"{share.memory_mib}MB, cores {_cores(share)}" for share in held))
    if room is not None:
        lines.append(
            f"leaves room there for {room} more of {amounts}" if room else "fills the GPU for pods of its size"
        )
    lines += [f"note: {warning}" for warning in request.warnings]
    return "\n    ".join(lines)


def _cores(share: allocations.Share) -> str:
    return f"{share.cores_percent}%" if share.cores_percent else "not limited"


def rejected(rejection: pending.PodRejection) -> str:
    """Return the note of a `FailedScheduling` event: a summary, then a line a node, or a reason in a large cluster."""
    total, invalid = rejection.nodes, rejection.invalid
    if invalid:
        return f"0/{total} nodes available: {total} invalid GPU request\n    {invalid.sentence} ({invalid.code})"
    ordered = sorted(rejection.counts, key=lambda count: (-count[1], count[0]))
    summary = ", ".join(f"{count} {rejections.REASONS[reason].phrase}" for reason, count in ordered)
    head = f"0/{total} nodes available: {summary or 'there are no nodes'}"
    return "\n    ".join([head, *(f"{_name_of(nodes)}: {nodes.rejection}" for nodes in rejection.details)])


def unknown_cordon(named: Sequence[str], known: Sequence[str]) -> str:
    """Return which UUIDs of a node's cordon no GPU of the node has, and which were probably meant."""
    texts = []
    for uuid in named[:_MOST_UUIDS]:
        meant = near_misses.nearest(uuid, known)
        texts.append(f"{uuid[:80]} (did you mean {meant}?)" if meant else uuid[:80])
    more = f" and {len(named) - _MOST_UUIDS} more" if len(named) > _MOST_UUIDS else ""
    return f"{records.CORDON} names {', '.join(texts)}{more}, which no GPU of the node has"


def _name_of(nodes: pending.RejectedNodes) -> str:
    return f"{nodes.nodes} nodes, nearest {nodes.nearest}" if nodes.nodes > 1 else str(nodes.nearest)
