"""Isolation by the HAMi-core library, which counts and limits CUDA calls within each container.

The chart's `hami-core` pods put the library on the node. A versioned file is chosen and mounted by its own path, so
that an upgrade beside it never changes a library under a running process. A container is limited only if
`/etc/ld.so.preload` inside it names the library, so this module writes that file too, and the backend is available only
while both exist. A tenant can switch the library off (`CUDA_DISABLE_CONTROL`), as in HAMi: it guards against accidents,
not against malice.

Source: HAMi v2.10 pkg/device-plugin/nvidiadevice/nvinternal/plugin/server.go for names, docker/vgpu-init.sh for the
preload file; HAMi-core reads a memory and an SM limit for each device, in the order in which CUDA sees them.
"""

import contextlib
import os
import pathlib
import platform
import re
import shutil
import stat
import struct
import time
from collections.abc import Iterable, Iterator, Sequence

import structlog

from device_plugin.delivery import edits
from device_plugin.isolation import none
from device_plugin.isolation.assignment import Assignment
from device_plugin.isolation.backend import BackendSettings, CannotIsolate
from gpu_sharing.core import error_codes

NAME = "hami-core"
SWITCH = "CUDA_DISABLE_CONTROL"
_LIBRARY = "libvgpu.so"
_PRELOAD = "ld.so.preload"
_LOCK = "/tmp/vgpulock"  # noqa: S108  # the library's own path, fixed by its contract
_LOCK_FOLDER = "lock"
_FOLDER_MODE, _LOCK_MODE, _REGION_MODE = 0o755, 0o1777, 0o666
"""The library runs as the container's user, which may write its region and its lock, and nothing else."""
_MOST_REGION_BYTES = 64 << 20
_KEPT_REGION_BYTES = 16 << 20
"""More than the region of any version; what a tenant writes behind it is cut off."""
_MOST_LOCKS = 16
_VERSION = re.compile(r"v?(\d+(?:\.\d+)*)([-+].*)?")
_TRUE = frozenset({"1", "t", "T", "TRUE", "true", "True"})
"""What Go's `strconv.ParseBool` reads as true, as HAMi does."""
_ELF = struct.Struct("<4sBB10xHH")
_SHARED_OBJECT = 3
_MACHINES = {"x86_64": 62, "aarch64": 183}

log = structlog.get_logger("hami-core")


def library(hook_path: pathlib.Path) -> pathlib.Path:
    """Return the library's file with the highest version that can be loaded on this machine.

    A release is higher than its own pre-releases (`v2.10.0-rc1`), as in semantic versioning.

    Raises:
        CannotIsolate: There is none; the text lists the files that cannot be loaded.
    """
    folder = hook_path / "vgpu"
    versions = sorted(_versioned(folder), reverse=True)
    plain = folder / _LIBRARY
    paths = [*(path for _, path in versions), *([plain.resolve()] if plain.exists() else [])]
    reasons = []
    for path in paths:
        reason = _unloadable(path)
        if not reason:
            return path
        reasons.append(f"{path.name} {reason}")
    raise CannotIsolate(
        f"{folder} has no {_LIBRARY} that can be loaded{': ' if reasons else ''}{', '.join(reasons[:3])}"
    )


def _versioned(folder: pathlib.Path) -> Iterator[tuple[tuple[tuple[int, ...], bool, str], pathlib.Path]]:
    for path in folder.glob(f"{_LIBRARY}.*"):
        match = _VERSION.fullmatch(path.name[len(_LIBRARY) + 1 :])
        if match:
            suffix = match[2] or ""
            yield (tuple(int(part) for part in match[1].split(".")), not suffix.startswith("-"), suffix), path


def _unloadable(path: pathlib.Path) -> str:
    """Return why the loader would skip a file, and leave the container without limits; empty if it loads it."""
    try:
        with path.open("rb") as file:
            head = file.read(_ELF.size)
    except OSError as cause:
        return f"cannot be read ({cause.strerror})"
    if len(head) < _ELF.size or head[:4] != b"\x7fELF":
        return "is no shared library"
    _, bits, order, kind, machine = _ELF.unpack(head)
    wanted = _MACHINES.get(platform.machine(), machine)
    if (bits, order, kind) != (2, 1, _SHARED_OBJECT) or machine != wanted:
        return f"is not for {platform.machine()}"
    return ""


