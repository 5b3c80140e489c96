"""The script of the chart's hami-core pods, by every shell that an image may have."""

import pathlib
import shutil
import subprocess

import pytest

from tests.chart import rendering

SHELLS = {"sh": ["sh"], "bash": ["bash"], "busybox": ["busybox", "sh"]}


def run(shell: str, source: pathlib.Path, target: pathlib.Path) -> "subprocess.CompletedProcess[str]":
    """The script as the container starts it, once."""
    command = SHELLS[shell]
    if shutil.which(command[0]) is None:
        pytest.skip(f"there is no {shell} here")
    script = (rendering.CHART / "files" / "install-hami-core.sh").read_text()
    return subprocess.run(
        [*command, "-c", script, "install-hami-core", str(source), str(target), "once"],
        capture_output=True,
        text=True,
        timeout=60,
    )


@pytest.fixture
def folders(tmp_path: pathlib.Path) -> tuple[pathlib.Path, pathlib.Path]:
    source, target = tmp_path / "image", tmp_path / "node"
    source.mkdir()
    target.mkdir()
    (source / "libvgpu.so.v2.10.0").write_bytes(b"new library")
    (source / "ld.so.preload").write_text("/elsewhere/libvgpu.so")
    return source, target


@pytest.mark.parametrize("shell", SHELLS)
def test_libraries_are_copied_and_nothing_else(shell: str, folders: tuple[pathlib.Path, pathlib.Path]) -> None:
    """What is preloaded is the plugin's to say."""
    source, target = folders
    (target / "libvgpu.so.v2.9.0").write_bytes(b"older library")

    done = run(shell, source, target)

    assert (done.returncode, done.stdout) == (0, "copied libvgpu.so.v2.10.0\n"), done.stderr
    assert {one.name: one.read_bytes() for one in target.iterdir()} == {
        "libvgpu.so.v2.9.0": b"older library",
        "libvgpu.so.v2.10.0": b"new library",
    }
    again = run(shell, source, target)
    assert (again.returncode, again.stdout) == (0, "")


@pytest.mark.parametrize("shell", SHELLS)
def test_a_library_that_processes_have_mapped_is_never_written(
    shell: str, folders: tuple[pathlib.Path, pathlib.Path]
) -> None:
    """They would run the new code in the middle of the old one, and end."""
    source, target = folders
    there = target / "libvgpu.so.v2.10.0"
    there.write_bytes(b"same name, other build")
    with there.open("rb") as mapped:
        assert run(shell, source, target).returncode == 0

        assert mapped.read() == b"same name, other build"
    assert there.read_bytes() == b"new library"


@pytest.mark.parametrize("shell", SHELLS)
def test_an_image_without_the_library_is_an_error_that_says_what_to_set(
    shell: str, folders: tuple[pathlib.Path, pathlib.Path]
) -> None:
    """The pod then is not ready, and says why."""
    source, target = folders
    (source / "libvgpu.so.v2.10.0").unlink()

    done = run(shell, source, target)

    assert done.returncode == 1
    assert "set devicePlugin.hamiCore.libraryPath" in done.stderr


@pytest.mark.parametrize("shell", SHELLS)
def test_a_folder_that_takes_nothing_is_an_error(shell: str, folders: tuple[pathlib.Path, pathlib.Path]) -> None:
    """Such as /usr on a node whose system is read-only."""
    source, target = folders
    target.rmdir()

    assert run(shell, source, target).returncode == 1
