"""Consent of a node: its label permits faults, and without it nothing is injected there."""

from typing import Protocol

from gpu_sharing.adapters import kubernetes, objects
from gpu_sharing.core import error_codes, errors, faults


class Consent(Protocol):
    """Knows into which nodes faults may be injected."""

    async def demand(self, node: str) -> None:
        """Check that faults may be injected into a node.

        Raises:
            FaultRefused: They may not, the node does not exist, or its label cannot be read.
        """


class NodeLabels:
    """Reads the label of the node at each request, so that removing the label works at once."""

    def __init__(self, client: kubernetes.Client) -> None:
        self._client = client

    async def demand(self, node: str) -> None:
        """See `Consent`."""
        try:
            labels = (await self._client.get(f"/api/v1/nodes/{node}", objects.Node)).metadata.labels or {}
        except errors.NotFound as cause:
            raise errors.FaultRefused(error_codes.FAULT_NO_TARGET, f"no node is named {node}") from cause
        except errors.KubernetesError as cause:
            text = f"whether {node} has the label {faults.CONSENT_LABEL} cannot be read: {cause}"
            raise errors.FaultRefused(error_codes.FAULT_NO_CONSENT, text) from cause
        if labels.get(faults.CONSENT_LABEL) != faults.CONSENT:
            text = f"kubectl label node {node} {faults.CONSENT_LABEL}={faults.CONSENT} permits faults on {node}"
            raise errors.FaultRefused(error_codes.FAULT_NO_CONSENT, text)
