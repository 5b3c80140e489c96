"""The WebUI as a real process, for tests."""

import contextlib
import pathlib
import time
from collections.abc import Iterator

from lab import service_process

_SECONDS = 30.0


class WebUIProcess(service_process.ServiceProcess):
    """A WebUI in a separate process."""

    def __init__(self, folder: pathlib.Path, extender: str, *arguments: str) -> None:
        """Make a WebUI process; `start` runs it.

        Args:
            folder: The folder of its log.
            extender: URL of the read API.
            arguments: More flags.
        """
        super().__init__(
            "webui",
            {"health": "--health-bind"},
            ["--extender", extender, "--bind", "127.0.0.1:0", *arguments],
            folder / "webui.log",
        )

    @property
    def url(self) -> str:
        """The URL of the pages."""
        deadline = time.monotonic() + _SECONDS
        while (line := self.logged("pages")) is None:
            if time.monotonic() > deadline:
                raise service_process.ServiceFailed("the pages are not served")
            time.sleep(0.05)
        return f"http://{line['pages']}"


@contextlib.contextmanager
def running(webui: WebUIProcess) -> Iterator[WebUIProcess]:
    """Run a ready WebUI until the context ends."""
    webui.start()
    try:
        webui.wait_ready()
        yield webui
    finally:
        webui.stop()
