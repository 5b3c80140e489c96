"""How device nodes and driver libraries reach a container, chosen for each GPU. Pure but for common device nodes.

With CDI the edits of the host's own specification are copied into ours. Without CDI (`match`) no specification can be
named in the answer, so the same edits are translated into it: `copied`. A runtime that reads `NVIDIA_VISIBLE_DEVICES`
(`envvar`, `volume-mounts`) does so for pods of its RuntimeClass alone, unless it is the node's default.

`NVIDIA_VISIBLE_DEVICES` is `void` wherever devices come by CDI edits, so that NVIDIA's runtime does not inject them
again. A variable of our own names the GPUs of a container.

Source: NVIDIA's container toolkit (NVIDIA_VISIBLE_DEVICES, volume mounts), CDI, and NVIDIA's k8s-device-plugin for the
device nodes of a MIG instance.
"""

import pathlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from device_plugin.delivery import edits, host_cdi
from device_plugin.driver import gpu_source
from gpu_sharing.core import error_codes, nvidia, variables

GPUS = variables.GPUS
AUTO, CDI, COPIED, ENVVAR, VOLUME_MOUNTS, DEVICE_NODES = (
    "auto", "cdi", "copied", "envvar", "volume-mounts", "device-nodes",
)  # fmt: skip
SETTINGS = (AUTO, CDI, ENVVAR, VOLUME_MOUNTS, DEVICE_NODES)
BY_RUNTIME = frozenset({ENVVAR, VOLUME_MOUNTS})
"""Methods by which NVIDIA's container runtime brings the GPU."""


@dataclass(frozen=True, slots=True)
class Host:
    """What the host offers for delivery."""

    specs: host_cdi.HostSpecs = field(default_factory=host_cdi.HostSpecs)
    driver_version: str = ""
    """Of the kernel module; empty where it is not known."""
    capabilities: Mapping[str, int] = field(default_factory=dict)
    """See `host_cdi.capabilities`."""
    root: pathlib.Path | None = None
    """Where the host's root is mounted; None where it is not."""
    has_runtime_class: bool = False
    """Whether the cluster has the RuntimeClass `nvidia`."""


@dataclass(frozen=True, slots=True)
class Method:
    """How one GPU is delivered, or why it cannot be delivered."""

    name: str
    """Name of the method; empty where the GPU cannot be delivered."""
    code: error_codes.Code = error_codes.PLUGIN_DELIVERY
    refusal: str = ""
    lookup: host_cdi.Lookup = field(default_factory=host_cdi.Lookup)


class Undeliverable(Exception):
    """A GPU cannot be brought into the container; the text has the reason."""


def choose(setting: str, device: gpu_source.Device, host: Host, *, by_cdi: bool, has_class: bool = False) -> Method:
    """Choose how to deliver one GPU.

    Args:
        setting: One of `SETTINGS`; `auto` takes what the host offers.
        device: The GPU.
        host: What the host offers.
        by_cdi: Whether the container names its allocation by CDI; else the answer to Allocate carries all.
        has_class: Whether the pod has a RuntimeClass: its runtime applies hooks, which an answer cannot carry.
    """
    if setting == DEVICE_NODES and device.minor is None:
        return Method("", refusal="the driver gives it no minor number, and so no device node")
    if setting not in (AUTO, CDI):
        return Method(setting)
    by_class = setting == AUTO and host.has_runtime_class
    if not by_cdi and by_class and has_class:
        return Method(ENVVAR)
    instances = [instance.uuid for instance in device.migs]
    lookup = (
        host.specs.divided(device.index, instances) if device.mig_enabled else host.specs.gpu(device.uuid, device.index)
    )
    if lookup.conflict:
        paths = " and ".join(map(str, lookup.conflict))
        return Method("", error_codes.PLUGIN_CDI_CONFLICT, f"{paths} define it in one folder")
    if lookup.spec is None:
        return Method(ENVVAR) if by_class else Method("", refusal=_nothing(setting, host))
    refusal = host_cdi.mismatch(
        lookup.copied, None if device.mig_enabled else device.minor, host.driver_version, host.root
    )
    if refusal:
        return Method("", error_codes.PLUGIN_CDI_STALE, f"{lookup.spec.path}: {refusal}")
    return Method(CDI if by_cdi else COPIED, lookup=lookup)


