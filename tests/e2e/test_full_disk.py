"""A node whose disk is full, or takes no writes: nothing starts wrong, and all goes on once there is room."""

import contextlib
import pathlib
import subprocess
from collections.abc import Iterator

import pytest

from lab import kubelet
from tests.component import gpu_node


@pytest.fixture
def node(programs: pathlib.Path) -> Iterator[gpu_node.GpuNode]:
    """The specifications lie on a disk of 64 KiB; needs root, as the other tests here."""
    with gpu_node.running() as found:
        found.cdi_dir.mkdir()
        subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", str(found.cdi_dir)], check=True)
        try:
            yield found
        finally:
            subprocess.run(["umount", str(found.cdi_dir)], check=True)


def test_a_full_disk_is_a_coded_error_until_there_is_room(node: gpu_node.GpuNode) -> None:
    filler = node.cdi_dir / "filler"
    with contextlib.suppress(OSError), filler.open("wb", buffering=0) as file:
        while file.write(bytes(4096)):
            pass
    pod = node.create("crowded", "0:100:0")
    node.admit(pod)

    with pytest.raises(kubelet.NotStarted, match=r"ALLOC_SPEC_NOT_WRITTEN.*No space left on device"):
        node.start(pod)
    assert [path.name for path in node.cdi_dir.iterdir()] == ["filler"]
    filler.unlink()

    assert node.start(pod).environment["CUDA_DEVICE_MEMORY_LIMIT_0"] == "100m"


def test_a_disk_that_takes_no_writes_is_a_coded_error_until_it_does(node: gpu_node.GpuNode) -> None:
    pod = node.create("locked", "0:100:0")
    subprocess.run(["mount", "-o", "remount,ro", str(node.cdi_dir)], check=True)
    node.admit(pod)

    with pytest.raises(kubelet.NotStarted, match=r"ALLOC_SPEC_NOT_WRITTEN.*Read-only file system"):
        node.start(pod)
    subprocess.run(["mount", "-o", "remount,rw", str(node.cdi_dir)], check=True)

    assert node.start(pod).environment["CUDA_DEVICE_MEMORY_LIMIT_0"] == "100m"
