"""The host's driver in a container that no runtime helps."""

import pathlib
import shutil
import subprocess
import sys

import pytest

from device_plugin import toolkit_ready
from device_plugin.driver import driver_library, gpu_source
from gpu_sharing.core import nvidia
from lab import fake_driver, gpus

FOLDERS = ["usr/lib64", "home/kubernetes/bin/nvidia/lib64"]


@pytest.mark.parametrize("folder", FOLDERS)
def test_the_library_of_the_host_is_used_though_the_loader_does_not_search_there(
    tmp_path: pathlib.Path, folder: str
) -> None:
    """On a fresh process, because a library that is loaded stays."""
    driver = fake_driver.make(tmp_path, "n", 3, gpus.A10)
    (tmp_path / "root" / folder).mkdir(parents=True)
    shutil.copy(fake_driver.library(), tmp_path / "root" / folder)
    script = (
        "import pathlib, sys; from device_plugin.driver import driver_library, nvml; "
        "driver_library.load(pathlib.Path(sys.argv[1])); print(len(nvml.connect().devices()))"
    )

    done = subprocess.run(
        [sys.executable, "-c", script, str(tmp_path / "root")], capture_output=True, text=True, timeout=60,
        env={"FAKE_NVML_STATE": str(driver.path)}, cwd=pathlib.Path(__file__).parents[3],
    )  # fmt: skip

    assert done.stdout.strip() == "3", done.stderr


def test_a_root_without_the_library_is_a_missing_driver(tmp_path: pathlib.Path) -> None:
    """The plugin looks again by itself: the GPU operator may be installing it."""
    with pytest.raises(gpu_source.DriverMissing, match=rf"no libnvidia-ml.so.1 below --driver-root {tmp_path}"):
        driver_library.load(tmp_path)


def test_a_library_that_cannot_be_loaded_is_a_missing_driver(tmp_path: pathlib.Path) -> None:
    """Such as one of another architecture."""
    (tmp_path / "usr" / "lib64").mkdir(parents=True)
    (tmp_path / "usr" / "lib64" / nvidia.NVML_LIBRARY).write_text("no library")

    with pytest.raises(gpu_source.DriverMissing, match="cannot be loaded"):
        driver_library.load(tmp_path)


def test_the_init_container_ends_once_the_toolkit_is_there(
    tmp_path: pathlib.Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """And says each minute what it waits for."""
    waited = []

    def sleep(seconds: float) -> None:
        waited.append(seconds)
        if len(waited) == 13:
            (tmp_path / "toolkit-ready").touch()

    assert toolkit_ready.main([str(tmp_path / "toolkit-ready")], sleep) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.startswith("waiting for") for line in lines] == [True, True, False]
    assert toolkit_ready.main([]) == 2
