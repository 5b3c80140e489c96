"""List, watch, and list again: keep a sink current with all objects of one kind of an API server.

The list is consistent and paged; a watch with bookmarks follows it and ends by itself every few minutes. When the watch
is too old (410), or its stream cannot be decoded, a new list replaces the whole state of the sink, so that no missed
change remains.
"""

import asyncio
import contextlib
import random
import time
from collections.abc import Callable, Iterator
from typing import Generic, Protocol, TypeVar

import msgspec
import structlog

from gpu_sharing.adapters import decoding, kubernetes, pauses, progress
from gpu_sharing.core import error_codes, errors

T = TypeVar("T")

_PAGE_SIZE = 1_000
_SHORTEST_WATCH_SECONDS, _LONGEST_WATCH_SECONDS = 240, 300
FIRST_BACKOFF_SECONDS, _LONGEST_BACKOFF_SECONDS = 0.2, 15.0
_STEADY_SECONDS = 30.0
"""A watch that lasted this long was successful: the next failure counts as a first one."""

log = structlog.get_logger("watching")


class Sink(Protocol[T]):
    """Receives one kind of object: the whole list first, then each change."""

    def replaced(self, items: list[T], listed_at: float, /) -> Iterator[None]:
        """Replace the whole state by one of a moment after `listed_at` (monotonic seconds), in steps.

        Between two steps other tasks may run; the watch starts after the last step. The sink owns the list from now on,
        and may empty it.
        """

    def changed(self, item: T, /) -> object:
        """One object was added or modified."""

    def deleted(self, item: T, /) -> object:
        """One object was deleted; this is its last state."""

    def undecodable(self, raw: bytes, error: Exception, /) -> object:
        """An object that does not decode as its kind."""


class _Event(msgspec.Struct, gc=False):
    type: str
    object: msgspec.Raw


class _Bookmark(msgspec.Struct, gc=False):
    metadata: kubernetes.ListMetadata = msgspec.field(default_factory=kubernetes.ListMetadata)
    code: int = 0
    message: str = ""


