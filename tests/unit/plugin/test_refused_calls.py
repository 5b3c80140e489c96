"""Any call that the driver refuses for a moment passes: no GPU is given up, and no node is to be rebooted for it."""

import json
import pathlib
import subprocess
import sys
from typing import Any

import pytest

from lab import fake_driver
from lab.fake_driver import calls

pytestmark = pytest.mark.slow

# NO_PERMISSION, NOT_SUPPORTED, NOT_FOUND, DRIVER_NOT_LOADED, TIMEOUT, FUNCTION_NOT_FOUND, RESET_REQUIRED, IN_USE,
# ARGUMENT_VERSION_MISMATCH, UNKNOWN. GPU_IS_LOST alone means lost.
NAMES = (*calls.library_names(), "*")
"""The last is every call about one GPU at the same time."""
LACKS = "lacks"
"""Under which name what a library makes of us that lacks a function is kept."""
CODES = (4, 3, 6, 9, 10, 13, 16, 19, 25, 999)

# Every function of the library is refused with every code, in one process: NVIDIA's library is loaded
# once a process.
PROGRAM = """
import asyncio, contextlib, json, pathlib, sys
from device_plugin import metrics
from device_plugin.driver import driver_threads, gpu_source, health_watch, nvml
from gpu_sharing.core import health
from lab import fake_driver

folder, names, codes = pathlib.Path(sys.argv[1]), json.loads(sys.argv[2]), json.loads(sys.argv[3])
driver = fake_driver.make(folder, "n", 2)
driver.gpus[1].mig_mode = 1
driver.migs = [f"mig 1 MIG-1 {10 << 30} 1 0 1 19"]
driver.links = ["link 0 1 4 10"]
driver.processes = [f"process 0 71 {1 << 30} 40"]
driver.write()
watched = driver_threads.DriverThreads(nvml.connect, 30.0)
needs = []
def changed(device, before, after):
    needs.append(int(after.need))
watch = health_watch.HealthWatch(
    driver=watched, rules=health.Rules(hold_seconds=0.0), boot_id="boot", metrics=metrics.Metrics(), changed=changed)

async def everything():
    await watch.read_all()
    for device in watch.devices:
        with contextlib.suppress(gpu_source.GpuSourceError):
            await watched.usage(device.uuid)
    for work in (watched.links(), watched.create_mig(driver.gpus[1].uuid, "1g.10gb", 2, 1), watched.next_faults(0.0)):
        with contextlib.suppress(gpu_source.GpuSourceError):
            await work
    for mig in watch.devices[1].migs if len(watch.devices) > 1 else ():
        if mig.uuid != "MIG-1":
            with contextlib.suppress(gpu_source.GpuSourceError):
                await watched.destroy_mig(driver.gpus[1].uuid, mig.uuid)
    driver.path.with_name(driver.path.name + ".migs").unlink(missing_ok=True)
    await watch.read_all()

async def main():
    await watch.read_all()
    known = watch.devices
    for name in names:
        for code in codes:
            del needs[:]
            watch.states.clear()
            if name == "nvmlInitWithFlags":  # It is called when the driver comes back.
                driver.rules = ["fail nvmlDeviceGetCount_v2 9 -1"]
                driver.write()
                await watch.read_all()
            driver.rules = [f"fail {name} {code} {1 if name == '*' else -1}"]
            driver.write()
            await everything()
            listed = [device.uuid for device in watch.devices]
            driver.rules = []
            driver.write()
            for _ in range(3):
                await watch.read_all()
                with contextlib.suppress(gpu_source.GpuSourceError):
                    await watched.next_faults(0.0)
            print(json.dumps({
                "name": name, "code": code, "need": max(needs, default=0),
                "listed": listed == [device.uuid for device in known], "same": watch.devices == known,
                "available": all(state.available for state in watch.states.values()),
                "unheard": len(watched.gaps.unheard(watch.devices)),
                "gaps": len(watched.gaps.identity) + len(watched.gaps.mig),
            }))

async def lacking():  # A library that lacks a function for good, from the start.
    for name in names:
        driver.rules = [f"fail {name} 13 -1"]
        driver.write()
        source = driver_threads.DriverThreads(nvml.connect, 30.0)
        fresh = health_watch.HealthWatch(
            driver=source, rules=health.Rules(), boot_id="boot", metrics=metrics.Metrics(), changed=changed)
        for _ in range(2):
            with contextlib.suppress(gpu_source.DriverMissing):
                await fresh.read_all()
            with contextlib.suppress(gpu_source.GpuSourceError):
                await source.next_faults(0.0)
        used = 0
        for device in fresh.devices:
            used += (await source.usage(device.uuid)).memory_used_bytes is not None
        with contextlib.suppress(gpu_source.GpuSourceError):
            await source.links()
        print(json.dumps({
            "lacks": name, "offered": sum(state.available for state in fresh.states.values()), "used": used,
            "unheard": len(source.gaps.unheard(fresh.devices)), "without_memory": sum(
                device.memory_mib is None for device in fresh.devices),
        }))

asyncio.run(main())
asyncio.run(lacking())
"""


