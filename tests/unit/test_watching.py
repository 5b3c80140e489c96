"""A reflector keeps its sink current, whatever the API server does in between."""

import asyncio
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator
from typing import Any

import msgspec
import orjson
import pytest

from gpu_sharing.adapters import discovery, kubernetes, objects, watching
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
        self.refused_lists = 0
        self.refusal: errors.KubernetesError = errors.Unavailable("refused", 500)

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
        if self.refused_lists:
            self.refused_lists -= 1
            raise self.refusal
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
            async with asyncio.timeout(60):
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


class TwoPages(FakeServer):
    """A list of four objects, whose second half can be held up."""

    async def pages(self, path: str, page_size: int) -> AsyncIterator[kubernetes.Page[msgspec.Raw]]:
        items = [msgspec.Raw(orjson.dumps({"metadata": {"name": str(number)}})) for number in range(4)]
        yield kubernetes.Page(kubernetes.ListMetadata(remaining_item_count=2), items[:2])
        await self.may_answer_list.wait()
        yield kubernetes.Page(kubernetes.ListMetadata(resource_version="1"), items[2:])


def test_the_progress_of_a_long_list_is_known_while_it_is_read() -> None:
    """A quarter: of four objects two are read, and none of them has reached the sink."""

    async def run() -> None:
        client: Any = TwoPages()
        client.may_answer_list.clear()
        path = "/api/v1/pods?fieldSelector=spec.nodeName%3Da"
        reflector = watching.Reflector(client, path, objects.Pod, Sink(), lambda pod: pod.metadata.resource_version)
        assert (reflector.progress.work, reflector.progress.ratio) == ("list_pods", 0)
        running = asyncio.create_task(reflector.run())
        try:
            async with asyncio.timeout(60):
                await until(lambda: reflector.progress.ratio == 0.25)
                client.may_answer_list.set()
                await until(lambda: reflector.synced)
            assert reflector.progress.ratio == 1
        finally:
            running.cancel()
            await asyncio.gather(running, return_exceptions=True)

    asyncio.run(run())


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


@pytest.fixture
def pauses(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """How long a reflector would have waited each time; it does not wait."""
    found: list[float] = []

    async def pause(self: Any, seconds: float) -> None:
        found.append(seconds)
        await asyncio.sleep(0)

    monkeypatch.setattr(watching.Reflector, "_pause", pause)
    return found


@pytest.mark.parametrize("way", ["too old at once", "too old by an event", "closed at once"])
def test_a_server_that_ends_every_watch_is_asked_more_and_more_slowly(way: str, pauses: list[float]) -> None:
    """Else one confused API server is sent thousands of full lists in a second."""

    async def story(server: FakeServer, sink: Sink, reflector: "watching.Reflector[objects.Pod]") -> None:
        async def watch(path: str, resource_version: str, timeout_seconds: int) -> AsyncIterator[bytes]:
            if way == "too old at once":
                raise errors.Expired("too old", 410)
            if way == "too old by an event":
                yield b'{"type":"ERROR","object":{"code":410}}'

        server.watch = watch  # type: ignore[method-assign]
        await until(lambda: len(pauses) >= 10)

    with_reflector(story)

    assert 0.1 <= pauses[0] <= 0.2
    assert pauses[3] >= 0.8
    assert 7.5 <= pauses[9] <= 15.0


def test_a_list_that_is_asked_for_ends_a_pause() -> None:
    """A new leader waits for it before it decides."""

    async def story(server: FakeServer, sink: Sink, reflector: "watching.Reflector[objects.Pod]") -> None:
        await until(lambda: sink.lists == 1)
        pausing = asyncio.create_task(reflector._pause(3_600))
        await reflector.list_again()
        await pausing
        assert sink.lists == 2

    with_reflector(story)


def test_a_list_that_was_asked_for_and_fails_is_tried_again(pauses: list[float]) -> None:
    """Whoever requested it would wait for ever."""

    async def story(server: FakeServer, sink: Sink, reflector: "watching.Reflector[objects.Pod]") -> None:
        await until(lambda: sink.lists == 1)
        server.refused_lists = 2
        await reflector.list_again()
        assert (sink.lists, reflector.failures) == (2, 2)

    with_reflector(story)


class FakeApis(FakeServer):
    """A server whose API group has a version, which may change or go away."""

    def __init__(self) -> None:
        super().__init__()
        self.api_version = "v1alpha1"
        self.watched: list[str] = []
        self.gone = asyncio.Event()

    async def get(self, path: str, kind: type[Any]) -> Any:
        version = f"scheduling.k8s.io/{self.api_version}"
        if path == "/apis":
            versions = [{"groupVersion": version}] if self.api_version else []
            return msgspec.convert({"groups": [{"name": "scheduling.k8s.io", "versions": versions}]}, kind)
        assert path == f"/apis/{version}"
        return msgspec.convert({"resources": [{"name": "podgroups"}]}, kind)

    async def watch(self, path: str, resource_version: str, timeout_seconds: int) -> AsyncIterator[bytes]:
        self.watched.append(path)
        if self.api_version not in path:
            raise errors.NotFound("the server could not find the requested resource", 404)
        await self.gone.wait()
        self.gone.clear()
        raise errors.NotFound("the server could not find the requested resource", 404)
        yield b""


def test_an_optional_api_whose_version_goes_away_is_followed_in_its_new_one(monkeypatch: pytest.MonkeyPatch) -> None:
    """After an upgrade of the cluster it answered 404 until the process was restarted."""
    for name in ("_LOOK_AGAIN_SECONDS", "_RETRY_SECONDS"):
        monkeypatch.setattr(discovery, name, 0.001)

    async def run() -> None:
        server, sink = FakeApis(), Sink()
        client: Any = server

        def version(pod: objects.Pod) -> str:
            return pod.metadata.resource_version

        following = asyncio.create_task(
            discovery.follow(client, "scheduling.k8s.io", "podgroups", objects.Pod, sink, version)
        )
        async with asyncio.timeout(60):
            server.put("a")
            await until(lambda: server.watched)
            server.api_version = "v1"
            server.gone.set()
            await until(lambda: "/apis/scheduling.k8s.io/v1/podgroups" in server.watched)
            assert sink.known == {"a": "1"}
            server.api_version = ""
            server.gone.set()
            await until(lambda: not sink.known)
            server.api_version = "v2"
            await until(lambda: "/apis/scheduling.k8s.io/v2/podgroups" in server.watched)
            assert sink.known == {"a": "1"}
        following.cancel()
        await asyncio.gather(following, return_exceptions=True)

    asyncio.run(run())


def test_a_path_that_is_always_there_is_tried_again_although_it_is_not_found(pauses: list[float]) -> None:
    """Pods and nodes are in every cluster; a proxy that answers 404 for a moment ends no process."""

    async def story(server: FakeServer, sink: Sink, reflector: "watching.Reflector[objects.Pod]") -> None:
        await until(lambda: sink.lists == 1)
        server.refused_lists, server.refusal = 1, errors.NotFound("not here", 404)
        await reflector.list_again()
        assert sink.lists == 2

    with_reflector(story)
