"""Where a pod's record and the API objects around it do not agree. Pure; the extender counts it, doctor explains it.

None of these can be corrected from outside: a record is what a running container was started with. So they are found,
counted and explained, and what they name of a node stays allocated until the pod ends.
"""

import enum
from collections.abc import Collection, Iterable

from gpu_sharing.core import identifiers


class Drift(enum.Enum):
    """How a record differs from what is there."""

    OTHER_NODE = "other-node"
    """It names another node than the pod is bound to."""
    UNKNOWN_GPU = "unknown-gpu"
    """It names a GPU that the pod's node does not have."""
    NODE_GONE = "node-gone"
    """The pod is bound to a node that does not exist."""


def record_drift(
    recorded_node: str, node: str, uuids: Iterable[identifiers.GpuUuid], known: Collection[identifiers.GpuUuid] | None
) -> Drift | None:
    """Return how the record of a bound pod differs; None where it agrees, or says nothing.

    Args:
        recorded_node: The node that the record names; empty for none.
        node: The node that the pod is bound to.
        uuids: The GPUs of the record.
        known: The GPUs of the pod's node; None for a node that does not exist.
    """
    if recorded_node and recorded_node != node:
        return Drift.OTHER_NODE
    held = list(uuids)
    if held and known is None:
        return Drift.NODE_GONE
    return Drift.UNKNOWN_GPU if known is not None and any(uuid not in known for uuid in held) else None
