"""What a container reads of its slice, and what it does not know."""

import json
import os
import pathlib
import subprocess
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gpu_sharing.core import variables
from gpu_sharing.workload import headroom, nvml_reader, slice_view, slices, usage
from tests import shared_regions

ROOT = pathlib.Path(__file__).parents[3]
MIB = 1 << 20
DESCRIBED = {
    "HAMI_GPUS": "GPU-b,GPU-a",
    "HAMI_ALLOCATION": "x-1",
    "HAMI_SLICE_MEMORY_MIB": "4000,2000",
    "HAMI_SLICE_CORES_PERCENT": "30,0",
    "HAMI_SLICE_ISOLATION": "hami-core",
    "HAMI_SLICE_NODE": "node-01",
    "HAMI_SLICE_NAMESPACE": "team",
    "HAMI_SLICE_POD": "train",
    "HAMI_SLICE_CONTAINER": "main",
    "HAMI_SLICE_DECISION_ID": "4e89f4b82e97303b",
    "CUDA_DEVICE_MEMORY_LIMIT_0": "2000m",
    "CUDA_DEVICE_MEMORY_LIMIT_1": "4000m",
}
ONE = {
    **DESCRIBED,
    "HAMI_GPUS": "GPU-a",
    "HAMI_SLICE_MEMORY_MIB": "4000",
    "HAMI_SLICE_CORES_PERCENT": "30",
    "CUDA_DEVICE_MEMORY_LIMIT_0": "4000m",
}


class StubDriver(nvml_reader.Driver):
    """Answers with fixed readings, or as a machine without a driver."""

    def __init__(self, *readings: nvml_reader.GpuReading, missing: bool = False) -> None:
        super().__init__()
        self.readings = {one.uuid: one for one in readings}
        self.missing = missing

    def read(self, uuids: object) -> dict[str, nvml_reader.GpuReading]:
        if self.missing:
            raise nvml_reader.NoDriver("NVML does not start: no library")
        return self.readings


def reading(*, total_mib: int = 24_000, used_mib: int = 0, **fields: object) -> nvml_reader.GpuReading:
    return nvml_reader.GpuReading(
        uuid="GPU-a",
        memory_total_bytes=total_mib * MIB,
        memory_used_bytes=used_mib * MIB,
        **fields,  # type: ignore[arg-type]
    )


def codes(problems: object) -> list[str]:
    return [one.code for one in problems]  # type: ignore[attr-defined]


def test_a_container_knows_its_slice_from_its_environment_alone() -> None:
    """Its owner may not read the pod, and sees a whole GPU in nvidia-smi."""
    found = slices.slice_from(DESCRIBED)

    assert found.gpus == (slices.GpuSlice(0, "GPU-b", 4000, 30), slices.GpuSlice(1, "GPU-a", 2000, 0))
    assert (found.isolation, found.node, found.slice_id, found.decision_id) == (
        "hami-core", "node-01", "x-1", "4e89f4b82e97303b",
    )  # fmt: skip
    assert found.label_values == ("team", "train", "main")
    assert found.problems == ()


def test_every_variable_of_the_plugin_is_read() -> None:
    """The plugin writes none for nothing, and what one writes the other reads."""
    whole = slices.slice_from(DESCRIBED)
    for name in variables.OF_SLICE:
        without = slices.slice_from({key: value for key, value in DESCRIBED.items() if key != name})
        assert without != whole, name


def test_outside_kubernetes_it_says_that_there_is_no_slice() -> None:
    """A number that was guessed is worse than none."""
    found = slices.slice_from({})

    assert found.gpus == ()
    assert codes(found.problems) == ["WORKLOAD_NO_SLICE"]


@pytest.mark.parametrize(
    ("limits", "memory_mib"),
    [
        ({"CUDA_DEVICE_MEMORY_LIMIT_0": "4000m"}, 4000),
        ({"CUDA_DEVICE_MEMORY_LIMIT_0": "4g"}, 4096),
        ({"CUDA_DEVICE_MEMORY_LIMIT_0": str(3 << 20)}, 3),
        ({"CUDA_MPS_PINNED_DEVICE_MEM_LIMIT": "0=500M"}, 500),
    ],
)
def test_a_container_of_an_older_plugin_reads_the_limits_of_its_isolation(
    limits: dict[str, str], memory_mib: int
) -> None:
    """It started before the upgrade, and says which parts it does not know."""
    found = slices.slice_from({"NVIDIA_VISIBLE_DEVICES": "GPU-a", **limits})

    assert found.gpus == (slices.GpuSlice(0, "GPU-a", memory_mib, None),)
    assert codes(found.problems) == ["WORKLOAD_UNDESCRIBED"]


