"""Events on pods and nodes: bounded, rate-limited, folded into series, never in the way of a decision.

A process calls `EventRecorder.record` and continues. One task writes: warnings first, repeats of the same text on the
same object as a series. When the queue is full the oldest normal event is dropped and counted, because an event that
arrives minutes late is useless.

Source: k8s.io/api/events/v1; the limit of 1024 bytes is the API server's for `note`.
"""

import asyncio
import collections
import datetime
import itertools
import time
from collections.abc import Callable
from dataclasses import dataclass, replace

import orjson
import structlog

from gpu_sharing.adapters import kubernetes
from gpu_sharing.core import error_codes, errors, event_reasons

LONGEST_NOTE_BYTES = 1024
_BUSY_PER_SECOND = 5.0
_IDLE_CHECK_SECONDS = 0.02
_MOST_PER_OBJECT, _PER_OBJECT_PER_SECOND = 50.0, 1.0
"""The burst of events on one object, and the rate per second after it: more are not readable."""
_SERIES_SECONDS = 10.0
"""A repeat within this time only counts; its series is written once it has passed."""

log = structlog.get_logger("events")


@dataclass(frozen=True, slots=True)
class Regarding:
    """The object of an event."""

    kind: str
    name: str
    namespace: str = ""
    uid: str = ""


@dataclass(frozen=True, slots=True)
class Event:
    """One event to write on one object."""

    regarding: Regarding
    reason: str
    note: str
    action: str

    @property
    def warning(self) -> bool:
        """Whether its reason is a warning."""
        return event_reasons.REGISTRY[self.reason].warning


@dataclass(slots=True)
class _Told:
    """A written event, and the number of its repeats since."""

    path: str
    count: int
    written_at: float


_LONGEST_NAME = 253
"""Of any object; pods may have names as long as that."""


def cut(note: str) -> str:
    """Return the note, cut at the end of a line to the API's limit."""
    if len(note.encode()) <= LONGEST_NOTE_BYTES:
        return note
    more = "\n    …"
    kept: list[str] = []
    size = len(more.encode())
    for line in note.split("\n"):
        size += len(line.encode()) + 1
        if size > LONGEST_NOTE_BYTES:
            break
        kept.append(line)
    if not kept:
        return note.encode()[: LONGEST_NOTE_BYTES - 4].decode(errors="ignore") + "…"
    return "\n".join(kept) + more


