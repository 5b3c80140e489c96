"""Changes to a container (environment, mounts, device nodes), and their form in CDI. Pure.

Source: CDI specification 0.5.0 (github.com/cncf-tags/container-device-interface); kubelet's ContainerAllocateResponse.
"""

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

_DRIVER_LIBRARY = re.compile(r"(?P<stem>.*/lib[^/]+\.so)\.\d+\.\d+(\.\d+)?")


@dataclass(frozen=True, slots=True)
class Mount:
    """A file or folder of the host in a container."""

    host: str
    container: str
    read_only: bool = True


@dataclass(frozen=True, slots=True)
class DeviceNode:
    """A device node of the host in a container."""

    host: str
    container: str
    permissions: str = "rw"


@dataclass(frozen=True, slots=True)
class Edits:
    """Changes to one container."""

    environment: Mapping[str, str] = field(default_factory=dict)
    mounts: tuple[Mount, ...] = ()
    device_nodes: tuple[DeviceNode, ...] = ()
    copied: tuple[Mapping[str, Any], ...] = ()
    """`containerEdits` of the host's own CDI specifications, unchanged; the plugin's environment wins over theirs."""

    def plus(self, other: "Edits") -> "Edits":
        """Return both together; the other's environment wins."""
        return Edits(
            {**self.environment, **other.environment},
            self.mounts + other.mounts,
            self.device_nodes + tuple(one for one in other.device_nodes if one not in self.device_nodes),
            self.copied + other.copied,
        )


NOTHING = Edits()


def device_node(path: str) -> DeviceNode:
    """Return a device node that has the same path on the host and in the container."""
    return DeviceNode(path, path)


def merged(parts: Iterable[Edits]) -> Edits:
    """Return all edits together; the environment of later ones wins."""
    result = NOTHING
    for part in parts:
        result = result.plus(part)
    return result


def container_edits(wanted: Edits) -> dict[str, Any]:
    """Return the edits as `containerEdits` of a CDI device."""
    merged: dict[str, Any] = {}
    for source in wanted.copied:
        for key, value in source.items():
            if isinstance(value, list):
                merged.setdefault(key, []).extend(item for item in value if item not in merged.get(key, ()))
    theirs = [item for item in merged.pop("env", ()) if item.partition("=")[0] not in wanted.environment]
    ours = [f"{name}={value}" for name, value in sorted(wanted.environment.items())]
    mounts = [
        {
            "hostPath": mount.host,
            "containerPath": mount.container,
            "options": ["ro" if mount.read_only else "rw", "nosuid", "nodev", "rbind"],
        }
        for mount in wanted.mounts
    ]
    nodes = [
        {"path": one.container, "hostPath": one.host, "permissions": one.permissions} for one in wanted.device_nodes
    ]
    whole = {
        **merged,
        "env": [*theirs, *ours],
        "mounts": [*merged.get("mounts", ()), *mounts],
        "deviceNodes": [*merged.get("deviceNodes", ()), *nodes],
    }
    return {key: value for key, value in whole.items() if value}


def without_cdi(copied: Sequence[Mapping[str, Any]]) -> Edits:
    """Return the edits of CDI specifications as far as the kubelet's own answer can carry them.

    The answer has no hooks. The hooks of nvidia-ctk make the names by which programs open libraries (`libcuda.so.1`)
    and renew the loader's cache; so each library of the driver is mounted under that name, too. An image whose loader
    does not search the folder of the specification still does not find them.
    """
    environment: dict[str, str] = {}
    mounts: dict[str, Mount] = {}
    nodes: dict[str, DeviceNode] = {}
    for source in copied:
        environment |= dict(line.split("=", 1) for line in source.get("env", ()))
        for node in source.get("deviceNodes", ()):
            device = DeviceNode(node.get("hostPath") or node["path"], node["path"], node.get("permissions") or "rw")
            nodes.setdefault(device.container, device)
        for entry in source.get("mounts", ()):
            read_only = "ro" in (entry.get("options") or ())
            mounts[entry["containerPath"]] = Mount(entry["hostPath"], entry["containerPath"], read_only)
    for mount in list(mounts.values()):
        library = _DRIVER_LIBRARY.fullmatch(mount.container)
        if library:
            name = f"{library['stem']}.1"
            mounts.setdefault(name, Mount(mount.host, name, mount.read_only))
    return Edits(environment, tuple(mounts.values()), tuple(nodes.values()))


def has_hooks(copied: Iterable[Mapping[str, Any]]) -> bool:
    """Return whether specifications have hooks, which `without_cdi` leaves out."""
    return any(source.get("hooks") for source in copied)
