"""CDI specifications that we write, one for each allocation. Those of the host are read in `host_cdi`.

A name is never used twice: a runtime's cache may still hold what an old one meant. So each allocation has a name of
its own, whose file also carries the UID of its pod, and a file is deleted only when the kubelet has forgotten the
allocation.

Source: CDI specification 0.5.0; that containerd follows the directory by inotify and does not look again on a miss,
and renames are seen, was measured on containerd 2.
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
    """The directory of specifications does not take one; the text says why."""


@dataclass(frozen=True, slots=True)
class WrittenSpec:
    """A specification of ours on disk."""

    device: str
    pod_uid: identifiers.PodUid
    path: pathlib.Path

    @property
    def name(self) -> str:
        """The fully qualified CDI name."""
        return f"{KIND}={self.device}"


class CdiStore:
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
            "cdiVersion": version,
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

    def all(self) -> Iterator[WrittenSpec]:
        """Every specification of ours."""
        with contextlib.suppress(OSError):
            for path in sorted(self._folder.iterdir()):
                match = host_cdi.OURS.fullmatch(path.name)
                if match:
                    yield WrittenSpec(match["device"], identifiers.PodUid(match["uid"]), path)

    def delete(self, written: WrittenSpec) -> None:
        """Delete one whose allocation the kubelet has forgotten."""
        with contextlib.suppress(OSError):
            written.path.unlink(missing_ok=True)

    def _path(self, device: str, pod_uid: identifiers.PodUid) -> pathlib.Path:
        return self._folder / f"hami-vgpu_{device}_{pod_uid}.json"
