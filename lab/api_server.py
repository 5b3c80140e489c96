"""An in-memory Kubernetes API server, sufficient for kubectl, for a real kube-scheduler and for our processes.

ASGI on uvicorn without a framework. Contract tests compare its behaviour with a real kube-apiserver. `faults` lets a
test lose answers, end watches and drop history.

Source: the Kubernetes API conventions; behaviour compared with kube-apiserver 1.36.
"""

import asyncio
import base64
import binascii
import contextlib
import email.utils
import gc
import pathlib
import secrets
import socket
import threading
import time
import urllib.request
from collections.abc import Awaitable, Callable, Iterator, MutableMapping
from typing import Any
from urllib import parse

import orjson
import uvicorn

from lab import discovery, faults, kinds, patches, pods, store, tables

Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]

_BOOKMARK_SECONDS = 5.0
_OPTIONAL_BODY = b"{}"


class _Request:
    """One parsed call of a client."""

    def __init__(self, scope: Scope, body: bytes) -> None:
        self.method: str = scope["method"]
        self.path: str = scope["path"]
        self.query = dict(parse.parse_qsl(scope["query_string"].decode("latin-1"), keep_blank_values=True))
        self.headers = {key.decode(): value.decode("latin-1") for key, value in scope["headers"]}
        self.body = body
        parts = self.path.strip("/").split("/")
        self.stale: store.Store | None = None
        """What it reads from, where a fault makes reads stale."""
        self.resource: kinds.Resource | None = None
        self.namespace = self.name = self.subresource = ""
        if parts[:1] == ["api"] and len(parts) > 2:
            self._locate("", parts[1], parts[2:])
        elif parts[:1] == ["apis"] and len(parts) > 3:
            self._locate(parts[1], parts[2], parts[3:])

    def _locate(self, group: str, version: str, rest: list[str]) -> None:
        if rest[0] == "namespaces" and len(rest) > 2 and rest[2] not in ("status", "finalize"):
            self.namespace, rest = rest[1], rest[2:]
        self.resource = kinds.BY_PATH.get((group, version, rest[0]))
        self.plural = rest[0]
        self.name = parse.unquote(rest[1]) if len(rest) > 1 else ""
        self.subresource = rest[2] if len(rest) > 2 else ""

    @property
    def is_dry_run(self) -> bool:
        """Whether the call is only checked."""
        return self.query.get("dryRun") == "All"

    def operations(self) -> Any:
        try:
            return orjson.loads(self.body)
        except orjson.JSONDecodeError as cause:
            raise store.ApiError(400, "BadRequest", f"the body is not JSON: {cause}") from cause

    def json(self) -> store.Object:
        if "protobuf" in self.headers.get("content-type", ""):
            raise store.ApiError(415, "UnsupportedMediaType", "the lab reads JSON: set contentType: application/json")
        try:
            value = orjson.loads(self.body or _OPTIONAL_BODY)
        except orjson.JSONDecodeError as cause:
            raise store.ApiError(400, "BadRequest", f"the body is not JSON: {cause}") from cause
        if not isinstance(value, dict):
            raise store.ApiError(400, "BadRequest", "the body is not an object")
        return value


