"""The stand-in for NVIDIA's container runtime is as unkind as the real one."""

from typing import Any

import pytest

from lab.real import nvidia_runtime

DRIVER = {"LD_LIBRARY_PATH": "/driver", "FAKE_NVML_STATE": "/state/gpus.txt"}
TOOLS = {"/usr/bin/nvidia-cuda-mps-control": "/tools/mps"}


def container(*environment: str, capabilities: tuple[str, ...] = ()) -> dict[str, Any]:
    return {"process": {"env": [*environment], "capabilities": {"bounding": [*capabilities]}}, "mounts": []}


@pytest.mark.parametrize("asked", [(), ("NVIDIA_VISIBLE_DEVICES=void",), ("NVIDIA_VISIBLE_DEVICES=none",)])
def test_a_container_that_does_not_ask_gets_nothing(asked: tuple[str, ...]) -> None:
    """As on a node where a pod has the RuntimeClass and no variable."""
    spec = container(*asked)
    assert not nvidia_runtime.with_driver(spec, DRIVER, TOOLS)
    assert spec == container(*asked)


def test_one_that_asks_gets_the_driver_and_its_programs_by_capability() -> None:
    """The library always, the programs of CUDA only with `compute`."""
    utility = container("NVIDIA_VISIBLE_DEVICES=all", "NVIDIA_DRIVER_CAPABILITIES=utility")
    assert nvidia_runtime.with_driver(utility, DRIVER, TOOLS)
    assert [one["destination"] for one in utility["mounts"]] == ["/driver", "/state"]
    assert "FAKE_NVML_STATE=/state/gpus.txt" in utility["process"]["env"]
    compute = container("NVIDIA_VISIBLE_DEVICES=all", "NVIDIA_DRIVER_CAPABILITIES=compute,utility")
    assert nvidia_runtime.with_driver(compute, DRIVER, TOOLS)
    assert compute["mounts"][-1]["destination"] == "/usr/bin/nvidia-cuda-mps-control"


def test_one_that_asks_for_mig_without_the_right_does_not_start() -> None:
    """The chart gives the variables and the capability together, or neither."""
    asked = ("NVIDIA_VISIBLE_DEVICES=all", "NVIDIA_MIG_MONITOR_DEVICES=all")
    with pytest.raises(SystemExit, match="non privileged"):
        nvidia_runtime.with_driver(container(*asked), DRIVER, TOOLS)
    assert nvidia_runtime.with_driver(container(*asked, capabilities=("CAP_SYS_ADMIN",)), DRIVER, TOOLS)
