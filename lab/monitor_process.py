"""The monitor as a real process on a fake driver, for tests and the story of its metrics."""

import contextlib
import pathlib
from collections.abc import Iterator, Sequence

from lab import fake_driver, service_process


class MonitorProcess(service_process.ServiceProcess):
    """A monitor as a process of its own."""

    def __init__(
        self,
        folder: pathlib.Path,
        driver: fake_driver.FakeDriver,
        arguments: Sequence[str],
        within: Sequence[str] = (),
    ) -> None:
        """Say what is to run.

        Args:
            folder: Where its log and its library folder lie.
            driver: The driver it finds.
            arguments: Its flags, but those of this folder.
            within: A command that starts it.
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
    """A ready monitor for as long as the context lasts."""
    monitor.start()
    try:
        monitor.wait_ready()
        yield monitor
    finally:
        monitor.stop()
