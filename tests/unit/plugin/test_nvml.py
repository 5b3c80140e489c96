"""The real bindings on the fake driver: what the driver says, refuses, hangs in and takes away."""

import asyncio
import json
import pathlib
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator, Mapping
from typing import Any

import pytest

from device_plugin.driver import driver_threads, gpu_source
from gpu_sharing.core import health, identifiers
from lab import fake_driver

# NVIDIA's library is loaded once a process, so each test is a process of its own.
PROGRAM = """
import json, pathlib, sys
from device_plugin.driver import gpu_source, nvml
from lab import fake_driver
source = nvml.connect()
def show(found):
    print(json.dumps(found, default=str))
"""


@pytest.fixture
def driver() -> Iterator[fake_driver.FakeDriver]:
    with tempfile.TemporaryDirectory() as folder:
        yield fake_driver.make(pathlib.Path(folder), "n", 3)


def run(driver: fake_driver.FakeDriver, text: str) -> list[Any]:
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM + text],
        env={"PATH": "/usr/bin:/bin", **driver.environment()},
        capture_output=True,
        text=True,
        timeout=60,
        cwd=pathlib.Path(__file__).parents[3],
    )
    assert done.returncode == 0, done.stderr
    return [json.loads(line) for line in done.stdout.splitlines() if line.startswith(("[", "{", '"', "n", "t"))]


def test_gpus_as_the_driver_describes_them(driver: fake_driver.FakeDriver) -> None:
    driver.gpus[1].memory_mib = 40_960
    driver.gpus[2].mig_mode = 1
    driver.migs = [f"mig 2 MIG-{number} {10 << 30} {number + 1} {number} 1 19" for number in range(2)]
    driver.write()

    (found,) = run(
        driver,
        "show([[d.index, d.memory_mib, d.minor, d.mig_enabled, [m.memory_mib for m in d.migs]]"
        " for d in source.devices()])",
    )

    assert found == [[0, 81_920, 0, False, []], [1, 40_960, 1, False, []], [2, 81_920, 2, True, [10_240, 10_240]]]


def test_a_gpu_with_an_empty_uuid_is_left_out_and_its_neighbours_stay(driver: fake_driver.FakeDriver) -> None:
    """An inventory with an empty UUID cannot be read, and would cost the whole node."""
    driver.write()

    (found,) = run(
        driver,
        "answer = nvml.pynvml.nvmlDeviceGetUUID\n"
        "nvml.pynvml.nvmlDeviceGetUUID = lambda handle: '' if answer(handle).endswith(answer(second)[-9:])"
        " else answer(handle)\n"
        "second = nvml.pynvml.nvmlDeviceGetHandleByIndex(1)\n"
        "show([d.index for d in source.devices()])",
    )

    assert found == [0, 2]


def test_mig_instances_are_made_and_taken_away(driver: fake_driver.FakeDriver) -> None:
    """By profile and place, each with a compute instance; what does not fit is an error."""
    driver.gpus[1].mig_mode = 1
    driver.write()
    uuid = driver.gpus[1].uuid

    made, errors, left = run(
        driver,
        "def migs(): return [[m.profile, m.start] for m in source.devices()[1].migs]\n"
        f"for one in (('1g.10gb', 2, 1), ('3g.40gb', 4, 4)): source.create_mig('{uuid}', *one)\n"
        "show(migs())\nfound = []\n"
        "for one in (('1g.10gb', 2, 1), ('9g.9gb', 0, 1)):\n"
        f"    try: source.create_mig('{uuid}', *one)\n"
        "    except gpu_source.GpuFailed as error: found.append(str(error))\n"
        "show(found)\n"
        f"source.destroy_mig('{uuid}', source.devices()[1].migs[0].uuid)\nshow(migs())",
    )

    assert made == [["1g.10gb", 2], ["3g.40gb", 4]]
    assert errors == [
        "nvmlDeviceCreateGpuInstanceWithPlacement: Insufficient Resources",
        f"{uuid} has no MIG profile 9g.9gb",
    ]
    assert left == [["3g.40gb", 4]]


