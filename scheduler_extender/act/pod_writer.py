"""The small writes about pods: annotate, nominate, open a gate, evict. Each names the pod's UID as a precondition."""

from collections.abc import Container, Sequence
from typing import Any, Protocol
from urllib import parse

import orjson
import structlog

from gpu_sharing.adapters import kubernetes
from gpu_sharing.core import errors, identifiers, records

_ANSWER_WITHIN_SECONDS = 5.0
_MOST_NOMINATIONS = 3

log = structlog.get_logger("pods")


class Pod(Protocol):
    """A pod to write about, pending or bound."""

    @property
    def uid(self) -> identifiers.PodUid:
        """The pod's UID, a precondition of every write."""

    @property
    def key(self) -> identifiers.PodKey:
        """`<namespace>/<name>`."""


class PodWriter:
    """Writes about pods of one cluster. A refused write is logged and returned as False."""

    def __init__(self, client: kubernetes.Client) -> None:
        self._client = client

    async def annotate(self, pod: Pod, annotation: str, value: str | None) -> bool:
        """Set an annotation, or with None remove it. Returns whether that was done."""
        return await self._patch(pod, "", {"metadata": {"annotations": {annotation: value}}})

    async def hold(self, pod: Pod, hold: records.Hold | None) -> bool:
        """Write a pod's hold, or with None remove it. Returns whether that was done."""
        return await self.annotate(pod, records.HOLD, records.encode_hold(hold) if hold else None)

    async def nominate(self, pod: Pod, node: identifiers.NodeName | None) -> bool:
        """Let kube-scheduler try that node first, or with None any. Returns whether that was done."""
        return await self._patch(pod, "/status", {"status": {"nominatedNodeName": node}})

    async def set_gates(self, pod: Pod, gates: Sequence[Any]) -> bool:
        """Leave a pod these scheduling gates; none can be added. Returns whether that was done."""
        return await self._patch(pod, "", {"spec": {"schedulingGates": list(gates) or None}})

    async def evict(self, pod: Pod, *, dry_run: bool = False) -> bool:
        """Evict a pod as disruption budgets and its grace period allow.

        Returns:
            Whether it is evicted, or with `dry_run` would be; a pod that is gone counts as evicted.
        """
        namespace, _, name = pod.key.partition("/")
        body = {
            "apiVersion": "policy/v1", "kind": "Eviction", "metadata": {"name": name, "namespace": namespace},
            "deleteOptions": {"preconditions": {"uid": pod.uid}},
        }  # fmt: skip
        query = "?dryRun=All" if dry_run else ""
        try:
            await self._client.post(f"{path(pod.key)}/eviction{query}", orjson.dumps(body), _ANSWER_WITHIN_SECONDS)
        except (errors.NotFound, errors.Conflict):
            return True  # It is gone, or another of its name is there.
        except errors.KubernetesError as refused:
            log.info("not evicted", pod=pod.key, cause=str(refused))
            return False
        return True

    async def _patch(self, pod: Pod, part: str, change: dict[str, Any]) -> bool:
        body = {**change, "metadata": {**change.get("metadata", {}), "uid": pod.uid}}
        try:
            await self._client.patch(path(pod.key) + part, orjson.dumps(body), _ANSWER_WITHIN_SECONDS)
        except errors.KubernetesError as refused:
            log.warning("pod not written", pod=pod.key, cause=str(refused))
            return False
        return True


class Nominator:
    """Nominates nodes, a few times for a pod: one for which nothing comes of it goes the ordinary way."""

    def __init__(self, writer: PodWriter) -> None:
        self._writer = writer
        self._counts: dict[identifiers.PodUid, int] = {}

    async def nominate(self, pod: Pod, node: identifiers.NodeName) -> bool:
        """Let kube-scheduler try that node first. Returns whether it may still be tried for this pod."""
        count = self._counts.get(pod.uid, 0)
        if count >= _MOST_NOMINATIONS:
            return False
        self._counts[pod.uid] = count + 1
        if await self._writer.nominate(pod, node):
            log.info("nominated", pod=pod.key, node=node)
        return True

    def keep(self, waiting: Container[identifiers.PodUid]) -> None:
        """Forget the pods that are not pending any more."""
        for uid in [uid for uid in self._counts if uid not in waiting]:
            del self._counts[uid]


def path(key: str) -> str:
    """The path of a pod by `<namespace>/<name>`."""
    namespace, _, name = key.partition("/")
    return f"/api/v1/namespaces/{parse.quote(namespace)}/pods/{parse.quote(name)}"
