"""Backends of the fault injection service for the lab: its GPUs, its API server and its processes.

What they inject lives in this process and ends with it.
"""

import asyncio
import os
import signal
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Protocol

from device_plugin.driver import gpu_source
from fault_injector.backends import Backend, BackendFailed
from gpu_sharing.core import error_codes, errors, faults, health, identifiers, near_misses, xids
from gpu_sharing.core.xids import Need
from lab import api_server, cluster, fake_driver, gpu_nodes, service_process, tcp_proxy
from lab import faults as api_faults

_LIMIT_CELSIUS = 92
_XID_SECONDS = 20.0
_POLL_SECONDS = 0.02
_PERIOD_SECONDS = 0.2
"""Of the pulses of a slow process."""
_ACTIONS = {Need.NOTHING: 0, Need.RESET: 1, Need.REBOOT: 2, Need.REPLACEMENT: 2}
"""The driver's recovery action after an XID, by the required action."""
_POWER_WATTS = 60.0
_THERMAL, _POWER_BRAKE = 0x40, 0x80
"""`nvmlClocksEventReasonHwThermalSlowdown` and `…HwPowerBrakeSlowdown`."""
_NOT_FOUND = error_codes.FAULT_NO_TARGET


class NodeGpus(Protocol):
    """The GPUs of one node, into which faults can be injected."""

    def uuids(self) -> Sequence[str]:
        """Return their UUIDs in the driver's order."""

    async def set(self, uuid: str, in_effect: Sequence[faults.Fault], new: faults.Fault | None) -> None:
        """Give a GPU the state that the faults in effect have together.

        Args:
            uuid: The GPU.
            in_effect: All faults in effect on it.
            new: The one of them that is injected now; its XID is reported once.

        Raises:
            BackendFailed: No device plugin receives the XID.
        """

    def reboot(self) -> None:
        """Restart the node, as far as the device plugin can see it."""


class LabGpus:
    """Injects faults into the GPUs of the lab's nodes."""

    name = "lab-gpus"
    outlives_process = False

    def __init__(self, nodes: Mapping[str, NodeGpus]) -> None:
        self._nodes = nodes
        self._in_effect: dict[tuple[str, str], list[faults.Fault]] = {}

    @property
    def kinds(self) -> frozenset[str]:
        """Every kind of the group, where there is a node with GPUs."""
        of_group = (kind.name for kind in faults.KINDS.values() if kind.group is faults.Group.GPU)
        return frozenset(of_group) if self._nodes else frozenset()

    async def resolve(self, request: faults.Request) -> faults.Request:
        """Return the request with the UUID of its GPU."""
        node = _known("node with a device plugin", str(request.values["node"]), self._nodes)
        wanted, known = str(request.values["gpu"]), list(self._nodes[node].uuids())
        matching = [uuid for index, uuid in enumerate(known) if wanted in (uuid, str(index))]
        if not matching:
            listed = ", ".join(f"{index} ({uuid})" for index, uuid in enumerate(known)) or "none"
            raise errors.FaultRefused(_NOT_FOUND, f"{node} has no GPU {wanted}; it has {listed}")
        return replace(request, values={**request.values, "gpu": matching[0]})

    async def inject(self, fault: faults.Fault) -> None:
        """See `Backend`."""
        node, uuid = _gpu_of(fault)
        in_effect = self._in_effect.setdefault((node, uuid), [])
        in_effect.append(fault)
        await self._nodes[node].set(uuid, in_effect, fault)

    async def recover(self, fault: faults.Fault) -> None:
        """See `Backend`; a fault that only a restart of the node ends restarts the lab's node."""
        node, uuid = _gpu_of(fault)
        if node not in self._nodes:
            return
        in_effect = self._in_effect.get((node, uuid), [])
        was_injected = any(one.id == fault.id for one in in_effect)
        self._in_effect[node, uuid] = in_effect = [one for one in in_effect if one.id != fault.id]
        await self._nodes[node].set(uuid, in_effect, None)
        if was_injected and _need(fault) >= Need.REBOOT:
            self._nodes[node].reboot()


def _known(what: str, name: str, known: Mapping[str, object]) -> str:
    """Return the name, if it is known.

    Raises:
        FaultRefused: It is not; the sentence has the nearest name.
    """
    if name in known:
        return name
    meant = near_misses.nearest(name, known)
    hint = f"did you mean {meant}?" if meant else f"there are {', '.join(sorted(known)[:10]) or 'none'}"
    raise errors.FaultRefused(_NOT_FOUND, f"no {what} is named {name}; {hint}")


