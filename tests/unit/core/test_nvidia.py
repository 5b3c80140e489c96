import pytest

from gpu_sharing.core import nvidia


def test_device_nodes_are_named_by_number() -> None:
    """A container that gets another node's number uses a neighbour's GPU."""
    assert nvidia.device_node(3) == "/dev/nvidia3"
    assert nvidia.capability_node(12) == "/dev/nvidia-caps/nvidia-cap12"


@pytest.mark.parametrize(
    ("path", "minor"),
    [
        ("/dev/nvidia0", "0"),
        ("/run/nvidia/driver/dev/nvidia12", "12"),
        ("/dev/nvidiactl", None),
        ("/dev/nvidia0x", None),
    ],
)
def test_a_device_node_is_recognized_below_any_driver_root(path: str, minor: str | None) -> None:
    match = nvidia.DEVICE_NODE.fullmatch(path)

    assert (match[1] if match else None) == minor