def test_limits_of_several_gpus_without_a_description_are_not_assigned_by_guess() -> None:
    """They are numbered by the PCI bus, which is not known here; equal ones need no order."""
    older = {"HAMI_GPUS": "GPU-b,GPU-a", "CUDA_DEVICE_MEMORY_LIMIT_0": "1g"}

    different = slices.slice_from({**older, "CUDA_DEVICE_MEMORY_LIMIT_1": "2g"})
    equal = slices.slice_from({**older, "CUDA_DEVICE_MEMORY_LIMIT_1": "1g"})

    assert [gpu.memory_mib for gpu in different.gpus] == [None, None]
    assert [gpu.memory_mib for gpu in equal.gpus] == [1024, 1024]


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("HAMI_SLICE_MEMORY_MIB", text)
        for text in ("", "x", "-1", "0", "4000,1", "4000,", "٣", "1e3", "9" * 4000, "2147483648")
    ]
    + [("HAMI_SLICE_CORES_PERCENT", text) for text in ("101", "x", "", "1,2")]
    + [("CUDA_DEVICE_MEMORY_LIMIT_0", text) for text in ("", "4000 m", "-1m", "m", "0m", "9" * 17, "4t")]
    + [("HAMI_GPUS", text) for text in (",", "GPU-a,GPU-a", "GPU a", "GPU-a," * 65, "x" * 129)],
)
def test_a_malformed_limit_is_named_and_counts_as_unknown(name: str, text: str) -> None:
    """A program that plans its memory by a wrong number dies later, without a reason."""
    found = slices.slice_from({**ONE, name: text})

    assert "WORKLOAD_BAD_LIMIT" in codes(found.problems)
    assert all(len(str(one)) < 400 for one in found.problems)
    if name == "HAMI_SLICE_MEMORY_MIB":
        assert found.gpus[0].memory_mib == 4000, "by the limit of the isolation"


@pytest.mark.parametrize("enforced", ["3000m", "5000m"])
def test_limits_that_contradict_each_other_count_by_the_smaller_one(enforced: str) -> None:
    found = slices.slice_from({**ONE, "CUDA_DEVICE_MEMORY_LIMIT_0": enforced})

    assert found.gpus[0].memory_mib == min(4000, int(enforced[:-1]))
    assert codes(found.problems) == ["WORKLOAD_LIMIT_MISMATCH"]


@given(
    st.dictionaries(st.sampled_from([*ONE, "NVIDIA_VISIBLE_DEVICES", "CUDA_MPS_PINNED_DEVICE_MEM_LIMIT"]), st.text())
)
def test_no_environment_breaks_the_reading(changes: dict[str, str]) -> None:
    """An image may set any of them to anything: the program that asks is not the one that ends."""
    found = slices.slice_from({**ONE, **changes})

    assert all(gpu.memory_mib is None or 1 <= gpu.memory_mib < 2**31 for gpu in found.gpus)
    assert json.dumps(found.as_json())


def test_the_mark_of_the_specification_names_the_slice_where_the_variable_is_missing() -> None:
    """A shell script that cleans its environment still finds it."""
    cleaned = {name: value for name, value in ONE.items() if name != "HAMI_ALLOCATION"}

    assert slices.slice_from(cleaned, marks=["x-2"]).slice_id == "x-2"
    assert slices.slice_from(cleaned, marks=["x-2", "x-3"]).slice_id is None


def test_used_memory_is_that_of_the_librarys_own_count(tmp_path: pathlib.Path) -> None:
    """What it refuses an allocation by is what the owner has to see."""
    path = shared_regions.write(tmp_path / "r", used=(3000 * MIB, 500 * MIB))
    used = usage.read(slices.slice_from(ONE), StubDriver(missing=True), {usage.REGION_VARIABLE: str(path)})

    (gpu,) = used.gpus
    assert (gpu.used_mib, gpu.headroom_mib, gpu.source) == (3500, 500, "hami-core")
    assert codes(used.problems) == ["WORKLOAD_NO_NVML"]


def test_before_the_first_cuda_program_nothing_is_used(tmp_path: pathlib.Path) -> None:
    """The plugin makes the file empty, and the library fills it."""
    (tmp_path / "r").touch()
    used = usage.read(slices.slice_from(ONE), StubDriver(reading()), {usage.REGION_VARIABLE: str(tmp_path / "r")})

    assert (used.gpus[0].used_mib, used.gpus[0].headroom_mib) == (0, 4000)


def test_where_the_library_does_not_count_the_driver_lists_this_containers_processes() -> None:
    """The process of another container, which `hostPID` shows, does not count."""
    unlimited = slices.slice_from({**ONE, "HAMI_SLICE_ISOLATION": "none"})
    listed = reading(used_mib=9000, process_bytes={os.getpid(): 700 * MIB, 2**22 + 1: 5000 * MIB})

    (gpu,) = usage.read(unlimited, StubDriver(listed), {}).gpus

    assert (gpu.used_mib, gpu.headroom_mib, gpu.source) == (700, 3300, "nvml")


