"""Objects, versions and watches in memory, as etcd and the registry of a real API server.

One event loop owns a store; nothing here is thread-safe. Objects are plain decoded JSON and are never changed in place:
a write stores a new object, so that an object that a watcher holds does not change.
"""

import asyncio
import collections
import datetime
import re
import uuid
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import orjson

from lab import kinds

Object = dict[str, Any]
Key = tuple[str, str]
"""Namespace (empty for cluster-wide kinds) and name."""

_HISTORY = 100_000


class ApiError(Exception):
    """An answer that is a `Status`."""

    def __init__(self, status: int, reason: str, message: str) -> None:
        super().__init__(message)
        self.status = status
        self.reason = reason
        self.message = message


@dataclass(frozen=True, slots=True)
class Change:
    """One write, as watchers receive it."""

    version: int
    storage: str
    before: Object | None
    after: Object | None


class Watcher:
    """The changes of one kind of object since some version, in order."""

    def __init__(self, storage: str) -> None:
        self.storage = storage
        self.queue: asyncio.Queue[Change | None] = asyncio.Queue()
        """None ends the watch."""


class Store:
    """All objects of a cluster."""

    def __init__(self) -> None:
        self.version = 0
        self._objects: dict[str, dict[Key, Object]] = collections.defaultdict(dict)
        self._encoded: dict[tuple[str, str, str], tuple[str, bytes]] = {}
        self._history: collections.deque[Change] = collections.deque(maxlen=_HISTORY)
        self._compacted = 0
        self._watchers: set[Watcher] = set()
        for name in ("default", "kube-system", "kube-node-lease", "hami-system"):
            self.create(kinds.NAMESPACES, "", {"metadata": {"name": name}, "status": {"phase": "Active"}})

    def get(self, resource: kinds.Resource, namespace: str, name: str) -> Object:
        """Return one object.

        Raises:
            ApiError: 404 if it does not exist.
        """
        found = self._objects[resource.storage].get((namespace, name))
        if found is None:
            raise not_found(resource, name)
        return found

    def all(self, resource: kinds.Resource, namespace: str = "") -> Iterator[tuple[Key, Object]]:
        """Return all objects of a kind in the order of their keys, of one namespace or of all."""
        objects = self._objects[resource.storage]
        for key in sorted(objects):
            if not namespace or key[0] == namespace:
                yield key, objects[key]

    def create(self, resource: kinds.Resource, namespace: str, body: Object) -> Object:
        """Add an object.

        Raises:
            ApiError: 409 if it exists, 422 if it has no name.
        """
        metadata = dict(body.get("metadata") or {})
        if not metadata.get("name") and metadata.get("generateName"):
            metadata["name"] = metadata["generateName"] + uuid.uuid4().hex[:5]
        name = metadata.get("name")
        if not isinstance(name, str) or not re.fullmatch(r"[a-z0-9]([-a-z0-9.:]{0,251}[a-z0-9])?", name):
            raise ApiError(422, "Invalid", f'{resource.kind} "{name}" is invalid: metadata.name: Invalid value')
        if (namespace, name) in self._objects[resource.storage]:
            raise ApiError(409, "AlreadyExists", f'{resource.plural} "{name}" already exists')
        if resource.namespaced:
            metadata["namespace"] = namespace
        metadata.update(uid=str(uuid.uuid4()), creationTimestamp=now(), generation=1)
        return self._put(resource, (namespace, name), None, {**body, "metadata": metadata})

    def replace(self, resource: kinds.Resource, key: Key, before: Object, after: Object) -> Object:
        """Write an object that was read as `before`.

        Raises:
            ApiError: 409 if it was written since, or `after` names another version or UID.
        """
        old, new = before["metadata"], dict(after.get("metadata") or {})
        for field in ("uid", "resourceVersion"):
            if new.get(field) and new[field] != old[field]:
                raise conflict(resource, key[1], f"the object has been modified; {field} is {old[field]}")
        if self._objects[resource.storage].get(key) is not before:
            raise conflict(resource, key[1], "the object has been modified")
        for field in ("uid", "name", "namespace", "creationTimestamp", "generation", "deletionTimestamp"):
            if field in old:
                new[field] = old[field]
        if after.get("spec") != before.get("spec"):
            new["generation"] = old.get("generation", 1) + 1
        new["resourceVersion"] = old["resourceVersion"]
        after = {**after, "metadata": new}
        return before if after == before else self._put(resource, key, before, after)

    def mark_deleted(self, resource: kinds.Resource, key: Key, before: Object, grace_seconds: int) -> Object:
        """Begin a graceful deletion."""
        metadata = {**before["metadata"], "deletionTimestamp": now(), "deletionGracePeriodSeconds": grace_seconds}
        return self._put(resource, key, before, {**before, "metadata": metadata})

    def remove(self, resource: kinds.Resource, key: Key, before: Object) -> None:
        """Delete an object at once."""
        self.version += 1
        metadata = {**before["metadata"], "resourceVersion": str(self.version)}
        del self._objects[resource.storage][key]
        self._encoded.pop((f"{resource.api_version}/{resource.plural}", *key), None)
        self._tell(Change(self.version, resource.storage, {**before, "metadata": metadata}, None))

    def encoded(self, resource: kinds.Resource, value: Object) -> bytes:
        """Return an object as JSON, encoded once per version."""
        metadata = value["metadata"]
        place = (f"{resource.api_version}/{resource.plural}", metadata.get("namespace", ""), metadata["name"])
        cached = self._encoded.get(place)
        if cached is None or cached[0] != metadata["resourceVersion"]:
            cached = self._encoded[place] = (metadata["resourceVersion"], orjson.dumps(value))
        return cached[1]

    def watch(self, resource: kinds.Resource, since: int) -> Watcher:
        """Follow a kind of object from a version on.

        Raises:
            ApiError: 410 if that version is no longer stored.
        """
        oldest = self._history[0].version - 1 if len(self._history) == _HISTORY else 0
        if since < max(self._compacted, oldest):
            raise ApiError(410, "Expired", f"too old resource version: {since} ({max(self._compacted, oldest)})")
        watcher = Watcher(resource.storage)
        for change in self._since(since):
            if change.storage == resource.storage:
                watcher.queue.put_nowait(change)
        self._watchers.add(watcher)
        return watcher

    def unwatch(self, watcher: Watcher) -> None:
        """End the watch; its queue gets no more changes."""
        self._watchers.discard(watcher)

    def frozen(self) -> "Store":
        """Return a store with the objects of now, which later writes do not change."""
        copy = Store()
        copy.version = self.version
        copy._objects = collections.defaultdict(dict, {kind: dict(of) for kind, of in self._objects.items()})
        return copy

    def end_watches(self) -> None:
        """End every watch, as a restart of the API server does."""
        for watcher in self._watchers:
            watcher.queue.put_nowait(None)
        self._watchers.clear()

    def compact(self) -> None:
        """Drop all history, as etcd's compaction does: older versions cannot be watched any more."""
        self._compacted = self.version
        self._history.clear()
        self.end_watches()

    def _since(self, version: int) -> Iterator[Change]:
        newer = []
        for change in reversed(self._history):
            if change.version <= version:
                break
            newer.append(change)
        return reversed(newer)

    def _put(self, resource: kinds.Resource, key: Key, before: Object | None, after: Object) -> Object:
        self.version += 1
        after = {
            "apiVersion": resource.api_version,
            "kind": resource.kind,
            **after,
            "metadata": {**after["metadata"], "resourceVersion": str(self.version)},
        }
        self._objects[resource.storage][key] = after
        self._tell(Change(self.version, resource.storage, before, after))
        return after

    def _tell(self, change: Change) -> None:
        self._history.append(change)
        for watcher in self._watchers:
            if watcher.storage == change.storage:
                watcher.queue.put_nowait(change)


