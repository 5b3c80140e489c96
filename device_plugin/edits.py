"""What a container gets: environment, mounts and device nodes, and how they are written down. Pure.

Source: CDI specification 0.5.0 (github.com/cncf-tags/container-device-interface); kubelet's ContainerAllocateResponse.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True, slots=True)
class Mount:
    """A file or folder of the host in a container."""

    host: str
    container: str
    read_only: bool = True


@dataclass(frozen=True, slots=True)
class Edits:
    """Changes to one container."""

    environment: Mapping[str, str] = field(default_factory=dict)
    mounts: tuple[Mount, ...] = ()
    device_nodes: tuple[str, ...] = ()
    copied: tuple[Mapping[str, Any], ...] = ()
    """`containerEdits` of the host's own CDI specifications, as they are; our environment wins over theirs."""

    def plus(self, other: "Edits") -> "Edits":
        """Both; the other's environment wins."""
        return Edits(
            {**self.environment, **other.environment},
            self.mounts + other.mounts,
            self.device_nodes + other.device_nodes,
            self.copied + other.copied,
        )


NOTHING = Edits()


def together(parts: Iterable[Edits]) -> Edits:
    """All of them, the later ones' environment winning."""
    result = NOTHING
    for part in parts:
        result = result.plus(part)
    return result


def container_edits(wanted: Edits) -> dict[str, Any]:
    """The `containerEdits` of a CDI device."""
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
    nodes = [{"path": path, "hostPath": path, "permissions": "rw"} for path in wanted.device_nodes]
    whole = {
        **merged,
        "env": [*theirs, *ours],
        "mounts": [*merged.get("mounts", ()), *mounts],
        "deviceNodes": [*merged.get("deviceNodes", ()), *nodes],
    }
    return {key: value for key, value in whole.items() if value}
