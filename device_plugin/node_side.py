"""The node's side of the plugin: which GPUs it offers, by the driver, the host and the API server.

One round reads the node file, the GPUs and the host, and refreshes the offer; in between, an XID, a release or a new
MIG instance changes it at once.
"""

import asyncio
import contextlib
import dataclasses
import functools
import math
from collections.abc import Callable, Mapping, Sequence

import structlog

from device_plugin.allocation.assignments import Assignments
from device_plugin.delivery import host_cdi, methods
from device_plugin.driver import gpu_source
from device_plugin.driver.driver_threads import DriverThreads
from device_plugin.driver.health_watch import HealthWatch
from device_plugin.isolation import backend, mps, table
from device_plugin.kubelet import device_ids
from device_plugin.metrics import MIG, Metrics
from device_plugin.node import gpu_problems, inventory, mig_instances, pods, release, startup
from device_plugin.node.api_objects import Node
from device_plugin.node.delivery_check import DeliveryCheck
from device_plugin.node.gpu_offer import Checks, GpuOffer
from device_plugin.node.isolation_check import IsolationCheck
from device_plugin.node.local_node import LocalNode
from device_plugin.node.mig_instances import MigInstances
from device_plugin.node.node_events import NodeEvents
from device_plugin.node.node_file import NodeFile
from device_plugin.node.node_watch import NodeWatch
from device_plugin.node.problems import Problems
from device_plugin.node.publisher import NodePublisher
from device_plugin.node.release import Releases
from device_plugin.settings import Settings, Sharing
from gpu_sharing.adapters import events, kubernetes
from gpu_sharing.core import error_codes, health, identifiers, records

_COMPONENT = "hami-device-plugin"
_EVENTS_PER_SECOND = 20.0
_EVENTS_QUEUED = 500
RELEASE_RETRY_SECONDS = 30.0

log = structlog.get_logger("node")


