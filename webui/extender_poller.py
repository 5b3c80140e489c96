"""Polls the extender in the background, so that a page never waits for it.

While the extender does not answer its last answer stays, marked with its age.
"""

import collections
import pathlib
import ssl
import threading
import time
import urllib.error
import urllib.parse
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import msgspec
import orjson
import structlog

from gpu_sharing.adapters import decoding, http_get, read_api_types
from gpu_sharing.core import error_codes, errors
from webui import changes, history, meters, models, snapshots, views

_SECONDS_BETWEEN = 2.0
_LOAD = 5.0
"""Pause between two polls, as a multiple of the time that the answer took."""
_TIMEOUT_SECONDS = 20.0
_PAGE_SECONDS = 4.0
"""For answers that a page waits for, which blocks its thread."""
_SHARED_SECONDS = 3.0
"""Requests for the same within this time share one answer, to spare the extender."""
_MOST_SHARED = 1_000
_LONGEST_PROBLEM = 4_096
_MOST_CHANGES = 200
_NOT_MEASURED = "it is not measured: give --monitor-service or --prometheus"

_LISTS = msgspec.json.Decoder(dict[str, list[msgspec.Raw]])
T = TypeVar("T")

log = structlog.get_logger("source")


class NoAnswer(errors.GpuSharingError):
    """The extender does not answer, or its answer is not of the expected kind."""


class Extender:
    """The read API.

    Args:
        url: Where it is.
        ca_file: Who signed its certificate, read anew for each call; None for the system's authorities.
        token_file: Read anew for each call, because tokens are renewed on disk; None where none is needed.
    """

    def __init__(self, url: str, ca_file: pathlib.Path | None, token_file: pathlib.Path | None) -> None:
        self._url = url.rstrip("/")
        self._ca_file = ca_file
        self._token_file = token_file

    def get(self, kind: type[T], *parts: str, query: str = "") -> T:
        """Return the answer at `/api/v1/<parts>`, with a query such as `?nodes=5`.

        Raises:
            NoAnswer: There is no answer, or it is not of that kind.
        """
        try:
            return decoding.json_as(kind, self._read(*parts, query=query, seconds=_PAGE_SECONDS))
        except msgspec.MsgspecError as broken:
            raise NoAnswer(f"the extender does not answer with JSON of that kind: {broken}") from broken

    def nodes(self) -> list[read_api_types.Node]:
        """Every node. Errors as `get`."""
        return self._items("nodes", read_api_types.Node)

    def pods(self) -> list[read_api_types.Pod]:
        """Every pod with GPUs. Errors as `get`."""
        return self._items("pods", read_api_types.Pod)

    def remediation(self) -> read_api_types.Remediation:
        """What is done about faulty GPUs; nothing where the extender is too old to say."""
        try:
            return self.get(read_api_types.Remediation, "remediation")
        except NoAnswer:
            return read_api_types.Remediation()

    def _items(self, what: str, kind: type[T]) -> list[T]:
        """Decoded one by one, because decoding all in one call would delay other threads."""
        decoder = msgspec.json.Decoder(kind)
        try:
            return [decoding.json_by(decoder, one) for one in decoding.json_by(_LISTS, self._read(what))[what]]
        except (msgspec.MsgspecError, KeyError) as broken:
            raise NoAnswer(f"an answer of the extender about {what} cannot be read: {broken}") from broken

    def _tls(self) -> ssl.SSLContext | None:
        if not self._url.startswith("https"):
            return None
        return ssl.create_default_context(cafile=str(self._ca_file) if self._ca_file else None)

    def _read(self, *parts: str, query: str = "", seconds: float = _TIMEOUT_SECONDS) -> bytes:
        path = "/".join(urllib.parse.quote(part, safe="") for part in parts)
        try:
            headers = {"Authorization": f"Bearer {self._token_file.read_text().strip()}"} if self._token_file else {}
            return http_get.read(f"{self._url}/api/v1/{path}{query}", seconds, headers, self._tls())
        except urllib.error.HTTPError as refused:
            raise NoAnswer(f"the extender answers {refused.code}{_told(refused)}") from refused
        except (OSError, ValueError) as broken:
            raise NoAnswer(f"the extender does not answer: {getattr(broken, 'reason', broken)}") from broken


def _told(refused: urllib.error.HTTPError) -> str:
    """The extender's reason for a refusal, for example the missing permission."""
    try:
        return f": {orjson.loads(http_get.body_of(refused, _LONGEST_PROBLEM))['message']}"
    except (ValueError, KeyError, TypeError):
        return ""