class ApiServer:
    """The ASGI application.

    Attributes:
        store: The objects.
        faults: The injected faults.
        token: The accepted bearer token. A call without a token is served too, because kubectl sends none over plain
            HTTP; so the server listens on loopback only.
    """

    def __init__(self, token: str) -> None:
        self.store = store.Store()
        self.faults = faults.Faults()
        self.version = "v1.36.0-lab"
        self.token = token
        self.calls = 0
        self._client_watches: set[store.Watcher] = set()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request of a client."""
        if scope["type"] != "http":
            return
        self.calls += 1
        request = _Request(scope, await _body(receive))
        fault = self.faults.match(request.method, request.path)
        agent = request.headers.get("user-agent", "")
        lasting = self.faults.affecting(request.method, request.path, agent)
        request.stale = next((one.stale for one in lasting if one.stale is not None), None)
        try:
            if request.headers.get("authorization", f"Bearer {self.token}") != f"Bearer {self.token}":
                raise store.ApiError(401, "Unauthorized", "Unauthorized")
            for one in (fault, *lasting):
                if one is not None:
                    await one.before()
            if request.method == "GET" and request.query.get("watch") in ("true", "1"):
                await self._watch(request, receive, send)
                return
            status, body = (
                self._serve(request) if fault is None or fault.answers is None else (200, orjson.dumps(fault.answers))
            )
        except store.ApiError as refused:
            status, body = refused.status, _status(refused)
        if any(one is not None and one.loses_answer for one in (fault, *lasting)):
            await _until_gone(receive)
            return
        await _answer(send, status, body, time.time() + self.faults.clock_ahead_seconds)

    def _serve(self, request: _Request) -> tuple[int, bytes]:
        if request.resource is None:
            return self._special(request)
        if request.subresource == "binding" or request.plural == "bindings":
            return self._bind(request)
        if request.subresource == "eviction":
            return self._evict(request)
        match request.method:
            case "GET" if request.name:
                return 200, self._one(request)
            case "GET":
                return 200, self._list(request)
            case "POST":
                return 201, self._create(request)
            case "PUT" | "PATCH" if request.name:
                return self._write(request)
            case "DELETE" if request.name:
                return 200, self._delete(request)
            case "DELETE":
                return 200, self._delete_all(request)
            case _:
                raise store.ApiError(405, "MethodNotAllowed", "the server does not allow this method here")

    def _special(self, request: _Request) -> tuple[int, bytes]:
        if request.method == "POST" and request.path.endswith("/tokenreviews"):
            known = (request.json().get("spec") or {}).get("token") == self.token
            user = {"user": {"username": "admin", "groups": ["system:masters"]}} if known else {}
            return 201, orjson.dumps({**request.json(), "status": {"authenticated": known, **user}})
        if request.method == "POST" and request.path.endswith("subjectaccessreviews"):
            return 201, orjson.dumps({**request.json(), "status": {"allowed": True}})
        found = discovery.document(request.path) if request.method == "GET" else None
        if request.method == "GET" and request.path == "/version":
            found = discovery.version(self.version)
        if found is None:
            raise store.ApiError(404, "NotFound", "the server could not find the requested resource")
        return 200, found

    def _one(self, request: _Request) -> bytes:
        assert request.resource is not None
        found = (request.stale or self.store).get(request.resource, request.namespace, request.name)
        if _wants_table(request):
            return orjson.dumps(tables.table(request.resource, [self._out(request.resource, found)], "0"))
        return self._encoded(request.resource, found)

    def _list(self, request: _Request) -> bytes:
        resource, query = request.resource, request.query
        assert resource is not None
        passes = store.selector(query)
        limit = int(query.get("limit") or 0)
        source = request.stale or self.store
        version, after = self._continue(query.get("continue", ""), source)
        items: list[store.Object] = []
        token, last = "", None
        for key, value in source.all(resource, request.namespace):
            if after is not None and key <= after:
                continue
            if limit and len(items) == limit:
                assert last is not None
                token = base64.urlsafe_b64encode(orjson.dumps([version, *last])).decode()
                break
            if passes(value):
                items.append(value)
                last = key
        if _wants_table(request):
            shown = [self._out(resource, item) for item in items]
            return orjson.dumps(tables.table(resource, shown, str(version), token))
        head = orjson.dumps({"resourceVersion": str(version), **({"continue": token} if token else {})})
        kind = f'"kind":"{resource.kind}List","apiVersion":"{resource.api_version}"'.encode()
        return b'{%b,"metadata":%b,"items":[%b]}' % (
            kind,
            head,
            b",".join(self._encoded(resource, item) for item in items),
        )

    def _continue(self, token: str, source: store.Store) -> tuple[int, store.Key | None]:
        if not token:
            return source.version, None
        try:
            version, namespace, name = orjson.loads(base64.urlsafe_b64decode(token))
        except (ValueError, binascii.Error) as cause:
            raise store.ApiError(400, "BadRequest", "continue key is not valid") from cause
        if self.faults.expired(version):
            raise store.ApiError(410, "Expired", "The provided continue parameter is too old")
        return version, (namespace, name)

    def _create(self, request: _Request) -> bytes:
        resource, body = request.resource, request.json()
        assert resource is not None
        if resource.namespaced:
            self.store.get(kinds.NAMESPACES, "", request.namespace)
        if request.is_dry_run:
            return orjson.dumps(body)
        if resource is kinds.PODS:
            classes = self.store.all(kinds.BY_PATH["scheduling.k8s.io", "v1", "priorityclasses"])
            body = pods.with_defaults(body, {key[1]: value.get("value", 0) for key, value in classes})
        elif resource.plural == "events":
            body = pods.event_in(resource, body)
        made = self.store.create(resource, request.namespace, body)
        if resource is kinds.NAMESPACES:
            made = self.store.replace(
                resource, ("", made["metadata"]["name"]), made, {**made, "status": {"phase": "Active"}}
            )
        return self._encoded(resource, made)

    def _write(self, request: _Request) -> tuple[int, bytes]:
        resource = request.resource
        assert resource is not None
        key = (request.namespace, request.name)
        try:
            before = self.store.get(resource, *key)
        except store.ApiError:
            if request.method == "PATCH" and "apply-patch" in request.headers.get("content-type", ""):
                return 201, self._create(request)
            raise
        after = request.json() if request.method == "PUT" else self._patched(request, before)
        if resource.plural == "events":
            after = pods.event_in(resource, after)
        if request.subresource == "status":
            after = {**before, "metadata": _status_metadata(before, after), "status": after.get("status")}
        elif resource.has_status:
            after = {**after, **({"status": before["status"]} if "status" in before else {})}
        if request.is_dry_run:
            return 200, orjson.dumps(after)
        return 200, self._encoded(resource, self.store.replace(resource, key, before, after))

    def _patched(self, request: _Request, before: store.Object) -> store.Object:
        assert request.resource is not None
        kind = request.headers.get("content-type", "")
        shown = pods.event_out(request.resource, before) if request.resource.plural == "events" else before
        if "json-patch" in kind:
            result: store.Object = patches.json_patch(shown, request.operations())
        elif "strategic-merge-patch" in kind or "apply-patch" in kind:
            result = patches.strategic(shown, request.json())
        elif "merge-patch" in kind:
            result = patches.merge(shown, request.json())
        else:
            raise store.ApiError(
                415, "UnsupportedMediaType", f"the body of the request was in an unknown format: {kind}"
            )
        return result

    def _bind(self, request: _Request) -> tuple[int, bytes]:
        body = request.json()
        name = request.name if request.subresource else str((body.get("metadata") or {}).get("name", ""))
        before = self.store.get(kinds.PODS, request.namespace, name)
        self.store.replace(kinds.PODS, (request.namespace, name), before, pods.bound(before, name, body))
        return 201, orjson.dumps(
            {"kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Success", "code": 201}
        )

    def _evict(self, request: _Request) -> tuple[int, bytes]:
        """Evict a pod; there are no disruption budgets."""
        options = request.json().get("deleteOptions") or {}
        assert request.resource is not None
        before = self.store.get(request.resource, request.namespace, request.name)
        self._demand_uid(request, before, options)
        if not request.is_dry_run:
            key = (request.namespace, request.name)
            self._begin_deletion(request.resource, key, before, options.get("gracePeriodSeconds"))
        return 201, orjson.dumps({"kind": "Status", "apiVersion": "v1", "status": "Success", "code": 201})

    def _delete(self, request: _Request) -> bytes:
        resource, key = request.resource, (request.namespace, request.name)
        assert resource is not None
        before = self.store.get(resource, *key)
        options = request.json()
        self._demand_uid(request, before, options)
        if request.is_dry_run:
            return self._encoded(resource, before)
        grace = options.get("gracePeriodSeconds", request.query.get("gracePeriodSeconds"))
        return self._encoded(resource, self._begin_deletion(resource, key, before, grace))

    @staticmethod
    def _demand_uid(request: _Request, before: store.Object, options: dict[str, Any]) -> None:
        wanted = (options.get("preconditions") or {}).get("uid")
        if wanted and wanted != before["metadata"]["uid"]:
            assert request.resource is not None
            raise store.conflict(request.resource, request.name, f"Precondition failed: UID in precondition: {wanted}")

    def _begin_deletion(
        self, resource: kinds.Resource, key: store.Key, before: store.Object, grace: Any
    ) -> store.Object:
        """Delete an object at once; a bound pod stays until its kubelet confirms."""
        seconds = int(grace) if grace is not None else before.get("spec", {}).get("terminationGracePeriodSeconds", 30)
        if resource is not kinds.PODS or not before["spec"].get("nodeName") or seconds == 0:
            self.store.remove(resource, key, before)
            return before
        if before["metadata"].get("deletionTimestamp"):
            return before
        return self.store.mark_deleted(resource, key, before, seconds)

    def _delete_all(self, request: _Request) -> bytes:
        resource, passes = request.resource, store.selector(request.query)
        assert resource is not None
        grace = request.json().get("gracePeriodSeconds", request.query.get("gracePeriodSeconds"))
        for key, value in list(self.store.all(resource, request.namespace)):
            if passes(value):
                self._begin_deletion(resource, key, value, grace)
        return orjson.dumps({"kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Success"})

    async def _watch(self, request: _Request, receive: Receive, send: Send) -> None:
        resource, query = request.resource, request.query
        if resource is None:
            raise store.ApiError(404, "NotFound", "the server could not find the requested resource")
        if "sendInitialEvents" in query:
            raise store.ApiError(422, "Invalid", "sendInitialEvents: Forbidden: is forbidden for watch here")
        if request.name:
            query["fieldSelector"] = f"metadata.name={request.name}"
        passes = store.selector(query)
        since = int(query.get("resourceVersion") or 0)
        first: list[store.Object] = []
        if since == 0:
            first = [value for key, value in self.store.all(resource, request.namespace) if passes(value)]
            since = self.store.version
        headers = [(b"content-type", b"application/json")]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        try:
            watcher = self.store.watch(resource, since)
        except store.ApiError as refused:
            await send({"type": "http.response.body", "body": _event("ERROR", _status(refused))})
            return
        gone = asyncio.create_task(_until_gone(receive))
        self._client_watches.add(watcher)
        try:
            for value in first:
                await _stream(send, _event("ADDED", self._encoded(resource, value)))
            await self._follow(request, passes, watcher, gone, send)
        finally:
            self._client_watches.discard(watcher)
            self.store.unwatch(watcher)
            gone.cancel()

    def end_client_watches(self) -> None:
        """End every watch over HTTP; what follows the store within this process goes on."""
        for watcher in self._client_watches:
            watcher.queue.put_nowait(None)

    async def _follow(
        self, request: _Request, passes: store.Predicate, watcher: store.Watcher, gone: "asyncio.Task[None]", send: Send
    ) -> None:
        resource = request.resource
        assert resource is not None
        bookmarks = request.query.get("allowWatchBookmarks") == "true"
        loop = asyncio.get_running_loop()
        seconds = float(request.query.get("timeoutSeconds") or 1800)
        is_spared = request.headers.get("user-agent", "") == self.faults.spared
        end = loop.time() + (min(seconds, 1.0) if self.faults.drops_watches and not is_spared else seconds)
        while not gone.done() and ((left := end - loop.time()) > 0 or self.faults.silences_watches):
            batch: list[bytes] = []
            try:
                async with asyncio.timeout(min(max(left, 0.1), _BOOKMARK_SECONDS)):
                    change = await watcher.queue.get()
            except TimeoutError:
                if bookmarks and (is_spared or not self.faults.silences_watches):
                    await _stream(send, self._bookmark(resource))
                continue
            while change is not None:
                batch += self._lines(resource, request.namespace, passes, change)
                if watcher.queue.empty():
                    break
                change = watcher.queue.get_nowait()
            if batch and (is_spared or not self.faults.silences_watches):
                await _stream(send, b"".join(batch))
            if change is None:
                break
        await send({"type": "http.response.body", "body": b""})

    def _bookmark(self, resource: kinds.Resource) -> bytes:
        body = {
            "kind": resource.kind,
            "apiVersion": resource.api_version,
            "metadata": {"resourceVersion": str(self.store.version), "creationTimestamp": None},
        }
        return _event("BOOKMARK", orjson.dumps(body))

    def _lines(
        self, resource: kinds.Resource, namespace: str, passes: store.Predicate, change: store.Change
    ) -> Iterator[bytes]:
        shown = change.after or change.before
        assert shown is not None
        if namespace and shown["metadata"].get("namespace") != namespace:
            return
        was = change.before is not None and passes(change.before)
        now = change.after is not None and passes(change.after)
        if now and change.after is not None:
            yield _event("MODIFIED" if was else "ADDED", self._encoded(resource, change.after))
        elif was:
            last = change.after or change.before
            yield _event("DELETED", orjson.dumps(self._out(resource, last or {})))

    def _out(self, resource: kinds.Resource, value: store.Object) -> store.Object:
        return pods.event_out(resource, value) if resource.plural == "events" else value

    def _encoded(self, resource: kinds.Resource, value: store.Object) -> bytes:
        if resource.plural == "events":
            return orjson.dumps(pods.event_out(resource, value))
        return self.store.encoded(resource, value)


def _status_metadata(before: store.Object, after: store.Object) -> store.Object:
    """Write a status, with annotations and labels, and no other metadata."""
    changed = after.get("metadata") or {}
    kept = {key: changed[key] for key in ("annotations", "labels", "uid", "resourceVersion") if key in changed}
    return {**before["metadata"], **kept}


def _wants_table(request: _Request) -> bool:
    return "as=Table" in request.headers.get("accept", "") and request.resource is not None


def _status(refused: store.ApiError) -> bytes:
    return orjson.dumps({
        "kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Failure",
        "message": refused.message, "reason": refused.reason, "code": refused.status,
    })  # fmt: skip


def _event(kind: str, body: bytes) -> bytes:
    return b'{"type":"%b","object":%b}\n' % (kind.encode(), body)


async def _body(receive: Receive) -> bytes:
    chunks = []
    while True:
        message = await receive()
        chunks.append(message.get("body", b""))
        if not message.get("more_body", False):
            return b"".join(chunks)


async def _until_gone(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


async def _answer(send: Send, status: int, body: bytes, now: float) -> None:
    headers = [
        (b"content-type", b"application/json"),
        (b"content-length", str(len(body)).encode()),
        (b"date", email.utils.formatdate(now, usegmt=True).encode()),
    ]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body})


async def _stream(send: Send, body: bytes) -> None:
    await send({"type": "http.response.body", "body": body, "more_body": True})


def kubeconfig(url: str, token: str) -> str:
    """Return a kubeconfig for a server, as JSON, which is YAML too."""
    return orjson.dumps(
        {
            "apiVersion": "v1",
            "kind": "Config",
            "current-context": "lab",
            "clusters": [{"name": "lab", "cluster": {"server": url}}],
            "users": [{"name": "lab", "user": {"token": token}}],
            "contexts": [{"name": "lab", "context": {"cluster": "lab", "user": "lab"}}],
        },
        option=orjson.OPT_INDENT_2,
    ).decode()


class Running:
    """An API server that runs in a thread of this process.

    Attributes:
        url: Its address.
        app: The server.
        loop: Its event loop, the only place from which its store may be touched.
    """

    def __init__(self, host: str, port: int, token: str) -> None:
        self.app = ApiServer(token)
        self.token = token
        # The protocol is explicit, because only then asyncio disables Nagle's algorithm, which costs 40 ms a call.
        self._socket = socket.socket(socket.AF_INET, socket.SOCK_STREAM, socket.IPPROTO_TCP)
        self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        self._socket.bind((host, port))
        self._socket.listen(2048)
        self.url = f"http://{host}:{self._socket.getsockname()[1]}"
        self.loop: asyncio.AbstractEventLoop = asyncio.new_event_loop()
        self._server = uvicorn.Server(
            uvicorn.Config(
                self.app,
                http="httptools",
                lifespan="off",
                ws="none",
                log_config=None,
                access_log=False,
                date_header=False,
                timeout_keep_alive=120,
                timeout_graceful_shutdown=1,
            )
        )
        self._thread = threading.Thread(target=self._run, name="lab-api-server", daemon=True)

    def start(self) -> None:
        """Run the server in a thread of its own."""
        self._thread.start()

    def stop(self) -> None:
        """End every watch and stop."""
        self._server.should_exit = True
        self.call(self.app.store.end_watches)
        self._thread.join(timeout=10)
        self._socket.close()

    def call(self, action: Callable[[], Any]) -> Any:
        """Call a function on the server's event loop, for example to read its store, and return the result."""

        async def act() -> Any:
            return action()

        return asyncio.run_coroutine_threadsafe(act(), self.loop).result(timeout=300)

    def request(self, method: str, path: str, body: Any = None, content_type: str = "application/json") -> Any:
        """Call the server over HTTP, as any client does, and return the decoded answer.

        Raises:
            urllib.error.HTTPError: The server refused.
        """
        request = urllib.request.Request(
            self.url + path,
            method=method,
            data=None if body is None else orjson.dumps(body),
            headers={"Authorization": f"Bearer {self.token}", "Content-Type": content_type},
        )
        with urllib.request.urlopen(request, timeout=30) as answer:
            return orjson.loads(answer.read())

    def write_kubeconfig(self, path: pathlib.Path) -> pathlib.Path:
        """Write a kubeconfig for this server, readable by its owner only."""
        path.touch(mode=0o600)
        path.write_text(kubeconfig(self.url, self.token))
        return path

    def _run(self) -> None:
        # The runner cancels what still runs at the end and waits for it.
        with asyncio.Runner(loop_factory=lambda: self.loop) as runner:
            runner.run(self._serve_and_collect())

    async def _serve_and_collect(self) -> None:
        await self._server.serve(sockets=[self._socket])
        gc.collect()  # A server of grpc that is left in a cycle needs the loop for its end.
        await asyncio.sleep(0)


@contextlib.contextmanager
def running(host: str = "127.0.0.1", port: int = 0) -> Iterator[Running]:
    """Run an API server until the context ends. Port 0 selects a free one."""
    server = Running(host, port, secrets.token_hex(16))
    server.start()
    try:
        yield server
    finally:
        server.stop()