@pytest.mark.parametrize("what", ["none", "corrupt", "folder", "missing"])
def test_what_cannot_be_counted_is_unknown_with_the_reason(what: str, tmp_path: pathlib.Path) -> None:
    """Unknown is not 0: a program that allocates by it would fail."""
    path = tmp_path / "r"
    if what == "corrupt":
        shared_regions.write(path, magic=7)
    elif what == "folder":
        path.mkdir()
    environment = {} if what == "none" else {usage.REGION_VARIABLE: str(path)}

    used = usage.read(slices.slice_from(ONE), StubDriver(reading()), environment)

    assert (used.gpus[0].used_mib, used.gpus[0].headroom_mib, used.gpus[0].source) == (None, None, "unknown")
    assert codes(used.problems) == ["WORKLOAD_USAGE_UNKNOWN"]


def test_limits_that_contradict_the_driver_are_named(tmp_path: pathlib.Path) -> None:
    """Oversubscribed memory runs out before the limit: the headroom is what the driver has free."""
    (tmp_path / "r").touch()
    environment = {usage.REGION_VARIABLE: str(tmp_path / "r")}

    small = usage.read(slices.slice_from(ONE), StubDriver(reading(total_mib=3000, used_mib=1000)), environment)
    absent = usage.read(slices.slice_from(ONE), StubDriver(), environment)

    assert codes(small.problems) == ["WORKLOAD_LIMIT_MISMATCH"]
    assert small.gpus[0].headroom_mib == 2000
    assert codes(absent.problems) == ["WORKLOAD_LIMIT_MISMATCH"]


def test_the_callback_comes_once_each_time_that_memory_runs_low() -> None:
    """A callback a second would fill the log of the program that frees a cache."""
    values = iter([500, 90, 80, None, 105, 95, 120, 70])
    called: list[int] = []
    watch = headroom.HeadroomWatch(called.append, below_mib=100, read=lambda: next(values))

    for _ in range(8):
        watch.check()

    assert called == [90, 70]
    assert not watch.is_running


def test_a_container_at_its_limit_of_compute_reads_why_its_kernels_are_late(tmp_path: pathlib.Path) -> None:
    """Throttling looks like a slow program, and nothing else shows it from inside."""
    found = slices.slice_from(ONE)

    def cores(percent: int) -> str:
        path = shared_regions.write(tmp_path / "r", used=(MIB,), percent=percent)
        read = usage.read(found, StubDriver(reading(utilization_percent=90.0)), {usage.REGION_VARIABLE: str(path)})
        return next(line for line in slice_view.screen(found, read) if line.startswith("  cores"))

    text = "30 % allocated, {} % used by this container, 90 % by all"
    assert cores(30).endswith(text.format(30) + "; at the limit: HAMi-core delays kernels")
    assert cores(20).endswith(text.format(20))


def command(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "gpu_sharing.workload", *arguments],
        cwd=ROOT,
        env={"PATH": os.environ["PATH"], **environment},
        capture_output=True,
        text=True,
        timeout=60,
    )


def test_top_shows_one_screen_and_the_same_as_json(tmp_path: pathlib.Path) -> None:
    """A person and a program see the same numbers."""
    path = shared_regions.write(tmp_path / "r", used=(3500 * MIB,))
    environment = {**ONE, usage.REGION_VARIABLE: str(path)}

    text = command("top", "--once", **environment)
    data = command("top", "--once", "--json", **environment)

    assert text.returncode == data.returncode == 0, text.stderr
    assert "3500 MiB of 4000 MiB" in text.stdout
    assert "headroom  500 MiB" in text.stdout
    assert len(text.stdout.splitlines()) <= 24
    found = json.loads(data.stdout)
    assert found["gpus"][0]["headroom_mib"] == 500
    assert found["slice"]["decision_id"] == "4e89f4b82e97303b"


@pytest.mark.parametrize("name", ["show", "top"])
def test_a_machine_without_a_slice_is_named_so_with_a_status_of_its_own(name: str) -> None:
    """A script can tell an unknown slice from an empty one."""
    done = command(name, *(["--once"] if name == "top" else []))

    assert done.returncode == 2
    assert "no slice" in done.stdout
    assert "WORKLOAD_NO_SLICE" in done.stdout
    assert "Traceback" not in done.stderr


def test_the_screen_says_unknown_where_it_does_not_know() -> None:
    found = slices.slice_from({"HAMI_GPUS": "GPU-a"})
    text = "\n".join(slice_view.screen(found, usage.read(found, StubDriver(missing=True), {})))

    assert "unknown of unknown" in text
    assert "headroom  unknown" in text
    assert "WORKLOAD_USAGE_UNKNOWN" in text
