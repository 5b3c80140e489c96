"""The host's own CDI specifications of its GPUs, as nvidia-ctk writes them, read as the CDI library reads them.

A specification's common edits belong to its own devices, and the device of a later folder replaces the one of the same
name in an earlier folder; two in one folder are a conflict, and neither counts. Specifications are never merged: after
an update of the driver an old one names libraries that are gone.

Any program of the host may write there, so a file that is no valid specification is left out and logged once. A file is
read again only when it changes.

Source: container-device-interface, pkg/cdi (cache.go for priority and conflicts, spec-dirs.go for which files count).
"""

import os
import pathlib
import re
import stat
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import structlog

from gpu_sharing.core import json_text, nvidia

OLDEST_VERSION = "0.5.0"
OURS = re.compile(r"hami-vgpu_(?P<device>[a-z0-9-]+)_(?P<uid>[A-Za-z0-9-]+)\.json")
"""Files that this plugin writes itself, in the same folder."""
_MOST_BYTES = 4 * 1024 * 1024
_MOST_FILES = 256
_MOST_EVENTS = 100_000
"""Of a YAML file: keys, values, and beginnings and ends of collections. Eight divided GPUs have some thousands."""
_MOST_LINKS = 40

log = structlog.get_logger("cdi")

Edits = Mapping[str, Any]
"""`containerEdits` of a specification, as they are."""


class Unusable(Exception):
    """A file is no specification; the text has the reason."""


@dataclass(frozen=True, slots=True)
class Spec:
    """One specification of the host's GPUs."""

    path: pathlib.Path
    folder: int
    """Its folder's priority: a larger number wins."""
    version: str
    common: Edits
    """Edits of each of its devices, and of no device of another specification."""
    devices: Mapping[str, Edits]
    """By name: a UUID or an index, of a MIG instance `0:1` or its UUID."""


@dataclass(frozen=True, slots=True)
class Lookup:
    """The entry of one GPU in the specifications."""

    spec: Spec | None = None
    name: str = ""
    """Name of the GPU in the specification; empty where it defines only instances of it."""
    replaced: tuple[pathlib.Path, ...] = ()
    """Other specifications that define the GPU too."""
    conflict: tuple[pathlib.Path, ...] = ()
    """Specifications of one folder that define the same device, so that the runtime knows none of them."""

    @property
    def copied(self) -> tuple[Edits, ...]:
        """Edits of the GPU, those that its specification has for all devices first."""
        if self.spec is None:
            return ()
        return (self.spec.common, *([self.spec.devices[self.name]] if self.name else []))


@dataclass(frozen=True, slots=True)
class HostSpecs:
    """The host's specifications."""

    specs: tuple[Spec, ...] = ()

    @property
    def version(self) -> str:
        """Newest version of their format."""
        versions = [spec.version.removeprefix("v") for spec in self.specs]
        return max((OLDEST_VERSION, *versions), key=lambda text: [int(part) for part in text.split(".")])

    def gpu(self, uuid: str, index: int) -> Lookup:
        """Return the entry of a whole GPU, by UUID or index."""
        names = (uuid, str(index))
        candidates = [(spec, name) for spec in self.specs for name in names if name in spec.devices]
        return self._winner(candidates)

    def divided(self, index: int, instances: Iterable[str]) -> Lookup:
        """Return the specification for instances of a GPU in MIG mode, which is in none itself.

        A specification that names an instance of the GPU counts, and otherwise the only one of the folder with the
        highest priority: instances that were made after a specification are missing in it.
        """
        uuids = set(instances)
        prefixes = (f"{index}:", f"mig{index}:")
        naming = [
            spec for spec in self.specs if any(name in uuids or name.startswith(prefixes) for name in spec.devices)
        ]
        highest = max((spec.folder for spec in naming or self.specs), default=0)
        candidates = [spec for spec in naming or self.specs if spec.folder == highest]
        if len(candidates) > 1:
            return Lookup(conflict=tuple(spec.path for spec in candidates))
        return Lookup(candidates[0]) if candidates else Lookup()

    def _winner(self, candidates: Sequence[tuple[Spec, str]]) -> Lookup:
        if not candidates:
            return Lookup()
        for name in {name for _, name in candidates}:
            folders = [spec.folder for spec, own in candidates if own == name]
            twice = {folder for folder in folders if folders.count(folder) > 1}
            if twice:
                return Lookup(
                    conflict=tuple(spec.path for spec, own in candidates if own == name and spec.folder in twice)
                )
        highest = max(spec.folder for spec, _ in candidates)
        spec, name = next(one for one in sorted(candidates, key=_by_uuid_first) if one[0].folder == highest)
        return Lookup(spec, name, tuple(dict.fromkeys(one.path for one, _ in candidates if one is not spec)))


