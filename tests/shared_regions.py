"""Files as HAMi-core libraries lay them out."""

import pathlib
import struct
from typing import Any


def write(
    path: pathlib.Path,
    *,
    used: tuple[int, ...] = (),
    uuids: tuple[str, ...] = ("GPU-a",),
    percent: int = 0,
    **fields: Any,
) -> pathlib.Path:
    """A region as the library lays it out, with one process for each entry of `used`, all on the first GPU."""
    head = struct.pack(
        "<iIIiQ32xQ", fields.get("magic", 19920718), 1, fields.get("minor", 2), 0, 0, fields.get("gpus", len(uuids))
    )
    head += b"".join(one.encode().ljust(96, b"\0") for one in uuids).ljust(16 * 96, b"\0") + bytes(2 * 16 * 8)
    slots = b""
    for bytes_used in used:
        memory = struct.pack("<4QQ3Q", 0, 0, 0, 0, bytes_used, 0, 0, 0).ljust(16 * 64, b"\0")
        busy = struct.pack("<6Q", 0, 0, percent, 0, 0, 0).ljust(16 * 48, b"\0")
        slots += struct.pack("<ii", 1, 1) + memory + bytes(16 * 8) + busy + bytes(32)
    tail = struct.pack("<iiiiQ4Q", fields.get("processes", len(used)), 0, 0, 0, 0, 0, 0, 0, 0)
    whole = head + slots.ljust(1024 * 1960, b"\0") + tail
    path.write_bytes(whole[: len(whole) - fields.get("cut", 0)] + b"\0")
    return path