def _signature(hook_path: pathlib.Path, library_file: pathlib.Path) -> tuple[int, ...]:
    """Return what changes whenever a library or the preload file changes; empty where one is missing."""
    folder = hook_path / "vgpu"
    try:
        states = [path.stat() for path in (folder, folder / _PRELOAD, library_file)]
    except OSError:
        return ()
    return tuple(number for one in states for number in (one.st_ino, one.st_mtime_ns, one.st_ctime_ns))


def _write_preload(hook_path: pathlib.Path) -> None:
    preload = hook_path / "vgpu" / _PRELOAD
    wanted = f"{_inside(hook_path)}/{_LIBRARY}\n".encode()
    try:
        with contextlib.suppress(FileNotFoundError):
            if preload.read_bytes() == wanted:
                return
        # Renamed, because running containers have the old file mounted.
        part = preload.with_name(f".{_PRELOAD}.part")
        part.write_bytes(wanted)
        part.chmod(0o644)
        part.rename(preload)
    except OSError as cause:
        raise CannotIsolate(f"{preload} cannot be written: {cause.strerror or cause}") from cause


def _inside(hook_path: pathlib.Path) -> str:
    """Return the path of the library's folder in a container."""
    return f"{hook_path}/vgpu"


class HamiCore(none.TimeSlicing):
    """The HAMi-core backend."""

    unavailable_code = error_codes.PLUGIN_HAMI_CORE

    def __init__(self, settings: BackendSettings) -> None:
        super().__init__(settings)
        self._hook_path = settings.hook_path
        self._containers = settings.hook_path / "vgpu" / "containers"
        self._ready: tuple[pathlib.Path, tuple[int, ...]] | None = None
        """The library that was found last, and the signature of its files: each start of a container needs it."""

    def problem(self) -> str:
        """Return why the library cannot be preloaded here; empty where it can."""
        try:
            self.ready_library()
        except CannotIsolate as reason:
            return str(reason)
        return ""

    def ready_library(self) -> pathlib.Path:
        """Return the library that containers get now, after its preload file was written.

        Raises:
            CannotIsolate: No container can be limited here.
        """
        library_file, signature = self._ready or (self._hook_path, ())
        self._ready = None
        if not signature or signature != _signature(self._hook_path, library_file):
            library_file = library(self._hook_path)
            _write_preload(self._hook_path)
            signature = _signature(self._hook_path, library_file)
        self._ready = library_file, signature
        return library_file

    def isolation_in_effect(self, assignment: Assignment) -> str:
        """Return `hami-core`, or `none` where the container's own variable switches the library off."""
        return f"none ({SWITCH})" if _is_off(assignment) else NAME

    def edits(self, assignment: Assignment, neighbours: Iterable[Assignment]) -> edits.Edits:
        """Return limits as environment, the library, its preload file, and a folder of the container's own."""
        library_file = self.ready_library()
        inside = _inside(self._hook_path)
        region = f"{assignment.allocation}.cache"
        folder = self._containers / assignment.folder
        try:
            _make(folder, region if assignment.allocation else "")
        except OSError as cause:
            raise CannotIsolate(f"{cause.filename}: {cause.strerror or cause}") from cause
        mounts = [
            edits.Mount(str(folder), inside, read_only=False),
            edits.Mount(str(library_file), f"{inside}/{_LIBRARY}"),
            edits.Mount(str(folder / _LOCK_FOLDER), _LOCK, read_only=False),
        ]
        if not _is_off(assignment):
            mounts.append(edits.Mount(str(self._hook_path / "vgpu" / _PRELOAD), f"/etc/{_PRELOAD}"))
        environment = {
            "CUDA_DEVICE_MEMORY_SHARED_CACHE": f"{inside}/{region}",
            "LIBCUDA_LOG_LEVEL": self._settings.library_log_level,
            **self._limits(assignment),
        }
        return edits.Edits(environment, tuple(mounts))

    def _limits(self, assignment: Assignment) -> dict[str, str]:
        shares = [assignment.shares[position] for position in assignment.cuda_order()]
        limits = {f"CUDA_DEVICE_MEMORY_LIMIT_{index}": f"{share.memory_mib}m" for index, share in enumerate(shares)}
        if self._settings.disable_core_limit:
            limits["GPU_CORE_UTILIZATION_POLICY"] = "disable"
        elif any(share.cores_percent for share in shares):
            # The first one for libraries that know a single limit, then one for each GPU.
            limits["CUDA_DEVICE_SM_LIMIT"] = str(shares[0].cores_percent)
            limits |= {f"CUDA_DEVICE_SM_LIMIT_{index}": str(share.cores_percent) for index, share in enumerate(shares)}
        if len({(share.memory_mib, share.cores_percent) for share in shares}) > 1:
            limits["CUDA_DEVICE_ORDER"] = "PCI_BUS_ID"
        return limits

    def link_owner(self, folder: str, owner: str) -> None:
        """Link the owner's name to the folder. An error is ignored: only the monitor's figures need the link."""
        link = self._containers / owner
        if folder in ("", owner) or not (self._containers / folder).is_dir():
            return
        with contextlib.suppress(OSError):
            if link.is_symlink() and link.readlink() != pathlib.Path(folder):
                link.unlink()
            link.symlink_to(folder)

    def folders(self, older_than_seconds: float) -> Sequence[str]:
        """Return the folders of containers, and links to them."""
        latest = time.time() - older_than_seconds
        try:
            return [path.name for path in self._containers.iterdir() if path.lstat().st_ctime <= latest]
        except OSError:
            return ()

    def delete_folder(self, folder: str) -> None:
        """Delete a container's folder with all its files."""
        path = self._containers / folder
        try:
            if path.is_symlink():  # Made by `link_owner`.
                path.unlink()
            else:
                shutil.rmtree(path)
        except FileNotFoundError:
            return
        except OSError as cause:
            log.error(
                "folder not deleted", error_code=error_codes.PLUGIN_FOLDER_STAYS, path=str(path), cause=str(cause)
            )

    def truncate_folders(self) -> None:
        """Cut what containers have written beyond what the library needs, so that none can fill the node's disk."""
        try:
            folders = list(self._containers.iterdir())
        except OSError:
            return
        for folder in folders:
            with contextlib.suppress(OSError):
                _truncate(folder)


