"""Isolation by MIG: the hardware divides the GPU, and a container gets instances that its record names.

The instances exist already (an administrator or NVIDIA's MIG manager made them); none is created here.
"""

from collections.abc import Iterable

from device_plugin import edits
from device_plugin.isolation import Granted, Refused, none


class Mig(none.TimeSlicing):
    """The MIG backend."""

    def visible(self, granted: Granted) -> tuple[str, ...]:
        """The instances of the record."""
        return granted.mig_uuids

    def edits(self, granted: Granted, neighbours: Iterable[Granted]) -> edits.Edits:
        """Nothing beside the instances, which must exist and be nobody else's."""
        if not granted.mig_uuids:
            raise Refused("the GPU is in MIG mode and the pod's record (hami.io/vgpu-mig-allocations) has no instance")
        there = {instance.uuid for device in granted.devices for instance in device.migs}
        missing = [uuid for uuid in granted.mig_uuids if uuid not in there]
        if missing:
            raise Refused(f"MIG instance {missing[0]} does not exist on the GPU of the record")
        taken = {uuid for neighbour in neighbours for uuid in neighbour.mig_uuids}
        shared = [uuid for uuid in granted.mig_uuids if uuid in taken]
        if shared:
            raise Refused(f"MIG instance {shared[0]} is another container's by that pod's record")
        return edits.NOTHING
