"""What the extender says, fetched in the background and kept, so that a page never waits for it.

While the extender does not answer the last that it said stays, marked with since when it is old.
"""

import json
import pathlib
import ssl
import threading
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import structlog

from gpu_sharing.core import error_codes, errors

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


@dataclass(frozen=True, slots=True)
class Snapshot:
    """The cluster, as the extender had it at one moment."""

    cluster: Mapping[str, Any]
    nodes: Sequence[Mapping[str, Any]]
    pods: Sequence[Mapping[str, Any]]
    taken_at: float
    """Unix seconds."""


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
                return json.loads(answer.read())
        except urllib.error.HTTPError as refused:
            raise NoAnswer(f"the extender answers {refused.code}", is_unknown=refused.code == 404) from refused
        except (OSError, ValueError) as broken:
            raise NoAnswer(f"the extender does not answer: {getattr(broken, 'reason', broken)}") from broken


class Source:
    """Keeps the last snapshot.

    Attributes:
        trouble: Why there is no newer one; empty while all is well.
    """

    def __init__(self, extender: Extender, clock: Callable[[], float] = time.time) -> None:
        self._extender = extender
        self._clock = clock
        self._snapshot: Snapshot | None = None
        self.trouble = "nothing has been read yet"

    @property
    def snapshot(self) -> Snapshot | None:
        """The last one; None before the first."""
        return self._snapshot

    def start(self) -> None:
        """Read again and again, in a thread of its own."""
        threading.Thread(target=self._run, name="source", daemon=True).start()

    def refresh(self) -> None:
        """Read once."""
        try:
            found = Snapshot(
                self._extender.get("cluster"), self._extender.get("nodes")["nodes"], self._extender.get("pods")["pods"],
                self._clock(),
            )  # fmt: skip
            _ = (
                [(node["name"], node["gpus"]) for node in found.nodes],
                [(pod["gpus"], pod["error_code"]) for pod in found.pods],
            )
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
            self._snapshot, self.trouble = found, ""

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