class Source:
    """Keeps the view of the last snapshot.

    Args:
        extender: Answers what is allocated.
        prometheus: Answers what is used; None where there is none.
        monitors: Answer what is used without a Prometheus, and for the page of a node.
        clock: Unix seconds.

    Attributes:
        problem: Why there is no newer snapshot; empty while there is.
        remediation: What is done about faulty GPUs.
        history: The last hour.
    """

    def __init__(
        self,
        extender: Extender,
        prometheus: meters.Prometheus | None = None,
        monitors: meters.Monitors | None = None,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._extender = extender
        self._prometheus = prometheus
        self._monitors = monitors
        self._clock = clock
        self._prometheus_problem = ""
        self._view = models.View()
        self._answers: dict[tuple[str, ...], tuple[float, Any]] = {}
        self._changes: collections.deque[models.Change] = collections.deque(maxlen=_MOST_CHANGES)
        self.history = history.Ring()
        self.remediation = read_api_types.Remediation()
        self.problem = "nothing has been read yet"

    @property
    def view(self) -> models.View:
        """What the pages show of the last one; nothing before the first."""
        return self._view

    @property
    def changes(self) -> list[models.Change]:
        """What happened, newest first."""
        return list(reversed(self._changes))

    @property
    def has_prometheus(self) -> bool:
        """Whether there is a history longer than an hour."""
        return self._prometheus is not None

    @property
    def meter_problem(self) -> str:
        """Why what is used is not known, or not everywhere; empty where it is."""
        if self._prometheus:
            return self._prometheus_problem
        return self._monitors.problem if self._monitors else _NOT_MEASURED

    def start(self) -> None:
        """Read again and again, in threads of their own."""
        if self._monitors:
            self._monitors.start()
        threading.Thread(target=self._run, name="source", daemon=True).start()

    def refresh(self) -> None:
        """Read the cluster and its measurements once."""
        try:
            snapshot = snapshots.Snapshot(
                self._extender.nodes(), self._extender.pods(), self._clock(), self._measured()
            )
            view = views.view(snapshot)  # Computed here, so that no request waits for it.
            changed = changes.between(self._view, view)
            self.remediation = self._extender.remediation()
        except NoAnswer as problem:
            message = str(problem)
            if message != self.problem:
                log.error("no newer data", error_code=error_codes.WEBUI_SOURCE, cause=message)
            self.problem = message
        else:
            if self.problem:
                log.info("data", nodes=len(snapshot.nodes), pods=len(snapshot.pods))
            self._changes.extend(changed)
            self.history.put(view)
            self._view, self.problem = view, ""

    def _measured(self) -> snapshots.Used | None:
        """What is used, where it is measured."""
        meter = self._prometheus or self._monitors
        if meter is None:
            return None
        used, problem = None, ""
        try:
            used = meter.read()
        except meters.NoAnswer as cause:
            problem = str(cause)
        if self._prometheus:
            if problem and not self._prometheus_problem:
                log.warning("use is not known", error_code=error_codes.WEBUI_METER, cause=problem)
            self._prometheus_problem = problem
        return used

    def node(self, name: str) -> tuple[models.Node | None, str]:
        """Return a node with the present measurement of its monitor, and why that is missing."""
        node = self._view.nodes_by_name.get(name)
        if node is None or self._monitors is None:
            return node, self.meter_problem
        try:
            return views.measured(node, self._monitors.measure(name)), ""
        except meters.NoAnswer as cause:
            return node, str(cause)

    def series(self, node: str, pod: str, seconds: float) -> history.Series:
        """Memory over time of a node, a pod or the cluster: an hour by ourselves, of pods or longer by Prometheus.

        Raises:
            NoAnswer: Of meters: Prometheus does not answer, or there is none.
        """
        if not pod and seconds <= history.STEP_SECONDS * history.LENGTH:
            return self.history.series(node)
        if self._prometheus is None:
            raise meters.NoAnswer("the history of pods, or of more than an hour, needs --prometheus URL")
        return self._prometheus.series(node, pod, seconds)

    def explain(self, namespace: str, name: str, most_nodes: int) -> read_api_types.Explanation:
        """Return why a pod is pending, with so many of the nodes, as of a moment ago.

        Raises:
            NoAnswer: The extender does not answer, or knows no such pod.
        """
        return self._asked(read_api_types.Explanation, "explain", namespace, name, query=f"?nodes={most_nodes}")

    def events(self, namespace: str, name: str) -> Sequence[read_api_types.Event]:
        """Return the events of a pod, as of a moment ago. Errors as `explain`."""
        return self._asked(read_api_types.Events, "events", namespace, name).events

    def _asked(self, kind: type[T], *parts: str, query: str = "") -> T:
        """An answer of the extender's, not older than a moment; none is waited for while it is known to be away."""
        if self.problem:
            raise NoAnswer(self.problem)
        now = self._clock()
        at, answer = self._answers.get((*parts, query), (float("-inf"), None))
        if now - at < _SHARED_SECONDS:
            kept: T = answer
            return kept
        answer = self._extender.get(kind, *parts, query=query)
        if len(self._answers) >= _MOST_SHARED:
            self._answers = {}
        self._answers[*parts, query] = (now, answer)
        return answer

    def _run(self) -> None:
        while True:
            started = time.monotonic()
            self.refresh()
            took = time.monotonic() - started
            time.sleep(max(_SECONDS_BETWEEN, _LOAD * took))
