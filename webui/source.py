"""What the extender says, fetched in the background and kept, so that a page never waits for it.

While the extender does not answer the last that it said stays, marked with since when it is old.
"""

import collections
import pathlib
import ssl
import threading
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Callable, Mapping
from typing import Any

import orjson
import structlog

from gpu_sharing.adapters import prometheus
from gpu_sharing.core import error_codes, errors
from webui import models, snapshots

_SECONDS_BETWEEN = 2.0
_LOAD = 5.0
"""The extender is left alone for so many times as long as it took to answer."""
_TIMEOUT_SECONDS = 20.0

log = structlog.get_logger("source")


class NoAnswer(errors.GpuSharingError):
    """The extender does not answer, or not with what was asked for.

    Attributes:
        is_unknown: Whether it says that there is no such thing.
    """

    def __init__(self, sentence: str, *, is_unknown: bool = False) -> None:
        super().__init__(sentence)
        self.is_unknown = is_unknown


class Extender:
    """The read API.

    Args:
        url: Where it is.
        ca_file: Who signed its certificate; None for the system's authorities.
        token_file: Read anew for each call, because tokens are renewed on disk; None where none is needed.
    """

    def __init__(self, url: str, ca_file: pathlib.Path | None, token_file: pathlib.Path | None) -> None:
        self._url = url.rstrip("/")
        self._token_file = token_file
        self._tls = (
            ssl.create_default_context(cafile=str(ca_file) if ca_file else None) if url.startswith("https") else None
        )

    def get(self, *parts: str) -> Any:
        """What stands at `/api/v1/<parts>`.

        Raises:
            NoAnswer: It does not answer, or not with JSON.
        """
        path = "/".join(urllib.parse.quote(part, safe="") for part in parts)
        try:
            headers = {"Authorization": f"Bearer {self._token_file.read_text().strip()}"} if self._token_file else {}
            request = urllib.request.Request(f"{self._url}/api/v1/{path}", headers=headers)  # noqa: S310  # the setting is a URL
            with urllib.request.urlopen(request, timeout=_TIMEOUT_SECONDS, context=self._tls) as answer:  # noqa: S310
                return orjson.loads(answer.read())
        except urllib.error.HTTPError as refused:
            raise NoAnswer(f"the extender answers {refused.code}", is_unknown=refused.code == 404) from refused
        except (OSError, ValueError) as broken:
            raise NoAnswer(f"the extender does not answer: {getattr(broken, 'reason', broken)}") from broken


class Meter:
    """Asks a Prometheus what is really used."""

    def __init__(self, url: str) -> None:
        self._url = url

    def read(self) -> snapshots.Used:
        """What the monitors have measured last.

        Raises:
            NoAnswer: Prometheus does not answer.
        """
        try:
            gpus = prometheus.ask(self._url, "hami_gpu_memory_used_bytes", _TIMEOUT_SECONDS)
            shares = prometheus.ask(
                self._url, "sum by (namespace, pod, device) (hami_vgpu_memory_usage_bytes)", _TIMEOUT_SECONDS
            )
        except prometheus.NoAnswer as cause:
            raise NoAnswer(f"Prometheus does not answer: {cause}") from cause
        by_share = {
            (f"{labels.get('namespace')}/{labels.get('pod')}", labels.get("device", "")): value
            for labels, value in shares
        }
        by_pod: collections.Counter[str] = collections.Counter()
        for (pod, _), value in by_share.items():
            by_pod[pod] += value  # type: ignore[assignment]  # bytes, as Prometheus counts them
        return snapshots.Used({labels.get("device", ""): value for labels, value in gpus}, dict(by_pod), by_share)


class Source:
    """Keeps what the pages show of the last snapshot.

    Attributes:
        trouble: Why there is no newer one; empty while all is well.
        meter_trouble: Why nothing is known of what is used; empty where it is, or where nobody is asked.
    """

    def __init__(self, extender: Extender, meter: Meter | None = None, clock: Callable[[], float] = time.time) -> None:
        self._extender = extender
        self._meter = meter
        self._clock = clock
        self.meter_trouble = ""
        self._view = models.View()
        self.trouble = "nothing has been read yet"

    @property
    def view(self) -> models.View:
        """What the pages show of the last one; nothing before the first."""
        return self._view

    def start(self) -> None:
        """Read again and again, in a thread of its own."""
        threading.Thread(target=self._run, name="source", daemon=True).start()

    def refresh(self) -> None:
        """Read once."""
        try:
            found = snapshots.Snapshot(
                self._extender.get("nodes")["nodes"], self._extender.get("pods")["pods"], self._clock(),
                self._measured(),
            )  # fmt: skip
            view = models.view(found)  # Here, so that no viewer waits for it.
        except (NoAnswer, KeyError, TypeError) as trouble:
            told = (
                str(trouble) if isinstance(trouble, NoAnswer) else f"the extender says what it should not: {trouble!r}"
            )
            if told != self.trouble:
                log.error("no newer data", error_code=error_codes.WEBUI_SOURCE, cause=told)
            self.trouble = told
        else:
            if self.trouble:
                log.info("data", nodes=len(found.nodes), pods=len(found.pods))
            self._view, self.trouble = view, ""

    def _measured(self) -> snapshots.Used | None:
        """What is used, if anybody says; the promises are shown without."""
        if self._meter is None:
            return None
        try:
            found = self._meter.read()
        except NoAnswer as trouble:
            if not self.meter_trouble:
                log.warning("use is not known", error_code=error_codes.WEBUI_METER, cause=str(trouble))
            self.meter_trouble = str(trouble)
            return None
        self.meter_trouble = ""
        return found

    def explain(self, namespace: str, name: str) -> Mapping[str, Any]:
        """Why a pod waits, asked now.

        Raises:
            NoAnswer: The extender does not say, or knows no such pod.
        """
        found: Mapping[str, Any] = self._extender.get("explain", namespace, name)
        return found

    def _run(self) -> None:
        while True:
            started = time.monotonic()
            self.refresh()
            took = time.monotonic() - started
            time.sleep(max(_SECONDS_BETWEEN, _LOAD * took))
