"""The client of the API server: typed reads, small writes, our errors. No other module imports a client.

The calls use one pool of connections on the event loop, because the official client builds a Python object for every
field of every pod; of it only the reading of a kubeconfig is used, in `cluster_access`.
"""

import contextlib
import email.utils
import pathlib
import socket
import struct
import time
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Generic, Self, TypeVar
from urllib import parse

import aiohttp
import msgspec
import structlog

from gpu_sharing.adapters import cluster_access, decoding, logs
from gpu_sharing.core import errors

T = TypeVar("T")

MERGE_PATCH = "application/merge-patch+json"
STRATEGIC_PATCH = "application/strategic-merge-patch+json"
_CONNECTIONS = 128
_REVIEW_CONNECTIONS = 4
"""Reviews of callers' tokens have separate connections, so that a Binding never waits for them."""
_MOST_REVIEWS = 64
"""The limit of reviews in flight or queued; one more is refused at once."""
_DEFAULT_TIMEOUT_SECONDS = 30.0
_CREDENTIALS_SECONDS = 10.0
_LONGEST_LINE = 64 * 1024 * 1024


class ListMetadata(msgspec.Struct, gc=False, rename="camel"):
    """`metadata` of a list."""

    resource_version: str = ""
    continue_: str = msgspec.field(default="", name="continue")
    remaining_item_count: int | None = None
    """The number of remaining items; absent where the server filters."""


class Page(msgspec.Struct, Generic[T]):
    """One page of a list; items stay raw, so that one that does not decode costs only itself."""

    metadata: ListMetadata
    items: list[msgspec.Raw] | None = None


class _Status(msgspec.Struct, gc=False):
    message: str = ""
    reason: str = ""


class _Version(msgspec.Struct, gc=False, rename="camel"):
    git_version: str = ""


log = structlog.get_logger("kubernetes")

_page_decoder = msgspec.json.Decoder(Page)
_status_decoder = msgspec.json.Decoder(_Status)


@dataclass(frozen=True, slots=True)
class Ping:
    """The API server's answer to a small request."""

    seconds: float
    """How long that took."""
    ahead_seconds: float | None
    """Seconds by which its clock is ahead of ours, with a precision of one second; None if unknown."""
    version: str = ""
    """Its version, such as `v1.36.0`; empty if unknown."""


def _socket(address: tuple[Any, ...]) -> socket.socket:
    """Return a socket that is reset when it is closed.

    Otherwise the kernel would go on sending a call that was given up: behind a broken network it arrives minutes later,
    when what it writes is no longer true.
    """
    family, kind, protocol, _, _ = address
    made = socket.socket(family, kind, protocol)
    made.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    return made


