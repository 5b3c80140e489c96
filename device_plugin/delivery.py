"""How device nodes and driver libraries reach a container. Pure but for looking at what the host has.

Source: NVIDIA's container toolkit (NVIDIA_VISIBLE_DEVICES, volume mounts) and CDI.
"""

import pathlib
from collections.abc import Sequence

from device_plugin import cdi, edits, gpu_source

VISIBLE = "NVIDIA_VISIBLE_DEVICES"
VOID = "void"
"""For the toolkit: no GPU. What a container gets whose runtime ignores CDI."""
_MOUNT_FOLDER = "/var/run/nvidia-container-devices"
_COMMON_NODES = ("/dev/nvidiactl", "/dev/nvidia-uvm", "/dev/nvidia-uvm-tools", "/dev/nvidia-modeset")


def choose(
    setting: str, devices: Sequence[gpu_source.Device], host: cdi.HostSpecs, *, runtime_class: bool
) -> str | None:
    """The way to deliver.

    Args:
        setting: What is wanted; `auto` takes what the host offers.
        devices: The node's GPUs.
        host: The host's own CDI specifications.
        runtime_class: Whether the cluster has the RuntimeClass `nvidia`.

    Returns:
        The way, or None where the host does not offer it.
    """
    described = all(host.edits_for(device.uuid, device.index) is not None for device in devices)
    match setting:
        case "auto":
            return "cdi" if described else "envvar" if runtime_class else None
        case "cdi":
            return "cdi" if described else None
        case _:
            return setting


def of(way: str, devices: Sequence[gpu_source.Device], visible: Sequence[str], host: cdi.HostSpecs) -> edits.Edits:
    """What a container needs to use GPUs.

    Args:
        way: As `choose` said.
        devices: The GPUs.
        visible: The names under which the driver shows them: GPUs or MIG instances.
        host: The host's own CDI specifications.
    """
    names = edits.Edits({VISIBLE: ",".join(visible)})
    match way:
        case "cdi":
            found = [host.edits_for(device.uuid, device.index) for device in devices]
            return edits.together([*(one for one in found if one is not None), names])
        case "volume-mounts":
            mounts = tuple(edits.Mount("/dev/null", f"{_MOUNT_FOLDER}/{name}") for name in visible)
            return edits.Edits({VISIBLE: _MOUNT_FOLDER}, mounts)
        case "device-nodes":
            nodes = [f"/dev/nvidia{device.minor}" for device in devices]
            nodes += [node for node in _COMMON_NODES if pathlib.Path(node).exists()]
            return names.plus(edits.Edits(device_nodes=tuple(nodes)))
        case _:
            return names
