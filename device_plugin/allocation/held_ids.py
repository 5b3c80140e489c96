"""The device ids that containers hold, and the GPU of each by the records."""

import contextlib

from device_plugin.allocation.assignments import Assignments
from device_plugin.allocation.owners import Owners
from device_plugin.kubelet.refusals import StartRefused
from gpu_sharing.core import allocations, identifiers


class HeldIds:
    """The device ids that containers hold."""

    def __init__(self, owners: Owners, assignments: Assignments) -> None:
        self._owners = owners
        self._assignments = assignments

    def ids(self) -> set[str]:
        """Return the ids that containers hold."""
        return {device_id for entry in self._owners.entries_or_none() for device_id in entry.device_ids}

    def gpus(self) -> dict[str, identifiers.GpuUuid | None]:
        """Return the GPU of each by its container's record, or None; the ids of pods that have ended are left out."""
        gpu_of: dict[str, identifiers.GpuUuid | None] = {}
        for entry in self._owners.entries_or_none():
            if self._owners.is_leftover(entry):
                continue
            pod = self._owners.pod_of(entry)
            shares: tuple[allocations.Share, ...] = ()
            if pod is not None:
                with contextlib.suppress(StartRefused):
                    shares = self._assignments.shares(pod, entry.container, len(entry.device_ids))
            for position, device_id in enumerate(sorted(entry.device_ids)):
                # App containers come after the init containers whose ids they reuse, and keep them until the pod ends.
                gpu_of[device_id] = shares[position].uuid if shares else gpu_of.get(device_id)
        return gpu_of
