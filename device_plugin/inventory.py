"""This node's GPUs as an annotation: what the scheduler may promise, and which of them must not be used.

Written on every change, and again on a heartbeat in case somebody took it away; a write of what is there already
changes nothing in the API server.
"""

import asyncio
import json
from collections.abc import Callable, Mapping, Sequence

import orjson
import structlog

from device_plugin import gpu_source, isolation, settings
from device_plugin.isolation import table
from gpu_sharing.adapters import kubernetes, objects
from gpu_sharing.core import error_codes, errors, gpus, health, identifiers, mig, records, requests

_HEARTBEAT_SECONDS = 60.0
_FIRST_BACKOFF_SECONDS, _LONGEST_BACKOFF_SECONDS = 0.5, 15.0

log = structlog.get_logger("inventory")


def build(
    devices: Sequence[gpu_source.Device],
    states: Mapping[identifiers.GpuUuid, health.Health],
    modes: Mapping[identifiers.GpuUuid, str],
    sharing: settings.Sharing,
    backends: Mapping[str, isolation.Backend],
) -> tuple[gpus.Gpu, ...]:
    """What the node offers."""
    offered = []
    for device in devices:
        if device.uuid in sharing.hidden_uuids or device.index in sharing.hidden_indices:
            continue
        mode = modes[device.uuid]
        most = backends[mode].most_clients(device)
        slots = min(sharing.split_count, most) if most else sharing.split_count
        if mode == table.MIG:
            # Where instances are made as records ask for them, each of them is a slot.
            slots = min(slots, device.most_migs if sharing.isolation == table.MIG else len(device.migs))
        offered.append(
            gpus.Gpu(
                uuid=device.uuid,
                index=device.index,
                memory_mib=int(max(device.memory_mib - sharing.memory_headroom_mib, 0) * sharing.memory_scaling),
                cores_percent=int(100 * sharing.cores_scaling),
                slots=slots,
                type=device.name if device.name.startswith("NVIDIA") else f"NVIDIA-{device.name}",
                numa=device.numa,
                mode=mode,
                mig_profiles=_profiles(device, ours=sharing.isolation == table.MIG) if mode == table.MIG else (),
                healthy=states.get(device.uuid, health.Health()).available,
            )
        )
    return tuple(offered)


def _profiles(device: gpu_source.Device, *, ours: bool) -> tuple[mig.Profile, ...]:
    """What the scheduler may promise: all kinds of instances where they are made as needed, else those there are."""
    if ours:
        return device.mig_profiles
    there = {(one.profile, one.start, one.size) for one in device.migs}
    kept = (
        profile._replace(places=tuple(place for place in profile.places if (profile.name, *place) in there))
        for profile in device.mig_profiles
    )
    return tuple(profile for profile in kept if profile.places)


def annotations(
    offered: Sequence[gpus.Gpu],
    states: Mapping[identifiers.GpuUuid, health.Health],
    links: Mapping[identifiers.GpuUuid, Mapping[identifiers.GpuUuid, int]],
    agent: str,
) -> dict[str, str]:
    """The node's annotations.

    Beside HAMi's own they carry what has to outlive this process: the GPUs that are not healthy, and why.
    """
    sick = {uuid: health.to_facts(state) for uuid, state in sorted(states.items()) if not state.available}
    scores = [{"uuid": uuid, "score": dict(sorted(peers.items()))} for uuid, peers in sorted(links.items())]
    return {
        records.INVENTORY: records.encode_inventory(offered),
        records.AGENT: agent,
        records.HEALTH: json.dumps(sick, sort_keys=True, separators=(",", ":")),
        **({records.SCORE: json.dumps(scores, separators=(",", ":"))} if links else {}),
    }


def remembered(text: str, boot: str, now: float) -> dict[identifiers.GpuUuid, health.Health]:
    """The GPUs that an earlier process found not to be healthy in the same boot; a restart of the node clears them."""
    try:
        facts = json.loads(text) if text else {}
        items = [(str(uuid), one) for uuid, one in facts.items() if isinstance(one, dict)]
    except (ValueError, AttributeError):
        return {}
    states = {identifiers.GpuUuid(uuid): health.from_facts(one, now) for uuid, one in items if one.get("boot") == boot}
    return {uuid: state for uuid, state in states.items() if not state.available}