def _gpu_of(fault: faults.Fault) -> tuple[str, str]:
    return str(fault.values["node"]), str(fault.values["gpu"])


def _need(fault: faults.Fault) -> Need:
    """Return the action that ends a fault on a real machine."""
    match fault.kind.name:
        case "xid":
            return xids.of(int(fault.values["xid"])).need
        case "lost":
            return Need.REBOOT
        case "reset":
            return Need.RESET
        case _:
            return Need.NOTHING


class FakeNode:
    """The fake GPUs of a demo node: faults change what the node's device plugin reads."""

    def __init__(self, node: gpu_nodes.GpuNode) -> None:
        self._node = node

    def uuids(self) -> Sequence[str]:
        """See `NodeGpus`."""
        return [device.uuid for device in self._node.gpus.listed]

    async def set(self, uuid: str, in_effect: Sequence[faults.Fault], new: faults.Fault | None) -> None:
        """See `NodeGpus`."""
        gpus, gpu = self._node.gpus, identifiers.GpuUuid(uuid)
        reading = health.Reading(recovery_action=0, uncorrected_errors=0)
        usage = replace(gpus.idle(gpu))
        for fault in in_effect:
            reading, usage = _read_with(reading, fault), _used_with(usage, fault)
        if new is not None and new.kind.name in ("xid", "ecc"):
            await self._announce(gpu, reading, int(new.values.get("xid", 0)))
        gpus.readings[gpu] = reading
        gpus.usages[gpu] = usage

    async def _announce(self, gpu: identifiers.GpuUuid, reading: health.Reading, xid: int) -> None:
        """Report an XID, if there is one, and wait until the device plugin has read the GPU once more before."""
        gpus = self._node.gpus
        gpus.announced[gpu] = reading
        if xid:
            gpus.faults.put(gpu_source.Fault(gpu, xid))
        else:
            gpus.after_next.add(gpu)
        try:
            async with asyncio.timeout(_XID_SECONDS):
                while gpu in gpus.announced:
                    await asyncio.sleep(_POLL_SECONDS)
        except TimeoutError as cause:
            gpus.announced.pop(gpu, None)
            raise BackendFailed("no device plugin reads the GPU") from cause

    def reboot(self) -> None:
        """See `NodeGpus`."""
        self._node.reboot()


def _read_with(reading: health.Reading, fault: faults.Fault) -> health.Reading:
    """Return a reading of the driver with one more fault."""
    values = fault.values
    match fault.kind.name:
        case "xid" if int(values["xid"]) == 79:
            return replace(reading, answered=False, lost=True)
        case "xid":
            return replace(reading, recovery_action=_ACTIONS[_need(fault)])
        case "lost":
            return replace(reading, answered=False, lost=True)
        case "hang":
            return replace(reading, answered=False, timed_out=True, problem="nvmlDeviceGetUUID: no answer in time")
        case "reset":
            return replace(reading, answered=False, reset_required=True)
        case "ecc":
            return replace(reading, uncorrected_errors=int(values["count"]))
        case "overheat":
            return replace(reading, temperature_celsius=int(values["celsius"]), limit_celsius=_LIMIT_CELSIUS)
        case "throttle" if values["reason"] == "power-brake":
            return replace(reading, power_brake=True)
        case _:
            return reading


def _used_with(usage: gpu_source.Usage, fault: faults.Fault) -> gpu_source.Usage:
    """Return the measured use of a GPU with one more fault."""
    values = fault.values
    match fault.kind.name:
        case "memory-pressure":
            used = (usage.memory_total_bytes or 0) * int(values["percent"]) // 100
            return replace(usage, memory_used_bytes=used)
        case "saturation":
            return replace(usage, utilization_percent=float(values["percent"]), power_watts=5 * _POWER_WATTS)
        case "overheat":
            return replace(usage, temperature_celsius=float(values["celsius"]))
        case "throttle":
            return replace(usage, temperature_celsius=_LIMIT_CELSIUS - 2.0, power_watts=_POWER_WATTS / 2)
        case _:
            return usage