def _by_uuid_first(candidate: tuple[Spec, str]) -> bool:
    return candidate[1].isdecimal()


def mismatch(copied: Sequence[Edits], minor: int | None, driver_version: str, root: pathlib.Path | None) -> str:
    """Return why edits are not those of the GPU and driver that are here, or an empty string.

    Args:
        copied: The common edits and those of the GPU.
        minor: The number of its device node by the driver; None where it has none.
        driver_version: Of the kernel module; empty where it is not known.
        root: Where the host's root is mounted, to check that the paths exist; None where it is not.
    """
    nodes = [node for one in copied for node in one.get("deviceNodes", ())]
    paths = [str(node[key]) for node in nodes for key in ("path", "hostPath") if node.get(key)]
    minors = sorted({int(match[1]) for path in paths if (match := nvidia.DEVICE_NODE.fullmatch(path))})
    if minor is not None and any(number != minor for number in minors):
        return f"it has {', '.join(map(nvidia.device_node, minors))}, and the GPU is {nvidia.device_node(minor)}"
    mounts = [str(mount["hostPath"]) for one in copied for mount in one.get("mounts", ())]
    versions = sorted(
        {match[1] for path in mounts if (match := nvidia.DRIVER_LIBRARY.fullmatch(path))} - {driver_version}
    )
    if driver_version and versions:
        return f"it mounts libraries of driver {', '.join(versions)}, and {driver_version} is loaded"
    if root is not None:
        wanted = [*mounts, *(str(node.get("hostPath") or node["path"]) for node in nodes)]
        wanted += [str(hook["path"]) for one in copied for hook in one.get("hooks", ())]
        missing = next((path for path in wanted if not _exists(root, path)), None)
        if missing is not None:
            return f"it names {missing}, which is not on the host"
    return ""


def _exists(root: pathlib.Path, path: str) -> bool:
    """Return whether a path of the host exists, with links followed as on the host."""
    parts, here, links = [part for part in path.split("/") if part], pathlib.Path(), 0
    while parts:
        part = parts.pop(0)
        here = here.parent if part == ".." else here / part
        try:
            target = str((root / here).readlink())
        except OSError:
            if not os.path.lexists(root / here):
                return False
            continue
        links += 1
        if links > _MOST_LINKS:
            return False
        here = pathlib.Path() if target.startswith("/") else here.parent
        parts = [one for one in target.split("/") if one not in ("", ".")] + parts
    return True


def driver_version(proc: pathlib.Path) -> str:
    """Return the version of the loaded kernel module, by the host's `/proc`; empty where it does not say."""
    try:
        match = nvidia.MODULE_VERSION.search((proc / nvidia.PROC_VERSION).read_text(errors="replace"))
    except OSError:
        return ""
    return match[1] if match else ""


def capabilities(proc: pathlib.Path) -> dict[str, int]:
    """Return the numbers of `/dev/nvidia-caps/nvidia-cap<N>` by what they give access to, such as `gpu0/gi1/access`."""
    try:
        lines = (proc / nvidia.PROC_CAPABILITIES).read_text(errors="replace").splitlines()
    except OSError:
        return {}
    words = [line.split() for line in lines]
    return {line[0]: int(line[1]) for line in words if len(line) == 2 and line[1].isdecimal()}


