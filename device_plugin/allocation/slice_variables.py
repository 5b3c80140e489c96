"""The variables by which a program reads its own slice, without the API server. Pure.

`gpu_sharing.workload` reads them. They limit nothing: what isolates a container is in the edits of its backend.
"""

import re
from collections.abc import Mapping

from device_plugin.delivery import edits
from device_plugin.isolation.assignment import Assignment
from gpu_sharing.core import records, variables

_DECISION = re.compile(r"[A-Za-z0-9._-]{1,64}")
"""What a decision id looks like; other text in the annotation is not copied into a container."""


def edits_for(assignment: Assignment, *, isolation: str, node: str, annotations: Mapping[str, str]) -> edits.Edits:
    """Return the variables that describe a container's slice.

    Args:
        assignment: The container.
        isolation: What isolates it in effect.
        node: Name of the node.
        annotations: Those of its pod.
    """
    environment = {
        variables.SLICE_MEMORY_MIB: ",".join(str(share.memory_mib) for share in assignment.shares),
        variables.SLICE_CORES_PERCENT: ",".join(str(share.cores_percent) for share in assignment.shares),
        variables.SLICE_ISOLATION: isolation,
        variables.SLICE_NODE: node,
    }
    if assignment.by_cdi:
        namespace, _, pod = assignment.pod_key.partition("/")
        environment |= {
            variables.SLICE_NAMESPACE: namespace,
            variables.SLICE_POD: pod,
            variables.SLICE_CONTAINER: assignment.container,
        }
        decision = annotations.get(records.DECISION, "")
        if _DECISION.fullmatch(decision):
            environment[variables.SLICE_DECISION_ID] = decision
    return edits.Edits(environment)
