"""What the plugin reads of its node at start: what an earlier process knew, and what the container runtime can do."""

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
from gpu_sharing.core import error_codes, errors, gpus, health, identifiers, nvidia, records

_RETRY_SECONDS = 1.0
_CONTAINERD_WITH_CDI = 2
"""The first major version that resolves CDI names as it comes."""

log = structlog.get_logger("node")


@dataclass(frozen=True, slots=True, kw_only=True)
class NodeAtStart:
    """The node at the start of the plugin, by its annotations and status."""

    unhealthy: Mapping[identifiers.GpuUuid, health.Health]
    """GPUs that were not healthy in this boot of the node."""
    devices: tuple[gpu_source.Device, ...]
    """GPUs that an earlier process offered; the driver may hide one of them now."""
    runtime: str
    """Such as `containerd://2.0.1`."""
    has_runtime_class: bool
    """Whether the cluster has the RuntimeClass `nvidia`."""
    released: frozenset[identifiers.GpuUuid]
    """GPUs that an administrator wants to reset, so that the driver must not open them."""
    own_instances: frozenset[records.MadeInstance]
    """MIG instances that earlier processes made."""
    problems: Mapping[str, str]
    """Problems of the node that an earlier process found: sentences by error code."""
    limited: frozenset[identifiers.GpuUuid] = frozenset()
    """GPUs that an earlier process offered with HAMi-core, or that have lost it since."""

    @property
    def knows_cdi(self) -> bool:
        """Whether the runtime resolves CDI names with its default configuration."""
        name, _, version = self.runtime.partition("://")
        major = version.partition(".")[0].lstrip("v")
        return name == "cri-o" or (name == "containerd" and major.isdecimal() and int(major) >= _CONTAINERD_WITH_CDI)


async def read(client: kubernetes.Client, node_name: str, boot_id: str, deadline: float) -> NodeAtStart | None:
    """Return the node once the API server answers and its kubelet knows the runtime; None after the deadline.

    While the runtime does not answer the kubelet, what it can do is not known, and no container starts.

    Args:
        client: The API server.
        node_name: The node.
        boot_id: Of this boot.
        deadline: Monotonic seconds.
    """
    while True:
        try:
            node = await client.get(f"/api/v1/nodes/{node_name}", api_objects.Node)
            has_runtime_class = await _has_runtime_class(client)
            problem = "" if _knows_runtime(node) else "the container runtime does not answer the kubelet"
        except errors.KubernetesError as refused:
            problem = str(refused)
        if not problem:
            break
        log.warning("the node cannot be read", cause=problem)
        if time.monotonic() > deadline:
            return None
        await asyncio.sleep(_RETRY_SECONDS)
    annotations = node.metadata.annotations or {}
    earlier: tuple[gpus.Gpu, ...] = ()
    with contextlib.suppress(errors.CorruptRecord):
        earlier = records.decode_inventory(annotations.get(records.INVENTORY, "[]"))
    return NodeAtStart(
        unhealthy=inventory.unhealthy_in_boot(annotations.get(records.HEALTH, ""), boot_id, time.monotonic()),
        devices=tuple(_device(gpu) for gpu in earlier),
        runtime=node.status.node_info.container_runtime_version,
        has_runtime_class=has_runtime_class,
        released=release.released_gpus(annotations),
        own_instances=records.decode_made(annotations.get(records.MIG_MADE, "")),
        problems=records.decode_problems(annotations.get(records.PROBLEMS, "")),
        limited=_limited(earlier, annotations.get(records.PROBLEMS, "")),
    )


def _knows_runtime(node: api_objects.Node) -> bool:
    """Return whether the kubelet has read the runtime's version.

    Source: k8s.io/kubernetes pkg/kubelet/nodestatus/setters.go, VersionInfo: else it writes `containerd://Unknown`.
    """
    return not node.status.node_info.container_runtime_version.endswith("://Unknown")


async def _has_runtime_class(client: kubernetes.Client) -> bool:
    """Return whether the cluster has the RuntimeClass `nvidia`; False where the plugin may not read it.

    Raises:
        KubernetesError: The API server did not answer.
    """
    try:
        await client.get(f"/apis/node.k8s.io/v1/runtimeclasses/{nvidia.RUNTIME_CLASS}", api_objects.Node)
    except errors.NotFound:
        return False
    except errors.Forbidden as refused:
        log.warning("RuntimeClass cannot be read", name=nvidia.RUNTIME_CLASS, cause=str(refused))
        return False
    return True


def boot_id(path: pathlib.Path) -> str:
    """Return the kernel's id of this boot.

    Raises:
        SettingsError: It cannot be read.
    """
    try:
        return path.read_text(errors="replace").strip()
    except OSError as cause:
        raise errors.SettingsError(f"--boot-id-file {path}: {cause.strerror or cause}") from cause


def _limited(earlier: tuple[gpus.Gpu, ...], problems: str) -> frozenset[identifiers.GpuUuid]:
    lost = error_codes.PLUGIN_ISOLATION_LOST in records.decode_problems(problems)
    return frozenset(gpu.uuid for gpu in earlier if gpu.mode == table.HAMI_CORE or (lost and gpu.mode == table.NONE))


def _device(gpu: gpus.Gpu) -> gpu_source.Device:
    """Return a GPU as an earlier process published it."""
    return gpu_source.Device(
        uuid=gpu.uuid, index=gpu.index, name=gpu.type, memory_mib=gpu.memory_mib, minor=gpu.index, numa=gpu.numa
    )
