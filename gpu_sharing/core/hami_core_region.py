"""The usage file of a container's HAMi-core library, in which it counts what the container's processes use.

The tenant can write the file, so every value is checked. A file with an impossible number raises an error and is never
read in part.

Source: HAMi-core `src/multiprocess/multiprocess_memory_limit.h`, region versions 1.1 and 1.2, 64-bit Linux.
"""

import struct
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from gpu_sharing.core import identifiers

_MAGIC = 19920718
_VERSIONS = ((1, 1), (1, 2))
"""Version 1.1 is of the libraries of HAMi v2.5 to v2.8.0 and has the same offsets."""
_DEVICES, _SLOTS = 16, 1024
_HEAD = struct.Struct(f"<iIIiQ32xQ{'96s' * _DEVICES}{_DEVICES}Q{_DEVICES}Q")
_SLOT = struct.Struct(f"<ii{8 * _DEVICES}Q{_DEVICES}Q{6 * _DEVICES}Qi4x3Q")
_TAIL = struct.Struct("<iiiiQ")
_SEMAPHORE_BYTES = 32
"""After the tail, in version 1.2."""
SIZE_BYTES = _HEAD.size + _SLOTS * _SLOT.size + _TAIL.size + _SEMAPHORE_BYTES
_USED_FIELDS, _USED_TOTAL = 8, 4
_UTIL_FIELDS, _UTIL_SM = 6, 2


class InvalidRegion(Exception):
    """The file is not one that the library writes.

    Attributes:
        kind: `version` for another layout, else `corrupt`.
    """

    def __init__(self, kind: str, sentence: str) -> None:
        super().__init__(sentence)
        self.kind = kind


@dataclass(frozen=True, slots=True)
class Counted:
    """Counts of the library on one GPU, in total of the container's processes."""

    memory_bytes: int
    utilization_percent: float


def counted(
    size_bytes: int, read_at: Callable[[int, int], bytes], memory_bytes: Mapping[identifiers.GpuUuid, int]
) -> dict[identifiers.GpuUuid, Counted]:
    """Return what a container uses of each GPU by its library's count.

    Args:
        size_bytes: Size of the file.
        read_at: Returns so many bytes of it at an offset, or fewer at its end.
        memory_bytes: The GPUs that the container may have, by UUID, and the memory of each.

    Returns:
        By UUID; empty while the library has not made the region.

    Raises:
        InvalidRegion: It is no such file, or a number in it is impossible.
    """
    if size_bytes == 0:  # The device plugin makes the file, and the library fills it when a program first uses CUDA.
        return {}
    # The library makes it by writing one byte behind the region.
    if size_bytes not in {SIZE_BYTES - behind + extra for behind in (0, _SEMAPHORE_BYTES) for extra in (0, 1)}:
        raise InvalidRegion("version", f"it has {size_bytes} bytes, and version 1.2 has {SIZE_BYTES}")
    head = _HEAD.unpack(_exactly(read_at, _HEAD.size, 0))
    tail = _TAIL.unpack(_exactly(read_at, _TAIL.size, _HEAD.size + _SLOTS * _SLOT.size))
    magic, major, minor = head[:3]
    if magic == 0:
        return {}
    if magic != _MAGIC:
        raise InvalidRegion("corrupt", f"it starts with {magic}")
    if (major, minor) not in _VERSIONS:
        raise InvalidRegion("version", f"it has version {major}.{minor}, and 1.1 and 1.2 are known")
    count = tail[0]
    if not 0 <= count <= _SLOTS:
        raise InvalidRegion("corrupt", f"it counts {count} processes")
    slots = _exactly(read_at, count * _SLOT.size, _HEAD.size)
    return _counted(_uuids(head), slots, memory_bytes)


def _exactly(read_at: Callable[[int, int], bytes], size: int, offset: int) -> bytes:
    data = read_at(size, offset)
    if len(data) != size:
        raise InvalidRegion("corrupt", "it was cut while it was read")
    return data


def _uuids(head: Sequence[object]) -> list[identifiers.GpuUuid]:
    count = head[5]
    assert isinstance(count, int)
    if count > _DEVICES:
        raise InvalidRegion("corrupt", f"it counts {count} GPUs")
    names = [bytes(one).partition(b"\0")[0].decode(errors="replace") for one in head[6 : 6 + count]]  # type: ignore[call-overload]
    if len(set(names)) != len(names):
        raise InvalidRegion("corrupt", "it names a GPU twice")
    return [identifiers.GpuUuid(name) for name in names]


def _counted(
    uuids: Sequence[identifiers.GpuUuid], slots: bytes, memory_bytes: Mapping[identifiers.GpuUuid, int]
) -> dict[identifiers.GpuUuid, Counted]:
    memory = [0] * len(uuids)
    busy = [0] * len(uuids)
    for slot in _SLOT.iter_unpack(slots):
        used, util = slot[2 : 2 + _USED_FIELDS * _DEVICES], slot[2 + (_USED_FIELDS + 1) * _DEVICES :]
        for index in range(len(uuids)):
            memory[index] += used[index * _USED_FIELDS + _USED_TOTAL]
            busy[index] += util[index * _UTIL_FIELDS + _UTIL_SM]
    by_uuid = {}
    for index, uuid in enumerate(uuids):
        if uuid not in memory_bytes:
            if memory[index] or busy[index]:
                raise InvalidRegion("corrupt", f"it counts use of {uuid}, which is not the container's")
            continue
        if memory[index] > memory_bytes[uuid]:
            raise InvalidRegion("corrupt", f"it counts {memory[index]} bytes on {uuid}, which has {memory_bytes[uuid]}")
        by_uuid[uuid] = Counted(memory[index], float(min(busy[index], 100)))
    return by_uuid
