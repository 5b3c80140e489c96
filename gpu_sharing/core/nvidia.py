"""NVIDIA's names and numbers: the one vendor whose GPUs are shared, by design. Pure.

Resource names and annotations under `nvidia.com` are in `requests`, the XIDs in `xids`.

Source: NVIDIA's NVML API reference, its container toolkit, and its k8s-device-plugin.
"""

import re

TYPE_PREFIX = "NVIDIA"
"""The first word of each GPU's type in records; product names of older drivers lack it."""

RUNTIME_CLASS = "nvidia"
"""The RuntimeClass that NVIDIA's GPU operator and this chart's documents use."""

CDI_KIND = "nvidia.com/gpu"
"""Kind of the CDI specifications that nvidia-ctk writes."""

VISIBLE_DEVICES = "NVIDIA_VISIBLE_DEVICES"
"""Variable with the GPUs that NVIDIA's container runtime adds to a container."""
NO_DEVICES = "void"
"""Value of that variable for no GPU."""
VOLUME_MOUNTS = "/var/run/nvidia-container-devices"
"""Value of that variable for GPUs that are named by mounts."""

CONTROL_NODE = "/dev/nvidiactl"
COMMON_NODES = (CONTROL_NODE, "/dev/nvidia-uvm", "/dev/nvidia-uvm-tools", "/dev/nvidia-modeset")
"""Device nodes that each container with a GPU needs."""
DEVICE_NODE = re.compile(r"(?:/.*)?/dev/nvidia(\d+)")
"""Path of a GPU's device node on the host, with its minor number."""

PROC_VERSION = "driver/nvidia/version"
"""Below `/proc`: the version of the kernel module."""
PROC_CAPABILITIES = "driver/nvidia-caps/mig-minors"
"""Below `/proc`: the minor numbers of the capabilities of MIG instances."""

NVML_LIBRARY = "libnvidia-ml.so.1"
DRIVER_LIBRARY = re.compile(r".*/lib(?:cuda|nvidia-ml)\.so\.(\d+\.\d+(?:\.\d+)?)")
"""Path of a library that has the driver's version in its name."""
MODULE_VERSION = re.compile(r"Kernel Module(?: for \S+)?\s+(\d+\.\d+(?:\.\d+)?)")
"""The version in `PROC_VERSION`."""
LIBRARY_FOLDERS = (
    "usr/lib/{machine}-linux-gnu", "usr/lib64", "usr/lib", "lib64", "lib/{machine}-linux-gnu",
    "usr/lib/{machine}-linux-gnu/nvidia/current", "home/kubernetes/bin/nvidia/lib64", "opt/nvidia/lib64",
    "usr/local/nvidia/lib64", "usr/lib/wsl/lib",
)  # fmt: skip
"""Folders of a driver installation that have its libraries."""

MPS_PROGRAM = "nvidia-cuda-mps-control"
MPS_ROOT = "/run/nvidia/mps"
"""Folder of the MPS daemon's pipes, logs and shared memory."""
MPS_MOST_CLIENTS = ((7, 0, 48), (3, 5, 16))
"""Lowest compute capability (major, minor), and the clients of one GPU from there on."""

EXCLUSIVE_PROCESS = 3
"""`NVML_COMPUTEMODE_EXCLUSIVE_PROCESS`."""
POWER_BRAKE = 0x80
"""`nvmlClocksEventReasonHwPowerBrakeSlowdown`."""
RECOVERY_ACTION = 230
"""`NVML_FI_DEV_GET_GPU_RECOVERY_ACTION`."""
COMPUTE_PROFILES = {1: 0, 2: 1, 3: 2, 4: 3, 7: 4, 8: 5, 6: 6}
"""`NVML_COMPUTE_INSTANCE_PROFILE_*` by number of MIG slices."""


def device_node(minor: int | None) -> str:
    """Return the path of a GPU's device node by its minor number."""
    return f"/dev/nvidia{minor}"


def capability_node(number: int) -> str:
    """Return the path of a MIG capability's device node."""
    return f"/dev/nvidia-caps/nvidia-cap{number}"
