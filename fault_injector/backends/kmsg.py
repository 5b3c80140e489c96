"""Writes NVIDIA's line about an XID to the kernel's log, which log watchers such as NVSentinel read.

Source: NVIDIA's XID catalogue (docs.nvidia.com/deploy/xid-errors) for the line; NVSentinel's syslog monitor reads
the journal for `NVRM: Xid (PCI:…): N,`. What a program writes to /dev/kmsg is of facility `user`, for which journald
takes a first word that ends in a colon as the program's name and cuts it off: `kernel:` goes there in place of `NVRM:`.
"""

import asyncio
import os
import pathlib
import re

from fault_injector.backends import BackendFailed
from gpu_sharing.core import faults, xids

_ERROR = "<3>"
_MOST_GPUS = 64
_UUID = re.compile(r"^GPU UUID:\s*(GPU-[0-9a-fA-F-]+)\s*$", re.MULTILINE)
_BUS = re.compile(r"^Bus Location:\s*([0-9a-fA-F]{4,8}:[0-9a-fA-F]{2}:[0-9a-fA-F]{2})\.[0-7]\s*$", re.MULTILINE)
GPU_FOLDER = pathlib.Path("/proc/driver/nvidia/gpus")
"""One folder a GPU, with a file of its UUID and bus address."""


def line(bus: str, xid: int) -> str:
    """Return the driver's line about an XID.

    Args:
        bus: Domain, bus and device, such as `0000:3b:00`.
        xid: The number.
    """
    return f"NVRM: Xid (PCI:{bus}): {xid}, pid='<unknown>', name=<unknown>, {xids.of(xid).name}."


def bus_addresses(folder: pathlib.Path) -> dict[str, str]:
    """Return the bus address of each GPU by its UUID, as the driver lists them below /proc."""
    found = {}
    for file in sorted(folder.glob("*/information"))[:_MOST_GPUS]:
        text = file.read_text(errors="replace")
        uuid, bus = _UUID.search(text), _BUS.search(text)
        if uuid and bus:
            found[uuid[1]] = bus[1][-10:].lower()
    return found


class KernelLog:
    """Writes XIDs to the kernel's log of this machine. The GPU itself is not affected."""

    name = "kmsg"
    outlives_process = True
    kinds = frozenset({"xid"})

    def __init__(self, device: pathlib.Path = pathlib.Path("/dev/kmsg"), gpu_folder: pathlib.Path = GPU_FOLDER) -> None:
        self._device = device
        self._gpu_folder = gpu_folder

    async def resolve(self, request: faults.Request) -> faults.Request:
        """See `Backend`; the GPU is looked up when it is injected."""
        return request

    async def inject(self, fault: faults.Fault) -> None:
        """See `Backend`."""
        uuid = str(fault.values["gpu"])
        bus = (await asyncio.to_thread(bus_addresses, self._gpu_folder)).get(uuid)
        if bus is None:
            raise BackendFailed(f"{self._gpu_folder} does not list {uuid}: is NVIDIA's driver loaded on this node?")
        await asyncio.to_thread(self._write, f"{_ERROR}kernel: {line(bus, int(fault.values['xid']))}\n".encode())

    def _write(self, record: bytes) -> None:
        descriptor = os.open(self._device, os.O_WRONLY)  # One write is one record.
        try:
            os.write(descriptor, record)
        finally:
            os.close(descriptor)

    async def recover(self, fault: faults.Fault) -> None:
        """Do nothing: a line in a log cannot be taken back, and what read it acts by its own rules."""
