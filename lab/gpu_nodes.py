"""Nodes of the lab that are served like real ones: GPUs, a fake kubelet, and our device plugin between them."""

import asyncio
import contextlib
import pathlib
import queue
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from device_plugin import app, settings
from device_plugin.driver import gpu_source
from gpu_sharing.adapters import flags, kubernetes
from gpu_sharing.core import gpus, health, identifiers, records
from lab import hami_core, kubelet, store

RUNTIME = "containerd://2.4.2"
"""The reported container runtime; the fake kubelet resolves CDI names as it does."""


@dataclass(slots=True)
class FakeGpus:
    """A `GpuSource` of fake GPUs, which a test changes while they are in use."""

    listed: list[gpu_source.Device]
    readings: dict[identifiers.GpuUuid, health.Reading] = field(default_factory=dict)
    """The readings of unhealthy GPUs; the others are healthy."""
    faults: "queue.SimpleQueue[gpu_source.Fault]" = field(default_factory=queue.SimpleQueue)
    """XIDs to report."""
    usages: dict[identifiers.GpuUuid, gpu_source.Usage] = field(default_factory=dict)
    """The used memory and utilization; 0 for the other GPUs."""
    announced: dict[identifiers.GpuUuid, health.Reading] = field(default_factory=dict)
    """The readings of GPUs from the second one on after `after_next`, or after their XID is received: so the XID is the
    cause that users see, and counters are seen to rise."""
    after_next: set[identifiers.GpuUuid] = field(default_factory=set)

    def devices(self) -> Sequence[gpu_source.Device]:
        """See `GpuSource`."""
        return tuple(self.listed)

    def reading(self, uuid: identifiers.GpuUuid) -> health.Reading:
        """See `GpuSource`; a GPU that is no longer listed has fallen off the bus."""
        if all(one.uuid != uuid for one in self.listed):
            return health.Reading(answered=False, lost=True)
        before = self.readings.get(uuid, health.Reading(recovery_action=0, uncorrected_errors=0))
        if uuid in self.after_next:
            self.after_next.discard(uuid)
            if uuid in self.announced:
                self.readings[uuid] = self.announced.pop(uuid)
        return before

    def usage(self, uuid: identifiers.GpuUuid) -> gpu_source.Usage:
        """See `GpuSource`."""
        return self.usages.get(uuid) or self.idle(uuid)

    def idle(self, uuid: identifiers.GpuUuid) -> gpu_source.Usage:
        """Return the use of a GPU on which nothing runs."""
        return gpu_source.Usage(
            memory_total_bytes=next((one.memory_mib or 0 for one in self.listed if one.uuid == uuid), 0) << 20,
            memory_used_bytes=0,
            utilization_percent=0.0,
            temperature_celsius=35.0,
            power_watts=60.0,
            memory_controller_percent=0.0,
        )

    def next_faults(self, timeout_seconds: float) -> Sequence[gpu_source.Fault]:
        """See `GpuSource`."""
        try:
            received = self.faults.get(timeout=timeout_seconds)
        except queue.Empty:
            return ()
        if received.uuid is not None:
            self.after_next.add(received.uuid)
        return (received,)

    def gaps(self) -> gpu_source.Gaps:
        """See `GpuSource`; these GPUs refuse nothing."""
        return gpu_source.Gaps()

    def links(self) -> dict[identifiers.GpuUuid, dict[identifiers.GpuUuid, int]]:
        """See `GpuSource`."""
        return {}

    def create_mig(self, uuid: identifiers.GpuUuid, profile: str, start: int, size: int) -> None:
        """See `GpuSource`; these GPUs cannot be divided."""
        raise gpu_source.GpuFailed(f"{uuid} has no MIG profile {profile}")

    def destroy_mig(self, uuid: identifiers.GpuUuid, mig_uuid: str) -> None:
        """See `GpuSource`; there are none."""
        raise gpu_source.GpuFailed(f"{uuid} has no MIG instance {mig_uuid}")

    def destroy_bare(self, uuid: identifiers.GpuUuid, instance_id: int) -> None:
        """See `GpuSource`; there are none."""
        raise gpu_source.GpuFailed(f"{uuid} has no GPU instance {instance_id}")

    def release(self, released: Mapping[identifiers.GpuUuid, int]) -> None:
        """See `GpuSource`; these GPUs are never held."""

    def close(self) -> None:
        """See `GpuSource`."""


