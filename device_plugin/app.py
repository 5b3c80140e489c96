"""Joins everything: the only place that makes adapters and hands them to the parts of the plugin.

Starting: answer probes, read the node and its pods, look at the GPUs, publish them, write what containers may need,
then register with the kubelet. Stopping: SIGTERM ends the calls and tells the last events; containers go on.
"""

import asyncio
import contextlib
import dataclasses
import itertools
import math
import time
from collections.abc import Callable, Iterable, Mapping, Sequence

import orjson
import structlog

from device_plugin import (
    metrics,
    settings,
)
from device_plugin.allocation import allocator, cdi_applied, checks
from device_plugin.delivery import cdi_store, edits, host_cdi, methods
from device_plugin.driver import driver_threads, gpu_source, health_watch, pid_namespace
from device_plugin.isolation import hami_core, mig, mps, table
from device_plugin.kubelet import device_ids, podresources, registration, servicer
from device_plugin.node import (
    api_objects,
    gpu_problems,
    inventory,
    local_node,
    node_events,
    node_watch,
    pods,
    problems,
    publisher,
    release,
    startup,
)
from gpu_sharing.adapters import events, health_endpoint, kubernetes, stdlib_http
from gpu_sharing.core import error_codes, errors, health, identifiers, records

_COMPONENT = "hami-device-plugin"
_TEND_SECONDS = 0.5
_TURNS_BETWEEN_BOUNDS = 10
_PATIENCE_SECONDS = 10.0
"""How long the start waits for the node, and as long again for its pods: pods that are admitted without us fail for
good, so that it must not wait for ever."""
_NO_MPS = "the MPS daemon does not run; see the pod hami-mps"
_DELIVERY_CODES = (error_codes.PLUGIN_DELIVERY, error_codes.PLUGIN_CDI_CONFLICT, error_codes.PLUGIN_CDI_STALE)
_RELEASING = "to be released: the device plugin still holds the GPU"
_RELEASE_RETRY_SECONDS = 30.0
_EVENTS_PER_SECOND = 20.0
_EVENTS_QUEUED = 500
_EVENTS_DRAIN_SECONDS = 3.0

log = structlog.get_logger("plugin")


