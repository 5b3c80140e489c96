"""The MPS daemon's pod, with a program in the place of NVIDIA's."""

import json
import pathlib
import subprocess
import sys
import threading
import time
from collections.abc import Sequence

import pytest

from device_plugin import mps_daemon, settings
from device_plugin.driver import gpu_source
from device_plugin.isolation import mps
from device_plugin.isolation.backend import CannotIsolate
from gpu_sharing.core import errors
from lab import fake_driver
from tests.unit.plugin.test_isolation import A, B, device

CONTROL = """#!/bin/sh
echo "$*" "$CUDA_MPS_PIPE_DIRECTORY" >> {folder}/calls
if [ "$1" = -f ]; then
  touch {folder}/running
  while [ -e {folder}/running ]; do sleep 0.05; done
  exit 0
fi
[ -e {folder}/running ] || {{ echo "cannot find the daemon"; exit 1; }}
while read -r command; do
  echo "$command" >> {folder}/commands
  case "$command" in
    get_default_active_thread_percentage) echo 100.0 ;;
    quit) rm {folder}/running ;;
  esac
done
"""


SLOW = CONTROL.replace("[ -e {folder}/running ] ||", "[ -e {folder}/may-answer ] ||")


class FakeDriver:
    """GPUs with a compute mode."""

    def __init__(self, *devices: gpu_source.Device) -> None:
        self.listed = devices
        self.modes: dict[str, int] = {one.uuid: 0 for one in devices}

    def devices(self) -> Sequence[gpu_source.Device]:
        return self.listed

    def compute_mode(self, uuid: str) -> int:
        return self.modes[uuid]

    def set_compute_mode(self, uuid: str, mode: int) -> None:
        self.modes[uuid] = mode


def options(folder: pathlib.Path, **changes: object) -> mps_daemon.Settings:
    program = folder / "nvidia-cuda-mps-control"
    program.write_text(CONTROL.format(folder=folder))
    program.chmod(0o755)
    values = {"node_name": "n", "root": folder / "mps", "program": str(program), **changes}
    return mps_daemon.Settings(**values)  # type: ignore[arg-type]