@pytest.fixture(scope="module")
def outcomes(tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[dict[str, Any]]]:
    folder = tmp_path_factory.mktemp("refused")
    driver = fake_driver.make(folder, "n", 2)
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, str(folder), json.dumps(NAMES), json.dumps(CODES)],
        env={"PATH": "/usr/bin:/bin", **driver.environment()},
        capture_output=True,
        text=True,
        timeout=300,
        cwd=pathlib.Path(__file__).parents[3],
    )
    assert done.returncode == 0, done.stderr[-3000:]
    found: dict[str, list[dict[str, Any]]] = {name: [] for name in (*NAMES, LACKS)}
    for line in done.stdout.splitlines():
        if line.startswith('{"name"'):
            one = json.loads(line)
            found[one["name"]].append(one)
        elif line.startswith('{"lacks"'):
            found[LACKS].append(json.loads(line))
    return found


@pytest.mark.parametrize("name", NAMES)
def test_one_call_refused_for_a_moment_never_ends_in_a_reboot(
    outcomes: dict[str, list[dict[str, Any]]], name: str
) -> None:
    """Whatever the call and the error: a reset that runs elsewhere, a lack of rights or an old library costs no node.

    While it lasts the GPUs stay listed, as their pods hold them; after it they are as before, and XIDs are received.
    """
    assert [one["code"] for one in outcomes[name]] == list(CODES)
    for one in outcomes[name]:
        assert one["need"] < 2, one  # Need.REBOOT
        assert one["listed"], one
        assert (one["same"], one["available"], one["unheard"], one["gaps"]) == (True, True, 0, 0), one


def test_a_library_that_lacks_a_function_costs_only_what_the_function_gives(
    outcomes: dict[str, list[dict[str, Any]]],
) -> None:
    """An old library has no newer calls: without the handle, UUID or name there is no GPU, all the rest is optional."""
    needed = {
        "nvmlInitWithFlags", "nvmlDeviceGetCount_v2", "nvmlDeviceGetHandleByIndex_v2", "nvmlDeviceGetUUID",
        "nvmlDeviceGetName", "*",
    }  # fmt: skip
    events = {
        "nvmlEventSetCreate", "nvmlEventSetWait_v2", "nvmlDeviceRegisterEvents", "nvmlDeviceGetSupportedEventTypes",
    }  # fmt: skip
    for one in outcomes[LACKS]:
        name = one["lacks"]
        memory = name == "nvmlDeviceGetMemoryInfo"
        assert one["offered"] == (0 if name in needed else 2), one
        if name not in needed:
            assert one["unheard"] == (2 if name in events else 0), one
            assert (one["without_memory"], one["used"]) == ((2, 0) if memory else (0, 2)), one
    assert len(outcomes[LACKS]) == len(NAMES)


def test_the_fake_driver_has_every_function_that_is_called() -> None:
    """What it lacks is read as an old driver's gap, so that a test would pass for the wrong reason."""
    source = pathlib.Path(fake_driver.__file__).with_name("nvml.c").read_text()

    assert [name for name in calls.library_names() if f"int {name}(" not in source] == []
