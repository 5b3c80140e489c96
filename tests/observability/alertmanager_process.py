"""A real Alertmanager, for as long as a test needs it."""

import contextlib
import pathlib
import socket
import subprocess
import time
import urllib.request
from collections.abc import Iterator

from tests import tools

_START_SECONDS = 60.0


@contextlib.contextmanager
def running(config: pathlib.Path, folder: pathlib.Path) -> Iterator[str]:
    """Yield the URL of a ready Alertmanager on a configuration, with its data in a folder."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{free.getsockname()[1]}"
    command = [
        tools.find("prometheus-alertmanager"), f"--config.file={config}", f"--storage.path={folder}",
        f"--web.listen-address={address}", "--cluster.listen-address=", "--log.level=error",
    ]  # fmt: skip
    process = subprocess.Popen(command)
    try:
        _wait_ready(process, address)
        yield f"http://{address}"
    finally:
        process.terminate()
        process.wait(timeout=30)


def _wait_ready(process: "subprocess.Popen[bytes]", address: str) -> None:
    deadline = time.monotonic() + _START_SECONDS
    while time.monotonic() < deadline and process.poll() is None:
        with contextlib.suppress(OSError), urllib.request.urlopen(f"http://{address}/-/ready", timeout=1):
            return
        time.sleep(0.1)
    raise AssertionError(f"Alertmanager is not ready within {_START_SECONDS:g} s, or has ended")