@dataclass(slots=True)
class Reader:
    """Reads the host's specifications, each file again only when it changes.

    Args:
        folders: In the order of their priority, the lowest first.
    """

    folders: Sequence[pathlib.Path]
    _read: dict[pathlib.Path, tuple[tuple[int, ...], Spec | None]] = field(default_factory=dict)
    _told: dict[pathlib.Path, str] = field(default_factory=dict)

    def read(self) -> HostSpecs:
        """Read what has changed."""
        unique = {folder.resolve(): position for position, folder in enumerate(self.folders)}
        seen: dict[pathlib.Path, tuple[tuple[int, ...], Spec | None]] = {}
        for folder, priority in unique.items():
            for path in self._files(folder):
                signature = _signature(path)
                before = self._read.get(path)
                if before is not None and before[0] == signature:
                    seen[path] = before
                else:
                    seen[path] = (signature, self._spec(path, priority))
        self._read = seen
        return HostSpecs(tuple(spec for _, spec in seen.values() if spec is not None))

    def _files(self, folder: pathlib.Path) -> list[pathlib.Path]:
        try:
            names = sorted(entry.name for entry in os.scandir(folder) if not OURS.fullmatch(entry.name))
        except FileNotFoundError:
            return []
        except OSError as cause:
            self._log_once(folder, str(cause.strerror or cause))
            return []
        self._told.pop(folder, None)
        return [folder / name for name in names if name.endswith((".json", ".yaml"))][:_MOST_FILES]

    def _spec(self, path: pathlib.Path, priority: int) -> Spec | None:
        try:
            content = _parsed(path)
            return None if content.get("kind") != nvidia.CDI_KIND else _checked(content, path, priority)
        except Unusable as cause:
            self._log_once(path, str(cause))
            return None
        except Exception as cause:  # A file of another program.
            self._log_once(path, f"{type(cause).__name__}: {cause}"[:300])
            return None

    def _log_once(self, path: pathlib.Path, cause: str) -> None:
        if self._told.get(path) != cause:
            log.warning("a CDI specification of the host is left out", path=str(path), cause=cause)
        self._told[path] = cause


def _signature(path: pathlib.Path) -> tuple[int, ...]:
    try:
        status = path.stat()
    except OSError:
        return ()
    return (status.st_ino, status.st_dev, status.st_size, status.st_mtime_ns, status.st_ctime_ns)


def _parsed(path: pathlib.Path) -> Mapping[str, Any]:
    # Without waiting: a pipe of that name would block the plugin.
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    with os.fdopen(descriptor, "rb") as file:
        status = os.fstat(descriptor)
        if not stat.S_ISREG(status.st_mode):
            raise Unusable("it is no regular file")
        if status.st_size > _MOST_BYTES:
            raise Unusable(f"it has {status.st_size} bytes, and {_MOST_BYTES} are read at most")
        text = file.read(_MOST_BYTES + 1)
    content = json_text.value(text) if path.suffix == ".json" else _yaml(text)
    if not isinstance(content, dict):
        raise Unusable("it is no object")
    return content


def _yaml(text: bytes) -> Any:
    import yaml  # Here, because a node whose specifications are JSON need not load it.

    loader: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
    for number, event in enumerate(yaml.parse(text, Loader=loader)):
        if isinstance(event, yaml.AliasEvent):
            raise Unusable("it repeats parts of itself by aliases, which may be endless")
        if number > _MOST_EVENTS:
            raise Unusable(f"it has more than {_MOST_EVENTS} keys, values and collections")
    return yaml.load(text, Loader=loader)  # noqa: S506  # a safe one


def _checked(content: Mapping[str, Any], path: pathlib.Path, priority: int) -> Spec:
    devices: dict[str, Edits] = {}
    for device in _list(content.get("devices"), "devices"):
        name = device.get("name") if isinstance(device, dict) else None
        if not isinstance(name, str) or not name:
            raise Unusable("a device has no name that is a text")
        if name in devices:
            raise Unusable(f"it defines {name[:80]} twice")
        devices[name] = _edits(device.get("containerEdits"))
    version = content.get("cdiVersion", OLDEST_VERSION)
    if not isinstance(version, str) or not re.fullmatch(r"v?\d{1,4}(\.\d{1,4}){1,2}", version):
        raise Unusable(f"its version is {str(version)[:40]!r}")
    return Spec(path, priority, version, _edits(content.get("containerEdits")), devices)


def _edits(content: Any) -> Edits:
    if content is None:
        return {}
    if not isinstance(content, dict):
        raise Unusable("containerEdits is no object")
    if not all(isinstance(one, str) and "=" in one for one in _list(content.get("env"), "env")):
        raise Unusable("env has something that is no variable")
    for key, needed in (("deviceNodes", ("path",)), ("mounts", ("hostPath", "containerPath")), ("hooks", ("path",))):
        for entry in _list(content.get(key), key):
            if not isinstance(entry, dict) or not all(isinstance(entry.get(name), str) for name in needed):
                raise Unusable(f"{key} has something without {' and '.join(needed)}")
            if not all(isinstance(option, str) for option in _list(entry.get("options"), "options")):
                raise Unusable(f"{key} has options that are no texts")
            if not isinstance(entry.get("hostPath", ""), str):
                raise Unusable(f"{key} has a hostPath that is no text")
    return {key: value for key, value in content.items() if value is not None}


def _list(value: Any, what: str) -> list[Any]:
    if value is None:
        return []
    if not isinstance(value, list):
        raise Unusable(f"{what} is no list")
    return value
