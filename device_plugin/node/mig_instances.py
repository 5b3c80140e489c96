"""Makes MIG instances as pods' records need them, and destroys those that no record names.

An annotation of the node lists the instances that the plugin made. It is written before an instance is made, so that a
plugin that starts again after a crash knows its half-made instances.
"""

import asyncio
import contextlib
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence

import structlog

from device_plugin.driver import gpu_source
from device_plugin.driver.driver_threads import DriverThreads
from device_plugin.driver.health_watch import HealthWatch
from device_plugin.isolation import mig
from device_plugin.node.problems import Problems
from gpu_sharing.adapters.progress import Progress
from gpu_sharing.core import error_codes, errors, identifiers, records

log = structlog.get_logger("mig")

WriteAnnotations = Callable[[Mapping[str, str]], Awaitable[None]]


class MigInstances:
    """The MIG instances that the plugin makes and destroys.

    Args:
        driver: Makes and destroys instances.
        health: Has the GPUs with their instances.
        write: Writes annotations of the node; raises `KubernetesError`.
        changed: Called after instances were made or destroyed and the GPUs were read again.
        destroys_all: Whether the plugin may destroy instances that it did not make.
        count: Called for each instance that is destroyed.

    Attributes:
        progress: Of the instances that are made and destroyed now.
    """

    def __init__(
        self,
        *,
        driver: DriverThreads,
        health: HealthWatch,
        write: WriteAnnotations,
        changed: Callable[[], None],
        destroys_all: bool,
        count: Callable[[], None] = lambda: None,
    ) -> None:
        self._count = count
        self._driver = driver
        self._health = health
        self._write = write
        self._changed = changed
        self._destroys_all = destroys_all
        self._made: frozenset[records.MadeInstance] = frozenset()
        self._lock = asyncio.Lock()
        self.progress = Progress("change_mig_instances")

    def remember(self, made: Iterable[records.MadeInstance]) -> None:
        """Add the instances that an earlier process made."""
        self._made |= frozenset(made)

    async def create(self, share: records.MigShare) -> None:
        """Make the instance of a record, unless it exists: a container's start and the work before it may both ask.

        Raises:
            GpuSourceError: It cannot be made, or the node's annotation cannot be written.
        """
        with self.progress.piece():  # Counted while it is queued, too: the driver changes one GPU after another.
            await self._create(share)

    async def _create(self, share: records.MigShare) -> None:
        async with self._lock:
            if mig.instance_of(share, self._health.devices) is not None:
                return
            # Before the place is recorded as ours: another program's leftovers may lie there.
            await self._destroy_bare()
            await self._write_made(
                self._made | {records.MadeInstance(share.gpu_uuid, share.profile, share.start, share.size)}
            )
            await self._driver.create_mig(share.gpu_uuid, share.profile, share.start, share.size)
            log.info("MIG instance made", device=share.gpu_uuid, profile=share.profile, start=share.start)
            await self._health.read_all()
            self._changed()

    async def destroy_unneeded(self, shares: Sequence[records.MigShare]) -> None:
        """Destroy the instances that no record names.

        Args:
            shares: The instances that the records of the node's pods name.
        """
        async with self._lock:
            unneeded = [
                (device.uuid, uuid)
                for device in self._health.devices
                for uuid in mig.unneeded(device, shares, self._destroyable)
            ]
            if unneeded:
                self.progress.add(len(unneeded))
            for gpu_uuid, instance in unneeded:
                await self._destroy(gpu_uuid, instance)
            await self._destroy_bare()
            await self._health.read_all()
            with contextlib.suppress(gpu_source.GpuFailed):  # Then it is written the next time.
                await self._write_made(mig.still_there(self._health.devices, self._made))

    async def _destroy(self, gpu_uuid: identifiers.GpuUuid, instance: str) -> None:
        try:
            await self._driver.destroy_mig(gpu_uuid, instance)
            self._count()
            log.info("MIG instance destroyed", device=gpu_uuid, instance=instance)
        except gpu_source.GpuSourceError as refused:
            log.warning("MIG instance not destroyed", device=gpu_uuid, instance=instance, cause=str(refused))
        finally:
            self.progress.finish()

    def foreign_leftovers(self, devices: Iterable[gpu_source.Device]) -> dict[identifiers.GpuUuid, str]:
        """Return the half-made GPU instances that the plugin may not destroy, by GPU."""
        foreign = {device.uuid: mig.foreign_bare(device, self._destroyable) for device in devices}
        return {uuid: instances for uuid, instances in foreign.items() if instances}

    @property
    def _destroyable(self) -> frozenset[records.MadeInstance] | None:
        """Instances that may be destroyed; None is all of the node."""
        return None if self._destroys_all else self._made

    async def _write_made(self, made: frozenset[records.MadeInstance]) -> None:
        """Write which instances the plugin made.

        Raises:
            GpuFailed: It cannot be written, so that nothing may be made.
        """
        if made == self._made:
            return
        try:
            await self._write({records.MIG_MADE: records.encode_made(made)})
        except errors.KubernetesError as refused:
            raise gpu_source.GpuFailed(f"the node's {records.MIG_MADE} is not written: {refused}") from refused
        self._made = made

    async def _destroy_bare(self) -> None:
        """Destroy what is left of half-made or half-destroyed instances: it holds MIG slices."""
        for device in self._health.devices:
            for instance in mig.bare(device, self._destroyable):
                where = {"device": device.uuid, "profile": instance.profile}
                try:
                    await self._driver.destroy_bare(device.uuid, instance.instance_id)
                    log.info("GPU instance destroyed", start=instance.start, **where)
                except gpu_source.GpuSourceError as refused:
                    log.warning("GPU instance not destroyed", cause=str(refused), **where)


def report_foreign_leftovers(
    problems: Problems, migs: MigInstances, devices: Iterable[gpu_source.Device], *, makes_instances: bool
) -> None:
    """Report half-made GPU instances of others on a node that makes instances, and clear the report elsewhere."""
    foreign = migs.foreign_leftovers(devices) if makes_instances else {}
    problems.replace(error_codes.PLUGIN_MIG_INSTANCE_BARE, foreign)