def test_what_a_gpu_can_be_divided_into_is_the_drivers_word(driver: fake_driver.FakeDriver) -> None:
    """Each profile with its memory, its part of the compute and the places where it may begin."""
    driver.gpus[1].mig_mode = 1
    driver.write()

    plain, divided = run(driver, "for device in source.devices()[:2]: show(device.mig_profiles)")

    assert plain == []
    assert [[name, memory, cores, [start for start, _ in places]] for name, memory, cores, places in divided] == [
        ["1g.10gb", 9_728, 14, [0, 1, 2, 3, 4, 5, 6]], ["2g.20gb", 19_968, 28, [0, 2, 4]],
        ["3g.40gb", 40_448, 42, [0, 4]], ["4g.40gb", 40_448, 57, [0]], ["7g.80gb", 81_152, 100, [0]],
    ]  # fmt: skip


def test_a_gpu_that_is_lost_does_not_take_its_neighbours_along(driver: fake_driver.FakeDriver) -> None:
    driver.rules = ["fail * 15 1"]
    driver.write()

    devices, lost, well = run(
        driver,
        "devices = source.devices()\nshow([d.index for d in devices])\n"
        f"show(source.reading('{driver.gpus[1].uuid}').lost)\nshow(source.reading(devices[0].uuid).answered)",
    )

    assert (devices, lost, well) == ([0, 2], True, True)


def test_what_the_driver_cannot_say_is_no_fault(driver: fake_driver.FakeDriver) -> None:
    for gpu in driver.gpus:
        gpu.recovery_action = gpu.uncorrected_errors = fake_driver.NOT_SUPPORTED
    driver.rules = ["fail nvmlDeviceGetRemappedRows 3 -1", "fail nvmlDeviceGetTemperatureThreshold 3 -1"]
    driver.write()

    (found,) = run(
        driver,
        "r = source.reading(source.devices()[0].uuid)\n"
        "show([r.answered, r.recovery_action, r.uncorrected_errors, r.rows_failed, r.limit_celsius])",
    )

    assert found == [True, None, None, False, None]


def test_readings_follow_the_driver(driver: fake_driver.FakeDriver) -> None:
    gpu = driver.gpus[0]
    gpu.recovery_action, gpu.uncorrected_errors, gpu.rows_failed = 2, 5, 1
    gpu.temperature_celsius, gpu.clock_event_reasons = 91, 0x80
    driver.write()

    (found,) = run(
        driver,
        "r = source.reading(source.devices()[0].uuid)\nshow([r.recovery_action, r.uncorrected_errors, r.rows_failed, "
        "r.temperature_celsius, r.limit_celsius, r.power_brake])",
    )

    assert found == [2, 5, True, 91, 92, True]


def test_xids_with_their_gpu_and_none_from_before(driver: fake_driver.FakeDriver) -> None:
    driver.report_xid(0, 31)

    first, second = run(
        driver,
        "devices = source.devices()\nshow([f.xid for f in source.next_faults(0.05)])\n"
        f"path = pathlib.Path('{driver.path}')\npath.write_text(path.read_text() + 'xid 9 2 79\\n')\n"
        "show([[f.xid, f.uuid == devices[2].uuid] for f in source.next_faults(2)])",
    )

    assert (first, second) == ([], [[79, True]])


XIDS = """
def change(*lines):
    path = pathlib.Path({path!r})
    kept = [line for line in path.read_text().splitlines() if not line.startswith(("fail", "xid"))]
    path.write_text("\\n".join([*kept, *lines]) + "\\n")
uuids = [one.uuid for one in source.devices()]
def heard(timeout=0.0):
    return [[fault.xid, uuids.index(fault.uuid)] for fault in source.next_faults(timeout)]
"""


