"""Reads the usage file of a container's HAMi-core library; `gpu_sharing.core.hami_core_region` has its layout.

The tenant can write the file's directory, so the file is opened without following links and without waiting, must be a
regular file, and is read, never mapped (a truncation under a mapping would kill this process).
"""

import os
import pathlib
import stat
from collections.abc import Mapping

from gpu_sharing.core import hami_core_region, identifiers
from gpu_sharing.core.hami_core_region import Counted as Counted
from gpu_sharing.core.hami_core_region import InvalidRegion as InvalidRegion


def read(path: pathlib.Path, memory_bytes: Mapping[identifiers.GpuUuid, int]) -> dict[identifiers.GpuUuid, Counted]:
    """Return what a container uses of each GPU by its library's count.

    Args:
        path: The file.
        memory_bytes: The GPUs that the container may have, by UUID, and the memory of each.

    Returns:
        By UUID; empty while the library has not made the region.

    Raises:
        InvalidRegion: It is no such file, or a number in it is impossible.
        OSError: It cannot be opened.
    """
    descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    try:
        status = os.fstat(descriptor)
        if not stat.S_ISREG(status.st_mode):
            raise InvalidRegion("corrupt", "it is no regular file")
        return hami_core_region.counted(
            status.st_size, lambda size, offset: os.pread(descriptor, size, offset), memory_bytes
        )
    finally:
        os.close(descriptor)
