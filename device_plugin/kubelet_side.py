"""The kubelet's side of the plugin: registration, the list of device ids, and the starts of containers."""

import asyncio
import time

import structlog

from device_plugin.allocation.allocator import Allocator
from device_plugin.allocation.cdi_applied import CdiCheck, CdiFallback
from device_plugin.allocation.container_edits import ContainerEdits
from device_plugin.allocation.held_ids import HeldIds
from device_plugin.allocation.id_listing import IdListing
from device_plugin.allocation.leftovers import Leftovers
from device_plugin.allocation.matching import Matcher
from device_plugin.allocation.owners import Owners
from device_plugin.allocation.preparation import Preparation
from device_plugin.allocation.starts import StartReporter, Starts
from device_plugin.delivery.cdi_store import CdiStore
from device_plugin.kubelet.checkpoint import CheckpointFile
from device_plugin.kubelet.podresources import PodResources
from device_plugin.kubelet.refusals import StartRefused
from device_plugin.kubelet.registration import Registration
from device_plugin.kubelet.servicer import Servicer
from device_plugin.metrics import Metrics
from device_plugin.node.bind_phase import BindPhases
from device_plugin.node.class_check import RuntimeClassCheck
from device_plugin.node_side import NodeSide
from device_plugin.settings import Settings
from gpu_sharing.adapters import kubernetes
from gpu_sharing.adapters.progress import Progress

_TRUNCATE_SECONDS = 5.0
_POLL_SECONDS = 0.05

log = structlog.get_logger("plugin")


class KubeletSide:
    """The kubelet's side.

    Attributes:
        held: The device ids that containers hold.
        ids: The list of device ids.
        registration: With the kubelet.
        resources: The kubelet's podresources API.
        restoring: How far the specifications of containers are written again.
    """

    def __init__(self, settings: Settings, client: kubernetes.Client, node_side: NodeSide, metrics: Metrics) -> None:
        node, pods, assignments = node_side.node, node_side.pods, node_side.assignments
        names, forget_seconds = settings.resource_names, settings.forget_seconds
        self._node_side = node_side
        self._forget_seconds = forget_seconds
        watch = node_side.pod_watch
        checkpoint_file = CheckpointFile(settings.kubelet_dir, names.count)
        self.resources = PodResources(settings.kubelet_dir, names.count)
        self.restoring = Progress("restore_containers", is_due=True)
        store = CdiStore(settings.cdi_dir)
        owners = Owners(checkpoint_file, self.resources, pods, lambda: watch.synced and not watch.problem)
        container_edits = ContainerEdits(node, pods, assignments)
        matcher = Matcher(
            pods=pods,
            owners=owners,
            assignments=assignments,
            container_edits=container_edits,
            forget_seconds=forget_seconds,
        )
        preparation = Preparation(
            node=node, owners=owners, assignments=assignments, container_edits=container_edits, store=store
        )
        self._allocator = Allocator(node, owners, preparation, matcher)
        self._leftovers = Leftovers(
            node=node,
            owners=owners,
            allocator=self._allocator,
            store=store,
            forget_seconds=forget_seconds,
            count=lambda kind: metrics.leftovers.labels(kind=kind).inc(),
        )
        self._cdi_check = _cdi_check(settings, node_side, self._allocator, metrics)
        self.held = HeldIds(owners, assignments)
        self.ids = IdListing(
            node=node,
            health=node_side.health,
            held=self.held,
            checkpoint_file=checkpoint_file,
            pods_version=lambda: node_side.pods_version,
        )
        starts = Starts(self._allocator, _reporter(settings, client, node_side, owners))
        self._servicer = servicer = Servicer(starts, self.ids.listing, metrics)
        self.registration = Registration(settings.kubelet_dir, names.count, servicer, self._prepare)

    @property
    def answered_at(self) -> float:
        """Return monotonic seconds of the last answer about a container; minus infinity before the first."""
        return self._servicer.answered_at

    async def register(self, deadline: float) -> None:
        """Register with the kubelet and stay registered until cancelled.

        Waits for the pods until the deadline (monotonic seconds): the kubelet fails pods for good that it admits while
        no plugin is registered.
        """
        while not self._node_side.pod_watch.synced and time.monotonic() < deadline:
            await asyncio.sleep(_POLL_SECONDS)
        if not self._node_side.pod_watch.synced:
            log.warning("the node's pods are not read in time; registering without them")
        await self.registration.run()

    async def _prepare(self) -> None:
        """Write what containers may need that start right after a registration."""
        restored = await self._allocator.restore(self.restoring)
        if restored:
            log.info("device specifications are in place", containers=restored)
        self.ids.refresh()

    async def check_cdi(self) -> None:
        """Check running containers for what CDI should have applied, until cancelled."""
        await self._cdi_check.run()

    async def truncate_folders(self) -> None:
        """Cut what containers write into their folders, until cancelled."""
        while True:
            await asyncio.sleep(_TRUNCATE_SECONDS)
            for backend in self._node_side.node.backends.values():
                await asyncio.to_thread(backend.truncate_folders)

    async def delete_leftovers(self) -> None:
        """Delete what ended containers leave behind, until cancelled."""
        while True:
            await asyncio.sleep(self._forget_seconds / 2)
            await self._node_side.destroy_unneeded_instances()
            try:
                deleted = self._leftovers.delete()
            except StartRefused as refused:
                log.error("leftovers not deleted", error_code=refused.code, cause=str(refused))
                continue
            if deleted:
                log.info("leftovers deleted", count=deleted)


def _reporter(settings: Settings, client: kubernetes.Client, node_side: NodeSide, owners: Owners) -> StartReporter:
    class_check = RuntimeClassCheck(
        delivery=node_side.delivery,
        problems=node_side.problems,
        events=node_side.events,
        names=settings.resource_names,
        warns=settings.runtime_class_check == "warn",
    )
    return StartReporter(node_side.events, BindPhases(client), class_check, owners)


def _cdi_check(settings: Settings, node_side: NodeSide, allocator: Allocator, metrics: Metrics) -> CdiCheck:
    fallback = CdiFallback(
        node=node_side.node,
        events=node_side.events,
        problems=node_side.problems,
        count_refusal=metrics.failed,
        is_auto=settings.identity == "auto",
    )
    return CdiCheck(
        proc=settings.proc_dir,
        pods=node_side.pods,
        is_by_cdi=allocator.is_by_cdi,
        unmarked=fallback.unmarked,
        unseen=fallback.unseen,
    )