def test_events_that_a_driver_refuses_are_asked_for_again(driver: fake_driver.FakeDriver) -> None:
    """Refused once at start, a GPU would be deaf until the plugin restarts; in a vGPU guest it is so for good."""
    driver.rules = ["fail nvmlDeviceRegisterEvents 3 1"]
    driver.write()

    first, gaps, later, none_left = run(
        driver,
        XIDS.format(path=str(driver.path)) + "source.next_faults(0.0)\n"
        "change('fail nvmlDeviceRegisterEvents 3 1', 'xid 1 1 31', 'xid 2 2 31')\nshow(heard())\n"
        "show({uuids.index(uuid): why for uuid, why in source.gaps().xids.items()})\n"
        "change(); heard(); change('xid 3 1 79')\nshow(heard())\nshow(list(source.gaps().xids))",
    )

    assert first == [[31, 2]]
    assert gaps == {"1": "nvmlDeviceRegisterEvents: Not Supported"}
    assert (later, none_left) == ([[79, 1]], [])


def test_a_gpu_that_was_reset_is_registered_again(driver: fake_driver.FakeDriver) -> None:
    """The driver forgets registrations at a reset: without a new one its next fault is heard by nobody."""
    driver.gpus[1].resets = 1
    after_reset = driver.gpus[1].line()
    driver.gpus[1].resets = 0
    before = driver.gpus[1].line()

    (heard,) = run(
        driver,
        XIDS.format(path=str(driver.path)) + "heard(); change('fail * 16 1'); source.devices()\n"
        "assert source.reading(uuids[1]).reset_required\n"
        f"path = pathlib.Path({str(driver.path)!r}); change()\n"
        f"path.write_text(path.read_text().replace({before!r}, {after_reset!r}))\n"
        "source.devices(); assert source.reading(uuids[1]).answered; heard(); change('xid 1 1 62'); show(heard())",
    )

    assert heard == [[62, 1]]


@pytest.mark.parametrize("rule", ["fail * 15 1", "fail nvmlEventSetWait_v2 15 1"])
def test_a_lost_gpu_does_not_hide_its_neighbours_xids(driver: fake_driver.FakeDriver, rule: str) -> None:
    """The wait answers that a GPU is lost for as long as one is: the others need a set without it."""
    heard, gaps, back = run(
        driver,
        XIDS.format(path=str(driver.path)) + f"heard(); change({rule!r}); source.devices()\n"
        f"heard(); change({rule!r}, 'xid 1 2 31')\nshow(heard())\n"
        "show([uuids.index(uuid) for uuid in source.gaps().xids])\n"
        "change(); source._deaf_until.clear(); heard(); change('xid 2 1 31'); show([*heard(), *source.gaps().xids])",
    )

    assert (heard, gaps, back) == ([[31, 2]], [1], [[31, 1]])


def test_a_gpu_that_the_driver_no_longer_counts_is_lost(driver: fake_driver.FakeDriver) -> None:
    """It fell off the bus: the driver counts one less and does not find it by its address."""
    gone = driver.gpus[1]
    lines = [line for line in driver.path.read_text().splitlines() if gone.uuid not in line]

    listed, lost, neighbour = run(
        driver,
        f"first, second, third = (one.uuid for one in source.devices())\n"
        f"pathlib.Path({str(driver.path)!r}).write_text({chr(10).join(lines)!r})\n"
        "show([one.index for one in source.devices()])\nsource._handles.clear()\n"
        "show(source.reading(second).lost)\nshow(source.reading(third).answered)",
    )

    assert (listed, lost, neighbour) == ([0, 1], True, True)


def test_what_a_gpu_said_once_holds_while_it_refuses(driver: fake_driver.FakeDriver) -> None:
    """It stays listed as it was, and its reading says which call was refused and how."""
    driver.gpus[1].mig_mode = 1
    driver.migs = [f"mig 1 MIG-1 {10 << 30} 1 0 1 19"]

    for code, words in ((4, "Insufficient Permissions"), (16, "GPU requires restart"), (999, "Unknown Error")):
        driver.write()
        (found,) = run(
            driver,
            "before = source.devices()\npath = pathlib.Path('" + str(driver.path) + "')\n"
            f"path.write_text(path.read_text() + 'fail * {code} 1\\n')\nafter = source.devices()\n"
            "reading = source.reading(before[1].uuid)\n"
            "show([after == before, reading.lost, reading.reset_required, reading.problem])",
        )

        assert found == [True, False, code == 16, f"nvmlDeviceGetMemoryInfo: {words}"]


