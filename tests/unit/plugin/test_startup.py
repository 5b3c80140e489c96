"""What the device plugin reads of its node before it chooses how containers get their slices."""

import asyncio
import math
import time
from typing import Any

import msgspec
import pytest

from device_plugin.node import api_objects, startup
from gpu_sharing.core import errors

KNOWN, UNKNOWN = "containerd://2.4.2", "containerd://Unknown"


class Reads:
    """A client whose reads of the node a test plans; the last is repeated."""

    def __init__(self, *runtimes: str) -> None:
        self._runtimes = list(runtimes)

    async def get(self, path: str, kind: type[Any]) -> Any:
        if "/nodes/" not in path:
            raise errors.NotFound(path, 404)
        runtime = self._runtimes.pop(0) if len(self._runtimes) > 1 else self._runtimes[0]
        if not runtime:
            raise errors.Unavailable("no answer")
        node = {"metadata": {"name": "n"}, "status": {"nodeInfo": {"containerRuntimeVersion": runtime}}}
        return msgspec.convert(node, api_objects.Node)


def read(*runtimes: str, deadline: float = math.inf) -> startup.NodeAtStart | None:
    client: Any = Reads(*runtimes)
    return asyncio.run(startup.read(client, "n", "boot", deadline))


@pytest.fixture(autouse=True)
def _at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(startup, "_RETRY_SECONDS", 0.001)


def test_a_runtime_that_does_not_answer_yet_is_waited_for() -> None:
    """A plugin that started beside a containerd that was just killed gave up CDI for as long as it lived."""
    at_start = read(UNKNOWN, "", UNKNOWN, KNOWN)

    assert at_start is not None
    assert at_start.runtime == KNOWN
    assert at_start.knows_cdi


def test_it_goes_on_without_after_the_deadline() -> None:
    """Containers that ran may start again from what is on disk; new ones wait until the node is read."""
    assert read(UNKNOWN, deadline=time.monotonic() - 1) is None


def test_a_runtime_that_does_not_resolve_cdi_names_is_known_at_once() -> None:
    """Its name and version are an answer."""
    at_start = read("docker://27.0.1", deadline=time.monotonic() - 1)
    assert at_start is not None
    assert not at_start.knows_cdi
