"""Reads single pods from the API server, and resolves doubts about them.

A pod is in doubt when a list lacks it although something newer than the list knew it: it may be younger than the list,
or deleted since. The list does not show which, and the watch that follows it may have no event left about the pod. One
read of the pod shows it.
"""

import asyncio

import structlog

from gpu_sharing.adapters import kubernetes, objects
from gpu_sharing.core import error_codes, errors, identifiers
from scheduler_extender.act import pod_writer
from scheduler_extender.cluster.mirror import Mirror

ANSWER_WITHIN_SECONDS = 3.0
_EVERY_SECONDS = 0.5

log = structlog.get_logger("pods")


class PodReader:
    """Reads pods of one mirror, and has the mirror see what was read."""

    def __init__(self, client: kubernetes.Client, mirror: Mirror) -> None:
        self._client = client
        self._mirror = mirror

    async def read(self, uid: identifiers.PodUid, key: str) -> objects.Pod | None:
        """Return the pod of that UID, or None if it is gone, by this read or by what became known while it was read.

        Raises:
            KubernetesError: The API server does not answer, or not with a pod.
        """
        with self._mirror.reading(uid):
            return await self._read(uid, key)

    async def _read(self, uid: identifiers.PodUid, key: str) -> objects.Pod | None:
        lists_before = self._mirror.lists
        try:
            pod = await self._client.get(pod_writer.path(key), objects.Pod, ANSWER_WITHIN_SECONDS)
        except errors.NotFound:
            pod = None
        except errors.KubernetesError:
            raise
        except Exception as cause:
            raise errors.Unavailable(f"{key}: the answer is no pod: {cause}") from cause
        if pod is None or pod.metadata.uid != uid:
            # A UID is never used again: another pod of that name, or none, means that this one is gone.
            self._mirror.forget_pod(uid)
            return None
        if not self._mirror.see_read_pod(pod):
            return None
        if self._mirror.lists != lists_before:
            # The list may be newer than this read and lack the pod; then no event will report that it is gone.
            self._mirror.in_doubt[uid] = identifiers.PodKey(key)
        return pod

    async def run(self) -> None:
        """Resolve doubts for ever; ends only by cancellation."""
        while True:
            await asyncio.sleep(_EVERY_SECONDS)
            await self.resolve()

    async def resolve(self) -> None:
        """Read every pod in doubt once. One that cannot be read stays in doubt, and what it holds stays held."""
        doubts, self._mirror.in_doubt = self._mirror.in_doubt, {}
        for uid, key in doubts.items():
            try:
                pod = await self.read(uid, key)
            except errors.KubernetesError as problem:
                log.warning("pod in doubt", error_code=error_codes.POD_IN_DOUBT, pod=key, cause=str(problem))
                self._mirror.in_doubt[uid] = key
                continue
            log.info("doubt resolved", pod=key, gone=pod is None)
