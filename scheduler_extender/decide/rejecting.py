"""Why no node takes a pod, as one value: the details of a few nodes, or of the nearest node of each reason."""

import collections
from collections.abc import Iterable

import numpy as np

from gpu_sharing.core import identifiers, rejections
from gpu_sharing.core.rejections import Reason
from scheduler_extender.cluster import pending
from scheduler_extender.decide.placer import Placer
from scheduler_extender.fleet.ledger import Ledger

MOST_NODES_LISTED = 10
"""In a larger cluster there is one entry a reason, with the node that came nearest."""


def pod_rejection(
    ledger: Ledger, placer: Placer, pod: pending.AnyPod, offered: Iterable[identifiers.NodeName]
) -> pending.PodRejection:
    """Return why no node takes a pod; a node that would was not among the offered ones."""
    nodes = ledger.settle().live
    if isinstance(pod, pending.UnreadablePod):
        return pending.PodRejection(nodes, invalid=pod.invalid)
    allowed = frozenset(offered)
    if nodes <= MOST_NODES_LISTED:
        details = tuple(
            pending.RejectedNodes(1, name, why_not(placer, pod, name, allowed)) for name in sorted(ledger.node_names())
        )
    else:
        details = _nearest_of_each_reason(ledger, placer, pod, allowed)
    counts: collections.Counter[Reason] = collections.Counter()
    for some in details:
        counts[some.rejection.reason] += some.nodes
    # Nodes without GPUs are no reason where others have some, however many they are.
    with_gpus = [reason for reason in counts if reason is not Reason.NODE_NOT_REGISTERED]
    main = min(with_gpus, key=lambda reason: (-counts[reason], reason), default=Reason.NODE_NOT_REGISTERED)
    return pending.PodRejection(nodes, main, tuple(counts.items()), details)


def why_not(
    placer: Placer, pod: pending.PendingPod, name: identifiers.NodeName, offered: frozenset[identifiers.NodeName]
) -> rejections.Rejection:
    """Return why one node does not take the pod."""
    unavailable = placer.unavailable(name)
    if unavailable is not None and name not in offered:
        return unavailable
    answer = placer.place_on(pod, name, nominations=name in offered)
    return answer if isinstance(answer, rejections.Rejection) else rejections.Rejection(Reason.NOT_OFFERED)


def _nearest_of_each_reason(
    ledger: Ledger, placer: Placer, pod: pending.PendingPod, offered: frozenset[identifiers.NodeName]
) -> tuple[pending.RejectedNodes, ...]:
    arrays = ledger.settle()
    fitting = placer.everywhere(pod.request).fitting
    live = np.array([bool(name) for name in arrays.names])
    # The least free of the GPUs that would be needed shows how near a node came.
    depth = min(max(pod.request.gpus, 1), arrays.exists.shape[0])
    nearness = np.sort(np.where(arrays.usable, arrays.memory_free, -1)[:, : arrays.columns], axis=0)[-depth]
    reasons, away = fitting.reasons, arrays.unavailable[: arrays.columns]
    if away.any():
        away = np.where(np.isin(np.array(arrays.names), list(offered)), Reason.NONE, away)
        reasons = np.where(away != Reason.NONE, away, reasons)
    groups = []
    for code in np.unique(reasons[live]):
        columns = np.flatnonzero(live & (reasons == code))
        nearest = arrays.names[int(columns[nearness[columns].argmax()])]
        groups.append(pending.RejectedNodes(len(columns), nearest, why_not(placer, pod, nearest, offered)))
    return tuple(sorted(groups, key=lambda group: (-group.nodes, group.rejection.reason)))