def test_what_was_refused_before_does_not_outlast_an_enumeration_that_fails(driver: fake_driver.FakeDriver) -> None:
    """A GPU that answers must not stay suspect because the driver does not count its GPUs now."""
    refused, answered = run(
        driver,
        "uuid = source.devices()[1].uuid\npath = pathlib.Path('" + str(driver.path) + "')\nbefore = path.read_text()\n"
        "path.write_text(before + 'fail nvmlDeviceGetHandleByIndex_v2 4 1\\n'); source.devices()\n"
        "show(source.reading(uuid).problem)\npath.write_text(before + 'fail nvmlDeviceGetCount_v2 999 -1\\n')\n"
        "try: source.devices()\nexcept gpu_source.GpuFailed: show(source.reading(uuid).answered)",
    )

    assert (refused, answered) == ("nvmlDeviceGetHandleByIndex: Insufficient Permissions", True)


def test_values_beyond_physics_are_absent_one_by_one(driver: fake_driver.FakeDriver) -> None:
    """A sensor that is not there answers with garbage: no GPU must be taken away for 4294967291 °C."""
    bad = driver.gpus[0]
    bad.temperature_celsius, bad.limit_celsius, bad.utilization_percent = 4_294_967_291, 4_294_967_291, 4_294_967_295
    bad.power_milliwatts, bad.uncorrected_errors = 4_000_000_000, 1 << 62
    bad.rows_failed, bad.recovery_action, bad.clock_event_reasons = 4_294_967_295, 4_294_967_295, -1
    bad.used_mib = 10
    driver.processes = ["process 0 71 1024 255"]
    driver.write()

    reading, usage = run(
        driver,
        "import dataclasses\nuuid = source.devices()[0].uuid\nshow(dataclasses.asdict(source.reading(uuid)))\n"
        "show(dataclasses.asdict(source.usage(uuid)))",
    )

    absent = ("recovery_action", "uncorrected_errors", "temperature_celsius", "limit_celsius")
    assert [reading[name] for name in absent] == [None] * 4
    assert (reading["answered"], reading["rows_failed"], reading["power_brake"]) == (True, False, False)
    missing = ("utilization_percent", "memory_controller_percent", "temperature_celsius", "power_watts")
    assert [usage[name] for name in missing] == [None] * 4
    assert usage["memory_used_bytes"] == 10 << 20
    assert usage["processes"] == [{"pid": 71, "memory_bytes": 1024, "utilization_percent": 0.0}]


def test_what_one_delivery_or_backend_needs_is_optional_elsewhere(driver: fake_driver.FakeDriver) -> None:
    """WSL2 has no minor numbers, SoCs no memory of the GPU's own: such a GPU is listed, and answers."""
    driver.rules = [
        f"fail {name} 3 0"
        for name in ("nvmlDeviceGetMinorNumber", "nvmlDeviceGetCudaComputeCapability", "nvmlDeviceGetMemoryInfo")
    ]
    driver.write()

    device, answered, usage = run(
        driver,
        "one = source.devices()[0]\nshow([one.minor, one.memory_mib, one.compute_capability])\n"
        "show(source.reading(one.uuid).answered)\nused = source.usage(one.uuid)\n"
        "show([used.memory_total_bytes, used.memory_used_bytes, used.temperature_celsius])",
    )

    assert device == [None, None, [0, 0]]
    assert (answered, usage) == (True, [None, None, 40])


def test_a_driver_without_the_newest_functions_lists_processes_all_the_same(driver: fake_driver.FakeDriver) -> None:
    """Before driver 510 the list has an older name; where there is none at all, nothing is claimed."""
    driver.processes = ["process 0 71 1024 10"]
    driver.rules = ["fail nvmlDeviceGetComputeRunningProcesses_v3 13 -1"]
    driver.rules += ["fail nvmlDeviceGetComputeRunningProcesses_v2 13 1"]
    driver.write()

    (found,) = run(
        driver,
        "show([[used.lists_processes, [one.pid for one in used.processes]]"
        " for used in [source.usage(one.uuid) for one in source.devices()[:2]]])",
    )

    assert found == [[True, [71]], [False, []]]