class Reflector(Generic[T]):
    """Keeps one sink current about one kind of object.

    Attributes:
        synced: Whether the sink has received the whole state.
        last_heard: Monotonic seconds of the last message of the API server.
        failures: How often list or watch broke.
        lists: How often the whole state was listed.
        problem: What broke last, empty while all is well.
        progress: Of the list under way.
    """

    def __init__(
        self,
        client: kubernetes.Client,
        path: str,
        kind: type[T],
        sink: Sink[T],
        version: Callable[[T], str],
        *,
        optional: bool = False,
    ) -> None:
        self._client = client
        self._optional = optional
        self._path = path
        self._sink = sink
        self._version_of = version
        self._decoder = msgspec.json.Decoder(kind)
        self._events = msgspec.json.Decoder(_Event)
        self._version = ""
        self._stale = asyncio.Event()
        self._listed = asyncio.Event()
        self.synced = False
        self.last_heard = 0.0
        self.failures = 0
        self.lists = 0
        self.problem = ""
        self.progress = progress.Progress(f"list_{path.partition('?')[0].rpartition('/')[2]}", is_due=True)

    async def run(self) -> None:
        """List and watch; ends by cancellation, or if an optional API does not exist.

        After a watch that ended early it waits, longer each time: a server that calls every version too old, or closes
        each watch at once, does not get list after list.

        Raises:
            NotFound: An optional API is not (or no longer) at that path.
        """
        backoff = FIRST_BACKOFF_SECONDS
        while True:
            steady = False
            try:
                if not self._version or self._stale.is_set():
                    await self._list()
                started = time.monotonic()
                try:
                    await self._watch_until_stale()
                finally:
                    steady = time.monotonic() - started >= _STEADY_SECONDS
                self.problem = ""
            except errors.Expired as expired:
                self._failed(expired)
                self._version = ""
            except errors.KubernetesError as problem:
                if self._optional and isinstance(problem, errors.NotFound):
                    raise
                self._failed(problem)
            if steady:
                backoff = FIRST_BACKOFF_SECONDS
            elif not self._stale.is_set():
                await self._pause(backoff * random.uniform(0.5, 1.0))  # noqa: S311  # spreads replicas, no secret
                backoff = min(backoff * 2, _LONGEST_BACKOFF_SECONDS)

    async def _pause(self, seconds: float) -> None:
        """Wait for some seconds, or until a list is requested."""
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self._stale.wait(), seconds)

    async def list_again(self) -> None:
        """Make `run` end its watch and list the whole state again, consistently. Waits until the sink has it.

        The watch continues from the new list, not from its old version: otherwise the list would undo changes that the
        watch delivered during it, and they would not be delivered again.
        """
        self._listed.clear()
        self._stale.set()
        await self._listed.wait()

    def _failed(self, problem: errors.KubernetesError) -> None:
        self.failures += 1
        self.problem = str(problem)
        log.warning("watch broke", error_code=error_codes.WATCH_FAILED, path=self._path, cause=str(problem))

    async def _list(self) -> None:
        self._stale.clear()
        self._version = ""  # A list that fails is retried, because `list_again` waits for it.
        started = time.monotonic()
        items: list[T] = []
        version = ""
        self.progress.begin()
        async for page in self._client.pages(self._path, _PAGE_SIZE):
            pause = pauses.Pause()
            for raw in page.items or ():
                self._decode_into(items, raw)
                await pause()
            version = page.metadata.resource_version
            # Each object is read, and then handed to the sink.
            self.progress.reach(len(items), 2 * (len(items) + (page.metadata.remaining_item_count or 0)))
            await asyncio.sleep(0)  # Between pages other tasks run.
        count = len(items)
        await pauses.spread(self.progress.steps(self._sink.replaced(items, started)))
        self.progress.end()
        self._version = version
        self.synced = True
        self.lists += 1
        self.last_heard = time.monotonic()
        self.problem = ""
        if not self._stale.is_set():
            self._listed.set()
        log.info("listed", path=self._path, objects=count, seconds=round(self.last_heard - started, 3))

    async def _watch_until_stale(self) -> None:
        watch, stale = asyncio.create_task(self._watch()), asyncio.create_task(self._stale.wait())
        try:
            await asyncio.wait((watch, stale), return_when=asyncio.FIRST_COMPLETED)
        finally:
            for task in (watch, stale):
                task.cancel()
            await asyncio.gather(watch, stale, return_exceptions=True)
        if not watch.cancelled():
            watch.result()

    async def _watch(self) -> None:
        seconds = random.randint(_SHORTEST_WATCH_SECONDS, _LONGEST_WATCH_SECONDS)  # noqa: S311
        pause = pauses.Pause()
        async for line in self._client.watch(self._path, self._version, seconds):
            await pause()
            self.last_heard = time.monotonic()
            try:
                event = decoding.json_by(self._events, line)
            except msgspec.MsgspecError as cause:
                # The change in this line is lost, so the state is unknown: list again.
                raise errors.Expired(f"watch of {self._path}: not an event: {cause}") from cause
            if event.type in ("BOOKMARK", "ERROR"):
                self._control(event)
            else:
                self._apply(event)

    def _control(self, event: _Event) -> None:
        try:
            bookmark = decoding.json_as(_Bookmark, event.object)
        except msgspec.MsgspecError as cause:
            raise errors.Expired(f"watch of {self._path}: not a {event.type}: {cause}") from cause
        if event.type == "BOOKMARK":
            self._version = bookmark.metadata.resource_version or self._version
        elif bookmark.code in (410, 504):
            raise errors.Expired(f"watch of {self._path}: {bookmark.message}", bookmark.code)
        else:
            raise errors.Unavailable(f"watch of {self._path}: {bookmark.message}", bookmark.code)

    def _apply(self, event: _Event) -> None:
        items: list[T] = []
        self._decode_into(items, event.object)
        for item in items:
            self._version = self._version_of(item) or self._version
            if event.type == "DELETED":
                self._sink.deleted(item)
            else:
                self._sink.changed(item)

    def _decode_into(self, items: list[T], raw: msgspec.Raw) -> None:
        try:
            items.append(decoding.json_by(self._decoder, raw))
        except msgspec.MsgspecError as cause:
            self._sink.undecodable(bytes(raw), cause)