class DriverNode:
    """The GPUs of a fake driver in C: faults change the file that the driver's library reads."""

    def __init__(self, driver: fake_driver.FakeDriver, reboot: Callable[[], None] = lambda: None) -> None:
        """Make the GPUs of one node.

        Args:
            driver: The fake driver.
            reboot: Restarts what uses it, with another boot id.
        """
        self._driver = driver
        self._reboot = reboot
        self._healthy = {gpu.uuid: replace(gpu) for gpu in driver.gpus}
        self._rules = list(driver.rules)

    def uuids(self) -> Sequence[str]:
        """See `NodeGpus`."""
        return [gpu.uuid for gpu in self._driver.gpus]

    async def set(self, uuid: str, in_effect: Sequence[faults.Fault], new: faults.Fault | None) -> None:
        """See `NodeGpus`."""
        index = self.uuids().index(uuid)
        gpu = replace(self._healthy[uuid])
        mine = f" {index}"
        self._driver.rules = [rule for rule in self._driver.rules if rule in self._rules or not rule.endswith(mine)]
        for fault in in_effect:
            _apply(gpu, fault)
            self._driver.rules += _rules(fault, index)
        gpu.resets = self._driver.gpus[index].resets + (new is None)
        self._driver.gpus[index] = gpu
        if new is not None and new.kind.name == "xid":
            self._driver.report_xid(index, int(new.values["xid"]))  # It writes the state too.
        else:
            self._driver.write()

    def reboot(self) -> None:
        """See `NodeGpus`."""
        self._reboot()


def _apply(gpu: fake_driver.Gpu, fault: faults.Fault) -> None:
    """Change what the driver reports of a GPU."""
    values = fault.values
    match fault.kind.name:
        case "xid":
            gpu.recovery_action = _ACTIONS[_need(fault)]
        case "ecc":
            gpu.uncorrected_errors += int(values["count"])
        case "overheat":
            gpu.temperature_celsius = int(values["celsius"])
        case "throttle":
            gpu.clock_event_reasons |= _POWER_BRAKE if values["reason"] == "power-brake" else _THERMAL
        case "memory-pressure":
            gpu.used_mib = gpu.memory_mib * int(values["percent"]) // 100
        case "saturation":
            gpu.utilization_percent = int(values["percent"])


def _rules(fault: faults.Fault, index: int) -> list[str]:
    """Return the calls that the driver refuses, or does not return from."""
    match fault.kind.name:
        case "lost":
            return [f"fail * {fake_driver.GPU_IS_LOST} {index}"]
        case "xid" if int(fault.values["xid"]) == 79:
            return [f"fail * {fake_driver.GPU_IS_LOST} {index}"]
        case "reset":
            return [f"fail * {fake_driver.RESET_REQUIRED} {index}"]
        case "hang":
            return [f"hang * {index}"]
        case _:
            return []


def of_cluster(running: cluster.Cluster, processes: Mapping[str, service_process.ServiceProcess]) -> list[Backend]:
    """Return every way in which faults can be injected into a lab cluster.

    Args:
        running: The cluster.
        processes: Those that can be killed and stopped, by name.
    """
    nodes = {name: FakeNode(node) for name, node in running.gpu_nodes.items() if isinstance(node, gpu_nodes.GpuNode)}
    return [LabGpus(nodes), LabApiServer(running.server), LabProcesses(processes), LabLinks(running.links)]


def _of_group(group: faults.Group, *, without: Iterable[str] = ()) -> frozenset[str]:
    return frozenset(kind.name for kind in faults.KINDS.values() if kind.group is group) - frozenset(without)