def test_links_between_gpus_as_hami_scores_them(driver: fake_driver.FakeDriver) -> None:
    driver.links = ["link 0 1 12 10", "link 1 2 0 20"]
    driver.write()

    (found,) = run(driver, "source.devices()\nshow([list(one.values()) for one in source.links().values()])")

    assert found == [[1200, 10], [1200, 40], [10, 40]]


@pytest.mark.parametrize(("state", "error"), [("driver mismatch\n", "DriverChanged"), ("", "DriverMissing")])
def test_a_driver_that_is_replaced_or_taken_away(driver: fake_driver.FakeDriver, state: str, error: str) -> None:
    (found,) = run(
        driver,
        f"pathlib.Path('{driver.path}').write_text({state!r})\n"
        "try: source.devices()\nexcept gpu_source.GpuSourceError as error: show(type(error).__name__)",
    )

    assert found == error


def test_a_machine_without_a_driver_says_so(tmp_path: pathlib.Path) -> None:
    """What lies in the library's place is none; on a machine with a driver too."""
    (tmp_path / "libnvidia-ml.so.1").touch()
    program = (
        "from device_plugin.driver import gpu_source, nvml\n"
        "try: nvml.connect()\nexcept gpu_source.DriverMissing as error: print(error)"
    )

    done = subprocess.run(
        [sys.executable, "-c", program],
        env={"PATH": "/usr/bin:/bin", "LD_LIBRARY_PATH": str(tmp_path)},
        capture_output=True,
        text=True,
        timeout=60,
        cwd=pathlib.Path(__file__).parents[3],
    )

    assert done.stdout == "NVML Shared Library Not Found\n", done.stderr


class Hanging:
    """A driver one of whose GPUs does not return until it is let go."""

    def __init__(self) -> None:
        self.let_go = threading.Event()

    def devices(self) -> list[gpu_source.Device]:
        return []

    def reading(self, uuid: identifiers.GpuUuid) -> health.Reading:
        if uuid == "GPU-hung":
            self.let_go.wait()
        return health.Reading()

    def destroy_bare(self, uuid: identifiers.GpuUuid, instance_id: int) -> None:
        """Not called."""

    def release(self, released: Mapping[identifiers.GpuUuid, int]) -> None:
        self.held_off = dict(released)

    def usage(self, uuid: identifiers.GpuUuid) -> gpu_source.Usage:
        self.reading(uuid)
        return gpu_source.Usage(
            memory_total_bytes=1 << 30,
            memory_used_bytes=0,
            utilization_percent=None,
            temperature_celsius=None,
            power_watts=None,
        )

    def next_faults(self, timeout_seconds: float) -> list[gpu_source.Fault]:
        raise gpu_source.GpuFailed("no events")

    def gaps(self) -> gpu_source.Gaps:
        return gpu_source.Gaps()

    def links(self) -> dict[identifiers.GpuUuid, dict[identifiers.GpuUuid, int]]:
        return {}

    def create_mig(self, uuid: identifiers.GpuUuid, profile: str, start: int, size: int) -> None:
        raise gpu_source.GpuFailed("cannot be divided")

    def destroy_mig(self, uuid: identifiers.GpuUuid, mig_uuid: str) -> None:
        raise gpu_source.GpuFailed("cannot be divided")

    def close(self) -> None:
        self.let_go.set()


async def back(watched: driver_threads.DriverThreads, uuid: identifiers.GpuUuid) -> health.Reading:
    """The first reading that is a good one, once the thread of an earlier call has come back."""
    while (reading := await watched.reading(uuid)).problem:
        await asyncio.sleep(0.01)
    return reading


