"""The check of a real GPU, run on the fake driver: it finds what is planted, and nothing where there is nothing."""

import json
import os
import pathlib
import subprocess
import sys
from typing import Any

import pytest

from lab import fake_driver
from lab.fake_driver import personalities
from lab.gpu_check import answers, differences

pytestmark = pytest.mark.slow

ROOT = pathlib.Path(__file__).parents[2]
ASK = """
import dataclasses, json
from lab.gpu_check import answers
print(json.dumps([dataclasses.asdict(one) for one in answers.ask()]))
"""


def run(driver: fake_driver.FakeDriver | None, *arguments: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, **(driver.environment() if driver else {})}
    return subprocess.run(
        [sys.executable, *arguments], env=environment, capture_output=True, text=True, timeout=300, cwd=ROOT
    )


def found(driver: fake_driver.FakeDriver) -> list[answers.Answer]:
    done = run(driver, "-c", ASK)
    assert done.returncode == 0, done.stderr
    told: list[dict[str, Any]] = json.loads(done.stdout)
    return [answers.Answer(**one) for one in told]


@pytest.mark.parametrize("name", [name for name in personalities.names() if not personalities.read(name).mig])
def test_a_personality_differs_in_nothing_from_itself(tmp_path: pathlib.Path, name: str) -> None:
    """Else the report of a real machine would be full of differences that are the check's own."""
    personality = personalities.read(name)

    told = differences.compare(found(personality.make(tmp_path)), personality)

    # What a file says of one GPU alone is compared with GPU 0.
    assert [one for one in told if one.startswith("GPU 0")] == []
    if all(one.gpu == -1 for one in personality.refusals):
        assert told == []


def test_every_call_that_our_code_makes_is_asked() -> None:
    """A new call belongs into the check: add a probe, or say in NOT_CALLED why there is none."""
    assert answers.not_asked() == ()


@pytest.mark.parametrize(
    ("model", "name"),
    [
        ("NVIDIA H200", "h200"),
        ("NVIDIA H100 PCIe", "h100"),
        ("NVIDIA A100-PCIE-40GB", "a100"),
        ("Tesla T4", "t4"),
        ("NVIDIA GeForce RTX 3080", "geforce"),
        ("NVIDIA GB10", "gb10"),
        ("NVIDIA B300 SXM6", None),
    ],
)
def test_a_machine_is_compared_with_the_personality_of_its_model(model: str, name: str | None) -> None:
    chosen = differences.personality_of(model)

    assert (chosen.name if chosen else None) == name


def test_the_report_of_a_machine_as_expected_has_no_finding(tmp_path: pathlib.Path) -> None:
    """Every call, our own reading, and a container that the plugin starts beside the stand-in kubelet."""
    driver = personalities.read("h200").make(tmp_path)

    done = run(driver, "-m", "lab.gpu_check", "--out", str(tmp_path / "report.md"))

    report = (tmp_path / "report.md").read_text()
    assert done.returncode == 0, report + done.stderr
    assert "compared with `h200`" in report
    assert (
        f"a container is started with Started(environment={{'NVIDIA_VISIBLE_DEVICES': '{driver.gpus[0].uuid}'" in report
    )
    assert "| 0 | nvmlDeviceGetPowerUsage | 60000 |" in report
    assert "FAILED" not in report


def test_a_planted_difference_is_the_finding(tmp_path: pathlib.Path) -> None:
    """A call that a real driver refuses, and a fact that is another one, are named with both sides."""
    driver = personalities.read("h100").make(tmp_path)
    driver.rules = ["fail nvmlDeviceGetPowerUsage 3 1", "fail nvmlDeviceRegisterEvents 3 0"]
    driver.gpus[0].memory_mib = 80_000
    driver.write()

    done = run(driver, "-m", "lab.gpu_check", "--out", str(tmp_path / "report.md"))

    report = (tmp_path / "report.md").read_text()
    assert (done.returncode, done.stdout) == (1, f"3 findings; the report is in {tmp_path / 'report.md'}\n"), report
    for sentence in (
        "GPU 1: nvmlDeviceGetPowerUsage answers NOT_SUPPORTED here, and a value in h100.toml",
        "GPU 0: nvmlDeviceRegisterEvents answers NOT_SUPPORTED here, and a value in h100.toml",
        "GPU 0: 80000 MiB of memory here, and 81559 MiB in h100.toml",
    ):
        assert f"FAILED: {sentence}" in report


def test_a_machine_without_a_driver_gets_a_report_that_says_so(tmp_path: pathlib.Path) -> None:
    """No traceback: the commonest state of a machine on which the driver is not brought in."""
    (tmp_path / "libnvidia-ml.so.1").touch()
    environment = {**os.environ, "LD_LIBRARY_PATH": str(tmp_path)}

    done = subprocess.run(
        [sys.executable, "-m", "lab.gpu_check", "--out", str(tmp_path / "report.md")],
        env=environment,
        capture_output=True,
        text=True,
        timeout=120,
        cwd=ROOT,
    )

    assert done.returncode == 1, done.stderr
    assert "there is no driver: NVML Shared Library Not Found" in (tmp_path / "report.md").read_text()


@pytest.mark.gpu
def test_this_machines_driver_answers_as_the_fake_one_of_its_model(tmp_path: pathlib.Path) -> None:
    """The other tests are worth what the fake driver is worth; a difference is a line of the report."""
    if not pathlib.Path("/dev/nvidiactl").exists():
        pytest.skip("there is no NVIDIA GPU here")

    done = run(None, "-m", "lab.gpu_check", "--out", str(tmp_path / "report.md"))

    assert done.returncode == 0, (tmp_path / "report.md").read_text()
