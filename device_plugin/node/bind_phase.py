"""Writes the phase of a pod's bind, as HAMi's annotation has it: success once a container may start, else failed."""

import asyncio

import orjson
import structlog

from device_plugin.node.api_objects import Pod
from gpu_sharing.adapters import kubernetes
from gpu_sharing.core import errors, records

log = structlog.get_logger("pods")


class BindPhases:
    """Writes phases beside the answers to the kubelet, which do not wait for them."""

    def __init__(self, client: kubernetes.Client) -> None:
        self._client = client
        self._writes: set[asyncio.Task[None]] = set()

    def set(self, pod: Pod, phase: str) -> None:
        """Write a pod's phase, if it is another one."""
        if pod.annotations.get(records.BIND_PHASE) != phase:
            task = asyncio.create_task(self._write(pod, phase))
            self._writes.add(task)
            task.add_done_callback(self._writes.discard)

    async def _write(self, pod: Pod, phase: str) -> None:
        path = f"/api/v1/namespaces/{pod.metadata.namespace}/pods/{pod.metadata.name}"
        body = {"metadata": {"uid": pod.metadata.uid, "annotations": {records.BIND_PHASE: phase}}}
        try:
            await self._client.patch(path, orjson.dumps(body))
        except errors.KubernetesError as refused:
            log.warning("the phase of a pod is not written", pod=pod.key, phase=phase, cause=str(refused))
