"""Injects values into the cache of NVIDIA's DCGM, which its health checks, policies and exporters read.

Source: NVIDIA's DCGM documentation, `dcgmi test --inject`, and dcgm_fields.h for the numbers of the fields. A value
lasts until DCGM measures the next one, so it is injected again each second.
"""

import asyncio
import re
import shutil
from collections.abc import Callable, Mapping

from fault_injector.backends import BackendFailed
from gpu_sharing.core import faults

_AGAIN_SECONDS = 1.0
_CALL_SECONDS = 20.0
_LONGEST_OUTPUT = 64 * 1024
_THERMAL, _POWER_BRAKE = 0x40, 0x80
_GPU = re.compile(r"^\|\s*(\d+)\s*\|")
_UUID = re.compile(r"Device UUID:\s*(GPU-[0-9a-fA-F-]+)")

FIELDS: Mapping[str, tuple[int, Callable[[Mapping[str, faults.Value]], int]]] = {
    "xid": (230, lambda values: int(values["xid"])),
    "overheat": (150, lambda values: int(values["celsius"])),
    "ecc": (311, lambda values: int(values["count"])),
    "throttle": (112, lambda values: _POWER_BRAKE if values["reason"] == "power-brake" else _THERMAL),
    "saturation": (203, lambda values: int(values["percent"])),
}
"""By kind: the number of the field, and its value. They are DCGM_FI_DEV_XID_ERRORS, _GPU_TEMP, _ECC_DBE_VOL_TOTAL,
_CLOCK_THROTTLE_REASONS and _GPU_UTIL."""


def gpu_numbers(listed: str) -> dict[str, int]:
    """Return DCGM's number of each GPU by its UUID, from the output of `dcgmi discovery -l`."""
    found: dict[str, int] = {}
    number = -1
    for text in listed.splitlines():
        if match := _GPU.match(text):
            number = int(match[1][:4])
        if (uuid := _UUID.search(text)) and number >= 0:
            found[uuid[1]] = number
    return found


class Dcgm:
    """Calls `dcgmi` on this machine."""

    name = "dcgm"
    outlives_process = False

    def __init__(self, program: str = "dcgmi") -> None:
        self._program = program
        self._injecting: dict[str, asyncio.Task[None]] = {}

    @property
    def kinds(self) -> frozenset[str]:
        """See `Backend`; none where `dcgmi` is not installed."""
        return frozenset(FIELDS) if shutil.which(self._program) else frozenset()

    async def resolve(self, request: faults.Request) -> faults.Request:
        """See `Backend`; the GPU is looked up when it is injected."""
        return request

    async def inject(self, fault: faults.Fault) -> None:
        """See `Backend`."""
        uuid = str(fault.values["gpu"])
        number = gpu_numbers(await self._call("discovery", "-l")).get(uuid)
        if number is None:
            raise BackendFailed(f"dcgmi discovery does not list {uuid}")
        field, value_of = FIELDS[fault.kind.name]
        arguments = ("test", "--inject", "--gpuid", str(number), "-f", str(field), "-v", str(value_of(fault.values)))
        await self._call(*arguments)
        self._injecting[fault.id] = asyncio.create_task(self._repeat(arguments))

    async def _repeat(self, arguments: tuple[str, ...]) -> None:
        while True:
            await asyncio.sleep(_AGAIN_SECONDS)
            try:
                await self._call(*arguments)
            except BackendFailed:
                continue  # DCGM may restart.

    async def recover(self, fault: faults.Fault) -> None:
        """Stop injecting: DCGM's next measurement replaces the value."""
        task = self._injecting.pop(fault.id, None)
        if task is not None:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)

    async def _call(self, *arguments: str) -> str:
        try:
            process = await asyncio.create_subprocess_exec(
                self._program, *arguments, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.STDOUT
            )
        except OSError as cause:
            raise BackendFailed(f"{self._program}: {cause.strerror or cause}") from cause
        try:
            async with asyncio.timeout(_CALL_SECONDS):
                output, _ = await process.communicate()
        except (TimeoutError, asyncio.CancelledError) as cause:
            process.kill()
            await process.wait()
            if isinstance(cause, asyncio.CancelledError):
                raise
            raise BackendFailed(f"{self._program} {arguments[0]} does not end") from cause
        text = output[:_LONGEST_OUTPUT].decode(errors="replace")
        if process.returncode:
            raise BackendFailed(f"{self._program} {arguments[0]}: {text.strip()[:200] or process.returncode}")
        return text
