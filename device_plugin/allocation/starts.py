"""Answers the kubelet by the allocator, and reports each outcome: events, a log line, the pod's phase, problems."""

import structlog

from device_plugin.allocation.allocator import Allocator, Confirmed
from device_plugin.allocation.owners import Owners
from device_plugin.delivery import edits
from device_plugin.kubelet.refusals import StartRefused
from device_plugin.node.bind_phase import BindPhases
from device_plugin.node.class_check import RuntimeClassCheck
from device_plugin.node.node_events import NodeEvents
from gpu_sharing.core import error_codes, records

log = structlog.get_logger("allocation")


class StartReporter:
    """Reports which containers may start."""

    def __init__(self, events: NodeEvents, phases: BindPhases, class_check: RuntimeClassCheck, owners: Owners) -> None:
        self._events = events
        self._phases = phases
        self._class_check = class_check
        self._owners = owners

    def confirmed(self, confirmed: Confirmed) -> None:
        """Report containers that may start."""
        if not confirmed.is_known:
            return
        if confirmed.new:
            self._class_check.started(confirmed.pod)
        for prepared in confirmed.new:
            self._events.allocated(confirmed.pod, prepared.assignment, prepared.isolation)
        self._phases.set(confirmed.pod, records.PHASE_SUCCESS)

    def refused(self, device_ids: frozenset[str], refused: StartRefused) -> None:
        """Report that the container with these device ids must not start."""
        pod = self._owners.pod_with(device_ids)
        self._events.refused(pod, refused.code, str(refused))
        if pod is not None and pod.annotations.get(records.ALLOCATED):
            self._phases.set(pod, records.PHASE_FAILED)


class Starts:
    """The starts of containers, as the servicer asks for them."""

    def __init__(self, allocator: Allocator, reporter: StartReporter) -> None:
        self._allocator = allocator
        self._reporter = reporter

    async def allocate(self, device_ids: frozenset[str]) -> edits.Edits | str:
        """See `Allocator.allocate`."""
        return await self._allocator.allocate(device_ids)

    async def confirm(self, device_ids: frozenset[str]) -> None:
        """Confirm that a container may start, and report it.

        Raises:
            StartRefused: It must not start, or a defect of the plugin keeps that from being known.
        """
        try:
            confirmed = await self._allocator.confirm(device_ids)
        except StartRefused as refused:
            self._reporter.refused(device_ids, refused)
            raise
        except Exception as defect:
            log.exception("defect", error_code=error_codes.ALLOC_INTERNAL)
            internal = StartRefused(error_codes.ALLOC_INTERNAL, f"{type(defect).__name__}: {defect}")
            self._reporter.refused(device_ids, internal)
            raise internal from defect
        self._reporter.confirmed(confirmed)
