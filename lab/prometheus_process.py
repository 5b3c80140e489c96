"""A real Prometheus that scrapes processes of this machine, by scrape configurations as a cluster has them."""

import contextlib
import pathlib
import shutil
import subprocess
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import orjson
import yaml

from lab.real import components

_START_SECONDS = 60.0
_ATTEMPTS = 10
TARGET_LABELS = ("job", "instance", "namespace", "pod", "container", "service", "endpoint")
"""The labels that the operator adds to each series without them; a Prometheus without operator adds some of them."""


class PrometheusFailed(Exception):
    """Prometheus does not start, or does not answer a query."""


class Prometheus:
    """A running Prometheus, by its URL."""

    def __init__(self, url: str) -> None:
        self.url = url

    def query(self, expression: str) -> list[dict[str, Any]]:
        """Return the result of an instant query: `metric` and `value` of each series.

        Raises:
            PrometheusFailed: The query is invalid, or has no answer.
        """
        query = urllib.parse.urlencode({"query": expression})
        try:
            with urllib.request.urlopen(f"{self.url}/api/v1/query?{query}", timeout=30) as answer:
                found: list[dict[str, Any]] = orjson.loads(answer.read())["data"]["result"]
                return found
        except urllib.error.HTTPError as refused:
            raise PrometheusFailed(f"{expression}: {refused.read().decode(errors='replace')}") from refused

    def active_targets(self) -> list[dict[str, Any]]:
        """Return every target that is scraped: its `labels`, `health` and `lastError`."""
        with urllib.request.urlopen(f"{self.url}/api/v1/targets?state=active", timeout=30) as answer:
            found: list[dict[str, Any]] = orjson.loads(answer.read())["data"]["activeTargets"]
            return found

    def firing(self) -> set[str]:
        """Return the names of the firing alerts."""
        return {one["metric"]["alertname"] for one in self.query('ALERTS{alertstate="firing"}')}


@contextlib.contextmanager
def running(
    program: str,
    folder: pathlib.Path,
    scrape_configs: Sequence[Mapping[str, Any]],
    *,
    rules: Mapping[str, Any],
    interval: str,
) -> Iterator[Prometheus]:
    """Run a Prometheus until the context ends.

    Args:
        program: Its binary.
        folder: The folder of its files.
        scrape_configs: What it scrapes; it knows no discovery in Kubernetes, as Debian builds it.
        rules: The rule file.
        interval: The time between two scrapes, and between two evaluations, such as `500ms`.
    """
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "rules.yaml").write_text(yaml.safe_dump(dict(rules), sort_keys=False))
    (folder / "prometheus.yml").write_text(yaml.safe_dump(_configuration(scrape_configs, interval), sort_keys=False))
    shutil.rmtree(folder / "data", ignore_errors=True)
    for _ in range(_ATTEMPTS):
        port = components.free_port()
        with (folder / "log").open("wb") as log:
            process = subprocess.Popen(
                [
                    program, f"--config.file={folder / 'prometheus.yml'}", f"--storage.tsdb.path={folder / 'data'}",
                    f"--web.listen-address=127.0.0.1:{port}", "--log.level=warn",
                ],
                stdout=log, stderr=log, stdin=subprocess.DEVNULL,
            )  # fmt: skip
        try:
            # Another process may have taken the port, and answer there.
            if _is_ready(process, f"http://127.0.0.1:{port}", folder):
                yield Prometheus(f"http://127.0.0.1:{port}")
                return
        finally:
            process.terminate()
            process.wait(timeout=30)
        text = (folder / "log").read_text(errors="replace")
        if "address already in use" not in text:
            raise PrometheusFailed(text[-3000:])
    raise PrometheusFailed("no port is free")


def _configuration(scrape_configs: Sequence[Mapping[str, Any]], interval: str) -> dict[str, Any]:
    return {
        "global": {"scrape_interval": interval, "scrape_timeout": interval, "evaluation_interval": interval},
        "rule_files": ["rules.yaml"],
        "scrape_configs": [dict(one) for one in scrape_configs],
    }


def _is_ready(process: "subprocess.Popen[bytes]", url: str, folder: pathlib.Path) -> bool:
    """Return whether our Prometheus answers: another one may have the port, by its folder."""
    deadline = time.monotonic() + _START_SECONDS
    while time.monotonic() < deadline and process.poll() is None:
        with (
            contextlib.suppress(OSError, KeyError, ValueError),
            urllib.request.urlopen(f"{url}/api/v1/status/flags", timeout=1) as answer,
        ):
            if orjson.loads(answer.read())["data"]["storage.tsdb.path"] == str(folder / "data"):
                return _answers(f"{url}/-/ready")
        time.sleep(0.1)
    return False


def _answers(url: str) -> bool:
    deadline = time.monotonic() + _START_SECONDS
    while time.monotonic() < deadline:
        with contextlib.suppress(OSError), urllib.request.urlopen(url, timeout=1) as answer:
            if answer.status == 200:
                return True
        time.sleep(0.1)
    return False
