"""Isolation by MIG: the hardware divides the GPU, and a container gets the instances of its record.

The record names instances that exist (an administrator or NVIDIA's MIG manager made them), or the profile and place of
those to make. Instances are made only where the node is set to `mig`. Those that the plugin made are destroyed once no
record names them; others only where a setting hands all instances of the node to the plugin. An annotation of the node
lists the instances that the plugin made, and is written before an instance is made, so that one that is left half-made
is known, too.
"""

from collections.abc import Collection, Iterable

from device_plugin.delivery import edits
from device_plugin.driver import gpu_source
from device_plugin.isolation import none
from device_plugin.isolation.assignment import Assignment
from device_plugin.isolation.backend import CannotIsolate
from gpu_sharing.core import mig, records

NAME = "mig"
Made = Collection[records.MadeInstance]


class Mig(none.TimeSlicing):
    """The backend of MIG instances."""

    def most_containers(self, device: gpu_source.Device) -> int | None:
        """Return the number of instances: all that fit where they are made as needed, else those that exist."""
        return device.most_migs if self._settings.create_instance else len(device.migs)

    def mig_profiles(self, device: gpu_source.Device) -> tuple[mig.Profile, ...]:
        """Return all kinds of instances where they are made as needed, else those that exist with their places."""
        if self._settings.create_instance:
            return device.mig_profiles
        there = {(one.profile, one.start, one.size) for one in device.migs}
        kept = (
            profile._replace(places=tuple(place for place in profile.places if (profile.name, *place) in there))
            for profile in device.mig_profiles
        )
        return tuple(profile for profile in kept if profile.places)

    async def prepare(self, assignment: Assignment) -> None:
        """Make the instances of the record that are to be made and do not exist."""
        create = self._settings.create_instance
        for share in assignment.migs:
            if share.mig_uuid or instance_of(share, assignment.devices) is not None or create is None:
                continue
            try:
                await create(share)
            except gpu_source.GpuSourceError as cause:
                where = f"{share.profile} at {share.start} of {share.gpu_uuid}"
                raise CannotIsolate(f"MIG instance {where}: {cause}") from cause

    def isolation_in_effect(self, assignment: Assignment) -> str:
        """Return `mig`: the hardware isolates."""
        return NAME

    def visible_devices(self, assignment: Assignment) -> tuple[str, ...]:
        """Return the instances of the record that exist."""
        instances = (instance_of(share, assignment.devices) for share in assignment.migs)
        return tuple(instance.uuid for instance in instances if instance is not None)

    def edits(self, assignment: Assignment, neighbours: Iterable[Assignment]) -> edits.Edits:
        """Return no edits, once the instances exist and no other record names them."""
        if len(assignment.migs) != len(assignment.shares):
            raise CannotIsolate(
                f"the GPU is in MIG mode, and the pod's record (hami.io/vgpu-mig-allocations) has "
                f"{len(assignment.migs)} instances for {len(assignment.shares)} GPUs"
            )
        for share in assignment.migs:
            if instance_of(share, assignment.devices) is None:
                named = share.mig_uuid or f"{share.profile} at {share.start}"
                raise CannotIsolate(f"MIG instance {named} does not exist on the GPU of the record")
        taken = {uuid for neighbour in neighbours for uuid in self.visible_devices(neighbour)}
        shared = [uuid for uuid in self.visible_devices(assignment) if uuid in taken]
        if shared:
            raise CannotIsolate(f"MIG instance {shared[0]} is another container's by that pod's record")
        return edits.NOTHING


def instance_of(share: records.MigShare, devices: Iterable[gpu_source.Device]) -> gpu_source.MigInstance | None:
    """Return the instance of a record among those that exist; None where it does not exist."""
    for device in devices:
        for instance in device.migs if device.uuid == share.gpu_uuid else ():
            by_place = instance.profile == share.profile and instance.start == share.start
            if instance.uuid == share.mig_uuid or (not share.mig_uuid and by_place):
                return instance
    return None


def unneeded(
    device: gpu_source.Device, shares: Iterable[records.MigShare], made: Made | None = None
) -> tuple[str, ...]:
    """Return the instances of a GPU that no record names and that may be destroyed.

    Args:
        device: The GPU.
        shares: The instances that pods' records name.
        made: Instances that the plugin made; None where it owns all of them.
    """
    needed = {named.uuid for share in shares if (named := instance_of(share, (device,))) is not None}
    return tuple(one.uuid for one in device.migs if one.uuid not in needed and _is_ours(device, one, made))


def bare(device: gpu_source.Device, made: Made | None = None) -> tuple[gpu_source.BareInstance, ...]:
    """Return the GPU instances without compute instance that may be destroyed; see `unneeded`."""
    return tuple(one for one in device.bare_instances if _is_ours(device, one, made))


def foreign_bare(device: gpu_source.Device, made: Made | None = None) -> str:
    """Return which GPU instances without compute instance the plugin did not make; empty where there are none."""
    foreign = [one for one in device.bare_instances if not _is_ours(device, one, made)]
    return ", ".join(f"GPU instance {one.instance_id} ({one.profile} at {one.start})" for one in foreign)


def still_there(devices: Iterable[gpu_source.Device], made: Made) -> frozenset[records.MadeInstance]:
    """Return the instances that the plugin made and that still exist, or whose GPU the driver does not list."""
    divided = {device.uuid: device for device in devices if device.mig_enabled}
    there = {_place(device, one) for device in divided.values() for one in device.migs}
    there |= {_place(device, one) for device in divided.values() for one in device.bare_instances}
    return frozenset(one for one in made if one in there or one.gpu_uuid not in divided)


def _is_ours(
    device: gpu_source.Device, instance: gpu_source.MigInstance | gpu_source.BareInstance, made: Made | None
) -> bool:
    return made is None or _place(device, instance) in made


def _place(
    device: gpu_source.Device, instance: gpu_source.MigInstance | gpu_source.BareInstance
) -> records.MadeInstance:
    return records.MadeInstance(device.uuid, instance.profile, instance.start, instance.size)
