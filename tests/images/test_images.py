"""Both images, built and looked into: what runs, as whom, and what is not there."""

import json
import os
import pathlib
import shutil
import subprocess
from collections.abc import Iterator

import pytest

from images import build
from tests import tools
from tests.chart import rendering

SHELLS = ("bin/sh", "usr/bin/sh", "bin/bash", "bin/dash", "usr/bin/perl", "usr/bin/apt", "usr/bin/dpkg", "usr/bin/pip")
LARGEST_MIB = {"hami": 80, "hami-node": 60}
"""Compressed."""
MODULES = {
    "hami": ("scheduler_extender", "webui", "fault_injector"),
    "hami-node": (
        "device_plugin",
        "device_plugin.monitor",
        "device_plugin.mps_daemon",
        "device_plugin.toolkit_ready",
    ),
}


class Image:
    """A container of an image, never started but for single commands."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.container = build.buildah("from", f"localhost/{name}").strip()
        self.root = pathlib.Path(build.buildah("mount", self.container).strip())

    def run(self, *command: str) -> str:
        return build.buildah("run", self.container, "--", *command)


@pytest.fixture(scope="module", params=build.TARGETS)
def image(request: pytest.FixtureRequest) -> Iterator[Image]:
    missing = [name for name in ("buildah", "mmdebstrap") if shutil.which(name) is None]
    if missing or os.geteuid() != 0:
        tools.missing(f"images need root and {' and '.join(missing) or 'nothing more'}")
    if not (build.BUILD / "images" / "images.json").exists():
        raise AssertionError("build them first: python -m images.build")
    found = Image(str(request.param))
    yield found
    build.buildah("rm", found.container)


def test_it_starts_what_the_chart_starts(image: Image) -> None:
    """Each module says its help; what is not for this image is not in it."""
    for module in MODULES[image.name]:
        assert f"python -m {module}" in image.run("python3", "-m", module, "--help")
    everything = "devicePlugin.isolation=mps,devicePlugin.driver=none,devicePlugin.gpuOperatorToolkitReady.enabled=true"
    rendered = rendering.objects(4, "--set", f"{everything},faultInjection.enabled=true")
    pods = [one["spec"]["template"]["spec"] for one in rendered if one["kind"] in ("Deployment", "DaemonSet")]
    containers = [one for pod in pods for one in (*pod.get("initContainers", ()), *pod["containers"])]
    started = {one["args"][0] for one in containers if one["image"].startswith(f"ghcr.io/hami-py/{image.name}:")}
    assert started == set(MODULES[image.name])
    others = {
        "hami": ("device_plugin", "grpc", "pynvml"),
        "hami-node": ("numpy", "flask", "scheduler_extender", "webui", "fault_injector"),
    }
    for package in (*others[image.name], "lab", "kubernetes"):
        assert not (image.root / "opt/hami" / package).exists(), package


def test_a_node_is_examined_from_the_image(image: Image) -> None:
    """By one command, `kubectl debug node/NODE … -- python3 -m hamictl doctor node`."""
    program = (
        "import sys; sys.argv = ['hamictl', 'doctor', 'node', '-o', 'name']; from hamictl import __main__; "
        "print('status', __main__.main())"
    )
    answer = image.run("python3", "-c", program)
    assert "DOCTOR_NODE_DRIVER node" in answer.splitlines()
    assert "status 1" in answer.splitlines()


def test_it_has_no_shell_and_one_tool(image: Image) -> None:
    """The wget of busybox, which the documented health check uses."""
    for path in SHELLS:
        assert not (image.root / path).exists(), path
    done = subprocess.run([image.root / "usr/bin/wget", "--help"], capture_output=True, text=True)
    assert "Usage: wget" in done.stdout + done.stderr


def test_its_user_and_its_files_are_as_they_should_be(image: Image) -> None:
    """Nobody where the kernel allows it; nothing that raises rights; bytecode of both optimisations' kind is there."""
    seen = json.loads(build.buildah("inspect", "--type", "image", f"localhost/{image.name}"))
    config = seen["OCIv1"]["config"]
    assert config["User"] == {"hami": "65532:65532", "hami-node": "0:0"}[image.name]
    assert config["Entrypoint"] == ["python3", "-m"]
    raised = [
        path
        for path in image.root.rglob("*")
        if path.is_file() and not path.is_symlink() and path.stat().st_mode & 0o6000
    ]
    assert raised == []
    assert list((image.root / "opt/hami/gpu_sharing/core/__pycache__").glob("*.opt-2.pyc"))


def test_it_is_small_and_says_what_is_in_it(image: Image) -> None:
    """By a bill of materials."""
    facts = json.loads((build.BUILD / "images" / "images.json").read_text())[image.name]
    assert facts["archive_mib"] < LARGEST_MIB[image.name]
    bill = json.loads((build.BUILD / "images" / f"{image.name}.cdx.json").read_text())
    purls = {one["purl"].partition("@")[0] for one in bill["components"]}
    assert {"pkg:deb/debian/libc6", "pkg:pypi/hami-py", "pkg:pypi/msgspec"} <= purls
    assert len(purls) == len(bill["components"])
