"""The writes of remediation about nodes: an act with its history, a condition, a request to NVSentinel, an MPS restart.

Source: k8s.io/api core/v1, NodeCondition; NVIDIA/NVSentinel janitor/api/v1alpha1, RebootNode and GPUReset, which are
objects of the cluster with `spec.nodeName`, and `spec.force` or `spec.selector.uuids`.
"""

import datetime
import hashlib
from typing import Any
from urllib import parse

import msgspec
import orjson
import structlog

from gpu_sharing.adapters import kubernetes, objects
from gpu_sharing.core import errors, identifiers, remediation_history
from gpu_sharing.core.remediation import Act
from gpu_sharing.core.remediation_history import History
from gpu_sharing.core.remediation_rules import Action
from scheduler_extender.act import node_changes

_ANSWER_WITHIN_SECONDS = 5.0
_JANITOR = "/apis/janitor.dgxc.nvidia.com/v1alpha1"
_MPS_LABELS = "app.kubernetes.io/name=hami,app.kubernetes.io/component=mps"
_LONGEST_MESSAGE = 300

log = structlog.get_logger("nodes")


class NodeWriter:
    """Writes about nodes; each method raises `KubernetesError` where the API server refuses or does not answer."""

    def __init__(self, client: kubernetes.Client) -> None:
        self._client = client

    async def write(self, act: Act, known: History, now: float) -> History | None:
        """Write an act and its entry of the history, in one patch.

        Returns:
            The new history; None if another process has changed the node since the act was planned.
        """
        path = _node(act.node)
        node = await self._client.get(path, node_changes.Node, _ANSWER_WITHIN_SECONDS)
        change = node_changes.patch(node, act, known, now)
        if change is None:
            return None
        try:
            await self._client.patch(path, orjson.dumps(change), _ANSWER_WITHIN_SECONDS)
        except errors.Conflict:
            return None
        return remediation_history.decode(change["metadata"]["annotations"][remediation_history.ANNOTATION] or "")

    async def set_condition(self, act: Act, action: Action, *, is_needed: bool) -> None:
        """Set the node's condition of a request; the conditions of others stay as they are."""
        now = datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
        condition = {
            "type": node_changes.CONDITIONS[action],
            "status": "True" if is_needed else "False",
            "reason": "Remediation" if is_needed else "Released",
            "message": f"{act.gpu} {act.cause}".strip()[:_LONGEST_MESSAGE],
            "lastHeartbeatTime": now,
            "lastTransitionTime": now,
        }
        body = orjson.dumps({"status": {"conditions": [condition]}})
        await self._client.patch_items(f"{_node(act.node)}/status", body, _ANSWER_WITHIN_SECONDS)

    async def request_maintenance(self, act: Act, known: History) -> bool:
        """Create NVSentinel's object for a request. Returns whether its API is there.

        The name follows from the acts before, so that a process which was killed after the creation, and its successor,
        create one object.
        """
        times = [str(at) for one in known if (one.action, one.gpu) == (act.action, act.gpu) for at in one.times]
        digest = hashlib.sha256("/".join([act.node, act.gpu, act.action.value, *times]).encode()).hexdigest()[:16]
        spec: dict[str, Any] = {"nodeName": act.node}
        if act.action is Action.REQUEST_RESET:
            kind, plural, spec["selector"] = "GPUReset", "gpuresets", {"uuids": [act.gpu]}
        else:
            kind, plural, spec["force"] = "RebootNode", "rebootnodes", False
        body = {
            "apiVersion": _JANITOR.removeprefix("/apis/"),
            "kind": kind,
            "metadata": {"name": f"hami-{digest}", "labels": {"app.kubernetes.io/managed-by": "hami-scheduler"}},
            "spec": spec,
        }
        try:
            await self._client.post(f"{_JANITOR}/{plural}", orjson.dumps(body), _ANSWER_WITHIN_SECONDS)
        except errors.NotFound:
            return False
        except errors.Conflict:
            log.info("maintenance was requested before", node=act.node, name=f"hami-{digest}")
        return True

    async def mps_pods(self, node: identifiers.NodeName, namespace: str) -> list[objects.Pod]:
        """Return the pods of the node's MPS daemon; an empty namespace is every one."""
        selector = parse.urlencode({"labelSelector": _MPS_LABELS, "fieldSelector": f"spec.nodeName={node}"})
        folder = f"/api/v1/namespaces/{parse.quote(namespace)}/pods" if namespace else "/api/v1/pods"
        found = await self._client.get(f"{folder}?{selector}", _PodList, _ANSWER_WITHIN_SECONDS)
        return [pod for pod in found.items or () if pod.metadata.deletion_timestamp is None]


class _PodList(msgspec.Struct):
    """The pods of a short list."""

    items: list[objects.Pod] | None = None


def _node(name: identifiers.NodeName) -> str:
    return f"/api/v1/nodes/{parse.quote(name)}"
