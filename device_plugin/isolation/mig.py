"""Isolation by MIG: the hardware divides the GPU, and a container gets the instances of its record.

The record names instances that exist (an administrator or NVIDIA's MIG manager made them), or says by profile and place
which to make. Instances are made only where the node is set to `mig`: then all instances of its GPUs in MIG mode are
this plugin's, and those that no record names any more are taken away.
"""

from collections.abc import Awaitable, Callable, Iterable

from device_plugin import edits, gpu_source
from device_plugin.isolation import Granted, Refused, none
from gpu_sharing.core import records

Create = Callable[[records.MigShare], Awaitable[None]]


class Mig(none.TimeSlicing):
    """The MIG backend.

    Args:
        create: Makes an instance; None where the node's instances are somebody else's.
    """

    def __init__(self, create: Create | None = None) -> None:
        self._create = create

    async def prepare(self, granted: Granted) -> None:
        """Make the instances of the record that are to be made and are not there."""
        for share in granted.migs:
            if share.mig_uuid or _instance(share, granted.devices) is not None or self._create is None:
                continue
            try:
                await self._create(share)
            except gpu_source.GpuSourceError as cause:
                raise Refused(f"MIG instance {share.profile} at {share.start} of {share.gpu_uuid}: {cause}") from cause

    def isolates(self, granted: Granted) -> str:
        """The hardware."""
        return "mig"

    def visible(self, granted: Granted) -> tuple[str, ...]:
        """The instances of the record."""
        found = (_instance(share, granted.devices) for share in granted.migs)
        return tuple(instance.uuid for instance in found if instance is not None)

    def edits(self, granted: Granted, neighbours: Iterable[Granted]) -> edits.Edits:
        """Nothing beside the instances, which must exist and be nobody else's."""
        if len(granted.migs) != len(granted.shares):
            raise Refused(
                f"the GPU is in MIG mode, and the pod's record (hami.io/vgpu-mig-allocations) has {len(granted.migs)} "
                f"instances for {len(granted.shares)} GPUs"
            )
        for share in granted.migs:
            if _instance(share, granted.devices) is None:
                named = share.mig_uuid or f"{share.profile} at {share.start}"
                raise Refused(f"MIG instance {named} does not exist on the GPU of the record")
        taken = {uuid for neighbour in neighbours for uuid in self.visible(neighbour)}
        shared = [uuid for uuid in self.visible(granted) if uuid in taken]
        if shared:
            raise Refused(f"MIG instance {shared[0]} is another container's by that pod's record")
        return edits.NOTHING


def _instance(share: records.MigShare, devices: Iterable[gpu_source.Device]) -> gpu_source.MigInstance | None:
    for device in devices:
        for instance in device.migs if device.uuid == share.gpu_uuid else ():
            by_place = instance.profile == share.profile and instance.start == share.start
            if instance.uuid == share.mig_uuid or (not share.mig_uuid and by_place):
                return instance
    return None


def unneeded(device: gpu_source.Device, shares: Iterable[records.MigShare]) -> tuple[str, ...]:
    """The instances of a GPU that no record names."""
    needed = {_named.uuid for share in shares if (_named := _instance(share, (device,))) is not None}
    return tuple(instance.uuid for instance in device.migs if instance.uuid not in needed)
