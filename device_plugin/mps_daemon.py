"""NVIDIA's MPS control daemon on one node: `python -m device_plugin.mps_daemon --help`.

It runs in its own pod, so that no restart of the device plugin ends the server and with it every client. While it runs,
the GPUs are in the compute mode EXCLUSIVE_PROCESS: otherwise a client that removes its variables would use the GPU
beside the server, without any limit. The earlier mode is set again at the end; a file keeps it over a crash.

The daemon's default limit is the GPU's memory. It cannot be lower than the largest share, because a client's own limit
can only lower it, and the default of a running server does not change.

Source: docs.nvidia.com/deploy/mps (the control daemon's commands); NVIDIA/k8s-device-plugin cmd/mps-control-daemon for
limits by index, the compute mode, and the tmpfs that daemon and clients share.
"""

import contextlib
import ctypes
import fcntl
import json
import os
import pathlib
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

import structlog

from device_plugin import node_flags
from device_plugin import settings as plugin_settings
from device_plugin.driver import gpu_source
from device_plugin.isolation import mps, table
from device_plugin.isolation.backend import CannotIsolate
from gpu_sharing.adapters import flags, logs, signals
from gpu_sharing.adapters.progress import Progress
from gpu_sharing.core import error_codes, errors, json_text, nvidia

_COMMAND_SECONDS = 10.0
_READY_SECONDS = 30.0
_QUIT_SECONDS = 20.0
_POLL_SECONDS = 0.2
_MODES = "compute-modes.json"
_TMPFS = b"tmpfs"
_MOUNT_FLAGS = 0x2 | 0x4 | 0x8
"""MS_NOSUID, MS_NODEV and MS_NOEXEC."""

log = structlog.get_logger("mps")


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """Settings of the daemon."""

    node_name: str
    """Name of this node; its entry of the node file counts."""
    root: pathlib.Path = pathlib.Path(nvidia.MPS_ROOT)
    """Folder of pipes, logs and shared memory, on the host and in containers under the same path."""
    shared_memory_mib: int = 1024
    """Size in MiB of the tmpfs that daemon and clients have as /dev/shm, which bounds the host's memory they fill
    there.
    """
    program: str = nvidia.MPS_PROGRAM
    """NVIDIA's control daemon."""
    config_file: pathlib.Path | None = None
    """JSON with `nodeconfig` per node, as the device plugin's."""
    sharing: plugin_settings.Sharing = field(default_factory=plugin_settings.Sharing)
    """Isolation of GPUs where the node file has no entry for the node."""
    mount: bool = False
    """Whether to mount the tmpfs and end, instead of running the daemon."""
    verbosity: int = 3
    log_format: str = "json"


HELP = {
    **node_flags.NODE_HELP,
    "mps-root": "DIR of pipes, logs and shared memory (default /run/nvidia/mps)",
    "shared-memory": "MiB of the tmpfs that daemon and clients share (default 1024)",
    "program": "PROGRAM of the control daemon (default nvidia-cuda-mps-control)",
    "config-file": "FILE: JSON with nodeconfig per node, as the device plugin's (default: none)",
    "isolation": "as the device plugin's; GPUs whose isolation is mps are served (default auto: none)",
    "mount": "mount the tmpfs and end, as the init container does",
    **flags.LOG_HELP,
}
"""Every flag, in the order of `--help`."""


def parse(arguments: Sequence[str], environment: Mapping[str, str] | None = None) -> Settings:
    """Read the settings.

    Raises:
        SettingsError: A value that the process cannot start with.
    """
    given = node_flags.read(
        "python -m device_plugin.mps_daemon",
        "Runs NVIDIA's MPS control daemon for the GPUs of one node.",
        HELP,
        arguments,
        environment=environment,
        switches=("mount",),
    )
    default = Settings(node_name="")
    return Settings(
        **given.log_settings(),
        root=given.path("mps-root", default.root),
        shared_memory_mib=given.count("shared-memory", default.shared_memory_mib, 16, 1_000_000),
        program=given.text("program") or default.program,
        config_file=given.optional_path("config-file"),
        sharing=plugin_settings.Sharing(isolation=given.one_of("isolation", table.CHOICES, table.AUTO)),
        mount=given.switch("mount"),
    )


