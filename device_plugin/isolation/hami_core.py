"""Isolation by the HAMi-core library, which counts and limits CUDA calls within each container.

The library lies on the node where an operator put it. A versioned file is chosen and mounted by its own path, so that
an upgrade beside it never changes a library under a running process. A tenant can switch it off
(`CUDA_DISABLE_CONTROL`), as HAMi's users know it: it guards against accidents, not against malice.

Source: HAMi v2.10 pkg/device-plugin/nvidiadevice/nvinternal/plugin/server.go for names; HAMi-core reads a memory and
an SM limit per device index.
"""

import contextlib
import pathlib
import re
import shutil
import stat
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from device_plugin import edits
from device_plugin.isolation import Granted, Refused, none

_LIBRARY = "libvgpu.so"
_LOCK = "/tmp/vgpulock"  # noqa: S108  # the library's own path, fixed by its contract
_OPEN_TO_ALL = 0o777
"""The library runs as whatever user the container has."""


@dataclass(frozen=True, slots=True)
class Options:
    """How the library is told to work."""

    hook_path: pathlib.Path
    """The host's folder that holds `vgpu/`; containers see it under the same path."""
    oversubscribe: bool = False
    """Whether more memory is promised than there is, so that the library must swap."""
    disable_core_limit: bool = False
    log_level: str = "1"


def library(hook_path: pathlib.Path) -> pathlib.Path | None:
    """The library's file with the highest version; None where there is none."""
    folder = hook_path / "vgpu"
    versioned = [path for path in folder.glob(f"{_LIBRARY}.*") if re.fullmatch(r"[\d.]+", path.name[len(_LIBRARY) :])]
    if versioned:
        return max(versioned, key=lambda path: tuple(int(part) for part in re.findall(r"\d+", path.name)))
    plain = folder / _LIBRARY
    return plain.resolve() if plain.exists() else None


class HamiCore(none.TimeSlicing):
    """The HAMi-core backend."""

    def __init__(self, options: Options) -> None:
        self._options = options
        self._containers = options.hook_path / "vgpu" / "containers"

    def edits(self, granted: Granted, neighbours: Iterable[Granted]) -> edits.Edits:
        """Limits as environment, the library, its preload and a cache directory of the container's own."""
        options = self._options
        found = library(options.hook_path)
        if found is None:
            raise Refused(f"there is no {_LIBRARY} in {options.hook_path}/vgpu")
        inside = f"{options.hook_path}/vgpu"
        cache = self._containers / granted.folder
        try:
            for folder in (cache, pathlib.Path(_LOCK)):
                folder.mkdir(parents=True, exist_ok=True)
                if stat.S_IMODE(folder.stat().st_mode) != _OPEN_TO_ALL:
                    folder.chmod(_OPEN_TO_ALL)
        except OSError as cause:
            raise Refused(f"{cause.filename}: {cause.strerror or cause}") from cause
        environment = {
            "CUDA_DEVICE_MEMORY_SHARED_CACHE": f"{inside}/{granted.allocation}.cache",
            "LIBCUDA_LOG_LEVEL": options.log_level,
            **{
                f"CUDA_DEVICE_MEMORY_LIMIT_{position}": f"{share.memory_mib}m"
                for position, share in enumerate(granted.shares)
            },
        }
        if options.disable_core_limit:
            environment["GPU_CORE_UTILIZATION_POLICY"] = "disable"
        elif any(share.cores_percent for share in granted.shares):
            # The first one for libraries that know a single limit, then one for each GPU.
            environment["CUDA_DEVICE_SM_LIMIT"] = str(granted.shares[0].cores_percent)
            for position, share in enumerate(granted.shares):
                environment[f"CUDA_DEVICE_SM_LIMIT_{position}"] = str(share.cores_percent)
        if options.oversubscribe:
            environment["CUDA_OVERSUBSCRIBE"] = "true"
        mounts = [
            edits.Mount(str(cache), inside, read_only=False),
            edits.Mount(str(found), f"{inside}/{_LIBRARY}"),
            edits.Mount(_LOCK, _LOCK, read_only=False),
        ]
        preload = options.hook_path / "vgpu" / "ld.so.preload"
        if granted.environment.get("CUDA_DISABLE_CONTROL") != "true" and preload.exists():
            mounts.append(edits.Mount(str(preload), "/etc/ld.so.preload"))
        return edits.Edits(environment, tuple(mounts))

    def claim(self, folder: str, owner: str) -> None:
        """Link the owner's name to the folder."""
        link = self._containers / owner
        if folder in ("", owner) or not (self._containers / folder).is_dir():
            return
        with contextlib.suppress(OSError):  # Only the monitor misses it.
            if link.is_symlink() and link.readlink() != pathlib.Path(folder):
                link.unlink()
            link.symlink_to(folder)

    def folders(self, older_than_seconds: float) -> Sequence[str]:
        """The cache directories of containers."""
        latest = time.time() - older_than_seconds
        try:
            return [path.name for path in self._containers.iterdir() if path.lstat().st_ctime <= latest]
        except OSError:
            return ()

    def forget(self, folder: str) -> None:
        """Delete a cache directory, or the link to one."""
        with contextlib.suppress(OSError):
            if (self._containers / folder).is_symlink():
                (self._containers / folder).unlink()
        shutil.rmtree(self._containers / folder, ignore_errors=True)
