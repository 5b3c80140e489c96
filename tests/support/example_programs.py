"""The example programs as processes of their own, with the environment that a container would have."""

import contextlib
import json
import os
import pathlib
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator, Mapping
from typing import Any

FOLDER = pathlib.Path(__file__).parents[2] / "examples" / "workloads" / "programs"
SECONDS = 60.0


class Program:
    """A running example."""

    def __init__(self, process: "subprocess.Popen[bytes]", log_file: pathlib.Path) -> None:
        self.process = process
        self.log_file = log_file

    def lines(self) -> list[dict[str, Any]]:
        """Its log lines; other text is left out."""
        texts = self.log_file.read_text().splitlines()
        return [json.loads(text) for text in texts if text.startswith("{") and text.endswith("}")]

    def wait_line(self, event: str) -> dict[str, Any]:
        """Wait for a log line."""
        deadline = time.monotonic() + SECONDS
        while True:
            found = [one for one in self.lines() if one["event"] == event]
            if found:
                return found[0]
            assert self.process.poll() is None, self.log_file.read_text()
            assert time.monotonic() < deadline, self.log_file.read_text()
            time.sleep(0.05)


@contextlib.contextmanager
def running(folder: pathlib.Path, name: str, *arguments: str, **environment: str) -> Iterator[Program]:
    """Run one until the context ends; only the variables given are of a container."""
    log_file = folder / f"{name}.log"
    command = [sys.executable, str(FOLDER / f"{name}.py"), *arguments]
    with log_file.open("wb") as log:
        process = subprocess.Popen(
            command, stdout=log, stderr=log, stdin=subprocess.DEVNULL, env=outside_kubernetes() | environment
        )
    try:
        yield Program(process, log_file)
    finally:
        process.terminate()
        process.wait(timeout=SECONDS)


def outside_kubernetes() -> dict[str, str]:
    """The environment of the tests without anything of a slice."""
    own = ("HAMI_", "CUDA_", "NVIDIA_", "POD_", "FAKE_NVML")
    return {name: value for name, value in os.environ.items() if not name.startswith(own)}


def of_container(environment: Mapping[str, str]) -> dict[str, str]:
    """What a started container has, less the library that is not preloaded here."""
    return {name: value for name, value in environment.items() if name != "CUDA_DEVICE_MEMORY_SHARED_CACHE"}


def metrics(port: int) -> str:
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=SECONDS) as answer:
        text: str = answer.read().decode()
        return text
