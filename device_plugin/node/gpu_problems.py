"""What of a node's GPUs its driver refuses to say, as problems of the node: nothing here is a fault of a GPU."""

from collections.abc import Sequence

from device_plugin.driver import gpu_source
from device_plugin.node import problems
from gpu_sharing.core import error_codes


def report(node: problems.Problems, devices: Sequence[gpu_source.Device], gaps: gpu_source.Gaps) -> None:
    """Report what is missing now, and clear what is there again.

    Args:
        node: The problems of the node.
        devices: Its GPUs, with the memory that is configured.
        gaps: What the driver refused.
    """
    memory = {
        str(device.uuid): f"the driver does not say how much memory GPU {device.index} ({device.name}) has, "
        "and no amount is configured: nothing of it is offered"
        for device in devices
        if device.memory_mib is None
    }
    node.replace(error_codes.PLUGIN_GPU_MEMORY_UNKNOWN, memory)
    node.replace(error_codes.PLUGIN_GPU_NOT_IDENTIFIED, {f"GPU {at}": why for at, why in gaps.identity.items()})
    node.replace(error_codes.PLUGIN_XIDS_NOT_HEARD, gaps.unheard(devices))
    node.replace(error_codes.PLUGIN_MIG_NOT_READ, gaps.mig)