def _is_off(assignment: Assignment) -> bool:
    return assignment.environment.get(SWITCH, "") in _TRUE


def _make(folder: pathlib.Path, region: str) -> None:
    """Make a container's folder, its region, which every user of the container may write, and its lock's folder."""
    with contextlib.suppress(FileNotFoundError):
        if region and os.lstat(folder / region).st_mode == stat.S_IFREG | _REGION_MODE:
            return  # It is made last.
    for path, mode in ((folder, _FOLDER_MODE), (folder / _LOCK_FOLDER, _LOCK_MODE)):
        path.mkdir(parents=True, exist_ok=True)
        if stat.S_IMODE(path.stat().st_mode) != mode:
            path.chmod(mode)
    if region:
        # Links are not followed: an older version let tenants write the folder.
        descriptor = os.open(folder / region, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, _REGION_MODE)
        try:
            os.fchmod(descriptor, _REGION_MODE)
        finally:
            os.close(descriptor)


def _truncate(folder: pathlib.Path) -> None:
    with os.scandir(folder) as entries:
        for entry in entries:
            if entry.is_file(follow_symlinks=False):
                status = entry.stat(follow_symlinks=False)
                if max(status.st_size, status.st_blocks * 512) > _MOST_REGION_BYTES:
                    os.truncate(entry.path, _KEPT_REGION_BYTES)
                    _report(folder, f"{entry.name} had {status.st_size} bytes")
    lock = folder / _LOCK_FOLDER
    with os.scandir(lock) as entries:
        has_content = [
            entry.is_dir(follow_symlinks=False) or entry.stat(follow_symlinks=False).st_blocks for entry in entries
        ]
    if len(has_content) > _MOST_LOCKS or any(has_content):
        # The library's own lock is an empty file.
        for path in lock.iterdir():
            if path.is_dir() and not path.is_symlink():
                shutil.rmtree(path)
            else:
                path.unlink()
        _report(folder, f"{_LOCK_FOLDER} had {len(has_content)} entries, or entries with content")


def _report(folder: pathlib.Path, cause: str) -> None:
    log.warning(
        "container folder truncated", error_code=error_codes.PLUGIN_FOLDER_CLEARED, container=folder.name, cause=cause
    )