class EventRecorder:
    """Writes events for one reporting component.

    While the process is busy with decisions, events are written slowly; the rest follows when it is idle.

    Attributes:
        written: Events and series written.
        dropped: Events dropped, because the queue was full or the API server refused them.
    """

    def __init__(
        self,
        client: kubernetes.Client,
        controller: str,
        instance: str,
        per_second: float,
        is_busy: Callable[[], bool] = lambda: False,
        queue_length: int = 10_000,
    ) -> None:
        """Make a recorder; `run` writes.

        Args:
            client: The API server.
            controller: The component, as events name it.
            instance: Which of its processes.
            per_second: Events written at most.
            is_busy: Whether the process is busy with decisions now.
            queue_length: The limit of queued events; twice as many written ones are kept for series.
        """
        self._client = client
        self._controller = controller
        self._instance = instance[:128]
        self._per_second = per_second
        self._is_busy = is_busy
        self._queue_length = queue_length
        self._next_at = 0.0
        self._allowances: dict[str, tuple[float, float]] = {}
        """Of each object: how many events it may have at once, and as of when."""
        self._warnings: collections.deque[Event] = collections.deque()
        self._normals: collections.deque[Event] = collections.deque()
        self._told: collections.OrderedDict[tuple[str, str, str], _Told] = collections.OrderedDict()
        self._wake = asyncio.Event()
        self._sequence = itertools.count(time.time_ns())
        self.written = 0
        self.dropped = 0

    @property
    def queued(self) -> int:
        """Events not written yet."""
        return len(self._warnings) + len(self._normals)

    def record(self, event: Event) -> None:
        """Queue an event; the writer task writes it later."""
        if not self._is_allowed(event.regarding):
            self._drop()
            return
        if self.queued >= self._queue_length:
            (self._normals or self._warnings).popleft()
            self._drop()
        (self._warnings if event.warning else self._normals).append(replace(event, note=cut(event.note)))
        self._wake.set()

    def _drop(self) -> None:
        self.dropped += 1
        if self.dropped == 1 or self.dropped % 1000 == 0:
            log.error("events dropped", error_code=error_codes.EVENTS_DROPPED, dropped=self.dropped)

    def _is_allowed(self, regarding: Regarding) -> bool:
        """Return whether one more event on the object may be written now; repeats of one text count, too."""
        now = time.monotonic()
        key = regarding.uid or regarding.name
        left, at = self._allowances.pop(key, (_MOST_PER_OBJECT, now))
        left = min(left + (now - at) * _PER_OBJECT_PER_SECOND, _MOST_PER_OBJECT)
        allowed = left >= 1
        self._allowances[key] = (left - allowed, now)
        if len(self._allowances) > self._queue_length:
            del self._allowances[next(iter(self._allowances))]
        return allowed

    async def run(self) -> None:
        """Write for ever; ends only by cancellation."""
        while True:
            await self._wake.wait()
            while self.queued:
                await self._take_turn()
                event = (self._warnings or self._normals).popleft()
                try:
                    await self._write(event)
                except errors.KubernetesError as refused:
                    self.dropped += 1
                    log.warning("event not written", reason=event.reason, cause=str(refused))
            self._wake.clear()

    async def drain(self, timeout_seconds: float) -> None:
        """Write the queued events before the process ends."""
        deadline = time.monotonic() + timeout_seconds
        while self.queued and time.monotonic() < deadline:
            await asyncio.sleep(0.02)

    async def _take_turn(self) -> None:
        """Wait until the next event may be written."""
        await asyncio.sleep(max(self._next_at - time.monotonic(), 0))
        while self._is_busy() and time.monotonic() < self._next_at + 1 / _BUSY_PER_SECOND:
            await asyncio.sleep(_IDLE_CHECK_SECONDS)
        self._next_at = time.monotonic() + 1 / self._per_second

    async def _write(self, event: Event) -> None:
        regarding = event.regarding
        key = (regarding.uid or regarding.name, event.reason, event.note)
        earlier = self._told.get(key)
        now = time.monotonic()
        if earlier is not None and now - earlier.written_at < _SERIES_SECONDS:
            earlier.count += 1
            return
        if earlier is not None:
            earlier.count += 1
            series = {"count": earlier.count, "lastObservedTime": _micro_time()}
            try:
                await self._client.patch(earlier.path, orjson.dumps({"series": series}))
            except errors.NotFound:
                del self._told[key]  # It has expired on the server: create it again.
            else:
                earlier.written_at = now
                self.written += 1
                return
        namespace = regarding.namespace or "default"
        name = _event_name(regarding.name, f"{next(self._sequence):x}")
        path = f"/apis/events.k8s.io/v1/namespaces/{namespace}/events"
        await self._client.post(path, orjson.dumps(self._body(event, namespace, name)))
        self.written += 1
        self._told[key] = _Told(f"{path}/{name}", 1, now)
        if len(self._told) > 2 * self._queue_length:
            self._told.popitem(last=False)

    def _body(self, event: Event, namespace: str, name: str) -> dict[str, object]:
        regarding = event.regarding
        return {
            "apiVersion": "events.k8s.io/v1",
            "kind": "Event",
            "metadata": {"name": name, "namespace": namespace},
            "eventTime": _micro_time(),
            "reportingController": self._controller,
            "reportingInstance": self._instance,
            "action": event.action,
            "reason": event.reason,
            "type": "Warning" if event.warning else "Normal",
            "note": event.note,
            "regarding": {
                "apiVersion": "v1",
                "kind": regarding.kind,
                "name": regarding.name,
                "namespace": regarding.namespace,
                "uid": regarding.uid,
            },
        }


def _event_name(about: str, number: str) -> str:
    """Return a name that the API server accepts, however long the name of the object is."""
    kept = about[: _LONGEST_NAME - len(number) - 1].rstrip(".-")
    return f"{kept}.{number}"


def _micro_time() -> str:
    return datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")
