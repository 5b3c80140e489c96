"""Releases GPUs that an administrator is about to reset: an annotation of the node, which plugin and monitor follow.

A reset, and a switch of the MIG mode, are refused while any process has the GPU open. Only a call to the GPU would show
whether the reset was done, so a GPU is used again once the annotation no longer names it.
"""

import contextlib
from collections.abc import Callable, Iterable, Mapping

import structlog

from device_plugin.driver import gpu_source
from device_plugin.driver.driver_threads import DriverThreads
from device_plugin.node.problems import Problems
from gpu_sharing.core import error_codes, identifiers, records

_RELEASING = "to be released: the device plugin still holds the GPU"

log = structlog.get_logger("node")


def released_gpus(annotations: Mapping[str, str] | None) -> frozenset[identifiers.GpuUuid]:
    """Return the GPUs that a node's annotations release."""
    return records.decode_cordon((annotations or {}).get(records.RELEASE, ""))


def positions(
    released: Iterable[identifiers.GpuUuid], indices: Mapping[identifiers.GpuUuid, int]
) -> dict[identifiers.GpuUuid, int]:
    """Return the released GPUs that the node has, each with its position in the driver's order."""
    return {uuid: indices[uuid] for uuid in released if uuid in indices}


async def release_gpus(driver: DriverThreads, released: Mapping[identifiers.GpuUuid, int]) -> str:
    """Have the driver close these GPUs, and use again those that it released before.

    Returns:
        Why they are not released; empty once they are, and where there is no driver that could have them open.

    Raises:
        DriverChanged: The process has to start again.
    """
    with contextlib.suppress(gpu_source.DriverMissing):
        try:
            await driver.release(released)
        except gpu_source.GpuFailed as cause:
            return str(cause)
    return ""


class Releases:
    """The GPUs that the plugin has released, or is about to.

    Args:
        driver: Has GPUs open.
        problems: Of the node.
        changed: Called before and after each release, so that nothing new is placed on these GPUs.

    Attributes:
        reasons: Why each of them is not offered.
    """

    def __init__(self, driver: DriverThreads, problems: Problems, changed: Callable[[], None]) -> None:
        self._driver = driver
        self._problems = problems
        self._changed = changed
        self.reasons: Mapping[identifiers.GpuUuid, str] = {}

    async def follow(self, wanted: Iterable[identifiers.GpuUuid], indices: Mapping[identifiers.GpuUuid, int]) -> None:
        """Release the GPUs that the administrator named, and use all others again.

        Args:
            wanted: By the node's annotation.
            indices: Positions of the node's GPUs in the driver's order.
        """
        released = positions(wanted, indices)
        is_done = all(reason == records.RELEASED for reason in self.reasons.values())
        if released.keys() == self.reasons.keys() and is_done:
            return
        self.reasons = {uuid: self.reasons.get(uuid, _RELEASING) for uuid in released}
        self._changed()
        refusal = await release_gpus(self._driver, released)
        if refusal:
            for uuid in released:
                self._problems.report(error_codes.PLUGIN_GPU_NOT_RELEASED, refusal, uuid)
            return
        self._problems.keep(error_codes.PLUGIN_GPU_NOT_RELEASED, ())
        self.reasons = dict.fromkeys(released, records.RELEASED)
        log.info("GPUs are released", devices=sorted(released))
        self._changed()