class Driver(Protocol):
    """The calls of the driver that the daemon needs."""

    def devices(self) -> Sequence[gpu_source.Device]:
        """Return the GPUs that the driver shows."""

    def compute_mode(self, uuid: str) -> int:
        """Return the compute mode of a GPU, as NVML numbers it."""

    def set_compute_mode(self, uuid: str, mode: int) -> None:
        """Set the compute mode of a GPU."""


def served(settings: Settings, devices: Sequence[gpu_source.Device]) -> list[gpu_source.Device]:
    """Return the GPUs whose isolation is MPS.

    Raises:
        SettingsError: The node file cannot be read.
    """
    sharing = settings.sharing
    if settings.config_file is not None:
        try:
            sharing = plugin_settings.for_node(
                sharing, settings.config_file.read_text(errors="replace"), settings.node_name
            )
        except OSError as cause:
            raise errors.SettingsError(f"{settings.config_file}: {cause.strerror or cause}") from cause
    return [one for one in devices if sharing.isolation == table.MPS and not one.mig_enabled]


def mount_shared_memory(settings: Settings) -> None:
    """Mount the tmpfs, unless it is mounted: running clients keep theirs.

    Raises:
        OSError: It needs CAP_SYS_ADMIN, and a mount that is propagated to the host.
    """
    folder = settings.root / mps.SHARED_MEMORY
    folder.mkdir(parents=True, exist_ok=True)
    if folder.is_mount():
        return
    libc = ctypes.CDLL(None, use_errno=True)
    data = f"size={settings.shared_memory_mib}m,mode=1777".encode()
    if libc.mount(_TMPFS, str(folder).encode(), _TMPFS, _MOUNT_FLAGS, data):
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number), str(folder))


