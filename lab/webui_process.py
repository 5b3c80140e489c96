"""The WebUI as a real process, for tests."""

import contextlib
import pathlib
import threading
from collections.abc import Iterator

from lab import service_process


class WebUIProcess(service_process.ServiceProcess):
    """A WebUI in a separate process."""

    def __init__(
        self, folder: pathlib.Path, extender: str, *arguments: str, stop: threading.Event | None = None
    ) -> None:
        """Make a WebUI process; `start` runs it.

        Args:
            folder: The folder of its log.
            extender: URL of the read API.
            arguments: More flags.
            stop: Ends the waits for it when it is set.
        """
        super().__init__(
            "webui",
            {"health": "--health-bind"},
            ["--extender", extender, "--bind", "127.0.0.1:0", *arguments],
            folder / "webui.log",
            stop=stop,
        )

    @property
    def url(self) -> str:
        """The URL of the pages."""
        return f"http://{self._wait_for(lambda: self.logged('pages'), 'serving pages')['pages']}"


@contextlib.contextmanager
def running(webui: WebUIProcess) -> Iterator[WebUIProcess]:
    """Run a ready WebUI until the context ends."""
    try:
        webui.start()
        webui.wait_ready()
        yield webui
    finally:
        webui.stop()
