"""The fake driver refuses as the real one does: who holds a GPU, and what a reset and a MIG instance leave behind."""

import pathlib
import subprocess
import sys
from collections.abc import Iterator

import pytest

from lab import fake_driver


@pytest.fixture
def driver(tmp_path: pathlib.Path) -> fake_driver.FakeDriver:
    return fake_driver.make(tmp_path, "n", 3)


class Client:
    """A process on the driver that runs lines of Python, one after another."""

    def __init__(self, driver: fake_driver.FakeDriver) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-u", "-c", "import pynvml, sys\nfor line in sys.stdin:\n exec(line)\n print('done')"],
            env={"PATH": "/usr/bin:/bin", **driver.environment()},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def do(self, line: str) -> str:
        """Run one line; what it printed."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(f"{line}\n")
        self._process.stdin.flush()
        printed = ""
        while (answer := self._process.stdout.readline()) not in ("done\n", ""):
            printed += answer
        return printed.strip()

    def end(self) -> None:
        self._process.kill()
        self._process.communicate()


@pytest.fixture
def client(driver: fake_driver.FakeDriver) -> Iterator[Client]:
    found = Client(driver)
    yield found
    found.end()


def held(driver: fake_driver.FakeDriver) -> list[int]:
    """The GPUs that cannot be reset now."""
    refused = []
    for index in range(len(driver.gpus)):
        try:
            driver.reset(index)
        except fake_driver.InUse:
            refused.append(index)
    return refused


def test_a_client_holds_every_gpu_until_it_shuts_down(driver: fake_driver.FakeDriver, client: Client) -> None:
    """As our own plugin and monitor do: without a way to let go, no GPU can be reset beside them."""
    client.do("pynvml.nvmlInit(); pynvml.nvmlInit()")
    assert held(driver) == [0, 1, 2]
    with pytest.raises(fake_driver.InUse):
        driver.set_mig_mode(1, 1)

    client.do("pynvml.nvmlShutdown()")
    assert held(driver) == [0, 1, 2]

    client.do("pynvml.nvmlShutdown()")
    assert held(driver) == []
    driver.set_mig_mode(1, 1)


def test_a_process_that_dies_lets_go(driver: fake_driver.FakeDriver, client: Client) -> None:
    """A plugin that was killed must not keep its GPUs from being reset for ever."""
    client.do("pynvml.nvmlInit()")
    client.end()

    assert held(driver) == []


def test_without_attaching_a_client_holds_only_what_it_takes_a_handle_of(
    driver: fake_driver.FakeDriver, client: Client
) -> None:
    """By position and by bus only that GPU; by UUID also those through which the driver searches."""
    client.do("pynvml.nvmlInitWithFlags(pynvml.NVML_INIT_FLAG_NO_ATTACH)")
    assert client.do("print(pynvml.nvmlDeviceGetCount())") == "3"
    assert held(driver) == []

    client.do("pynvml.nvmlDeviceGetHandleByIndex(2)")
    assert held(driver) == [2]

    client.do(f"pynvml.nvmlDeviceGetHandleByPciBusId({driver.gpus[0].bus_id!r})")
    assert held(driver) == [0, 2]

    client.do(f"pynvml.nvmlDeviceGetHandleByUUID({driver.gpus[1].uuid!r})")
    assert held(driver) == [0, 1, 2]


def test_a_reset_ends_what_asked_for_it_and_every_registration(driver: fake_driver.FakeDriver, client: Client) -> None:
    """What registered before hears nothing after: a plugin that does not register again is deaf for good."""
    driver.rules = ["fail * 16 1", "fail nvmlDeviceGetPowerUsage 3 1"]
    driver.gpus[1].recovery_action = 1
    driver.write()
    client.do("pynvml.nvmlInit()")
    client.do("events = pynvml.nvmlEventSetCreate()")
    driver.reset(1, despite_clients=True)
    assert (driver.rules, driver.gpus[1].recovery_action) == (["fail nvmlDeviceGetPowerUsage 3 1"], 0)
    client.do("gpu = pynvml.nvmlDeviceGetHandleByIndex(1)")
    client.do("pynvml.nvmlDeviceRegisterEvents(gpu, 8, events)")
    driver.report_xid(1, 31)
    assert client.do("print(pynvml.nvmlEventSetWait_v2(events, 100).eventData)") == "31"

    driver.reset(1, despite_clients=True)
    driver.report_xid(1, 31)
    wait = "try: pynvml.nvmlEventSetWait_v2(events, 100)\\nexcept pynvml.NVMLError_Timeout: print('nothing')"
    assert client.do(f'exec("{wait}")') == "nothing"


def test_an_instance_whose_compute_instance_is_gone_is_shown_by_no_handle(
    driver: fake_driver.FakeDriver, client: Client
) -> None:
    """It holds its memory slices all the same, and can only be destroyed then."""
    driver.gpus[0].mig_mode = 1
    driver.migs = [
        f"mig 0 MIG-{number} {10 << 30} {number + 1} {number} 1 19{end}" for number, end in ((0, ""), (1, " bare"))
    ]
    driver.write()
    client.do("pynvml.nvmlInit(); gpu = pynvml.nvmlDeviceGetHandleByIndex(0); import ctypes")
    client.do("found, count = (pynvml.c_nvmlGpuInstance_t * 7)(), ctypes.c_uint(7)")
    client.do("pynvml.nvmlDeviceGetGpuInstances(gpu, 19, found, ctypes.byref(count)); print(count.value)")

    shown = client.do("print(pynvml.nvmlDeviceGetUUID(pynvml.nvmlDeviceGetMigDeviceHandleByIndex(gpu, 0)))")
    assert shown == "MIG-0"
    assert client.do(
        "exec('try: pynvml.nvmlDeviceGetMigDeviceHandleByIndex(gpu, 1)\\nexcept pynvml.NVMLError as e: print(e)')"
    )
    assert client.do("print(count.value)") == "2"
    refused = client.do(
        "exec('try: pynvml.nvmlGpuInstanceDestroy(found[0])\\nexcept pynvml.NVMLError as e: print(e.value)')"
    )
    assert refused == "19"
