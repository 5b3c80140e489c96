"""What the driver does not report about GPUs, as problems of the node; none of it is a fault of a GPU."""

from collections.abc import Sequence

from device_plugin.driver.gpu_source import Device, Gaps
from device_plugin.node.problems import Problems
from gpu_sharing.core import error_codes


def report(problems: Problems, devices: Sequence[Device], gaps: Gaps) -> None:
    """Report what is missing now, and remove the problems that have ended.

    Args:
        problems: The problems of the node.
        devices: Its GPUs, with the memory that is configured.
        gaps: Calls that the driver refused.
    """
    memory = {
        str(device.uuid): f"the driver reports no memory of GPU {device.index} ({device.name}), and "
        "--preconfigured-device-memory has none for it: the GPU is not offered"
        for device in devices
        if device.memory_mib is None
    }
    problems.replace(error_codes.PLUGIN_GPU_MEMORY_UNKNOWN, memory)
    problems.replace(error_codes.PLUGIN_GPU_NOT_IDENTIFIED, {f"GPU {at}": why for at, why in gaps.identity.items()})
    problems.replace(error_codes.PLUGIN_XIDS_NOT_HEARD, gaps.unheard(devices))
    problems.replace(error_codes.PLUGIN_MIG_NOT_READ, gaps.mig)
