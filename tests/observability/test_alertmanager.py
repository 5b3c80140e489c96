"""The example of Alertmanager's configuration, run by Alertmanager: who is silenced by whom."""

import contextlib
import datetime
import json
import pathlib
import subprocess
import time
import urllib.request
from collections.abc import Iterator
from typing import Any

import pytest

from tests import tools

EXAMPLE = pathlib.Path(__file__).parents[2] / "examples" / "observability" / "alertmanager.yml"
GPU = {"node": "n1", "device": "GPU-a"}


@pytest.fixture(scope="module")
def url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    folder = tmp_path_factory.mktemp("alertmanager")
    address = "127.0.0.1:29193"
    command = [
        tools.find("prometheus-alertmanager"), f"--config.file={EXAMPLE}", f"--storage.path={folder}",
        f"--web.listen-address={address}", "--cluster.listen-address=", "--log.level=error",
    ]  # fmt: skip
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        for _ in range(100):
            with contextlib.suppress(OSError), urllib.request.urlopen(f"http://{address}/-/ready", timeout=1):
                break
            time.sleep(0.1)
        yield f"http://{address}/api/v2"
    finally:
        process.terminate()
        process.wait(timeout=30)


def silenced(url: str, *alerts: dict[str, str]) -> set[str]:
    """The names of those of these alerts that nobody is told of, because another one fires."""
    end = (datetime.datetime.now(datetime.UTC) + datetime.timedelta(minutes=5)).isoformat()
    body = json.dumps([{"labels": labels, "endsAt": end} for labels in alerts]).encode()
    request = urllib.request.Request(f"{url}/alerts", body, {"Content-Type": "application/json"})
    urllib.request.urlopen(request, timeout=10).close()
    names = {one["alertname"] for one in alerts}
    for _ in range(50):
        with urllib.request.urlopen(f"{url}/alerts", timeout=10) as answer:
            found: list[Any] = json.loads(answer.read())
        mine = {one["labels"]["alertname"]: one for one in found if _mine(one["labels"], alerts)}
        if set(mine) == names and all(one["status"]["state"] != "unprocessed" for one in mine.values()):
            return {name for name, one in mine.items() if one["status"]["inhibitedBy"]}
        time.sleep(0.2)
    raise AssertionError(f"Alertmanager does not show {names}")


def _mine(labels: dict[str, str], alerts: tuple[dict[str, str], ...]) -> bool:
    return any(labels == one for one in alerts)


@pytest.mark.parametrize(
    ("alerts", "expected"),
    [
        (
            [
                {"alertname": "KubeNodeNotReady", "severity": "warning", "node": "down"},
                {"alertname": "GPUUnhealthy", "severity": "critical", "node": "down", "device": "GPU-d"},
            ],
            {"GPUUnhealthy"},
        ),
        (
            [
                {"alertname": "GPUUnhealthy", "severity": "critical", **GPU},
                {"alertname": "GPUTemperatureHigh", "severity": "warning", **GPU},
            ],
            {"GPUTemperatureHigh"},
        ),
        (
            [
                {"alertname": "GPUUnhealthy", "severity": "critical", "node": "n2", "device": "GPU-b"},
                {"alertname": "GPUTemperatureHigh", "severity": "warning", "node": "n2", "device": "GPU-c"},
            ],
            set(),
        ),
        (
            [
                {"alertname": "GPUFullyAllocated", "severity": "none", "node": "n3", "device": "GPU-e"},
                {"alertname": "GPUNoAvailableMemory", "severity": "critical", "node": "n3", "device": "GPU-e"},
            ],
            {"GPUNoAvailableMemory"},
        ),
    ],
)
def test_one_message_is_enough(url: str, alerts: list[dict[str, str]], expected: set[str]) -> None:
    """A node that is down silences its GPUs, critical silences warning on the same GPU and on no other."""
    assert silenced(url, *alerts) == expected