def wait(condition: object, seconds: float = 60.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition():  # type: ignore[operator]
        assert time.monotonic() < deadline
        time.sleep(0.02)


def test_while_the_daemon_runs_gpus_are_exclusive_and_clients_have_limits(tmp_path: pathlib.Path) -> None:
    """Else a client that removes its variables uses the GPU beside the server; the old mode is back at the end."""
    driver = FakeDriver(device(A, 0), device(B, 1))
    driver.modes[B] = 1
    chosen, stop = options(tmp_path), threading.Event()
    daemon = mps_daemon.Daemon(chosen, driver)

    with daemon.alone():
        assert not mps.is_ready(chosen.root)
        serving = threading.Thread(target=lambda: daemon.run(driver.listed, stop))
        serving.start()
        wait(lambda: mps.is_ready(chosen.root))
        assert driver.modes == {A: 3, B: 3}
        with pytest.raises(CannotIsolate, match="another MPS daemon"), mps_daemon.Daemon(chosen, driver).alone():
            pass
        stop.set()
        serving.join()

    assert driver.modes == {A: 0, B: 1}
    assert not mps.is_ready(chosen.root)
    commands = (tmp_path / "commands").read_text().splitlines()
    assert {f"set_default_device_pinned_mem_limit {index} 1000M" for index in (0, 1)} <= set(commands)
    assert commands[-1] == "quit"
    assert (tmp_path / "calls").read_text().splitlines().count(f"-f {chosen.root}/pipe") == 1


def test_the_start_of_the_daemon_shows_how_far_it_is(tmp_path: pathlib.Path) -> None:
    """Of eight GPUs it takes a minute, in which the node's pods do not start."""
    driver = FakeDriver(device(A, 0), device(B, 1))
    chosen, stop = options(tmp_path), threading.Event()
    (tmp_path / "nvidia-cuda-mps-control").write_text(SLOW.format(folder=tmp_path))
    shown = mps.DaemonStart(chosen.root, lambda: True)
    assert shown.ratio == 0
    assert mps.DaemonStart(chosen.root, lambda: False).ratio == 1
    daemon = mps_daemon.Daemon(chosen, driver)

    with daemon.alone():
        serving = threading.Thread(target=lambda: daemon.run(driver.listed, stop))
        serving.start()
        wait(lambda: shown.ratio == pytest.approx(2 / 6, abs=0.01))  # Both modes are set; the daemon does not answer.
        (tmp_path / "may-answer").touch()
        wait(lambda: shown.ratio == 1)
        stop.set()
        serving.join()

    assert shown.ratio < 1


def test_after_a_crash_the_mode_that_was_there_first_comes_back(tmp_path: pathlib.Path) -> None:
    """Not the exclusive one, which the crash left behind: without the daemon no second process could use the GPU."""
    driver = FakeDriver(device(A, 0))
    driver.modes[A] = 3
    chosen, stop = options(tmp_path), threading.Event()
    daemon = mps_daemon.Daemon(chosen, driver)
    with daemon.alone():
        (chosen.root / "compute-modes.json").write_text(json.dumps({A: 0}))
        stop.set()
        assert daemon.run(driver.listed, stop) == 0

    assert driver.modes == {A: 0}
    assert not (chosen.root / "compute-modes.json").exists()


def test_a_daemon_that_ends_by_itself_ends_the_pod(tmp_path: pathlib.Path) -> None:
    """So that the kubelet starts it again."""
    driver = FakeDriver(device(A, 0))
    chosen = options(tmp_path)
    daemon = mps_daemon.Daemon(chosen, driver)
    statuses: list[int] = []
    with daemon.alone():
        serving = threading.Thread(target=lambda: statuses.append(daemon.run(driver.listed, threading.Event())))
        serving.start()
        wait(lambda: mps.is_ready(chosen.root))
        (tmp_path / "running").unlink()
        serving.join()

    assert statuses == [1]
    assert driver.modes == {A: 0}


def test_a_program_that_is_missing_or_ends_at_once_is_said(tmp_path: pathlib.Path) -> None:
    """It comes with NVIDIA's runtime, and nothing else says that it did not."""
    driver = FakeDriver(device(A, 0))
    for program, text in ((str(tmp_path / "absent"), "No such file"), ("/bin/false", "ended with status 1")):
        daemon = mps_daemon.Daemon(options(tmp_path, program=program), driver)
        with daemon.alone(), pytest.raises(CannotIsolate, match=text):
            daemon.run(driver.listed, threading.Event())
        assert driver.modes == {A: 0}


def test_the_gpus_served_are_those_that_the_device_plugin_shares_by_mps(tmp_path: pathlib.Path) -> None:
    """By the same file; a GPU in MIG mode has no part in it."""
    whole, divided = device(A, 0), device(B, 1, mig_enabled=True)
    by_mps = settings.Sharing(isolation="mps")
    assert mps_daemon.served(options(tmp_path), [whole]) == []
    assert mps_daemon.served(options(tmp_path, sharing=by_mps), [whole, divided]) == [whole]
    config = tmp_path / "config.json"
    config.write_text('{"nodeconfig": [{"name": "n", "operatingmode": "mps"}]}')
    assert mps_daemon.served(options(tmp_path, config_file=config), [whole]) == [whole]
    config.unlink()
    with pytest.raises(errors.SettingsError, match="No such file"):
        mps_daemon.served(options(tmp_path, config_file=config), [whole])


def test_settings_are_read_and_refused_by_name() -> None:
    found = mps_daemon.parse(["--mps-root", "/m", "--shared-memory", "64", "--isolation", "mps"], {"NODE_NAME": "n"})
    assert (found.root, found.shared_memory_mib, found.sharing.isolation) == (pathlib.Path("/m"), 64, "mps")
    for arguments, named in (([], "--node-name"), (["--node-name", "n", "--shared-memory", "1"], "--shared-memory")):
        with pytest.raises(errors.SettingsError, match=named):
            mps_daemon.parse(arguments, {})


def test_the_compute_mode_is_the_drivers(tmp_path: pathlib.Path) -> None:
    """In a process of its own, because NVIDIA's library is loaded once."""
    driver = fake_driver.make(tmp_path, "n", 2)
    script = (
        "from device_plugin.driver import nvml; driver = nvml.connect(); "
        "uuids = [one.uuid for one in driver.devices()]; "
        "driver.set_compute_mode(uuids[1], 3); print([driver.compute_mode(uuid) for uuid in uuids])"
    )

    done = subprocess.run(
        [sys.executable, "-c", script],
        capture_output=True,
        text=True,
        timeout=60,
        env=driver.environment(),
        cwd=pathlib.Path(__file__).parents[3],
    )

    assert done.stdout.strip() == "[0, 3]", done.stderr