class LabApiServer:
    """Injects faults into the lab's API server. The fault injection service itself is spared."""

    name = "lab-apiserver"
    outlives_process = False
    kinds = _of_group(faults.Group.API)

    def __init__(self, server: api_server.Running) -> None:
        self._server = server

    async def resolve(self, request: faults.Request) -> faults.Request:
        """See `Backend`; there is one API server."""
        return request

    async def inject(self, fault: faults.Fault) -> None:
        """See `Backend`."""
        await asyncio.to_thread(self._server.call, lambda: self._add(fault))

    def _add(self, fault: faults.Fault) -> None:
        app, values = self._server.app, fault.values
        method = str(values.get("method", "any"))
        lasting = api_faults.Lasting(
            method="" if method == "any" else method,
            path=str(values.get("path", "/")),
            share=int(values.get("share_percent", 100)) / 100,
            delay_seconds=int(values.get("latency_ms", 0)) / 1000,
            refuse_with=int(values.get("status", 0)),
            loses_answer=fault.kind.name == "api-lost-answer",
            drops_watches=fault.kind.name == "watch-drop",
            silences_watches=fault.kind.name == "watch-silent",
        )
        if fault.kind.name == "stale-reads":
            lasting.method, lasting.stale = "GET", app.store.frozen()
        app.faults.lasting[fault.id] = lasting
        if lasting.drops_watches:
            app.end_client_watches()

    async def recover(self, fault: faults.Fault) -> None:
        """See `Backend`."""
        await asyncio.to_thread(self._server.call, lambda: self._remove(fault.id))

    def _remove(self, fault_id: str) -> None:
        removed = self._server.app.faults.lasting.pop(fault_id, None)
        if removed is not None and removed.silences_watches:
            self._server.app.end_client_watches()


class LabProcesses:
    """Kills, stops and slows processes of the lab."""

    name = "lab-processes"
    outlives_process = False
    kinds = _of_group(faults.Group.PROCESS)

    def __init__(self, processes: Mapping[str, service_process.ServiceProcess]) -> None:
        self._processes = processes
        self._slowed: dict[str, asyncio.Task[None]] = {}

    async def resolve(self, request: faults.Request) -> faults.Request:
        """See `Backend`."""
        _known("process", str(request.values["process"]), self._processes)
        return request

    async def inject(self, fault: faults.Fault) -> None:
        """See `Backend`."""
        process = self._processes[str(fault.values["process"])]
        match fault.kind.name:
            case "kill":
                await asyncio.to_thread(process.kill)
            case "stop":
                os.kill(process.pid, signal.SIGSTOP)
            case _:
                pulses = _pulse(process.pid, int(fault.values["percent"]))
                self._slowed[fault.id] = asyncio.create_task(pulses)

    async def recover(self, fault: faults.Fault) -> None:
        """See `Backend`; a process that was killed is started again, with the addresses that it had."""
        process = self._processes.get(str(fault.values["process"]))
        pulses = self._slowed.pop(fault.id, None)
        if pulses is not None:
            pulses.cancel()
            await asyncio.gather(pulses, return_exceptions=True)
        if process is None:
            return
        if not process.is_running:
            try:
                await asyncio.to_thread(process.start)
            except (service_process.ServiceFailed, service_process.Stopped) as cause:
                raise BackendFailed(f"it does not start again: {cause}") from cause
        else:
            os.kill(process.pid, signal.SIGCONT)


async def _pulse(pid: int, percent: int) -> None:
    """Let a process run for a part of the time only, until cancelled."""
    while True:
        os.kill(pid, signal.SIGSTOP)
        await asyncio.sleep(_PERIOD_SECONDS * (100 - percent) / 100)
        os.kill(pid, signal.SIGCONT)
        await asyncio.sleep(_PERIOD_SECONDS * percent / 100)


class LabLinks:
    """Cuts and slows the networks between the lab's processes."""

    name = "lab-links"
    outlives_process = False

    def __init__(self, links: Mapping[str, tcp_proxy.TcpProxy]) -> None:
        self._links = links

    @property
    def kinds(self) -> frozenset[str]:
        """Those that a proxy can do, where there are links."""
        return _of_group(faults.Group.NETWORK, without=("packet-loss",)) if self._links else frozenset()

    async def resolve(self, request: faults.Request) -> faults.Request:
        """See `Backend`."""
        _known("link of this cluster", str(request.values["pair"]), self._links)
        return request

    async def inject(self, fault: faults.Fault) -> None:
        """See `Backend`."""
        cut = fault.kind.name == "partition"
        network = tcp_proxy.Network.SILENT if cut else tcp_proxy.Network.OPEN
        await self._become(fault, network, int(fault.values.get("latency_ms", 0)) / 1000)

    async def recover(self, fault: faults.Fault) -> None:
        """See `Backend`."""
        await self._become(fault, tcp_proxy.Network.OPEN, 0.0)

    async def _become(self, fault: faults.Fault, network: tcp_proxy.Network, delay_seconds: float) -> None:
        link = self._links.get(str(fault.values["pair"]))
        if link is not None:
            await asyncio.to_thread(link.become, network, delay_seconds)
