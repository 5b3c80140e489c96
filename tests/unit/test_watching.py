"""A reflector keeps its sink current, whatever the API server does in between."""

import asyncio
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator
from typing import Any

import msgspec
import orjson

from gpu_sharing.adapters import kubernetes, objects, watching
from gpu_sharing.core import errors


class Sink:
    """What is known now, by name."""

    def __init__(self) -> None:
        self.known: dict[str, str] = {}
        self.lists = 0

    def replaced(self, items: list[objects.Pod], listed_at: float) -> Iterator[None]:
        self.lists += 1
        self.known = {item.metadata.name: item.metadata.resource_version for item in items}
        yield

    def changed(self, item: objects.Pod) -> None:
        self.known[item.metadata.name] = item.metadata.resource_version

    def deleted(self, item: objects.Pod) -> None:
        self.known.pop(item.metadata.name, None)

    def undecodable(self, raw: bytes, error: Exception) -> None:
        self.known[raw.decode()] = "undecodable"


class FakeServer:
    """Objects with versions, a history to watch, and lists that can be held up."""

    def __init__(self) -> None:
        self.version = 0
        self.objects: dict[str, int] = {}
        self.history: list[tuple[int, bytes]] = []
        self.changed = asyncio.Event()
        self.may_answer_list = asyncio.Event()
        self.may_answer_list.set()
        self.lists_begun = 0
        self.forgotten_before = 0

    def put(self, name: str) -> None:
        self.version += 1
        self.objects[name] = self.version
        self._tell("MODIFIED", name)

    def delete(self, name: str) -> None:
        self.version += 1
        del self.objects[name]
        self._tell("DELETED", name)

    def _tell(self, kind: str, name: str) -> None:
        metadata = {"name": name, "resourceVersion": str(self.version)}
        self.history.append((self.version, orjson.dumps({"type": kind, "object": {"metadata": metadata}})))
        self.changed.set()

    async def pages(self, path: str, page_size: int) -> AsyncIterator[kubernetes.Page[msgspec.Raw]]:
        self.lists_begun += 1
        items = [
            msgspec.Raw(orjson.dumps({"metadata": {"name": name, "resourceVersion": str(version)}}))
            for name, version in self.objects.items()
        ]
        page: kubernetes.Page[msgspec.Raw] = kubernetes.Page(
            kubernetes.ListMetadata(resource_version=str(self.version or 1)), items
        )
        await self.may_answer_list.wait()
        yield page

    async def watch(self, path: str, resource_version: str, timeout_seconds: int) -> AsyncIterator[bytes]:
        since = int(resource_version)
        if since < self.forgotten_before:
            raise errors.Expired("too old", 410)
        while True:
            for version, line in list(self.history):
                if version > since:
                    since = version
                    yield line
            self.changed.clear()
            await self.changed.wait()


def with_reflector(
    story: Callable[[FakeServer, Sink, "watching.Reflector[objects.Pod]"], Coroutine[Any, Any, None]],
) -> None:
    async def run() -> None:
        server, sink = FakeServer(), Sink()
        client: Any = server
        reflector = watching.Reflector(client, "/pods", objects.Pod, sink, lambda pod: pod.metadata.resource_version)
        running = asyncio.create_task(reflector.run())
        try:
            async with asyncio.timeout(10):
                await story(server, sink, reflector)
        finally:
            running.cancel()
            await asyncio.gather(running, return_exceptions=True)

    asyncio.run(run())


async def until(condition: Callable[[], object]) -> None:
    while not condition():
        await asyncio.sleep(0.001)


def test_changes_reach_the_sink_after_the_list() -> None:
    """Added, changed and deleted."""

    async def story(server: FakeServer, sink: Sink, reflector: "watching.Reflector[objects.Pod]") -> None:
        server.put("a")
        await until(lambda: sink.known == {"a": "1"})
        server.put("a")
        server.put("b")
        await until(lambda: sink.known == {"a": "2", "b": "3"})
        server.delete("a")
        await until(lambda: sink.known == {"b": "3"})

    with_reflector(story)


def test_what_is_deleted_while_a_list_is_under_way_does_not_come_back() -> None:
    """A pod that a list has and a watch said was gone would hold its GPU for ever."""

    async def story(server: FakeServer, sink: Sink, reflector: "watching.Reflector[objects.Pod]") -> None:
        server.put("a")
        server.put("b")
        await until(lambda: len(sink.known) == 2)
        server.may_answer_list.clear()
        again = asyncio.create_task(reflector.list_again())
        await until(lambda: server.lists_begun == 2)
        server.delete("a")
        server.put("c")
        await asyncio.sleep(0.01)
        server.may_answer_list.set()
        await again
        assert sink.lists == 2
        await until(lambda: sink.known == {"b": "2", "c": "4"})

    with_reflector(story)


def test_a_list_that_began_before_it_was_asked_for_is_not_enough() -> None:
    """What was written between its begin and the request must be in it."""

    async def story(server: FakeServer, sink: Sink, reflector: "watching.Reflector[objects.Pod]") -> None:
        server.may_answer_list.clear()
        await until(lambda: server.lists_begun == 1)
        server.put("late")
        again = asyncio.create_task(reflector.list_again())
        await asyncio.sleep(0)
        server.may_answer_list.set()
        await again
        assert (sink.lists, sink.known) == (2, {"late": "1"})

    with_reflector(story)


def test_a_version_that_is_too_old_is_listed_anew() -> None:
    """As after a compaction of etcd."""

    async def story(server: FakeServer, sink: Sink, reflector: "watching.Reflector[objects.Pod]") -> None:
        server.put("a")
        await until(lambda: sink.known == {"a": "1"})
        server.history.append((2, orjson.dumps({"type": "ERROR", "object": {"code": 410, "message": "too old"}})))
        server.objects = {"b": 3}
        server.version = 3
        server.changed.set()
        await until(lambda: sink.known == {"b": "3"})
        assert reflector.failures == 1

    with_reflector(story)


def test_a_line_that_is_no_event_is_followed_by_a_list() -> None:
    """What it said is lost."""

    async def story(server: FakeServer, sink: Sink, reflector: "watching.Reflector[objects.Pod]") -> None:
        server.put("a")
        await until(lambda: sink.known == {"a": "1"})
        server.history.append((2, b'{"type": 7'))
        server.version = 2
        server.changed.set()
        await until(lambda: sink.lists == 2)

    with_reflector(story)


def test_an_object_that_is_not_of_its_kind_is_told_and_passed_over() -> None:
    """One bad object does not stop the watch."""

    async def story(server: FakeServer, sink: Sink, reflector: "watching.Reflector[objects.Pod]") -> None:
        await until(lambda: sink.lists == 1)
        server.history.append((2, b'{"type":"ADDED","object":{"metadata":[]}}'))
        server.version = 2
        server.put("a")
        await until(lambda: sink.known == {'{"metadata":[]}': "undecodable", "a": "3"})
        assert sink.lists == 1

    with_reflector(story)
