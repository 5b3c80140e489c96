"""The example of Alertmanager's configuration, run by Alertmanager: which alert silences which."""

import datetime
import itertools
import json
import pathlib
import time
import urllib.request
from collections.abc import Iterator
from typing import Any

import pytest

from tests.observability import alertmanager_process

EXAMPLE = pathlib.Path(__file__).parents[2] / "examples" / "observability" / "alertmanager.yml"
GPU = {"node": "n1", "device": "GPU-a"}
NUMBERS = itertools.count()


@pytest.fixture(scope="module")
def url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with alertmanager_process.running(EXAMPLE, tmp_path_factory.mktemp("alertmanager")) as address:
        yield f"{address}/api/v2"


def silenced(url: str, *alerts: dict[str, str]) -> set[str]:
    """The names of those of these alerts of which no message is sent, because another one fires.

    Alertmanager takes alerts in one after another and answers in between: two more, of which one is known to silence
    the other, show that it has taken in the ones before.
    """
    last = {"node": "last", "device": f"GPU-{next(NUMBERS)}"}
    critical, warning = (
        {"alertname": "A", "severity": "critical"} | last,
        {"alertname": "B", "severity": "warning"} | last,
    )
    _post(url, *alerts)
    _post(url, critical, warning)
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        if _inhibited(url, warning):
            return {one["alertname"] for one in alerts if _inhibited(url, one)}
        time.sleep(0.2)
    raise AssertionError("Alertmanager silences no alert")


def _post(url: str, *alerts: dict[str, str]) -> None:
    end = (datetime.datetime.now(datetime.UTC) + datetime.timedelta(minutes=5)).isoformat()
    body = json.dumps([{"labels": labels, "endsAt": end} for labels in alerts]).encode()
    request = urllib.request.Request(f"{url}/alerts", body, {"Content-Type": "application/json"})
    urllib.request.urlopen(request, timeout=60).close()


def _inhibited(url: str, labels: dict[str, str]) -> bool:
    with urllib.request.urlopen(f"{url}/alerts", timeout=60) as answer:
        listed: list[Any] = json.loads(answer.read())
    return any(one["status"]["inhibitedBy"] for one in listed if one["labels"] == labels)


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
        (
            [
                {"alertname": "GPUMemoryUsageHigh", "severity": "warning", "node": "n4", "device": "GPU-f"},
                {"alertname": "GPUMemoryUsageElevated", "severity": "warning", "node": "n4", "device": "GPU-f"},
                {"alertname": "GPUTemperatureCritical", "severity": "critical", "node": "n4", "device": "GPU-g"},
                {"alertname": "GPUTemperatureHigh", "severity": "warning", "node": "n4", "device": "GPU-g"},
            ],
            {"GPUMemoryUsageElevated", "GPUTemperatureHigh"},
        ),
    ],
)
def test_one_message_is_enough(url: str, alerts: list[dict[str, str]], expected: set[str]) -> None:
    """A node that is down silences its GPUs, critical silences warning on the same GPU and on no other."""
    assert silenced(url, *alerts) == expected
