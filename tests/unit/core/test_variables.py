"""Which variables a pod must leave to the device plugin."""

from gpu_sharing.core import variables


def test_variables_that_carry_gpus_or_limits_are_the_plugins() -> None:
    """A pod may still choose among its own GPUs, and set anything else."""
    plugins = ["NVIDIA_VISIBLE_DEVICES", "CUDA_DEVICE_MEMORY_LIMIT_12", "CUDA_MPS_PIPE_DIRECTORY", "HAMI_ALLOCATION"]

    assert variables.given([*plugins, "CUDA_VISIBLE_DEVICES", "PATH", "CUDA_DISABLE_CONTROL"]) == plugins