def not_found(resource: kinds.Resource, name: str) -> ApiError:
    """Return a 404 with the real server's message."""
    return ApiError(404, "NotFound", f'{resource.plural} "{name}" not found')


def conflict(resource: kinds.Resource, name: str, why: str) -> ApiError:
    """Return a 409 with the real server's message."""
    return ApiError(409, "Conflict", f'Operation cannot be fulfilled on {resource.plural} "{name}": {why}')


def now() -> str:
    """Return a timestamp in the API's format."""
    return datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


Predicate = Callable[[Object], bool]


def selector(query: Mapping[str, str]) -> Predicate:
    """Return a filter by `fieldSelector` and `labelSelector`.

    Raises:
        ApiError: 400 for a selector that cannot be read.
    """
    tests = [*_field_tests(query.get("fieldSelector", "")), *_label_tests(query.get("labelSelector", ""))]
    return lambda value: all(test(value) for test in tests)


def _field_tests(text: str) -> Iterator[Predicate]:
    for part in filter(None, text.split(",")):
        match = re.fullmatch(r"([A-Za-z.]+)(==|!=|=)(.*)", part)
        if match is None:
            raise ApiError(400, "BadRequest", f"invalid field selector {part!r}")
        path, operator, wanted = match.groups()
        yield _field_test(path.replace("involvedObject.", "regarding.").split("."), operator != "!=", wanted)


def _field_test(path: list[str], equal: bool, wanted: str) -> Predicate:
    def test(value: Object) -> bool:
        found: Any = value
        for step in path:
            found = found.get(step, "") if isinstance(found, dict) else ""
        return (str(found or "") == wanted) is equal

    return test


def _label_tests(text: str) -> Iterator[Predicate]:
    for part in filter(None, re.split(r",(?![^(]*\))", text)):
        if match := re.fullmatch(r"\s*(\S+?)\s+(in|notin)\s+\(([^)]*)\)\s*", part):
            values = {value.strip() for value in match[3].split(",")}
            yield _label_test(match[1], values.__contains__, match[2] == "in")
        elif match := re.fullmatch(r"\s*([^!=\s]+)\s*(==|!=|=)\s*(\S*)\s*", part):
            yield _label_test(match[1], frozenset({match[3]}).__contains__, match[2] != "!=")
        elif match := re.fullmatch(r"\s*(!?)([^!=\s]+)\s*", part):
            yield _label_test(match[2], lambda label: label is not None, not match[1])
        else:
            raise ApiError(400, "BadRequest", f"unable to parse requirement: {part!r}")


def _label_test(name: str, holds: Callable[[Any], bool], wanted: bool) -> Predicate:
    return lambda value: holds((value["metadata"].get("labels") or {}).get(name)) is wanted
