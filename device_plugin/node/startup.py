"""What is to be known of the node at start: what an earlier process saw, and what its container runtime can do."""

import asyncio
import contextlib
import pathlib
import time
from collections.abc import Mapping
from dataclasses import dataclass

import structlog

from device_plugin.driver import gpu_source
from device_plugin.isolation import table
from device_plugin.node import api_objects, inventory, release
from gpu_sharing.adapters import kubernetes
from gpu_sharing.core import error_codes, errors, gpus, health, identifiers, records

_RETRY_SECONDS = 1.0
_CONTAINERD_WITH_CDI = 2
"""The first major version that resolves CDI names as it comes."""

log = structlog.get_logger("node")


@dataclass(frozen=True, slots=True)
class NodeAtStart:
    """The node as the API server has it."""

    sick: Mapping[identifiers.GpuUuid, health.Health]
    """GPUs that were not healthy in this boot."""
    devices: tuple[gpu_source.Device, ...]
    """GPUs that were offered, should the driver hide one now."""
    runtime: str
    """Such as `containerd://2.0.1`."""
    has_runtime_class: bool
    """Whether the cluster has the RuntimeClass `nvidia`."""
    released: frozenset[identifiers.GpuUuid]
    """GPUs that an administrator wants to reset, so that they must not be touched."""
    made: frozenset[records.MadeInstance]
    """MIG instances that earlier processes made."""
    problems: Mapping[str, str]
    """What an earlier process found wrong with how the node is set up, by error code."""
    limited: frozenset[identifiers.GpuUuid] = frozenset()
    """GPUs that an earlier process offered with HAMi-core, or that lost it since and have not got it back."""

    @property
    def knows_cdi(self) -> bool:
        """Whether the runtime resolves CDI names without being told to."""
        name, _, version = self.runtime.partition("://")
        major = version.partition(".")[0].lstrip("v")
        return name == "cri-o" or (name == "containerd" and major.isdecimal() and int(major) >= _CONTAINERD_WITH_CDI)


async def read(client: kubernetes.Client, node_name: str, boot_id: str, deadline: float) -> NodeAtStart | None:
    """Ask the API server until it answers; None once the deadline (monotonic seconds) has passed."""
    while True:
        try:
            node = await client.get(f"/api/v1/nodes/{node_name}", api_objects.Node)
            has_runtime_class = await _has_runtime_class(client)
            break
        except errors.KubernetesError as refused:
            log.warning("the node cannot be read", cause=str(refused))
            if time.monotonic() > deadline:
                return None
            await asyncio.sleep(_RETRY_SECONDS)
    found = node.metadata.annotations or {}
    earlier: tuple[gpus.Gpu, ...] = ()
    with contextlib.suppress(errors.CorruptRecord):
        earlier = records.decode_inventory(found.get(records.INVENTORY, "[]"))
    return NodeAtStart(
        inventory.unhealthy_in_boot(found.get(records.HEALTH, ""), boot_id, time.monotonic()),
        tuple(_device(gpu) for gpu in earlier),
        node.status.node_info.container_runtime_version,
        has_runtime_class,
        release.released_gpus(found),
        records.decode_made(found.get(records.MIG_MADE, "")),
        records.decode_problems(found.get(records.PROBLEMS, "")),
        _limited(earlier, found.get(records.PROBLEMS, "")),
    )


async def _has_runtime_class(client: kubernetes.Client) -> bool:
    """Whether the cluster has the RuntimeClass `nvidia`, by an answer; that we may not ask is one, too.

    Raises:
        KubernetesError: There was no answer.
    """
    try:
        await client.get("/apis/node.k8s.io/v1/runtimeclasses/nvidia", api_objects.Node)
    except errors.NotFound:
        return False
    except errors.Forbidden as refused:
        log.warning("whether there is a RuntimeClass nvidia is not known", cause=str(refused))
        return False
    return True


def boot_id(path: pathlib.Path) -> str:
    """Which boot of the node this is.

    Raises:
        SettingsError: The kernel does not say.
    """
    try:
        return path.read_text().strip()
    except OSError as cause:
        raise errors.SettingsError(f"--boot-id-file {path}: {cause.strerror or cause}") from cause


def _limited(earlier: tuple[gpus.Gpu, ...], problems: str) -> frozenset[identifiers.GpuUuid]:
    lost = error_codes.PLUGIN_ISOLATION_LOST in records.decode_problems(problems)
    return frozenset(gpu.uuid for gpu in earlier if gpu.mode == table.HAMI_CORE or (lost and gpu.mode == table.NONE))


def _device(gpu: gpus.Gpu) -> gpu_source.Device:
    """A GPU as an earlier process published it."""
    return gpu_source.Device(gpu.uuid, gpu.index, gpu.type, gpu.memory_mib, gpu.index, gpu.numa)