def _nothing(setting: str, host: Host) -> str:
    there = f"{len(host.specs.specs)} CDI specifications of {nvidia.CDI_KIND} are there and none defines it"
    return there if setting == CDI else f"{there}, and the cluster has no RuntimeClass {nvidia.RUNTIME_CLASS}"


def edits_for(delivered: Sequence[tuple[gpu_source.Device, str, Method]], host: Host) -> edits.Edits:
    """Return what a container needs to use GPUs.

    Args:
        delivered: Each GPU, the name by which the driver shows it (its UUID, or that of a MIG instance), and its
            method.
        host: What the host offers.

    Raises:
        Undeliverable: The device nodes of a MIG instance are not known.
    """
    parts = [_one(device, name, method, host) for device, name, method in delivered]
    by_runtime = [(name, method.name) for _, name, method in delivered if method.name not in (CDI, COPIED)]
    visible = ",".join(name for name, _ in by_runtime) or nvidia.NO_DEVICES
    if any(method == VOLUME_MOUNTS for _, method in by_runtime):
        visible = nvidia.VOLUME_MOUNTS
    own = edits.Edits({nvidia.VISIBLE_DEVICES: visible, GPUS: ",".join(name for _, name, _ in delivered)})
    return edits.merged([*parts, own])


def _one(device: gpu_source.Device, name: str, method: Method, host: Host) -> edits.Edits:
    match method.name:
        case "cdi":
            return edits.Edits(copied=_copied(device, name, method, host))
        case "copied":
            return edits.without_cdi(_copied(device, name, method, host))
        case "volume-mounts":
            return edits.Edits(mounts=(edits.Mount("/dev/null", f"{nvidia.VOLUME_MOUNTS}/{name}"),))
        case "device-nodes":
            common = [node for node in nvidia.COMMON_NODES if pathlib.Path(node).exists()]
            paths = [nvidia.device_node(device.minor), *common, *_capability_nodes(device, name, host)]
            return edits.Edits(device_nodes=tuple(map(edits.device_node, paths)))
        case _:
            return edits.NOTHING


def _copied(device: gpu_source.Device, name: str, method: Method, host: Host) -> tuple[host_cdi.Edits, ...]:
    """Return the host's edits for a GPU; for a MIG instance the common ones and its device nodes by the driver's
    numbers.

    An instance's own entry is not copied: instances come and go, and their names and numbers come again.
    """
    if not device.mig_enabled or method.lookup.spec is None:
        return method.lookup.copied
    common = method.lookup.spec.common
    # Where the driver's device nodes lie on the host: below the GPU operator's driver root, or at /.
    beside = (
        str(node.get("hostPath", "")) for node in common.get("deviceNodes", ()) if node["path"] == nvidia.CONTROL_NODE
    )
    root = next((path.removesuffix(nvidia.CONTROL_NODE) for path in beside if path.endswith(nvidia.CONTROL_NODE)), "")
    paths = [nvidia.device_node(device.minor), *_capability_nodes(device, name, host)]
    return (common, {"deviceNodes": [{"path": path, "hostPath": f"{root}{path}"} for path in paths]})


def _capability_nodes(device: gpu_source.Device, name: str, host: Host) -> list[str]:
    """Return the device nodes of a MIG instance and of its compute instance; none for a whole GPU."""
    instance = next((one for one in device.migs if one.uuid == name), None)
    if instance is None:
        return []
    above = f"gpu{device.minor}/gi{instance.instance_id}"
    paths = (f"{above}/access", f"{above}/ci{instance.compute_id}/access")
    missing = next((path for path in paths if path not in host.capabilities), None)
    if missing is not None:
        raise Undeliverable(f"/proc/{nvidia.PROC_CAPABILITIES} has no {missing}, for MIG instance {name}")
    return [nvidia.capability_node(host.capabilities[path]) for path in paths]
