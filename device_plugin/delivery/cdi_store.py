"""CDI specifications that the plugin writes, one for each allocation. Those of the host are read in `host_cdi`.

A name is never used twice, because a runtime's cache may still have the old specification. So each allocation has its
own name, whose file name also has the UID of its pod, and a file is deleted only after the kubelet deleted the
allocation.

Source: CDI specification 0.5.0. Measured on containerd 2: it follows the directory by inotify, notices renames, and
does not read the directory again for an unknown name.
"""

import contextlib
import json
import pathlib
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from device_plugin.delivery import edits, host_cdi
from gpu_sharing.core import identifiers

KIND = "hami.io/vgpu"
_VERSION = host_cdi.OLDEST_VERSION


def own_device(names: Iterable[str]) -> str | None:
    """Return the device of ours among fully qualified CDI names; None where there is none."""
    for name in names:
        kind, equals, device = name.partition("=")
        if kind == KIND and equals:
            return device
    return None


class NotWritten(Exception):
    """A specification cannot be written; the text has the reason."""


@dataclass(frozen=True, slots=True)
class WrittenSpec:
    """A specification of the plugin on disk."""

    device: str
    pod_uid: identifiers.PodUid
    path: pathlib.Path

    @property
    def name(self) -> str:
        """Fully qualified CDI name of the device."""
        return f"{KIND}={self.device}"


class CdiStore:
    """The plugin's specifications in the runtime's directory."""

    def __init__(self, folder: pathlib.Path) -> None:
        self._folder = folder

    def write(self, device: str, pod_uid: identifiers.PodUid, wanted: edits.Edits, version: str = _VERSION) -> bool:
        """Write a specification, unless the same one exists.

        Returns:
            Whether it was written now, so that runtimes need a moment to notice it.

        Raises:
            NotWritten: The directory is read-only, full or missing.
        """
        spec = {
            "cdiVersion": version,
            "kind": KIND,
            "devices": [{"name": device, "containerEdits": edits.container_edits(wanted)}],
        }
        content = json.dumps(spec, indent=1, sort_keys=True).encode()
        path = self._path(device, pod_uid)
        # The runtime reads files that end in .json or .yaml; the name of the half-written file must not.
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
        """Return whether a specification of this name exists for this pod."""
        return self._path(device, pod_uid).exists()

    def age_seconds(self, device: str, pod_uid: identifiers.PodUid) -> float:
        """Return how long ago a specification was written; 0 where it does not exist."""
        try:
            return time.time() - self._path(device, pod_uid).stat().st_mtime
        except OSError:
            return 0.0

    def all(self) -> Iterator[WrittenSpec]:
        """Yield every specification that the plugin wrote."""
        with contextlib.suppress(OSError):
            for path in sorted(self._folder.iterdir()):
                match = host_cdi.OURS.fullmatch(path.name)
                if match:
                    yield WrittenSpec(match["device"], identifiers.PodUid(match["uid"]), path)

    def delete(self, written: WrittenSpec) -> None:
        """Delete the specification of an allocation that the kubelet deleted."""
        with contextlib.suppress(OSError):
            written.path.unlink(missing_ok=True)

    def _path(self, device: str, pod_uid: identifiers.PodUid) -> pathlib.Path:
        return self._folder / f"hami-vgpu_{device}_{pod_uid}.json"
