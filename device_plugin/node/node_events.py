"""Tells people what the node did: events on pods and on the node, and one log line each, with the same words."""

from collections.abc import Iterable, Sequence

import structlog

from device_plugin.allocation import allocator, checks
from device_plugin.driver import gpu_source
from device_plugin.node import api_objects
from gpu_sharing.adapters import events, logs
from gpu_sharing.core import error_codes, event_reasons, health, records, xids

_ALLOCATION, _HEALTH = "GPUAllocation", "GPUHealth"

log = structlog.get_logger("node")


def allocated_note(node: str, container: allocator.Container, devices: Sequence[gpu_source.Device]) -> str:
    """The note of a `DeviceAllocated` event."""
    names = ", ".join(f"GPU-{device.index}" for device in devices)
    lines = [f"    {share.uuid}: {share.memory_mib}MB, {_cores(share.cores_percent)}" for share in container.shares]
    last = f"    container {container.name}, isolation {container.mode}"
    return "\n".join([f"Allocated {names} on {node}", *lines, last])


def _cores(percent: int) -> str:
    return f"cores {percent}%" if percent else "cores not limited"


def unhealthy_note(device: gpu_source.Device, state: health.Health) -> str:
    """The note of a `DeviceUnhealthy` event."""
    return f"GPU-{device.index} {device.uuid} is {state.state.value}: {state.cause}\n    {xids.WORDS[state.need]}"


class NodeEvents:
    """Writes events and log lines for one node."""

    def __init__(self, recorder: events.EventRecorder, node: str) -> None:
        self._recorder = recorder
        self._node = node

    def allocated(
        self, pod: api_objects.Pod, container: allocator.Container, devices: Sequence[gpu_source.Device]
    ) -> None:
        """A container may start with its slice, for the first time."""
        if logs.shows(logs.DECISIONS):
            log.info(
                "allocated", pod=pod.key, container=container.name, node=self._node, mode=container.mode,
                gpus=[share.uuid for share in container.shares], decision_id=pod.annotations.get(records.DECISION),
            )  # fmt: skip
        note = allocated_note(self._node, container, devices)
        self._tell_pod(pod, event_reasons.DEVICE_ALLOCATED, note, _ALLOCATION)

    def refused(self, pod: api_objects.Pod | None, doubt: checks.StartRefused) -> None:
        """A container must not start, or should not have."""
        log.error(
            "refused", error_code=doubt.code, pod=pod.key if pod else None, node=self._node, cause=str(doubt),
            decision_id=pod.annotations.get(records.DECISION) if pod else None,
        )  # fmt: skip
        if pod is not None:
            entry = error_codes.REGISTRY[doubt.code]
            self._tell_pod(
                pod, event_reasons.ALLOCATION_FAILED, f"{doubt.code}: {doubt}\n    {entry.remedy}", _ALLOCATION
            )

    def uncertain(self, pod: api_objects.Pod) -> None:
        """A pod may start without its GPU, because no RuntimeClass asks for NVIDIA's runtime."""
        entry = error_codes.REGISTRY[error_codes.PLUGIN_RUNTIME_CLASS]
        note = f"{entry.code}: {pod.key} has no runtimeClassName\n    {entry.remedy}"
        self._tell_pod(pod, event_reasons.DELIVERY_UNCERTAIN, note, _ALLOCATION)

    def unhealthy(self, device: gpu_source.Device, state: health.Health, holders: Iterable[api_objects.Pod]) -> None:
        """A GPU must not be used any more."""
        log.error(
            "GPU unhealthy", error_code=error_codes.HEALTH_GPU_UNHEALTHY, device=device.uuid, state=state.state.value,
            cause=state.cause, need=state.need.name.lower(),
        )  # fmt: skip
        self._tell_all(event_reasons.DEVICE_UNHEALTHY, unhealthy_note(device, state), holders)

    def recovered(self, device: gpu_source.Device, before: health.Health, holders: Iterable[api_objects.Pod]) -> None:
        """A GPU may be used again."""
        log.info("GPU recovered", device=device.uuid, cause=before.cause)
        note = f"GPU-{device.index} {device.uuid} is healthy again, after: {before.cause}"
        self._tell_all(event_reasons.DEVICE_RECOVERED, note, holders)

    def _tell_all(self, reason: str, note: str, holders: Iterable[api_objects.Pod]) -> None:
        # kubectl describe node looks for the node's name in the place of its UID.
        node = events.Regarding("Node", self._node, uid=self._node)
        self._recorder.record(events.Event(node, reason, note, _HEALTH))
        for pod in holders:
            self._tell_pod(pod, reason, note, _HEALTH)

    def _tell_pod(self, pod: api_objects.Pod, reason: str, note: str, action: str) -> None:
        metadata = pod.metadata
        regarding = events.Regarding("Pod", metadata.name, metadata.namespace, metadata.uid)
        self._recorder.record(events.Event(regarding, reason, note, action))