def test_every_call_has_a_deadline_and_a_hung_gpu_is_not_asked_twice() -> None:
    """Its thread is the only one that it holds."""
    driver = Hanging()
    hung, well = identifiers.GpuUuid("GPU-hung"), identifiers.GpuUuid("GPU-well")

    async def story() -> list[str]:
        watched = driver_threads.DriverThreads(lambda: driver, 1.0)
        await watched.devices()
        first, neighbour = await asyncio.gather(watched.reading(hung), watched.reading(well))
        second = await watched.reading(hung)
        driver.let_go.set()
        third = await back(watched, hung)
        with pytest.raises(gpu_source.GpuFailed):
            await watched.next_faults(0.1)
        driver.let_go.clear()
        for _ in range(2):
            with pytest.raises(gpu_source.GpuFailed, match=r"within 1 s"):
                await watched.usage(hung)
        assert (await watched.usage(well)).memory_total_bytes == 1 << 30
        watched.close()
        return [one.problem for one in (first, neighbour, second, third)]

    assert asyncio.run(story()) == ["no answer within 1 s", "", "an earlier call has not returned", ""]


def test_the_use_of_a_gpu_and_of_its_processes(driver: fake_driver.FakeDriver) -> None:
    """What the driver cannot say is None, and so is each value that cannot be true; the others of that GPU stay."""
    driver.gpus[0].used_mib = 10
    driver.gpus[1].used_mib = driver.gpus[1].memory_mib + 1
    gib = 1 << 30
    driver.processes = [f"process 0 71 {gib} 40", f"process 0 72 {1 << 60} 100"]
    driver.rules = ["fail nvmlDeviceGetPowerUsage 3 0", "fail nvmlDeviceGetUtilizationRates 3 0"]
    driver.write()

    found = run(
        driver,
        """
import dataclasses
uuids = [one.uuid for one in source.devices()]
show(dataclasses.asdict(source.usage(uuids[0])))
show(dataclasses.asdict(source.usage(uuids[1])))
show(dataclasses.asdict(source.usage(uuids[2])))
""",
    )

    total = driver.gpus[0].memory_mib << 20
    assert found[0] == {
        "memory_total_bytes": total, "memory_used_bytes": 10 << 20, "utilization_percent": None,
        "temperature_celsius": 40, "power_watts": None, "memory_controller_percent": None, "mig_used_bytes": {},
        "lists_processes": True,
        "processes": [
            {"pid": 71, "memory_bytes": gib, "utilization_percent": 40.0},
            {"pid": 72, "memory_bytes": None, "utilization_percent": 100.0},
        ],
    }  # fmt: skip
    assert (found[1]["memory_used_bytes"], found[1]["power_watts"]) == (None, 60.0)
    assert found[2]["processes"] == []


def test_a_list_of_processes_that_is_refused_is_not_an_empty_one(driver: fake_driver.FakeDriver) -> None:
    """Containers on such a GPU would seem to use nothing."""
    driver.rules = ["fail nvmlDeviceGetComputeRunningProcesses_v3 3 0"]
    driver.write()

    found = run(driver, "show([source.usage(one.uuid).lists_processes for one in source.devices()])")

    assert found[0][:2] == [False, True]


def test_calls_that_come_together_wait_for_their_turn() -> None:
    """Two looks at once are no sign of a hung GPU; what nobody waits for any more is not done."""
    driver = Hanging()
    gpu, hung = identifiers.GpuUuid("GPU-well"), identifiers.GpuUuid("GPU-hung")

    async def story() -> None:
        watched = driver_threads.DriverThreads(lambda: driver, 1.0)
        await watched.devices()
        looks = await asyncio.gather(*(watched.reading(gpu) for _ in range(20)))
        assert [one.problem for one in looks] == [""] * 20
        together = await asyncio.gather(*(watched.reading(hung) for _ in range(3)))
        assert {one.problem for one in together} == {"no answer within 1 s"}
        assert (await watched.reading(hung)).problem == "an earlier call has not returned"
        driver.let_go.set()
        assert (await back(watched, hung)).problem == ""
        watched.close()

    asyncio.run(story())
