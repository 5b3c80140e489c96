"""Types of identifiers.

Each is a string on the wire; as a `NewType`, passing a pod's UID where a GPU's UUID is expected is a type error.
"""

from typing import NewType

NodeName = NewType("NodeName", str)
"""`metadata.name` of a Node."""

PodUid = NewType("PodUid", str)
"""`metadata.uid` of a Pod; unlike its name it never comes back for another pod."""

PodKey = NewType("PodKey", str)
"""`<namespace>/<name>` of a Pod, as people write it."""

GpuUuid = NewType("GpuUuid", str)
"""The UUID that NVML reports, `GPU-…`."""

DecisionId = NewType("DecisionId", str)
"""Ties the filter, score, bind, allocation and events of one pod together in logs."""
