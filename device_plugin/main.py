"""Runs a process of a GPU node: settings, logs, signals, and the exit status."""

import asyncio
import functools
import pathlib
import signal
import sys
from collections.abc import Callable, Sequence
from typing import Protocol, TypeVar

import structlog

from device_plugin.driver import driver_library, gpu_source
from gpu_sharing.adapters import kubernetes, logs, profiling
from gpu_sharing.core import error_codes, errors

_DRIVER_CHANGED_STATUS = 3


class ProcessSettings(Protocol):
    """The settings of every process."""

    @property
    def kubeconfig(self) -> pathlib.Path | None:
        """The kubeconfig file; None is the in-cluster service account."""

    @property
    def driver_root(self) -> pathlib.Path | None:
        """Where the host's driver is mounted; None where the container runtime brings it."""

    @property
    def verbosity(self) -> int:
        """Verbosity of logs, 0 to 6."""

    @property
    def log_format(self) -> str:
        """One of `logs.FORMATS`."""


class Service(Protocol):
    """The work of a process."""

    async def run(self, stop: asyncio.Event) -> None:
        """Serve until stopped."""


SettingsT = TypeVar("SettingsT", bound=ProcessSettings)
Connect = Callable[..., gpu_source.GpuSource]


def run_until_stopped(
    module: str,
    user_agent: str,
    parse: Callable[[Sequence[str]], SettingsT],
    make: Callable[[SettingsT, kubernetes.Client, Connect], Service],
) -> int:
    """Run a service until SIGTERM or SIGINT.

    Args:
        module: As in `python -m`.
        user_agent: Its name in requests to the API server.
        parse: Reads its flags.
        make: Makes the service.

    Returns:
        The exit status: 2 for a setting that the process cannot start with, 3 when the driver was replaced.
    """
    log = structlog.get_logger(module.rpartition(".")[2])
    try:
        settings = parse(sys.argv[1:])
        logs.configure(settings.verbosity, settings.log_format)
        profiling.on_signal()
        asyncio.run(_run(settings, user_agent, make))
    except errors.SettingsError as refused:
        sys.stderr.write(f"{module}: {error_codes.INVALID_SETTING}: {refused}\n")
        return 2
    except gpu_source.DriverChanged as changed:
        log.error(
            "the driver was replaced; ending so that a new process loads it",
            error_code=error_codes.PLUGIN_DRIVER_CHANGED,
            cause=str(changed),
        )
        return _DRIVER_CHANGED_STATUS
    except OSError as refused:
        log.error("cannot start", cause=str(refused))
        sys.stderr.write(f"{module}: cannot listen: {refused}\n")
        return 2
    return 0


async def _run(
    settings: SettingsT, user_agent: str, make: Callable[[SettingsT, kubernetes.Client, Connect], Service]
) -> None:
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    async with kubernetes.Client(settings.kubeconfig, user_agent) as client:
        await make(settings, client, functools.partial(_connect, settings.driver_root)).run(stop)


def _connect(driver_root: pathlib.Path | None, *, attach: bool = True) -> gpu_source.GpuSource:
    from device_plugin.driver import nvml

    if driver_root is not None:
        driver_library.load(driver_root)
    return nvml.connect(attach=attach)
