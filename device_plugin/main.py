"""How a process of a GPU node starts and ends: settings, logs, signals, and the exit status."""

import asyncio
import functools
import pathlib
import signal
import sys
from collections.abc import Callable, Sequence
from typing import Protocol, TypeVar

import structlog

from device_plugin.driver import driver_library, gpu_source
from gpu_sharing.adapters import kubernetes, logs
from gpu_sharing.core import error_codes, errors

_DRIVER_CHANGED_STATUS = 3


class Options(Protocol):
    """What every process is told."""

    @property
    def kubeconfig(self) -> pathlib.Path | None:
        """How to reach the API server."""

    @property
    def driver_root(self) -> pathlib.Path | None:
        """The host's driver, where no runtime brings it."""

    @property
    def verbosity(self) -> int:
        """0 to 6."""

    @property
    def log_format(self) -> str:
        """One of `logs.FORMATS`."""


class Service(Protocol):
    """What a process does."""

    async def run(self, stop: asyncio.Event) -> None:
        """Serve until told to stop."""


OptionsT = TypeVar("OptionsT", bound=Options)
Connect = Callable[..., gpu_source.GpuSource]


def run_until_stopped(
    module: str,
    user_agent: str,
    parse: Callable[[Sequence[str]], OptionsT],
    make: Callable[[OptionsT, kubernetes.Client, Connect], Service],
) -> int:
    """Run a service until SIGTERM or SIGINT.

    Args:
        module: As in `python -m`.
        user_agent: How it calls itself to the API server.
        parse: Reads its flags.
        make: Joins it.

    Returns:
        The exit status: 2 for a setting that the process cannot start with, 3 when the driver was replaced.
    """
    log = structlog.get_logger(module.rpartition(".")[2])
    try:
        options = parse(sys.argv[1:])
        logs.configure(options.verbosity, options.log_format)
        asyncio.run(_run(options, user_agent, make))
    except errors.SettingsError as refused:
        sys.stderr.write(f"{module}: {error_codes.INVALID_SETTING}: {refused}\n")
        return 2
    except gpu_source.DriverChanged as changed:
        log.error("ending on purpose", error_code=error_codes.PLUGIN_DRIVER_CHANGED, cause=str(changed))
        return _DRIVER_CHANGED_STATUS
    except OSError as refused:
        log.error("cannot start", cause=str(refused))
        sys.stderr.write(f"{module}: cannot listen: {refused}\n")
        return 2
    return 0


async def _run(
    options: OptionsT, user_agent: str, make: Callable[[OptionsT, kubernetes.Client, Connect], Service]
) -> None:
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    async with kubernetes.Client(options.kubeconfig, user_agent) as client:
        await make(options, client, functools.partial(_connect, options.driver_root)).run(stop)


def _connect(driver_root: pathlib.Path | None, *, attach: bool = True) -> gpu_source.GpuSource:
    from device_plugin.driver import nvml

    if driver_root is not None:
        driver_library.load(driver_root)
    return nvml.connect(attach=attach)
