"""A fake of the HAMi-core library: the header that the plugin checks, without loadable content."""

import pathlib
import platform
import struct

_MACHINES = {"x86_64": 62, "aarch64": 183}
_SHARED_OBJECT = 3


def place(hook_path: pathlib.Path, version: str = "v2.10.0") -> pathlib.Path:
    """Install a library of a version for the plugin, as the chart's `hami-core` pods do. Returns its file."""
    folder = hook_path / "vgpu"
    folder.mkdir(parents=True, exist_ok=True)
    found = folder / f"libvgpu.so.{version}"
    found.write_bytes(header())
    return found


def header(machine: str = "") -> bytes:
    """Return the header of a shared library for a machine, by default this one."""
    return struct.pack("<4sBB10xHH", b"\x7fELF", 2, 1, _SHARED_OBJECT, _MACHINES[machine or platform.machine()])
