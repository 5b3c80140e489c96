"""Which GPUs an administrator wants to reset: an annotation of the node that plugin and monitor follow.

A reset, and a switch of the MIG mode, are refused while any process holds the GPU. Nothing tells from outside whether
the reset was done without touching the GPU, so the hold ends when the annotation does.
"""

import contextlib
from collections.abc import Iterable, Mapping

import structlog

from device_plugin.driver import driver_threads, gpu_source
from gpu_sharing.core import identifiers, records

log = structlog.get_logger("node")


def released_gpus(annotations: Mapping[str, str] | None) -> frozenset[identifiers.GpuUuid]:
    """Return the GPUs that a node's annotations release."""
    return records.decode_cordon((annotations or {}).get(records.RELEASE, ""))


def positions(
    released: Iterable[identifiers.GpuUuid], indices: Mapping[identifiers.GpuUuid, int]
) -> dict[identifiers.GpuUuid, int]:
    """Return released GPUs with their positions, those that the node has."""
    return {uuid: indices[uuid] for uuid in released if uuid in indices}


async def release_gpus(driver: driver_threads.DriverThreads, released: Mapping[identifiers.GpuUuid, int]) -> str:
    """Have the driver let go of GPUs, and of no other any more.

    Returns:
        Why it did not; empty where it did, or where there is no driver that could hold one.

    Raises:
        DriverChanged: The process has to start anew.
    """
    with contextlib.suppress(gpu_source.DriverMissing):
        try:
            await driver.release(released)
        except gpu_source.GpuFailed as cause:
            return str(cause)
    return ""