class Daemon:
    """One control daemon.

    Args:
        settings: How it runs.
        driver: Sets the compute modes.
    """

    def __init__(self, settings: Settings, driver: Driver) -> None:
        self._settings = settings
        self._driver = driver
        self._root = settings.root
        self._starting = Progress(mps.START, is_due=True)

    @contextlib.contextmanager
    def alone(self) -> Iterator[None]:
        """Hold the lock by which others know that a daemon runs.

        Raises:
            CannotIsolate: Another daemon holds it.
        """
        for folder, mode in ((self._root, 0o755), (self._root / mps.PIPE, 0o755), (self._root / mps.LOG, 0o755)):
            folder.mkdir(parents=True, exist_ok=True)
            folder.chmod(mode)
        with (self._root / mps.LOCK).open("a") as held:
            try:
                fcntl.flock(held, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError as cause:
                raise CannotIsolate(f"another MPS daemon of {self._root} runs") from cause
            (self._root / mps.READY).unlink(missing_ok=True)
            mps.write_progress(self._root, self._starting.ratio)
            yield

    def run(self, devices: Sequence[gpu_source.Device], stop: threading.Event) -> int:
        """Serve GPUs until stopped. Returns the exit status; 1 if the daemon ended by itself.

        Raises:
            CannotIsolate: It does not start, or refuses its limits.
        """
        self._starting.begin(2 * len(devices) + 2)  # A mode and a limit of each GPU, the daemon, its threads.
        with self._exclusive(devices), self._process() as process:
            self._wait_ready(process)
            for device in devices:
                self._command(f"set_default_device_pinned_mem_limit {device.index} {device.memory_mib}M")
                self._step()
            self._command("set_default_active_thread_percentage 100")
            (self._root / mps.READY).touch()
            self._starting.end()
            log.info("serving", gpus=[device.uuid for device in devices], root=str(self._root))
            while not stop.wait(_POLL_SECONDS):
                if process.poll() is not None:
                    log.error("the control daemon ended", error_code=error_codes.PLUGIN_MPS, status=process.returncode)
                    return 1
            (self._root / mps.READY).unlink(missing_ok=True)
            with contextlib.suppress(CannotIsolate):
                self._command("quit")
        return 0

    @contextlib.contextmanager
    def _exclusive(self, devices: Sequence[gpu_source.Device]) -> Iterator[None]:
        file = self._root / _MODES
        kept = _modes(file)
        for device in devices:
            mode = self._driver.compute_mode(device.uuid)
            # A GPU that is exclusive already was set so by an earlier daemon that crashed, or by an administrator.
            kept.setdefault(device.uuid, mode)
        part = file.with_suffix(".part")
        part.write_text(json.dumps(kept))
        part.rename(file)
        try:
            for device in devices:
                self._driver.set_compute_mode(device.uuid, nvidia.EXCLUSIVE_PROCESS)
                self._step()
            yield
        finally:
            for uuid, mode in kept.items():
                try:
                    self._driver.set_compute_mode(uuid, mode)
                except gpu_source.GpuSourceError as refused:
                    cause = f"{uuid}: {refused}"
                    log.error("compute mode not set back", error_code=error_codes.PLUGIN_MPS, cause=cause)
            file.unlink(missing_ok=True)

    @contextlib.contextmanager
    def _process(self) -> Iterator["subprocess.Popen[bytes]"]:
        try:
            process = subprocess.Popen(  # noqa: S603  # the program that the operator names
                [self._settings.program, "-f"],
                env=self._environment(),
                stdin=subprocess.DEVNULL,
                start_new_session=True,
            )
        except OSError as cause:
            raise CannotIsolate(f"{self._settings.program}: {cause.strerror or cause}") from cause
        try:
            yield process
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(_QUIT_SECONDS)
        finally:
            if process.poll() is None:
                process.kill()
            process.wait()

    def _wait_ready(self, process: "subprocess.Popen[bytes]") -> None:
        deadline = time.monotonic() + _READY_SECONDS
        while time.monotonic() < deadline:
            if process.poll() is not None:
                raise CannotIsolate(f"{self._settings.program} ended with status {process.returncode}")
            with contextlib.suppress(CannotIsolate, ValueError):
                float(self._command("get_default_active_thread_percentage"))
                self._step()
                return
            self._starting.reach(self._starting.done, self._starting.total)  # Writes a line from time to time.
            time.sleep(_POLL_SECONDS)
        raise CannotIsolate(f"the MPS control daemon does not answer within {_READY_SECONDS:g} s")

    def _step(self) -> None:
        self._starting.step()
        mps.write_progress(self._root, self._starting.ratio)

    def _command(self, command: str) -> str:
        try:
            done = subprocess.run(  # noqa: S603  # the program that the operator names
                [self._settings.program],
                env=self._environment(),
                input=f"{command}\n",
                text=True,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                timeout=_COMMAND_SECONDS,
                errors="replace",
            )
        except OSError as cause:
            raise CannotIsolate(f"{self._settings.program}: {cause.strerror or cause}") from cause
        except subprocess.TimeoutExpired as cause:
            raise CannotIsolate(
                f"{self._settings.program} {command}: no answer within {_COMMAND_SECONDS:g} s"
            ) from cause
        if done.returncode:
            raise CannotIsolate(f"{self._settings.program} {command}: {done.stdout.strip()[:200]}")
        return done.stdout.strip()

    def _environment(self) -> dict[str, str]:
        return {
            **os.environ,
            "CUDA_MPS_PIPE_DIRECTORY": str(self._root / mps.PIPE),
            "CUDA_MPS_LOG_DIRECTORY": str(self._root / mps.LOG),
        }


def _modes(file: pathlib.Path) -> dict[str, int]:
    try:
        modes = json_text.value(file.read_bytes())
        return {str(uuid): int(mode) for uuid, mode in modes.items()}
    except (OSError, ValueError, AttributeError, TypeError, OverflowError):
        return {}


def main(connect: Callable[[], Driver]) -> int:
    """Run until stopped. Returns the exit status: 2 for a setting that it cannot start with."""
    try:
        settings = parse(sys.argv[1:])
    except errors.SettingsError as refused:
        sys.stderr.write(f"device_plugin.mps_daemon: {error_codes.INVALID_SETTING}: {refused}\n")
        return 2
    logs.configure(settings.verbosity, settings.log_format)
    stop = threading.Event()
    signals.act_on((signal.SIGTERM, signal.SIGINT), stop.set)
    try:
        if settings.mount:
            mount_shared_memory(settings)
            return 0
        driver = connect()
        daemon = Daemon(settings, driver)
        with daemon.alone():
            is_waiting = False
            while not (devices := served(settings, driver.devices())):
                if not is_waiting:
                    log.info("no GPU of this node is set to MPS; waiting for the node file", node=settings.node_name)
                is_waiting = True
                if stop.wait(_READY_SECONDS):
                    return 0
            return daemon.run(devices, stop)
    except (CannotIsolate, errors.SettingsError, gpu_source.GpuSourceError, OSError) as refused:
        log.error("ended", error_code=error_codes.PLUGIN_MPS, cause=str(refused))
        return 1


def _connect() -> Driver:
    from device_plugin.driver import nvml

    return nvml.connect()


if __name__ == "__main__":
    sys.exit(main(_connect))
