"""Keeps the list of device ids right while GPUs, containers and pods come and go."""

import asyncio
from collections.abc import Callable

from device_plugin.allocation.held_ids import HeldIds
from device_plugin.driver.health_watch import HealthWatch
from device_plugin.kubelet import device_ids
from device_plugin.kubelet.checkpoint import CheckpointFile
from device_plugin.kubelet.servicer import DeviceIdList
from device_plugin.node.local_node import LocalNode

_INTERVAL_SECONDS = 0.5


class IdListing:
    """Computes the list of device ids.

    Args:
        node: Has the GPUs that are offered.
        health: Has all GPUs.
        held: The ids that containers hold.
        checkpoint_file: Shows by its time when containers have come or gone.
        pods_version: Returns a number that grows with each change of a pod.

    Attributes:
        listing: The list as the kubelet receives it.
    """

    def __init__(
        self,
        *,
        node: LocalNode,
        health: HealthWatch,
        held: HeldIds,
        checkpoint_file: CheckpointFile,
        pods_version: Callable[[], int],
    ) -> None:
        self._node = node
        self._health = health
        self._held = held
        self._checkpoint_file = checkpoint_file
        self._pods_version = pods_version
        self._seen: tuple[int, int] | None = None
        self.listing = DeviceIdList()

    def refresh(self) -> None:
        """Compute the list by what is known now."""
        self._seen = self._version()
        offered = tuple(self._node.inventory.values())
        unhealthy = [gpu.uuid for gpu in offered if not gpu.healthy]
        # The GPU of an id matters only while a GPU is unhealthy or hidden, and takes long to find out.
        all_usable = not unhealthy and len(offered) == len(self._health.devices)
        held = dict.fromkeys(self._held.ids()) if all_usable else self._held.gpus()
        self.listing.set(device_ids.listing(offered, held, unhealthy))

    async def run(self) -> None:
        """Refresh the list after each change of the checkpoint or of a pod, until cancelled."""
        while True:
            await asyncio.sleep(_INTERVAL_SECONDS)
            if self._version() != self._seen and self._node.inventory:
                self.refresh()

    def _version(self) -> tuple[int, int]:
        return self._checkpoint_file.modified_at(), self._pods_version()
