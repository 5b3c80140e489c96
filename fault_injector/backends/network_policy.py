"""Partitions as NetworkPolicy objects, where the cluster's network enforces them.

A NetworkPolicy only permits: a side that is selected may then send to all pods but those of the other side, and to no
address outside of pods, so that it loses the API server too. It does not affect pods with the node's network, traffic
within a pod, and Unix sockets; and another policy may permit what this one does not.

Source: kubernetes.io/docs/concepts/services-networking/network-policies.
"""

from collections.abc import Mapping
from typing import Any

import orjson

from fault_injector.backends import pod_networks
from gpu_sharing.adapters import kubernetes
from gpu_sharing.core import errors, faults

_NAMESPACE_LABEL = "kubernetes.io/metadata.name"


class NetworkPolicies:
    """Creates and deletes NetworkPolicies."""

    name = "network-policy"
    outlives_process = True
    kinds = frozenset({"partition"})

    def __init__(self, client: kubernetes.Client, own_namespace: str) -> None:
        """Make the backend.

        Args:
            client: Of the API server.
            own_namespace: Of the chart's pods.
        """
        self._client = client
        self._own_namespace = own_namespace

    async def resolve(self, request: faults.Request) -> faults.Request:
        """See `Backend`."""
        pod_networks.demand_reachable(request)
        return request

    async def inject(self, fault: faults.Fault) -> None:
        """See `Backend`."""
        for policy in policies(fault, self._own_namespace):
            await self._client.post(_collection(policy["metadata"]["namespace"]), orjson.dumps(policy))

    async def recover(self, fault: faults.Fault) -> None:
        """See `Backend`."""
        for policy in policies(fault, self._own_namespace):
            metadata = policy["metadata"]
            try:
                await self._client.delete(f"{_collection(metadata['namespace'])}/{metadata['name']}")
            except errors.NotFound:
                continue


def _collection(namespace: str) -> str:
    return f"/apis/networking.k8s.io/v1/namespaces/{namespace}/networkpolicies"


def policies(fault: faults.Fault, own_namespace: str) -> list[dict[str, Any]]:
    """Return the objects of a partition: one for each side that is pods."""
    first, second = pod_networks.sides(fault.values, own_namespace)
    made = [_policy(f"hami-fault-{fault.id}-a", fault, first, second)]
    return made if second is None else [*made, _policy(f"hami-fault-{fault.id}-b", fault, second, first)]


def _policy(name: str, fault: faults.Fault, side: pod_networks.Side, other: pod_networks.Side | None) -> dict[str, Any]:
    """Return the policy that lets a side send to all pods but those of the other side."""
    permitted: list[dict[str, Any]] = [{"namespaceSelector": {}}]
    if other is not None:
        elsewhere = {"key": _NAMESPACE_LABEL, "operator": "NotIn", "values": [other.namespace]}
        permitted = [{"namespaceSelector": {"matchExpressions": [elsewhere]}}, *_without(other.namespace, other.labels)]
    labels = {"app.kubernetes.io/managed-by": "hami-fault-injector", "hami.io/fault": str(fault.id)}
    return {
        "apiVersion": "networking.k8s.io/v1",
        "kind": "NetworkPolicy",
        "metadata": {"name": name, "namespace": side.namespace, "labels": labels},
        "spec": {
            "podSelector": {"matchLabels": dict(side.labels)},
            "policyTypes": ["Egress"],
            "egress": [{"to": permitted}],
        },
    }


def _without(namespace: str, labels: Mapping[str, str]) -> list[dict[str, Any]]:
    """Return selectors of all pods of a namespace that lack one of some labels."""
    here = {"matchLabels": {_NAMESPACE_LABEL: namespace}}
    return [
        {
            "namespaceSelector": here,
            "podSelector": {"matchExpressions": [{"key": key, "operator": "NotIn", "values": [value]}]},
        }
        for key, value in labels.items()
    ]