def devices_of(inventory: Sequence[gpus.Gpu]) -> list[gpu_source.Device]:
    """Return the GPUs of a fake node as a driver would describe them."""
    return [
        gpu_source.Device(
            uuid=gpu.uuid,
            index=gpu.index,
            name=gpu.type,
            memory_mib=gpu.memory_mib,
            minor=gpu.index,
            compute_capability=(8, 0),
        )
        for gpu in inventory
    ]


def unserved(node: store.Object) -> store.Object:
    """Return a fake node without its device plugin: no inventory, no `nvidia.com/gpu`."""
    status = dict(node["status"])
    for name in ("capacity", "allocatable"):
        status[name] = {key: value for key, value in status[name].items() if key != "nvidia.com/gpu"}
    status["nodeInfo"] = {**status["nodeInfo"], "containerRuntimeVersion": RUNTIME}
    kept = {
        key: value
        for key, value in node["metadata"]["annotations"].items()
        if key not in (records.INVENTORY, records.AGENT)
    }
    return {**node, "metadata": {**node["metadata"], "annotations": kept}, "status": status}


class GpuNode:
    """One served node.

    Attributes:
        kubelet: Its fake kubelet.
        gpus: Its GPUs.
    """

    def __init__(
        self, folder: pathlib.Path, kubeconfig: pathlib.Path, node: store.Object, inventory: Sequence[gpus.Gpu]
    ) -> None:
        self.name: str = node["metadata"]["name"]
        folder.mkdir(parents=True)
        hami_core.place(folder / "hook")
        self._options = settings.Settings(
            node_name=self.name,
            kubeconfig=kubeconfig,
            kubelet_dir=folder / "kubelet",
            cdi_dir=folder / "cdi",
            host_cdi_dirs=(),
            hook_path=folder / "hook",
            delivery="envvar",
            runtime_class_check="off",
            sharing=settings.Sharing(split_count=inventory[0].slots),
            health_bind=flags.Address("127.0.0.1", 0),
            health_rules=health.Rules(hold_seconds=1.0),
            health_interval_seconds=0.5,
            boot_id_file=folder / "boot_id",
        )
        self._boots = 0
        self._boot()
        self._rebooting: asyncio.Event | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self.gpus = FakeGpus(devices_of(inventory))
        self.kubelet = kubelet.Kubelet(self._options.kubelet_dir, self._options.cdi_dir)

    def _boot(self) -> None:
        """Write another boot id, as the kernel has after each start."""
        self._boots += 1
        self._options.boot_id_file.write_text(f"{uuid.uuid5(uuid.NAMESPACE_DNS, f'{self.name}/{self._boots}')}\n")

    def reboot(self) -> None:
        """Restart the device plugin with another boot id; containers go on. May be called from any thread."""
        assert self._loop is not None
        assert self._rebooting is not None
        self._loop.call_soon_threadsafe(self._rebooting.set)

    async def run(self, keep: store.Store) -> None:
        """Serve until cancelled."""
        self._loop, self._rebooting = asyncio.get_running_loop(), asyncio.Event()
        agent = asyncio.create_task(kubelet.NodeAgent(keep, self.name, self.kubelet).run())
        try:
            while True:
                await self._serve_one_boot(agent, self._rebooting)
                self._rebooting.clear()
                # A thread of the plugin that ended may still wait at the old queue.
                self.gpus.faults = queue.SimpleQueue()
                self._boot()
        finally:
            agent.cancel()
            await asyncio.gather(agent, return_exceptions=True)

    async def _serve_one_boot(self, agent: "asyncio.Task[None]", rebooting: asyncio.Event) -> None:
        """Run a device plugin until the node is to restart."""
        stop = asyncio.Event()
        async with kubernetes.Client(self._options.kubeconfig, "hami-device-plugin") as client:
            plugin = asyncio.create_task(app.Plugin(self._options, client, lambda: self.gpus).run(stop))
            reboot = asyncio.create_task(rebooting.wait())
            try:
                await asyncio.wait([plugin, agent, reboot], return_when=asyncio.FIRST_COMPLETED)
                for task in (plugin, agent):
                    if task.done():
                        task.result()  # Neither task ends by itself.
            finally:
                reboot.cancel()
                stop.set()
                with contextlib.suppress(asyncio.CancelledError):
                    await plugin
