"""Finds NVIDIA's library below a folder of the host, where no container runtime has mounted it.

Only that file is loaded from there, by its path. The host's folders must not be in the search path of the loader: they
have a C library of another version, with which this process would not run.

Source: folders of NVIDIA/nvidia-container-toolkit's search for the driver; those of Google's Container-Optimized OS and
of WSL 2 by their own documentation.
"""

import ctypes
import pathlib
import platform

from device_plugin.driver import gpu_source
from gpu_sharing.core import nvidia


def find(root: pathlib.Path) -> pathlib.Path | None:
    """Return the library's file below the root of a driver installation; None where there is none."""
    for folder in nvidia.LIBRARY_FOLDERS:
        path = root / folder.format(machine=platform.machine()) / nvidia.NVML_LIBRARY
        if path.exists():
            return path
    return None


def load(root: pathlib.Path) -> None:
    """Load NVIDIA's library, so that a later search by its name finds it loaded.

    Raises:
        DriverMissing: It is not there, or cannot be loaded.
    """
    path = find(root)
    if path is None:
        raise gpu_source.DriverMissing(f"there is no {nvidia.NVML_LIBRARY} below --driver-root {root}")
    try:
        ctypes.CDLL(str(path), mode=ctypes.RTLD_GLOBAL)
    except OSError as cause:
        raise gpu_source.DriverMissing(f"{path} cannot be loaded: {cause}") from cause
