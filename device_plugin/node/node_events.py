"""Events on pods and on the node, each with one log line."""

from collections.abc import Iterable

import structlog

from device_plugin.driver import gpu_source
from device_plugin.isolation.assignment import Assignment
from device_plugin.node.api_objects import Pod
from gpu_sharing.adapters import events, logs
from gpu_sharing.core import error_codes, event_reasons, health, records, xids

_ALLOCATION, _HEALTH = "GPUAllocation", "GPUHealth"

log = structlog.get_logger("node")


def allocated_note(node: str, assignment: Assignment, isolation: str) -> str:
    """Return the note of a `DeviceAllocated` event."""
    names = ", ".join(f"GPU-{device.index}" for device in assignment.devices)
    shares = [f"    {share.uuid}: {share.memory_mib}MB, {_cores(share.cores_percent)}" for share in assignment.shares]
    last = f"    container {assignment.container}, isolation {isolation}"
    return "\n".join([f"Allocated {names} on {node}", *shares, last])


def _cores(percent: int) -> str:
    return f"cores {percent}%" if percent else "cores not limited"


def unhealthy_note(device: gpu_source.Device, state: health.Health) -> str:
    """Return the note of a `DeviceUnhealthy` event."""
    return f"GPU-{device.index} {device.uuid} is {state.state.value}: {state.cause}\n    {xids.WORDS[state.need]}"


class NodeEvents:
    """Writes events and log lines for one node."""

    def __init__(self, recorder: events.EventRecorder, node: str) -> None:
        self._recorder = recorder
        self._node = node

    def allocated(self, pod: Pod, assignment: Assignment, isolation: str) -> None:
        """Report that a container may start with its shares, for the first time."""
        if logs.shows(logs.DECISIONS):
            log.info(
                "allocated",
                pod=pod.key,
                container=assignment.container,
                node=self._node,
                mode=isolation,
                gpus=[share.uuid for share in assignment.shares],
                decision_id=pod.annotations.get(records.DECISION),
            )
        note = allocated_note(self._node, assignment, isolation)
        self._record_for_pod(pod, event_reasons.DEVICE_ALLOCATED, note, _ALLOCATION)

    def refused(self, pod: Pod | None, code: error_codes.Code, cause: str) -> None:
        """Report that a container must not start, or should not have started."""
        log.error(
            "refused",
            error_code=code,
            pod=pod.key if pod else None,
            node=self._node,
            cause=cause,
            decision_id=pod.annotations.get(records.DECISION) if pod else None,
        )
        if pod is not None:
            note = f"{code}: {cause}\n    {error_codes.REGISTRY[code].remedy}"
            self._record_for_pod(pod, event_reasons.ALLOCATION_FAILED, note, _ALLOCATION)

    def uncertain(self, pod: Pod) -> None:
        """Report a pod that may start without its GPU, because no RuntimeClass selects NVIDIA's runtime."""
        entry = error_codes.REGISTRY[error_codes.PLUGIN_RUNTIME_CLASS]
        note = f"{entry.code}: {pod.key} has no runtimeClassName\n    {entry.remedy}"
        self._record_for_pod(pod, event_reasons.DELIVERY_UNCERTAIN, note, _ALLOCATION)

    def unhealthy(self, device: gpu_source.Device, state: health.Health, holders: Iterable[Pod]) -> None:
        """Report that a GPU must not be used any more."""
        log.error(
            "GPU unhealthy",
            error_code=error_codes.HEALTH_GPU_UNHEALTHY,
            device=device.uuid,
            state=state.state.value,
            cause=state.cause,
            need=state.need.name.lower(),
        )
        self._record_for_node(event_reasons.DEVICE_UNHEALTHY, unhealthy_note(device, state), holders)

    def recovered(self, device: gpu_source.Device, before: health.Health, holders: Iterable[Pod]) -> None:
        """Report that a GPU may be used again."""
        log.info("GPU recovered", device=device.uuid, cause=before.cause)
        note = f"GPU-{device.index} {device.uuid} is healthy again, after: {before.cause}"
        self._record_for_node(event_reasons.DEVICE_RECOVERED, note, holders)

    def _record_for_node(self, reason: str, note: str, holders: Iterable[Pod]) -> None:
        # kubectl describe node looks for the node's name in the place of its UID.
        node = events.Regarding("Node", self._node, uid=self._node)
        self._recorder.record(events.Event(node, reason, note, _HEALTH))
        for pod in holders:
            self._record_for_pod(pod, reason, note, _HEALTH)

    def _record_for_pod(self, pod: Pod, reason: str, note: str, action: str) -> None:
        metadata = pod.metadata
        regarding = events.Regarding("Pod", metadata.name, metadata.namespace, metadata.uid)
        self._recorder.record(events.Event(regarding, reason, note, action))
