"""Start the device plugin: `python -m device_plugin --help`."""

import asyncio
import os
import signal
import sys

import structlog

from device_plugin import app, gpu_source, settings
from gpu_sharing.adapters import kubernetes, logs
from gpu_sharing.core import error_codes, errors

_DRIVER_CHANGED_STATUS = 3


def _connect() -> gpu_source.GpuSource:
    from device_plugin import nvml  # Late: without a driver nothing of it is needed.

    return nvml.connect()


async def _run(options: settings.Settings) -> None:
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    async with kubernetes.Client(options.kubeconfig, "hami-device-plugin") as client:
        await app.Plugin(options, client, _connect).run(stop)


def main() -> int:
    """Run until stopped.

    Returns:
        The exit status: 2 for a setting that the process cannot start with, 3 when the driver was replaced.
    """
    log = structlog.get_logger("plugin")
    try:
        options = settings.parse(sys.argv[1:])
        logs.configure(options.verbosity, options.log_format)
        asyncio.run(_run(options))
    except errors.SettingsError as refused:
        sys.stderr.write(f"device_plugin: {error_codes.INVALID_SETTING}: {refused}\n")
        return 2
    except gpu_source.DriverChanged as changed:
        log.error("ending on purpose", error_code=error_codes.PLUGIN_DRIVER_CHANGED, cause=str(changed))
        return _DRIVER_CHANGED_STATUS
    except OSError as refused:
        log.error("cannot start", cause=str(refused))
        sys.stderr.write(f"device_plugin: cannot listen: {refused}\n")
        return 2
    return 0


if __name__ == "__main__":
    status = main()
    sys.stdout.flush()
    os._exit(status)  # A thread that a hung driver holds must not keep the process.
