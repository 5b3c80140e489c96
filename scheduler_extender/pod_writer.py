"""The small writes about pods: annotate, nominate, open a gate, evict. Each names the pod's UID as a precondition."""

from collections.abc import Sequence
from typing import Any
from urllib import parse

import orjson
import structlog

from gpu_sharing.adapters import kubernetes
from gpu_sharing.core import errors, identifiers, records

_ANSWER_WITHIN_SECONDS = 5.0

log = structlog.get_logger("pods")


class PodWriter:
    """Writes about pods of one cluster. A refused write is logged, and the caller told."""

    def __init__(self, client: kubernetes.Client) -> None:
        self._client = client

    async def annotate(self, key: str, uid: identifiers.PodUid, annotation: str, value: str | None) -> bool:
        """Set an annotation, or with None take it away. Returns whether that was done."""
        return await self._patch(path(key), uid, {"metadata": {"annotations": {annotation: value}}})

    async def hold(self, key: str, uid: identifiers.PodUid, hold: records.Hold | None) -> bool:
        """Keep GPUs for a waiting pod, or with None no more. Returns whether that was done."""
        return await self.annotate(key, uid, records.HOLD, records.encode_hold(hold) if hold else None)

    async def nominate(self, key: str, uid: identifiers.PodUid, node: identifiers.NodeName | None) -> bool:
        """Let kube-scheduler try that node first, or with None any. Returns whether that was done."""
        return await self._patch(f"{path(key)}/status", uid, {"status": {"nominatedNodeName": node}})

    async def set_gates(self, key: str, uid: identifiers.PodUid, gates: Sequence[Any]) -> bool:
        """Leave a pod these scheduling gates; none can be added. Returns whether that was done."""
        return await self._patch(path(key), uid, {"spec": {"schedulingGates": list(gates) or None}})

    async def evict(self, key: str, uid: identifiers.PodUid, *, dry_run: bool = False) -> bool:
        """Evict a pod as disruption budgets and its grace period allow.

        Returns:
            Whether it goes, or with `dry_run` would go; one that is gone already counts as that.
        """
        namespace, _, name = key.partition("/")
        body = {
            "apiVersion": "policy/v1", "kind": "Eviction", "metadata": {"name": name, "namespace": namespace},
            "deleteOptions": {"preconditions": {"uid": uid}},
        }  # fmt: skip
        query = "?dryRun=All" if dry_run else ""
        try:
            await self._client.post(f"{path(key)}/eviction{query}", orjson.dumps(body), _ANSWER_WITHIN_SECONDS)
        except (errors.NotFound, errors.Conflict):
            return True  # It is gone, or another of its name is there.
        except errors.KubernetesError as refused:
            log.info("not evicted", pod=key, cause=str(refused))
            return False
        return True

    async def _patch(self, where: str, uid: identifiers.PodUid, change: dict[str, Any]) -> bool:
        body = {**change, "metadata": {**change.get("metadata", {}), "uid": uid}}
        try:
            await self._client.patch(where, orjson.dumps(body), _ANSWER_WITHIN_SECONDS)
        except errors.KubernetesError as refused:
            log.warning("pod not written", path=where, cause=str(refused))
            return False
        return True


def path(key: str) -> str:
    """The path of a pod by `<namespace>/<name>`."""
    namespace, _, name = key.partition("/")
    return f"/api/v1/namespaces/{parse.quote(namespace)}/pods/{parse.quote(name)}"
