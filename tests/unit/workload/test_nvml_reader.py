"""The real bindings on the fake driver, as a container's program reads them."""

import json
import os
import pathlib
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from typing import Any

import pytest

from lab import fake_driver

MIB = 1 << 20
# NVIDIA's library is loaded once a process, so each test is a process of its own.
PROGRAM = """
import json, os, pathlib
from gpu_sharing import workload
from gpu_sharing.workload import usage
path = pathlib.Path({path!r})
def add(*lines):
    path.write_text(path.read_text() + "\\n".join(lines) + "\\n")
def show(found):
    print(json.dumps(found))
def now():
    used = usage.read(workload.my_slice())
    return [[gpu.used_mib, gpu.headroom_mib, gpu.source] for gpu in used.gpus], [one.code for one in used.problems]
"""


@pytest.fixture
def driver() -> Iterator[fake_driver.FakeDriver]:
    with tempfile.TemporaryDirectory() as folder:
        yield fake_driver.make(pathlib.Path(folder), "n", 2)


def run(driver: fake_driver.FakeDriver, text: str, **changes: str) -> list[Any]:
    described = {
        "HAMI_GPUS": driver.gpus[1].uuid, "HAMI_SLICE_MEMORY_MIB": "4000", "HAMI_SLICE_CORES_PERCENT": "0",
        "HAMI_SLICE_ISOLATION": "none", "HAMI_SLICE_NODE": "n", "HAMI_SLICE_NAMESPACE": "team",
        "HAMI_SLICE_POD": "train", "HAMI_SLICE_CONTAINER": "main",
    }  # fmt: skip
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM.format(path=str(driver.path)) + text],
        env={"PATH": "/usr/bin:/bin", **driver.environment(), **described, **changes},
        capture_output=True,
        text=True,
        timeout=60,
        cwd=pathlib.Path(__file__).parents[3],
    )
    assert done.returncode == 0, done.stderr
    return [json.loads(line) for line in done.stdout.splitlines()]


def test_a_program_reads_its_gpu_and_its_own_memory_from_the_driver(driver: fake_driver.FakeDriver) -> None:
    """The other GPU of the node, and the processes of others, are not its own."""
    driver.words = ["version=570.86.15"]
    driver.gpus[1].temperature_celsius = 61
    driver.gpus[1].utilization_percent = 30
    driver.processes = [f"process 1 {os.getpid() + 2**22} {500 * MIB} 5"]
    driver.write()

    readings, first, later, low = run(
        driver,
        f"monitor = workload.GPUMonitor()\nreading = monitor.sample().by_index[0]\n"
        f"show([reading.temperature_celsius, reading.utilization_percent, reading.power_watts])\n"
        f"show(now())\nadd(f'process 1 {{os.getpid()}} {700 * MIB} 5')\nshow(now())\nshow(workload.headroom_mib())",
    )

    assert readings == [61, 30, 60]
    assert first == [[[0, 4000, "nvml"]], []]
    assert later == [[[700, 3300, "nvml"]], []]
    assert low == 3300


def test_an_old_driver_lists_ids_of_the_host_which_are_not_used(driver: fake_driver.FakeDriver) -> None:
    """The id of another container's process may be one of ours by chance."""
    driver.words = ["version=535.54.03"]
    driver.write()

    (found,) = run(driver, f"add(f'process 1 {{os.getpid()}} {700 * MIB} 5')\nshow(now())")

    assert found == [[[None, None, "unknown"]], ["WORKLOAD_USAGE_UNKNOWN"]]


def test_values_that_the_driver_refuses_are_unknown_one_by_one(driver: fake_driver.FakeDriver) -> None:
    """A GPU without a power sensor still has a temperature."""
    driver.words = ["version=570.86.15"]
    driver.rules = ["fail nvmlDeviceGetPowerUsage 3 -1"]
    driver.gpus[1].temperature_celsius = 4_294_967
    driver.gpus[1].memory_mib = 3000
    driver.write()

    reading, found = run(
        driver,
        "reading = workload.GPUMonitor().sample().by_index[0]\n"
        "show([reading.power_watts, reading.temperature_celsius, reading.utilization_percent])\nshow(now())",
    )

    assert reading == [None, None, 0]
    assert found == [[[0, 3000, "nvml"]], ["WORKLOAD_LIMIT_MISMATCH"]]


def test_a_gpu_of_the_slice_that_the_driver_does_not_list_is_named(driver: fake_driver.FakeDriver) -> None:
    driver.write()

    (found,) = run(driver, "show(now())", HAMI_GPUS="GPU-absent")

    assert found[1] == ["WORKLOAD_LIMIT_MISMATCH", "WORKLOAD_USAGE_UNKNOWN"]


def test_a_driver_that_refuses_everything_is_no_driver(driver: fake_driver.FakeDriver) -> None:
    """And one that comes back is read again."""
    driver.rules = ["fail nvmlDeviceGetCount_v2 999 -1"]
    driver.write()

    first, later = run(
        driver,
        "show(now()[1])\npath.write_text(path.read_text().replace('fail', 'none'))\n"
        "show('WORKLOAD_NO_NVML' in now()[1])",
    )

    assert first == ["WORKLOAD_NO_NVML", "WORKLOAD_USAGE_UNKNOWN"]
    assert later is False


def test_the_child_of_a_fork_connects_anew(driver: fake_driver.FakeDriver) -> None:
    """A connection of the parent does not work in it with every driver."""
    driver.words = ["version=570.86.15"]
    driver.write()

    parents, childs = run(
        driver,
        "show(now()[0])\n"
        "import sys; sys.stdout.flush()\n"
        "child = os.fork()\n"
        "if child == 0:\n"
        "    show(now()[0]); sys.stdout.flush(); os._exit(usage._driver._pid != os.getpid())\n"
        "assert os.waitpid(child, 0)[1] == 0",
    )

    assert parents == childs == [[0, 4000, "nvml"]]
