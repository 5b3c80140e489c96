"""The WebUI as a real process, for tests."""

import contextlib
import pathlib
import time
from collections.abc import Iterator

from lab import service_process

_SECONDS = 30.0


class WebUIProcess(service_process.ServiceProcess):
    """A WebUI as a process of its own."""

    def __init__(self, folder: pathlib.Path, extender: str, *arguments: str) -> None:
        """Say what is to run.

        Args:
            folder: Where its log lies.
            extender: URL of the read API.
            arguments: More flags.
        """
        super().__init__(
            "webui", {"health": "--health-bind"}, ["--extender", extender, "--bind", "127.0.0.1:0", *arguments],
            folder / "webui.log",
        )  # fmt: skip

    @property
    def url(self) -> str:
        """Where the pages are."""
        deadline = time.monotonic() + _SECONDS
        while (line := self.logged("pages")) is None:
            if time.monotonic() > deadline:
                raise service_process.ServiceFailed("the pages are not served")
            time.sleep(0.05)
        return f"http://{line['pages']}"


@contextlib.contextmanager
def running(webui: WebUIProcess) -> Iterator[WebUIProcess]:
    """A ready WebUI for as long as the context lasts."""
    webui.start()
    try:
        webui.wait_ready()
        yield webui
    finally:
        webui.stop()