class NodeSide:
    """The node's side.

    Attributes:
        node: What is known of the node.
        pods: Its pods.
        pods_version: Grows with each change of a pod.
        offer_changed: Called after each refresh of the offer.
        migs: The MIG instances that the plugin makes and destroys.
        mps_start: How far the MPS daemon of the node is.
    """

    def __init__(self, settings: Settings, client: kubernetes.Client, driver: DriverThreads, metrics: Metrics) -> None:
        names, node_name = settings.resource_names, settings.node_name
        self._settings = settings
        self._client = client
        self._driver = driver
        self.offer_changed: Callable[[], None] = lambda: None
        self._boot_id = startup.boot_id(settings.boot_id_file)
        self.node = local_node_of(settings)
        self.recorder = _recorder(client, node_name)
        self.events = NodeEvents(self.recorder, node_name)
        self.pods_version = 0
        self.pods = pods.Pods(names, self._pods_changed)
        self.pod_watch = pods.watch(client, node_name, self.pods)
        self.assignments = Assignments(self.node, self.pods, names)
        capacity = functools.partial(inventory.capacity, names)
        self.publisher = NodePublisher(client, node_name, self._annotations, capacity)
        self.problems = Problems(self.publisher.change)
        rules, changed = settings.health_rules, self._health_changed
        self.health = HealthWatch(driver=driver, rules=rules, boot_id=self._boot_id, metrics=metrics, changed=changed)
        self.migs = MigInstances(
            driver=driver,
            health=self.health,
            write=self.publisher.write_now,
            changed=self.refresh,
            destroys_all=settings.mig_destroy == "all",
            count=lambda: metrics.leftovers.labels(kind=MIG).inc(),
        )
        self.mps_start = mps.DaemonStart(settings.mps_root, lambda: self.node.sharing.isolation == table.MPS)
        self.delivery = DeliveryCheck(self.node, self.problems)
        self._isolation = IsolationCheck(self.node, self.problems, self.assignments.on_gpu)
        self._releases = Releases(driver, self.problems, self.refresh)
        checks = Checks(self.delivery, self._isolation, self._releases)
        self._offer = GpuOffer(
            node=self.node, health=self.health, checks=checks, report=self._report, changed=self._offer_changed
        )
        self.node_watch = NodeWatch(client, node_name, self._node_changed)
        self._node_file = NodeFile(settings.config_file, settings.sharing, node_name, self._check_slots)
        self._host_specs = host_cdi.Reader((*settings.host_cdi_dirs, settings.cdi_dir))
        self._links: Mapping[identifiers.GpuUuid, Mapping[identifiers.GpuUuid, int]] = {}
        self._at_start: startup.NodeAtStart | None = None
        self._is_read = asyncio.Event()
        self._set_backends()

    async def read_node(self, deadline: float) -> None:
        """Read what an earlier process knew, and what the node's container runtime can do.

        After the deadline (monotonic seconds) the plugin goes on without: containers that ran may start again from
        what is on disk, and new ones wait in Allocate until the node is read.
        """
        at_start = await startup.read(self._client, self.node.name, self._boot_id, deadline)
        if at_start is None:
            return
        self._at_start = at_start
        self.migs.remember(at_start.own_instances)
        self._isolation.remember(at_start.limited)
        if at_start.released:  # Before the first call to the driver.
            await self._releases.follow(at_start.released, {device.uuid: device.index for device in at_start.devices})
        self._choose_identity(at_start)
        self.node.runtime = at_start.runtime
        self.node.host = dataclasses.replace(self.node.host, has_runtime_class=at_start.has_runtime_class)
        self.node.identity_known.set()
        self._is_read.set()
        log.info("node", runtime=at_start.runtime, identity=self.node.identity, remembered=len(at_start.unhealthy))

    def _choose_identity(self, at_start: startup.NodeAtStart) -> None:
        """Choose CDI where the runtime knows it and no earlier process found that this version ignores it."""
        if self._settings.identity != "auto":
            return
        ignored = at_start.problems.get(error_codes.PLUGIN_CDI_IGNORED, "")
        self.node.by_cdi = at_start.knows_cdi and not ignored.startswith(f"{at_start.runtime}: ")
        if at_start.knows_cdi and not self.node.by_cdi:
            self.problems.report(error_codes.PLUGIN_CDI_IGNORED, ignored)

    async def publish(self) -> None:
        """Write the node's annotations until cancelled, but only once they were read: what they had would be lost."""
        if not self._is_read.is_set():
            self.problems.report(error_codes.PLUGIN_NODE_UNREAD, f"{self.node.name} was not read yet")
            await self.read_node(math.inf)
            self.problems.clear(error_codes.PLUGIN_NODE_UNREAD)
        await self.publisher.run()

    async def read_gpus(self) -> None:
        """Do one round: read the node file, the GPUs and the host, and refresh the offer.

        Raises:
            DriverChanged: The process has to start again.
        """
        if self._node_file.reload():
            self.node.sharing = self._node_file.sharing
            self._set_backends()
        self._recall()
        changed = await self.health.read_all()
        if changed and self._settings.topology_score:
            with contextlib.suppress(gpu_source.GpuSourceError):
                self._links = await self._driver.links()
        self.node.host = await asyncio.to_thread(self._read_host)
        self.refresh()

    def refresh(self) -> None:
        """Refresh the offer by what is known now."""
        self._offer.refresh()

    async def destroy_unneeded_instances(self) -> None:
        """Destroy the MIG instances that no pod's record names, on a node that makes instances."""
        if self._makes_instances and self.pod_watch.synced and self._is_read.is_set():
            await self.migs.destroy_unneeded([share for pod in self.pods.by_uid.values() for share in pod.mig_shares()])

    def xids_received(self) -> dict[identifiers.GpuUuid, bool]:
        """Return of each GPU whether its XIDs are received."""
        refused = self._driver.gaps.unheard(self.health.devices)
        return {device.uuid: device.uuid not in refused for device in self.health.devices}

    @property
    def _makes_instances(self) -> bool:
        return self.node.sharing.isolation == table.MIG

    def _set_backends(self) -> None:
        settings = self._settings
        self.node.backends = table.build(
            backend.BackendSettings(
                hook_path=settings.hook_path,
                disable_core_limit=settings.disable_core_limit,
                mps_root=settings.mps_root,
                mps_multi_user=settings.mps_multi_user,
                create_instance=self.migs.create if self._makes_instances else None,
            )
        )

    def _check_slots(self, sharing: Sharing) -> None:
        device_ids.ids_for(sharing.split_count * len(self.health.devices))

    def _recall(self) -> None:
        """Join what an earlier process knew of the GPUs with what this one has found since its start."""
        at_start, self._at_start = self._at_start, None
        if at_start is None:
            return
        unhealthy = {uuid: state for uuid, state in self.health.states.items() if not state.available}
        devices = {device.uuid: device for device in (*at_start.devices, *self.health.devices)}
        earlier = {
            uuid: dataclasses.replace(state, cause=state.cause.removeprefix(f"{records.RELEASED}; "))
            for uuid, state in at_start.unhealthy.items()
        }
        # The driver is not asked about a released GPU, which stays as it was.
        released = dict.fromkeys(self._releases.reasons, health.Health())
        self.health.remember({**released, **earlier, **unhealthy}, devices.values())

    def _read_host(self) -> methods.Host:
        """Return what the host offers for delivery now. Reads files."""
        proc = self._settings.proc_dir
        return methods.Host(
            self._host_specs.read(),
            host_cdi.driver_version(proc),
            host_cdi.capabilities(proc),
            self._settings.host_root,
            self.node.host.has_runtime_class,
        )

    async def _node_changed(self, node: Node) -> None:
        wanted = release.released_gpus(node.metadata.annotations)
        await self._releases.follow(wanted, {device.uuid: device.index for device in self.health.devices})

    def _pods_changed(self) -> None:
        self.pods_version += 1

    def _report(self, devices: Sequence[gpu_source.Device]) -> None:
        """Report the problems of GPUs that keep none of them from being offered."""
        gpu_problems.report(self.problems, devices, self._driver.gaps)
        no_driver = self.health.driver_problem or ("" if devices else "the driver has no GPUs")
        self.problems.report_or_clear(error_codes.PLUGIN_NO_DRIVER, no_driver)
        mig_instances.report_foreign_leftovers(self.problems, self.migs, devices, makes_instances=self._makes_instances)

    def _offer_changed(self, changed: bool) -> None:
        if changed:
            self.publisher.change()
        self.offer_changed()

    def _health_changed(self, device: gpu_source.Device, before: health.Health, after: health.Health) -> None:
        """Bring a change of a GPU's health at once to the kubelet, the scheduler and people."""
        if self._offer.set_health(device.uuid, after):
            self.offer_changed()
        self.publisher.change()
        holders = [pod for pod, _ in self.pods.holders(device.uuid)]
        if not after.available and (before.available or after.cause != before.cause):
            self.events.unhealthy(device, after, holders)
        elif after.available and not before.available:
            self.events.recovered(device, before, holders)

    def _annotations(self) -> Mapping[str, str]:
        sentences = self.problems.sentences()
        if not self._offer.has_offered:
            # A node on which no GPU was ever found has no record of GPUs, only the reason.
            return inventory.problem_annotations(records.OUR_AGENT, sentences)
        offered = tuple(self.node.inventory.values())
        return inventory.annotations(offered, self.node.states, self._links, records.OUR_AGENT, problems=sentences)


def _recorder(client: kubernetes.Client, node_name: str) -> events.EventRecorder:
    return events.EventRecorder(client, _COMPONENT, node_name, _EVENTS_PER_SECOND, queue_length=_EVENTS_QUEUED)


def local_node_of(settings: Settings) -> LocalNode:
    """Return what the settings say of the node."""
    node = LocalNode(
        name=settings.node_name,
        sharing=settings.sharing,
        delivery_setting=settings.delivery,
        refuses_without_class=settings.runtime_class_check == "refuse",
        by_cdi=settings.identity != "match",
    )
    if settings.identity != "auto":
        node.identity_known.set()
    return node
