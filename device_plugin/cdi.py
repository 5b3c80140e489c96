"""CDI specifications: those of the host that we copy from, and one for each allocation that we write.

A name is never used twice: a runtime's cache may still hold what an old one meant. So each allocation has a name of
its own, whose file also carries the UID of its pod, and a file is deleted only when the kubelet has forgotten the
allocation.

Source: CDI specification 0.5.0; that containerd follows the directory by inotify and does not look again on a miss,
and renames are seen, was measured on containerd 2.
"""

import contextlib
import json
import pathlib
import re
import time
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import structlog

from device_plugin import edits
from gpu_sharing.core import identifiers

KIND = "hami.io/vgpu"
HOST_KIND = "nvidia.com/gpu"
_VERSION = "0.5.0"
_FILE = re.compile(r"hami-vgpu_(?P<device>[a-z0-9-]+)_(?P<uid>[A-Za-z0-9-]+)\.json")

log = structlog.get_logger("cdi")


class NotWritten(Exception):
    """The directory of specifications does not take one; the text says why."""


@dataclass(frozen=True, slots=True)
class Written:
    """A specification of ours on disk."""

    device: str
    pod_uid: identifiers.PodUid
    path: pathlib.Path

    @property
    def name(self) -> str:
        """The fully qualified CDI name."""
        return f"{KIND}={self.device}"


class Store:
    """Our specifications in the runtime's directory."""

    def __init__(self, folder: pathlib.Path) -> None:
        self._folder = folder

    def write(self, device: str, pod_uid: identifiers.PodUid, wanted: edits.Edits, version: str = _VERSION) -> bool:
        """Write a specification, if it is not there as it should be.

        Returns:
            Whether something was written just now, so that runtimes need a moment to see it.

        Raises:
            NotWritten: The directory is read-only, full or missing.
        """
        spec = {
            "cdiVersion": max(version, _VERSION, key=_ordered),
            "kind": KIND,
            "devices": [{"name": device, "containerEdits": edits.container_edits(wanted)}],
        }
        content = json.dumps(spec, indent=1, sort_keys=True).encode()
        path = self._path(device, pod_uid)
        # The runtime reads what ends in .json or .yaml, so the half-written file must not.
        part = path.with_suffix(".part")
        try:
            with contextlib.suppress(FileNotFoundError):
                if path.read_bytes() == content:
                    return False
            self._folder.mkdir(parents=True, exist_ok=True)
            part.write_bytes(content)
            part.rename(path)
        except OSError as cause:
            with contextlib.suppress(OSError):
                part.unlink(missing_ok=True)
            raise NotWritten(f"{path}: {cause.strerror or cause}") from cause
        return True

    def exists(self, device: str, pod_uid: identifiers.PodUid) -> bool:
        """Whether there is a specification of that name for that pod."""
        return self._path(device, pod_uid).exists()

    def age_seconds(self, device: str, pod_uid: identifiers.PodUid) -> float:
        """How long ago it was written."""
        try:
            return time.time() - self._path(device, pod_uid).stat().st_mtime
        except OSError:
            return 0.0

    def all(self) -> Iterator[Written]:
        """Every specification of ours."""
        with contextlib.suppress(OSError):
            for path in sorted(self._folder.iterdir()):
                match = _FILE.fullmatch(path.name)
                if match:
                    yield Written(match["device"], identifiers.PodUid(match["uid"]), path)

    def delete(self, written: Written) -> None:
        """Delete one whose allocation the kubelet has forgotten."""
        with contextlib.suppress(OSError):
            written.path.unlink(missing_ok=True)

    def _path(self, device: str, pod_uid: identifiers.PodUid) -> pathlib.Path:
        return self._folder / f"hami-vgpu_{device}_{pod_uid}.json"


@dataclass(frozen=True, slots=True)
class HostSpecs:
    """What the host's own specifications (made by nvidia-ctk) say of its GPUs."""

    version: str
    devices: Mapping[str, Mapping[str, Any]]
    """`containerEdits` by device name, which is a UUID or an index."""
    common: tuple[Mapping[str, Any], ...]
    """`containerEdits` that every device gets."""

    def edits_for(self, uuid: str, index: int) -> edits.Edits | None:
        """What a container needs to use a GPU; None where the host does not say."""
        found = self.devices.get(uuid) or self.devices.get(str(index))
        return None if found is None else edits.Edits(copied=(*self.common, found))


def host_specs(folders: Iterable[pathlib.Path]) -> HostSpecs:
    """Read the host's specifications. One that cannot be read is told and left out."""
    devices: dict[str, Mapping[str, Any]] = {}
    common: list[Mapping[str, Any]] = []
    version = _VERSION
    for folder in folders:
        for path in sorted([*folder.glob("*.json"), *folder.glob("*.yaml"), *folder.glob("*.yml")]):
            if _FILE.fullmatch(path.name):
                continue
            spec = _read(path)
            if spec.get("kind") != HOST_KIND:
                continue
            version = max(version, str(spec.get("cdiVersion", _VERSION)), key=_ordered)
            if spec.get("containerEdits"):
                common.append(spec["containerEdits"])
            for device in spec.get("devices") or ():
                devices[str(device.get("name"))] = device.get("containerEdits") or {}
    return HostSpecs(version, devices, tuple(common))


def _read(path: pathlib.Path) -> Mapping[str, Any]:
    try:
        text = path.read_text()
        if path.suffix == ".json":
            spec = json.loads(text)
        else:
            import yaml  # Here, because most nodes have JSON and a process that never reads YAML need not load it.

            spec = yaml.safe_load(text)
    except Exception as cause:  # Whatever another program left there.
        log.warning("a CDI specification of the host cannot be read", path=str(path), cause=str(cause))
        return {}
    return spec if isinstance(spec, dict) else {}


def _ordered(version: str) -> tuple[int, ...]:
    return tuple(int(part) for part in re.findall(r"\d+", version)[:3])