def capacity(names: requests.ResourceNames) -> dict[str, str]:
    """What the node's status says of what pods ask for beside a number of GPUs: more than all of them can ask for.

    Only the names matter. Where a DeviceClass offers GPUs, kube-scheduler's DynamicResources plugin refuses a node
    whose allocatable lacks the name of one of a pod's extended resources, although our configuration ignores them.
    The kubelet adds up what pods ask for of a name that it finds there, in the API server's quantities (`4Gi` is
    bytes), and fails pods for good (`OutOfnvidia.com/gpumem`) above it. So the numbers are no totals.

    Source: k8s.io/kubernetes pkg/scheduler/framework/plugins/dynamicresources and pkg/kubelet/lifecycle/predicate.go,
    1.36; tried on both.
    """
    return {names.memory: "1Pi", names.memory_percent: "1G", names.cores: "1G", names.priority: "1G"}


class Publisher:
    """Writes the node's annotations, and the label by which people find such nodes.

    Attributes:
        written: Whether what is wanted now is written.
        trouble: Why not, if it is not.
    """

    def __init__(
        self,
        client: kubernetes.Client,
        node_name: str,
        wanted: Callable[[], Mapping[str, str]],
        capacity_wanted: Callable[[], Mapping[str, str]] = dict,
    ) -> None:
        self._client = client
        self._capacity = capacity_wanted
        self._capacity_trouble = ""
        self._path = f"/api/v1/nodes/{node_name}"
        self._wanted = wanted
        self._changed = asyncio.Event()
        self._labels: dict[str, str] | None = None
        self.written = False
        self.trouble = ""

    def change(self) -> None:
        """Say that there is something new to write."""
        self.written = False
        self._changed.set()

    async def _missing_labels(self) -> dict[str, str]:
        """The label by which people find such nodes, once, and only where the node has no value of its own for it.

        Pods may have a nodeSelector for a value such as `nvidia-tesla-v100` that somebody else wrote.
        """
        if self._labels is None:
            node = await self._client.get(self._path, objects.Node)
            key, value = records.ACCELERATOR_LABEL
            self._labels = {} if key in (node.metadata.labels or {}) else {key: value}
        return self._labels

    async def _write_capacity(self) -> None:
        """Write the resources into the node's status; the kubelet makes them allocatable and keeps them."""
        wanted = dict(self._capacity())
        if not wanted:
            return
        try:
            await self._client.patch(f"{self._path}/status", orjson.dumps({"status": {"capacity": wanted}}))
        except errors.KubernetesError as refused:
            if str(refused) != self._capacity_trouble:
                log.warning("capacity not written", error_code=error_codes.PLUGIN_CAPACITY, cause=str(refused))
            self._capacity_trouble = str(refused)
        else:
            self._capacity_trouble = ""

    async def run(self) -> None:
        """Write for ever; ends only by cancellation. Nothing is written before the first change."""
        await self._changed.wait()
        backoff = _FIRST_BACKOFF_SECONDS
        while True:
            self._changed.clear()
            wanted = dict(self._wanted())
            try:
                labels = await self._missing_labels()
                await self._client.patch(
                    self._path, orjson.dumps({"metadata": {"annotations": wanted, "labels": labels}})
                )
                self._labels = {}
            except errors.KubernetesError as refused:
                self.trouble = str(refused)
                log.error("not written", error_code=error_codes.PLUGIN_INVENTORY_NOT_WRITTEN, cause=str(refused))
                await asyncio.sleep(backoff)
                backoff = min(2 * backoff, _LONGEST_BACKOFF_SECONDS)
                continue
            await self._write_capacity()
            backoff, self.trouble = _FIRST_BACKOFF_SECONDS, ""
            self.written = not self._changed.is_set()
            try:
                await asyncio.wait_for(self._changed.wait(), _HEARTBEAT_SECONDS)
            except TimeoutError:
                continue