class Plugin:
    """One running device plugin."""

    def __init__(
        self, options: settings.Settings, client: kubernetes.Client, connect: Callable[[], gpu_source.GpuSource]
    ) -> None:
        """Join the parts.

        Args:
            options: How it runs.
            client: The API server.
            connect: Finds the driver; raises `DriverMissing` while there is none.
        """
        self._options = options
        self._client = client
        self._names = options.resource_names
        self._sharing = options.sharing
        self._started_at = time.monotonic()
        self._boot = startup.boot_id(options.boot_id_file)
        self._metrics = metrics.Metrics()
        self._recorder = events.EventRecorder(
            client, _COMPONENT, options.node_name, _EVENTS_PER_SECOND, queue_length=_EVENTS_QUEUED
        )
        self._teller = node_events.NodeEvents(self._recorder, options.node_name)
        self._driver = driver_threads.DriverThreads(connect, options.nvml_timeout_seconds)
        self._health = health_watch.HealthWatch(
            self._driver, options.health_rules, self._boot, self._metrics, self._health_changed
        )
        self._pods = pods.Pods(self._names, self._mark)
        self._pod_watch = pods.watch(client, options.node_name, self._pods)
        self._metrics.count_events("hami_device_plugin", self._recorder)
        client.observe = self._metrics.api_call
        self._publisher = publisher.Publisher(client, options.node_name, self._annotations, self._capacity)
        self._problems = problems.Problems(self._publisher.change)
        self._node = local_node.LocalNode(
            options.node_name, delivery_setting=options.delivery, late=options.identity != "match",
            refuses_without_class=options.runtime_class_check == "refuse",
        )  # fmt: skip
        if options.identity != "auto":
            self._node.identity_known.set()
        self._host_specs = host_cdi.Reader((*options.host_cdi_dirs, options.cdi_dir))
        self._withdrawn: Mapping[identifiers.GpuUuid, str] = {}
        self._released: dict[identifiers.GpuUuid, str] = {}
        self._node_watch = node_watch.NodeWatch(client, options.node_name, self._node_changed)
        self._metrics.follow({"pods": self._pod_watch, "node": self._node_watch.reflector})
        self._node_read = asyncio.Event()
        self._made: frozenset[records.MadeInstance] = frozenset()
        self._mig_lock = asyncio.Lock()
        self._earlier: startup.NodeAtStart | None = None
        self._runtime = ""
        self._set_backends()
        self._store = cdi_store.CdiStore(options.cdi_dir)
        self._resources = podresources.PodResources(options.kubelet_dir, self._names.count)
        self._allocator = allocator.Allocator(
            self._node, self._pods, options.kubelet_dir, self._store, self._resources, self._names,
            lambda: self._pod_watch.synced and not self._pod_watch.trouble, options.forget_seconds,
        )  # fmt: skip
        self._starts = cdi_applied.CdiCheck(
            options.proc_dir, self._pods, self._allocator.is_late, self._unmarked, self._unseen
        )
        self._listing = servicer.DeviceIdList()
        service = servicer.Servicer(self._allocator, self._listing, self._metrics, self._confirmed, self._doubted)
        self._link = registration.Registration(options.kubelet_dir, self._names.count, service, self._prepare)
        self._limited: set[identifiers.GpuUuid] = set()
        """GPUs that were limited by HAMi-core, by this process or the one before it."""
        self._has_offered = False
        self._links: Mapping[identifiers.GpuUuid, Mapping[identifiers.GpuUuid, int]] = {}
        self._dirty = True
        self._seen_checkpoint = 0
        self._delivery_trouble = ""
        self._ways: Mapping[identifiers.GpuUuid, str] = {}
        self._config_text: str | None = None
        self._writes: set[asyncio.Task[None]] = set()
        self._endpoint = health_endpoint.HealthEndpoint(options.health, self._components, self._exposition, self._facts)
        self._canary = health_endpoint.Canary(self._link.ask, options.health)

    async def run(self, stop: asyncio.Event) -> None:
        """Serve until told to stop.

        Raises:
            DriverChanged: The driver was replaced; the process has to start anew.
            SettingsError: More slots than a kubelet takes.
        """
        outside = pid_namespace.problem(self._options.proc_dir)
        if outside:  # The monitor runs beside, in the same namespace.
            self._problems.report(error_codes.MONITOR_PID_NAMESPACE, outside)
        for word in self._options.strange_words:
            log.warning("not an XID", variable="DP_DISABLE_HEALTHCHECKS or DP_ENABLE_HEALTHCHECKS", word=word)
        try:
            async with (
                stdlib_http.serving("health", self._options.health_bind, self._endpoint.answer),
                asyncio.TaskGroup() as tasks,
            ):
                work = [
                    tasks.create_task(one)
                    for one in (self._recorder.run(), self._pod_watch.run(), self._canary.run(), self._serve())
                ]
                await stop.wait()
                log.info("stopping")
                await self._recorder.drain(_EVENTS_DRAIN_SECONDS)
                for task in work:
                    task.cancel()
        except BaseExceptionGroup as group:
            raise _first(group) from group
        finally:
            await self._resources.close()
            self._driver.close()

    async def _serve(self) -> None:
        await self._read_node(self._started_at + _PATIENCE_SECONDS)
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self._publish())
            tasks.create_task(self._node_watch.run(_RELEASE_RETRY_SECONDS))
            tasks.create_task(self._health.follow_xids())
            tasks.create_task(self._tend())
            tasks.create_task(self._collect())
            tasks.create_task(self._starts.run())
            registering: asyncio.Task[None] | None = None
            while True:
                self._reload()
                self._recall()
                changed = await self._health.look()
                if changed and self._options.topology_score:
                    with contextlib.suppress(gpu_source.GpuSourceError):
                        self._links = await self._driver.links()
                self._node.host = await asyncio.to_thread(self._read_host)
                self._refresh()
                if registering is None and self._can_deliver:
                    registering = tasks.create_task(self._register())
                await asyncio.sleep(self._options.health_interval_seconds)

    @property
    def _can_deliver(self) -> bool:
        """Whether any GPU can be brought into containers, be it withdrawn for another reason."""
        return any(self._ways.get(uuid) for uuid in self._node.inventory)

    async def _register(self) -> None:
        deadline = self._started_at + 2 * _PATIENCE_SECONDS
        while not self._pod_watch.synced and time.monotonic() < deadline:
            await asyncio.sleep(0.05)
        await self._link.run()

    async def _prepare(self) -> None:
        """Before each registration: what containers may need that start right after."""
        rebuilt = self._allocator.rebuild()
        if rebuilt:
            log.info("device specifications are in place", containers=rebuilt)
        self._refresh_listing()

    async def _publish(self) -> None:
        """Write about the node, but nothing before it was read: what an earlier process knew would be lost."""
        if not self._node_read.is_set():
            self._problems.report(error_codes.PLUGIN_NODE_UNREAD, f"{self._options.node_name} was not read yet")
            await self._read_node(math.inf)
            self._problems.clear(error_codes.PLUGIN_NODE_UNREAD)
        await self._publisher.run()

    async def _read_node(self, deadline: float) -> None:
        """What an earlier process knew, and what the node's runtime can do.

        After the deadline the plugin goes on without: containers that ran may start again from what is on disk, and
        new ones wait in Allocate until the node is read.
        """
        found = await startup.read(self._client, self._options.node_name, self._boot, deadline)
        if found is None:
            return
        self._earlier, self._runtime = found, found.runtime
        self._made |= found.made
        if found.released:  # Before the driver is asked for the first time.
            await self._release(found.released, {device.uuid: device.index for device in found.devices})
        if self._options.identity == "auto":
            ignored = found.problems.get(error_codes.PLUGIN_CDI_IGNORED, "")
            self._node.late = found.knows_cdi and not ignored.startswith(f"{found.runtime}: ")
            if found.knows_cdi and not self._node.late:
                self._problems.report(error_codes.PLUGIN_CDI_IGNORED, ignored)
        self._node.host = dataclasses.replace(self._node.host, has_runtime_class=found.has_runtime_class)
        self._limited = set(found.limited)
        self._node.identity_known.set()
        self._node_read.set()
        identity = "cdi" if self._node.late else "match"
        log.info("node", runtime=found.runtime, identity=identity, remembered=len(found.sick))

    def _recall(self) -> None:
        """Join what an earlier process knew of the GPUs with what this one has found since its start."""
        found, self._earlier = self._earlier, None
        if found is None:
            return
        sick = {uuid: state for uuid, state in self._health.states.items() if not state.available}
        devices = {device.uuid: device for device in (*found.devices, *self._health.devices)}
        earlier = {
            uuid: dataclasses.replace(state, cause=state.cause.removeprefix(f"{records.RELEASED}; "))
            for uuid, state in found.sick.items()
        }
        # A released GPU is not asked what it is, and stays as it was.
        kept = dict.fromkeys(self._released, health.Health())
        self._health.remember({**kept, **earlier, **sick}, devices.values())

    async def _node_changed(self, node: api_objects.Node) -> None:
        await self._release(
            release.released_gpus(node.metadata.annotations),
            {device.uuid: device.index for device in self._health.devices},
        )

    async def _release(self, wanted: Iterable[identifiers.GpuUuid], indices: Mapping[identifiers.GpuUuid, int]) -> None:
        """Let go of the GPUs that an administrator wants to reset, and of no other any more."""
        released = release.positions(wanted, indices)
        if released.keys() == self._released.keys() and all(one == records.RELEASED for one in self._released.values()):
            return
        self._released = {uuid: self._released.get(uuid, _RELEASING) for uuid in released}
        if self._health.looked_at:
            self._refresh()  # Nothing new is placed there from now on.
        refusal = await release.release_gpus(self._driver, released)
        if refusal:
            for uuid in released:
                self._problems.report(error_codes.PLUGIN_GPU_NOT_RELEASED, refusal, uuid)
            return
        self._problems.keep(error_codes.PLUGIN_GPU_NOT_RELEASED, ())
        self._released = dict.fromkeys(released, records.RELEASED)
        log.info("GPUs are released", devices=sorted(released))
        if self._health.looked_at:
            self._refresh()

    def _read_host(self) -> methods.Host:
        """What the host offers for delivery now. Reads files."""
        return methods.Host(
            self._host_specs.read(), host_cdi.driver_version(self._options.proc_dir),
            host_cdi.capabilities(self._options.proc_dir), self._options.host_root, self._node.host.has_runtime_class,
        )  # fmt: skip

    def _reload(self) -> None:
        """The node file, if it changed."""
        path = self._options.config_file
        if path is None:
            return
        try:
            text = path.read_text()
        except OSError as cause:
            text = ""
            if self._config_text != text:
                log.error("node file", error_code=error_codes.PLUGIN_NODE_SETTINGS, cause=str(cause))
        if text == self._config_text:
            return
        self._config_text = text
        try:
            sharing = settings.for_node(self._options.sharing, text, self._options.node_name) if text else self._sharing
            device_ids.ids_for(sharing.split_count * len(self._health.devices))
        except errors.SettingsError as refused:
            log.error("node file", error_code=error_codes.PLUGIN_NODE_SETTINGS, cause=str(refused))
            return
        if sharing != self._sharing:
            log.info("node file", sharing=str(sharing))
            self._sharing = sharing
            self._set_backends()

    def _set_backends(self) -> None:
        options = self._options
        core = hami_core.Options(options.hook_path, options.disable_core_limit)
        server = mps.Options(options.mps_root, multi_user=options.mps_multi_user)
        self._node.backends = table.build(
            core, server, self._create_mig if self._sharing.isolation == table.MIG else None
        )

    def _refresh(self) -> None:
        """Bring what is known of the GPUs to where it is used."""
        devices = inventory.with_memory(self._health.devices, self._sharing)
        modes = {
            device.uuid: table.mode_of(device, self._sharing.isolation, self._options.hook_path) for device in devices
        }
        before, withdrawn = self._node.inventory, self._withdrawn
        self._judge_delivery()
        self._withdrawn = {**self._withdrawn, **self._judge_isolation(modes)}
        states = self._states()
        offered = inventory.offered_gpus(devices, states, modes, self._sharing, self._node.backends)
        self._node.inventory = {gpu.uuid: gpu for gpu in offered}
        self._node.devices = {one.uuid: one for one in devices if one.uuid in self._node.inventory}
        self._node.states = states
        gpu_problems.report(self._problems, devices, self._driver.gaps)
        no_driver = self._health.driver_trouble or ("" if devices else "the driver has no GPUs")
        self._report(error_codes.PLUGIN_NO_DRIVER, no_driver)
        self._has_offered = self._has_offered or bool(self._node.inventory)
        makes = self._sharing.isolation == table.MIG
        left = {one.uuid: mig.foreign_bare(one, self._destroyable()) for one in devices if makes}
        self._problems.replace(
            error_codes.PLUGIN_MIG_INSTANCE_BARE, {uuid: what for uuid, what in left.items() if what}
        )
        if self._node.inventory != before or self._withdrawn != withdrawn:
            self._publisher.change()
        self._refresh_listing()

    def _judge_isolation(self, modes: Mapping[identifiers.GpuUuid, str]) -> dict[identifiers.GpuUuid, str]:
        """Report what is not limited although it should be. Returns the GPUs to withdraw for it, and why."""
        by_mode: dict[str, list[identifiers.GpuUuid]] = {}
        for uuid, mode in modes.items():
            by_mode.setdefault(mode, []).append(uuid)
        unlimited, limited, served = (by_mode.get(mode, []) for mode in (table.NONE, table.HAMI_CORE, table.MPS))
        no_core = hami_core.problem(self._options.hook_path)
        no_server = "" if not served or mps.is_ready(self._options.mps_root) else _NO_MPS
        lost = [uuid for uuid in unlimited if uuid in self._limited]
        self._limited |= set() if no_core else set(limited)
        if self._sharing.isolation != table.AUTO:
            self._limited -= set(unlimited)
            unlimited, lost = [], []

        def report(code: error_codes.Code, uuids: Sequence[identifiers.GpuUuid], cause: str) -> None:
            self._report(code, f"{len(uuids)} of {len(modes)} GPUs: {cause}" if uuids and cause else "")

        report(error_codes.PLUGIN_MEMORY_NOT_LIMITED, unlimited, no_core)
        report(error_codes.PLUGIN_ISOLATION_LOST, lost, no_core)
        report(error_codes.PLUGIN_HAMI_CORE, limited, no_core)
        report(error_codes.PLUGIN_MPS, served, no_server)
        self._judge_users(served)
        return {
            **{uuid: f"{error_codes.PLUGIN_HAMI_CORE}: {no_core}" for uuid in limited if no_core},
            **{uuid: f"{error_codes.PLUGIN_MPS}: {no_server}" for uuid in served if no_server},
        }

    def _judge_users(self, served: Sequence[identifiers.GpuUuid]) -> None:
        """Report GPUs that containers of several users share by MPS; an image's user is known once it runs."""
        mixed = {uuid: mps.mixed_users(self._allocator.granted_on(uuid)) for uuid in served}
        if self._options.mps_multi_user:
            mixed = {}
        self._problems.replace(error_codes.PLUGIN_MPS_USERS, {uuid: text for uuid, text in mixed.items() if text})

    async def _create_mig(self, share: records.MigShare) -> None:
        """Make a MIG instance, and know it, also after a restart in the middle of it."""
        async with self._mig_lock:
            await self._free_bare()  # Before the place is ours: another program's may lie there.
            await self._write_made(
                self._made | {records.MadeInstance(share.gpu_uuid, share.profile, share.start, share.size)}
            )
            await self._driver.create_mig(share.gpu_uuid, share.profile, share.start, share.size)
            log.info("MIG instance made", device=share.gpu_uuid, profile=share.profile, start=share.start)
            await self._health.look()
            self._refresh()

    async def _write_made(self, made: frozenset[records.MadeInstance]) -> None:
        """Write what this plugin made before it makes more.

        Raises:
            GpuFailed: It cannot be written, so that nothing may be made.
        """
        if made == self._made:
            return
        body = {"metadata": {"annotations": {records.MIG_MADE: records.encode_made(made)}}}
        try:
            await self._client.patch(f"/api/v1/nodes/{self._options.node_name}", orjson.dumps(body))
        except errors.KubernetesError as refused:
            raise gpu_source.GpuFailed(f"the node's {records.MIG_MADE} is not written: {refused}") from refused
        self._made = made

    async def _free_bare(self) -> None:
        """Destroy what is left of instances that were made or taken away by halves: it holds memory slices."""
        for device in self._health.devices:
            for one in mig.bare(device, self._destroyable()):
                try:
                    await self._driver.destroy_bare(device.uuid, one.instance_id)
                    log.info("GPU instance freed", device=device.uuid, profile=one.profile, start=one.start)
                except gpu_source.GpuSourceError as refused:
                    log.warning("a GPU instance stays", device=device.uuid, profile=one.profile, cause=str(refused))

    def _destroyable(self) -> frozenset[records.MadeInstance] | None:
        """What may be destroyed; None is all MIG instances of the node."""
        return None if self._options.mig_destroy == "all" else self._made

    async def _reclaim_migs(self) -> None:
        """Take away the MIG instances that no pod's record names, on a node that makes instances."""
        if self._sharing.isolation != table.MIG or not self._pod_watch.synced or not self._node_read.is_set():
            return
        async with self._mig_lock:
            shares = [share for pod in self._pods.by_uid.values() for share in pod.mig_shares()]
            for device in self._health.devices:
                for uuid in mig.unneeded(device, shares, self._destroyable()):
                    try:
                        await self._driver.destroy_mig(device.uuid, uuid)
                        log.info("MIG instance taken away", device=device.uuid, instance=uuid)
                    except gpu_source.GpuSourceError as refused:
                        log.warning("a MIG instance stays", device=device.uuid, instance=uuid, cause=str(refused))
            await self._free_bare()
            await self._health.look()
            with contextlib.suppress(gpu_source.GpuFailed):  # Then it is written the next time.
                await self._write_made(mig.still_there(self._health.devices, self._made))

    def _states(self) -> dict[identifiers.GpuUuid, health.Health]:
        """The health of each GPU; one that is withdrawn is unhealthy, and not remembered as a fault of the hardware."""
        states = dict(self._health.states)
        # That a GPU is released is what `hamictl gpu release` waits for, whatever else is wrong with it.
        for uuid, cause in {**self._withdrawn, **self._released}.items():
            state = states.get(uuid, health.Health())
            if state.available:
                states[uuid] = health.Health(health.State.UNHEALTHY, cause)
            elif uuid in self._released:
                states[uuid] = dataclasses.replace(state, cause=f"{cause}; {state.cause}")
        return states

    def _judge_delivery(self) -> None:
        """Withdraw each GPU that cannot be brought into containers; the others go on."""
        ways = {
            device.uuid: self._node.way(device, late=self._node.late)
            for device in self._health.devices
            if not self._sharing.hides(device.uuid, device.index)
        }
        for code in _DELIVERY_CODES:
            refused = {uuid: way.refusal for uuid, way in ways.items() if not way.name and way.code == code}
            self._problems.replace(code, refused)
        undeliverable = {uuid: f"{way.code}: {way.refusal}" for uuid, way in ways.items() if not way.name}
        self._withdrawn = {**undeliverable, **self._released}
        self._ways = {uuid: way.name for uuid, way in ways.items()}
        self._delivery_trouble = "; ".join(f"{uuid}: {cause}" for uuid, cause in undeliverable.items())
        self._report(
            error_codes.PLUGIN_CDI_TWICE,
            next((f"{way.lookup.spec.path} counts, {way.lookup.replaced[0]} does not"
                  for way in ways.values() if way.lookup.spec and way.lookup.replaced), ""),
        )  # fmt: skip
        copied = [way for way in ways.values() if way.name == methods.COPIED and edits.has_hooks(way.lookup.copied)]
        without = f"hooks of {copied[0].lookup.spec.path}" if copied and copied[0].lookup.spec else ""
        self._report(error_codes.PLUGIN_DELIVERY_WITHOUT_HOOKS, without)
        if methods.BY_RUNTIME.isdisjoint(self._ways.values()):
            self._problems.clear(error_codes.PLUGIN_RUNTIME_CLASS)

    def _lacks_class(self, pod: api_objects.Pod) -> bool:
        """Whether a pod may start without its GPU because no RuntimeClass asks for NVIDIA's runtime."""
        by_runtime = {uuid for uuid, way in self._ways.items() if way in methods.BY_RUNTIME}
        return not pod.spec.runtime_class_name and not by_runtime.isdisjoint(pod.allocated(self._names))

    def _report(self, code: error_codes.Code, sentence: str) -> None:
        """Set a problem of the node, or end it where there is nothing to say."""
        if sentence:
            self._problems.report(code, sentence)
        else:
            self._problems.clear(code)

    def _refresh_listing(self) -> None:
        inventory_now = tuple(self._node.inventory.values())
        sick = [gpu.uuid for gpu in inventory_now if not gpu.healthy]
        # Whose GPU a token stands for matters only while one is sick or hidden, and is dear to find out.
        all_usable = not sick and len(inventory_now) == len(self._health.devices)
        held = dict.fromkeys(self._allocator.held_tokens()) if all_usable else self._allocator.held()
        listed = device_ids.listing(inventory_now, held, sick)
        self._listing.set(listed)
        self._dirty = False

    def _mark(self) -> None:
        self._dirty = True

    async def _tend(self) -> None:
        """Keep the list of tokens right while containers come and go."""
        path = self._allocator.checkpoint_file
        for turn in itertools.count(1):
            await asyncio.sleep(_TEND_SECONDS)
            if turn % _TURNS_BETWEEN_BOUNDS == 0:
                for backend in self._node.backends.values():
                    await asyncio.to_thread(backend.bound)
            with contextlib.suppress(OSError):
                changed_at = path.stat().st_mtime_ns
                self._dirty = self._dirty or changed_at != self._seen_checkpoint
                self._seen_checkpoint = changed_at
            if self._dirty and self._node.inventory:
                self._refresh_listing()

    async def _collect(self) -> None:
        while True:
            await asyncio.sleep(self._options.forget_seconds / 2)
            await self._reclaim_migs()
            try:
                deleted = self._allocator.collect()
            except checks.StartRefused as doubt:
                log.error("nothing is deleted", error_code=doubt.code, cause=str(doubt))
                continue
            if deleted:
                log.info("deleted what ended containers left", count=deleted)

    def _health_changed(self, device: gpu_source.Device, before: health.Health, after: health.Health) -> None:
        """A GPU's health is another one: everybody learns it at once, in the same words."""
        gpu = self._node.inventory.get(device.uuid)
        healthy = after.available and device.uuid not in self._withdrawn
        if gpu is not None and gpu.healthy != healthy:
            changed = dataclasses.replace(gpu, healthy=healthy)
            self._node.inventory = {**self._node.inventory, device.uuid: changed}
            self._refresh_listing()
        self._publisher.change()
        holders = [pod for pod, _ in self._pods.holders(device.uuid)]
        if not after.available and (before.available or after.cause != before.cause):
            self._teller.unhealthy(device, after, holders)
        elif after.available and not before.available:
            self._teller.recovered(device, before, holders)

    def _confirmed(self, confirmed: allocator.Confirmed) -> None:
        if confirmed.new and self._options.runtime_class_check == "warn" and self._lacks_class(confirmed.pod):
            # Without names, and until the node is set up differently: pods come and go, and each change is a write.
            self._problems.report(error_codes.PLUGIN_RUNTIME_CLASS, "a pod without runtimeClassName was started")
            self._teller.uncertain(confirmed.pod)
        for container in confirmed.new:
            self._teller.allocated(confirmed.pod, container, [self._node.devices[one.uuid] for one in container.shares])
        if confirmed.containers:
            self._set_phase(confirmed.pod, records.PHASE_SUCCESS)

    def _doubted(self, asked: frozenset[str], doubt: checks.StartRefused) -> None:
        pod = self._allocator.pod_of(asked)
        self._teller.refused(pod, doubt)
        if pod is not None and pod.annotations.get(records.ALLOCATED):
            self._set_phase(pod, records.PHASE_FAILED)

    def _unmarked(self, pod: api_objects.Pod, container: str) -> None:
        doubt = checks.StartRefused(
            error_codes.ALLOC_CDI_IGNORED, f"container {container} of {pod.key} runs without its mark"
        )
        self._metrics.failed(doubt.code)
        self._teller.refused(pod, doubt)
        if self._options.identity == "auto" and self._node.late:
            self._node.late = False  # The next containers get their devices in the answer itself.
            self._problems.report(error_codes.PLUGIN_CDI_IGNORED, f"{self._runtime}: {doubt}")

    def _unseen(self, cause: str) -> None:
        self._report(error_codes.PLUGIN_STARTS_UNSEEN, cause)

    def _set_phase(self, pod: api_objects.Pod, phase: str) -> None:
        if pod.annotations.get(records.BIND_PHASE) != phase:
            task = asyncio.create_task(self._write_phase(pod, phase))
            self._writes.add(task)
            task.add_done_callback(self._writes.discard)

    async def _write_phase(self, pod: api_objects.Pod, phase: str) -> None:
        path = f"/api/v1/namespaces/{pod.metadata.namespace}/pods/{pod.metadata.name}"
        body = {"metadata": {"uid": pod.metadata.uid, "annotations": {records.BIND_PHASE: phase}}}
        try:
            await self._client.patch(path, orjson.dumps(body))
        except errors.KubernetesError as refused:
            log.warning("the phase of a pod is not written", pod=pod.key, phase=phase, cause=str(refused))

    def _annotations(self) -> Mapping[str, str]:
        if not self._has_offered:
            # A node on which no GPU was ever found has no record of GPUs, only the reason.
            return inventory.problem_annotations(records.OUR_AGENT, self._problems.sentences())
        return inventory.annotations(
            tuple(self._node.inventory.values()),
            self._states(),
            self._links,
            records.OUR_AGENT,
            self._problems.sentences(),
        )

    def _capacity(self) -> Mapping[str, str]:
        return inventory.capacity(self._options.resource_names)

    def _components(self) -> Mapping[str, health_endpoint.Component]:
        now = time.monotonic()
        has_gpus = bool(self._node.inventory)
        watch = self._pod_watch
        return {
            "gpus": health_endpoint.Component(
                has_gpus, f"{len(self._node.inventory)} offered" if has_gpus else "no driver, or no GPU",
                now - (self._health.looked_at or self._started_at),
                required=not self._health.looked_at,  # Not ready before the first look; without a GPU thereafter.
            ),
            "delivery": health_endpoint.Component(
                not self._delivery_trouble,
                self._delivery_trouble or ", ".join(sorted(set(self._ways.values()))) or "no GPU",
                required=has_gpus and not self._can_deliver,
            ),
            "kubelet": health_endpoint.Component(
                self._link.registered, self._link.trouble or "registered", required=has_gpus
            ),
            "pods": health_endpoint.Component(
                watch.synced, watch.trouble or ("watching" if watch.synced else "not listed yet"),
                now - (watch.last_heard or self._started_at),
            ),
            "inventory": health_endpoint.Component(
                self._publisher.written, self._publisher.trouble or "written", required=False
            ),
            "socket": self._canary.component(),
        }  # fmt: skip

    def _facts(self) -> Mapping[str, object]:
        return {
            "node": self._options.node_name,
            "identity": "cdi" if self._node.late else "match",
            "delivery": dict(self._ways),
            "gpus": {
                uuid: {"mode": gpu.mode, **health.to_facts(self._node.states.get(uuid, health.Health()))}
                for uuid, gpu in self._node.inventory.items()
            },
            "tokens": dict(sorted(self._allocator.held().items())),
        }

    def _exposition(self, accept: str) -> tuple[bytes, str]:
        counters, node = self._metrics, self._options.node_name
        counters.device_count.labels(node=node).set(len(self._node.inventory))
        counters.isolation.clear()
        for uuid, gpu in self._node.inventory.items():
            counters.healthy_status.labels(node=node, device=uuid).set(gpu.healthy)
            counters.isolation.labels(node=node, device=uuid, isolation=gpu.mode).set(1)
        counters.xids_heard.clear()
        unheard = self._driver.gaps.unheard(self._health.devices)
        for device in self._health.devices:
            counters.xids_heard.labels(node=node, device=device.uuid).set(device.uuid not in unheard)
        counters.problems.clear()
        for code, about in self._problems.current:
            counters.problems.labels(node=node, error_code=code, device=about).set(1)
        for word, wanted in (("healthy", True), ("unhealthy", False)):
            counters.tokens.labels(health=word).set(sum(one.healthy is wanted for one in self._listing.current))
        counters.registered.set(self._link.registered)
        counters.registrations.set(self._link.registrations)
        return counters.exposition(accept)


def _first(group: BaseExceptionGroup[BaseException]) -> BaseException:
    inner = group.exceptions[0]
    return _first(inner) if isinstance(inner, BaseExceptionGroup) else inner
