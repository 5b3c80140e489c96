"""This node's GPUs as annotations: what the scheduler may allocate, and which of them must not be used. Pure.

The node's capacity carries the names of GPU memory and cores too. kube-scheduler's DynamicResources plugin looks for
them there once a DeviceClass offers the GPU resource: a name that is no key of the node's allocatable keeps the pod
away, and that plugin does not know `ignoredByScheduler`. The kubelet copies them to allocatable and keeps them. It
fails a pod for good where the raw requests of its pods add up to more (`4Gi` is bytes there; pods of a GPU that was
lost, or of another scheduler, count too). So the numbers are no totals, which are in the record, but more than the pods
of a node can ask for.

Source: k8s.io/kubernetes pkg/scheduler/framework/plugins/dynamicresources (1.36), extended resources of DRA; and
pkg/kubelet/lifecycle/predicate.go, which ignores only names that the node does not have.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace

import structlog

from device_plugin import settings
from device_plugin.driver import gpu_source
from device_plugin.isolation.backend import Backend
from gpu_sharing.core import gpus, health, identifiers, json_text, nvidia, records, requests

_HEARTBEAT_SECONDS = 60.0
_MOST_MEMORY, _MOST = "8191Pi", "8E"
"""The largest quantities. With `requests.device_ids` the scheduler avoids a node whose pods come near them."""
_FIRST_BACKOFF_SECONDS, _LONGEST_BACKOFF_SECONDS = 0.5, 15.0

log = structlog.get_logger("inventory")


def with_memory(devices: Sequence[gpu_source.Device], sharing: settings.Sharing) -> tuple[gpu_source.Device, ...]:
    """Return the GPUs, with the configured memory where the driver reports none."""
    return tuple(
        replace(device, memory_mib=sharing.configured_memory(device.name)) if device.memory_mib is None else device
        for device in devices
    )


def offered_gpus(
    devices: Sequence[gpu_source.Device],
    states: Mapping[identifiers.GpuUuid, health.Health],
    modes: Mapping[identifiers.GpuUuid, str],
    sharing: settings.Sharing,
    *,
    backends: Mapping[str, Backend],
) -> tuple[gpus.Gpu, ...]:
    """Return what the node offers: the GPUs that are not hidden, and whose memory is known."""
    offered = []
    for device in devices:
        if device.memory_mib is None or sharing.hides(device.uuid, device.index):
            continue
        mode = modes[device.uuid]
        most = backends[mode].most_containers(device)
        offered.append(
            gpus.Gpu(
                uuid=device.uuid,
                index=device.index,
                memory_mib=int(max(device.memory_mib - sharing.memory_headroom_mib, 0) * sharing.memory_scaling),
                cores_percent=int(100 * sharing.cores_scaling),
                slots=sharing.split_count if most is None else min(sharing.split_count, most),
                type=_type(device.name),
                numa=device.numa,
                mode=mode,
                mig_profiles=backends[mode].mig_profiles(device),
                healthy=states.get(device.uuid, health.Health()).available,
            )
        )
    return tuple(offered)


def _type(product_name: str) -> str:
    """Return the type of a GPU in records; product names of older drivers lack the vendor."""
    return product_name if product_name.startswith(nvidia.TYPE_PREFIX) else f"{nvidia.TYPE_PREFIX}-{product_name}"


def annotations(
    offered: Sequence[gpus.Gpu],
    states: Mapping[identifiers.GpuUuid, health.Health],
    links: Mapping[identifiers.GpuUuid, Mapping[identifiers.GpuUuid, int]],
    agent: str,
    *,
    problems: Mapping[str, str],
) -> dict[str, str]:
    """Return the node's annotations.

    Beside HAMi's own they have what must outlive this process: the GPUs that are not healthy, each with its cause.
    """
    unhealthy = {uuid: health.to_facts(state) for uuid, state in sorted(states.items()) if not state.available}
    scores = [{"uuid": uuid, "score": dict(sorted(peers.items()))} for uuid, peers in sorted(links.items())]
    return {
        **problem_annotations(agent, problems),
        records.INVENTORY: records.encode_inventory(offered),
        records.HEALTH: json.dumps(unhealthy, sort_keys=True, separators=(",", ":")),
        **({records.SCORE: json.dumps(scores, separators=(",", ":"))} if links else {}),
    }


def problem_annotations(agent: str, problems: Mapping[str, str]) -> dict[str, str]:
    """Return the annotations that name the plugin of the node, and the node's problems."""
    return {records.AGENT: agent, records.PROBLEMS: records.encode_problems(problems)}


def unhealthy_in_boot(text: str, boot: str, now: float) -> dict[identifiers.GpuUuid, health.Health]:
    """Return the GPUs that an earlier process found unhealthy in the same boot; a restart of the node clears them."""
    try:
        facts = json_text.value(text) if text else {}
        items = [(str(uuid), one) for uuid, one in facts.items() if isinstance(one, dict)]
    except (ValueError, AttributeError):
        return {}
    states = {identifiers.GpuUuid(uuid): health.from_facts(one, now) for uuid, one in items if one.get("boot") == boot}
    return {uuid: state for uuid, state in states.items() if not state.available}


def capacity(names: requests.ResourceNames) -> dict[str, str]:
    """Return the node's capacity of each resource that pods request beside the count, as Kubernetes quantities."""
    return {names.memory: _MOST_MEMORY, **dict.fromkeys((names.memory_percent, names.cores, names.priority), _MOST)}
