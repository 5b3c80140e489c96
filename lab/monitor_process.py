"""The monitor as a real process on a fake driver, for tests and the scenario of its metrics."""

import contextlib
import pathlib
from collections.abc import Iterator, Sequence

from lab import fake_driver, service_process


class MonitorProcess(service_process.ServiceProcess):
    """A monitor in a separate process."""

    def __init__(
        self,
        folder: pathlib.Path,
        driver: fake_driver.FakeDriver,
        arguments: Sequence[str],
        within: Sequence[str] = (),
    ) -> None:
        """Make a monitor process; `start` runs it.

        Args:
            folder: The folder of its log and its library folder.
            driver: The driver that it loads.
            arguments: Its flags, but those of this folder.
            within: A command in which it runs.
        """
        super().__init__(
            "device_plugin.monitor",
            {"health": "--bind"},
            ["--hook-path", str(folder / "hook"), *arguments],
            folder / "monitor.log",
            driver.environment(),
            within,
        )


@contextlib.contextmanager
def running(monitor: MonitorProcess) -> Iterator[MonitorProcess]:
    """Run a ready monitor until the context ends."""
    monitor.start()
    try:
        monitor.wait_ready()
        yield monitor
    finally:
        monitor.stop()