class Client:
    """A connection pool to one API server. Use as an async context manager."""

    def __init__(
        self, kubeconfig: pathlib.Path | Sequence[pathlib.Path] | None, user_agent: str, context: str = ""
    ) -> None:
        """Read the access.

        Args:
            kubeconfig: One, or a list that is merged; none for the service account of a pod.
            user_agent: The name of this program.
            context: Of the kubeconfig; empty for its current one.

        Raises:
            SettingsError: The kubeconfig or the service account cannot be used.
        """
        kubeconfigs = [kubeconfig] if isinstance(kubeconfig, pathlib.Path) else kubeconfig or ()
        self._access = (
            cluster_access.by_kubeconfig(kubeconfigs, context) if kubeconfigs else cluster_access.in_cluster()
        )
        self._user_agent = user_agent
        self._session: aiohttp.ClientSession | None = None
        self._review_session: aiohttp.ClientSession | None = None
        self._reviews = 0
        self._host = self._access.host
        self._authorization: dict[str, str] = {}
        self._authorized_at = float("-inf")
        self.observe: Callable[[str, int, float], None] = lambda method, status, seconds: None

    async def __aenter__(self) -> Self:
        self._session = self._opened(_CONNECTIONS)
        self._review_session = self._opened(_REVIEW_CONNECTIONS)
        return self

    def _opened(self, connections: int) -> aiohttp.ClientSession:
        return aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(
                limit=connections, ssl=self._access.tls, keepalive_timeout=60, socket_factory=_socket
            ),
            headers=[("User-Agent", self._user_agent), ("Accept", "application/json"), *self._access.impersonation],
            read_bufsize=2**18,
            auto_decompress=True,
        )

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for session in (self._session, self._review_session):
            if session is not None:
                await session.close()

    async def get(self, path: str, kind: type[T], timeout_seconds: float = _DEFAULT_TIMEOUT_SECONDS) -> T:
        """Read one object.

        Raises:
            NotFound: It does not exist.
            Unavailable: No answer in time. Other errors by the server's status.
        """
        return decoding.json_as(kind, await self._call("GET", path, None, None, timeout_seconds))

    async def ping(self) -> Ping:
        """Read the version, to measure the server's response time and its clock.

        Raises:
            Unavailable: No answer.
        """
        started, before = time.monotonic(), time.time()
        content, headers = await self._exchange(self._session, "GET", "/version", None, None, _DEFAULT_TIMEOUT_SECONDS)
        seconds = time.monotonic() - started
        ahead = None
        with contextlib.suppress(ValueError):
            server_time = email.utils.parsedate_to_datetime(headers.get("Date", "")).timestamp()
            # The header has whole seconds, so half of one is left out on average; and it was made midway.
            ahead = server_time + 0.5 - (before + seconds / 2)
        version = ""
        with contextlib.suppress(msgspec.MsgspecError):
            version = decoding.json_as(_Version, content).git_version
        return Ping(seconds, ahead, version)

    async def post(self, path: str, body: bytes, timeout_seconds: float = _DEFAULT_TIMEOUT_SECONDS) -> bytes:
        """Create an object, or a sub-resource such as a Binding. Returns the answer's body.

        Raises:
            Conflict: It exists, or a precondition does not hold.
            Unavailable: No answer in time: whether it was done is not known.
        """
        return await self._call("POST", path, body, "application/json", timeout_seconds)

    async def review(self, path: str, body: bytes, timeout_seconds: float = _DEFAULT_TIMEOUT_SECONDS) -> bytes:
        """Create a review of a caller's token or permission, over separate connections.

        Raises:
            Unavailable: No answer in time, or too many reviews are queued.
        """
        if self._reviews >= _MOST_REVIEWS:
            raise errors.Unavailable(f"POST {path}: {_MOST_REVIEWS} reviews are under way already")
        self._reviews += 1
        try:
            content, _ = await self._exchange(
                self._review_session, "POST", path, body, "application/json", timeout_seconds
            )
        finally:
            self._reviews -= 1
        return content

    async def patch(self, path: str, body: bytes, timeout_seconds: float = _DEFAULT_TIMEOUT_SECONDS) -> bytes:
        """Merge-patch an object. A `metadata.uid` in the patch is a precondition. Errors as in `post`."""
        return await self._call("PATCH", path, body, MERGE_PATCH, timeout_seconds)

    async def patch_items(self, path: str, body: bytes, timeout_seconds: float = _DEFAULT_TIMEOUT_SECONDS) -> bytes:
        """Patch an object by Kubernetes' strategic merge, which keeps the other items of a list of conditions.

        Errors as in `post`.
        """
        return await self._call("PATCH", path, body, STRATEGIC_PATCH, timeout_seconds)

    async def delete(
        self, path: str, timeout_seconds: float = _DEFAULT_TIMEOUT_SECONDS, body: bytes | None = None
    ) -> bytes:
        """Delete an object, with `DeleteOptions` as its optional body. Errors as in `post`, and `NotFound`."""
        return await self._call("DELETE", path, body, "application/json" if body else None, timeout_seconds)

    async def pages(self, path: str, page_size: int) -> AsyncIterator[Page[msgspec.Raw]]:
        """List consistently, page by page.

        No `resourceVersion` is sent: what is listed is then at least as new as everything that was written before the
        call, which a restarted process relies on.

        Raises:
            Expired: The listing took longer than the server keeps its state; start again.
            Unavailable: No answer in time, or an answer that is not a list.
        """
        token = ""
        while True:
            query = {"limit": str(page_size)} | ({"continue": token} if token else {})
            content = await self._call("GET", _with_query(path, query), None, None, _DEFAULT_TIMEOUT_SECONDS)
            try:
                page = decoding.json_by(_page_decoder, content)
            except msgspec.MsgspecError as cause:
                raise errors.Unavailable(f"GET {path}: the answer is no list: {cause}") from cause
            yield page
            token = page.metadata.continue_
            if not token:
                return

    async def watch(self, path: str, resource_version: str, timeout_seconds: int) -> AsyncIterator[bytes]:
        """Yield the lines of a watch, each one JSON event, until the server ends it.

        Raises:
            Expired: The resource version is too old: list again.
            Unavailable: The connection broke; watch again from the last version seen.
        """
        query = {
            "watch": "true", "allowWatchBookmarks": "true", "resourceVersion": resource_version,
            "timeoutSeconds": str(timeout_seconds),
        }  # fmt: skip
        timeout = aiohttp.ClientTimeout(total=None, sock_connect=10, sock_read=timeout_seconds + 30)
        assert self._session is not None
        try:
            async with self._session.get(
                f"{self._host}{_with_query(path, query)}",
                headers=self._headers(None),
                timeout=timeout,
                proxy=self._access.proxy,
                server_hostname=self._access.server_name,
                allow_redirects=False,
            ) as answer:
                log.debug("API watch", path=path, version=resource_version, status=answer.status)
                if answer.status != 200:
                    raise _error("GET", path, answer.status, await answer.read())
                rest = b""
                async for chunk in answer.content.iter_any():
                    lines = (rest + chunk if rest else chunk).split(b"\n")
                    rest = lines.pop()
                    if len(rest) > _LONGEST_LINE:
                        raise errors.Unavailable(f"watch of {path}: an event is longer than {_LONGEST_LINE} bytes")
                    for line in lines:
                        if line:
                            yield line
        except (aiohttp.ClientError, OSError) as cause:
            raise errors.Unavailable(f"watch of {path}: {str(cause) or type(cause).__name__}") from cause

    def _headers(self, content_type: str | None) -> Mapping[str, str]:
        now = time.monotonic()
        if now - self._authorized_at > _CREDENTIALS_SECONDS:
            authorization = self._access.authorization()
            self._authorization = {"Authorization": authorization} if authorization else {}
            self._authorized_at = now
        return {**self._authorization, "Content-Type": content_type} if content_type else self._authorization

    async def _call(
        self, method: str, path: str, body: bytes | None, content_type: str | None, timeout_seconds: float
    ) -> bytes:
        content, _ = await self._exchange(self._session, method, path, body, content_type, timeout_seconds)
        return content

    async def _exchange(
        self,
        session: aiohttp.ClientSession | None,
        method: str,
        path: str,
        body: bytes | None,
        content_type: str | None,
        timeout_seconds: float,
    ) -> tuple[bytes, Mapping[str, str]]:
        assert session is not None
        started = time.monotonic()
        try:
            async with session.request(
                method,
                f"{self._host}{path}",
                data=body,
                headers=self._headers(content_type),
                timeout=aiohttp.ClientTimeout(total=timeout_seconds),
                proxy=self._access.proxy,
                server_hostname=self._access.server_name,
                # The token belongs to this server, and no API server redirects a call of ours.
                allow_redirects=False,
            ) as answer:
                content = await answer.read()
                seconds = time.monotonic() - started
                self.observe(method, answer.status, seconds)
                if logs.shows(logs.HIGHEST):
                    log.debug("API call", method=method, path=path, status=answer.status, seconds=round(seconds, 4))
                if answer.status < 300:
                    return content, answer.headers
                raise _error(method, path, answer.status, content)
        except (aiohttp.ClientError, OSError) as cause:
            waited = time.monotonic() - started
            self.observe(method, 0, waited)
            raise errors.Unavailable(
                f"{method} {path}: {str(cause) or type(cause).__name__} after {waited:.1f} s"
            ) from cause


def _with_query(path: str, query: Mapping[str, str]) -> str:
    """Return the path with more query parameters; it may already have a selector."""
    return f"{path}{'&' if '?' in path else '?'}{parse.urlencode(query)}"


def _error(method: str, path: str, status: int, body: bytes) -> errors.KubernetesError:
    try:
        decoded = decoding.json_by(_status_decoder, body)
        message, reason = decoded.message, decoded.reason
    except msgspec.MsgspecError:
        message, reason = body[:200].decode(errors="replace"), ""
    text = f"{method} {path.partition('?')[0]}: {status} {message or reason}"
    match status:
        case 404:
            return errors.NotFound(text, status)
        case 409:
            return errors.Conflict(text, status)
        case 401 | 403:
            return errors.Forbidden(text, status)
        case 410:
            return errors.Expired(text, status)
        case 400 | 405 | 413 | 415 | 422:
            return errors.Invalid(text, status)
        case _:
            return errors.Unavailable(text, status)
