"""Users of the pages: how they are identified, and which pods they may see.

With `kubernetes` the API server names the bearer of a token, who sees the pods of the namespaces in which they may list
pods. Tokens stay in the memory of this process: the browser has a random number instead.
"""

import collections
import hashlib
import ipaddress
import secrets
import threading
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any, Protocol

import msgspec

from gpu_sharing.adapters import access_reviews, kubernetes
from gpu_sharing.core import errors
from webui import cluster, settings

_REVIEWED_FOR_SECONDS = 60.0
_KEPT_WITHOUT_ANSWER_SECONDS = 600.0
"""How long an earlier review counts while the API server does not answer."""
_MOST_KNOWN = 10_000
_IDLE_SECONDS = 8 * 3_600.0


@dataclass(frozen=True, slots=True)
class Viewer:
    """An admitted user and what they may see."""

    name: str = ""
    """Empty where users are not identified."""
    namespaces: frozenset[str] | None = None
    """Those whose pods they may see; None: all."""


class ViewRefused(errors.GpuSharingError):
    """The user is not admitted.

    Attributes:
        status: The HTTP status; 401 where the user is not identified.
    """

    def __init__(self, status: int, sentence: str) -> None:
        super().__init__(sentence)
        self.status = status


class Request(Protocol):
    """The parts of an HTTP request that identify a user."""

    remote_addr: str | None
    headers: Any


class Gate(Protocol):
    """Decides who may view the pages."""

    def viewer(self, request: Request, session: str, namespaces: Iterable[str]) -> Viewer:
        """Return the user of a request.

        Args:
            request: The HTTP request.
            session: The number that the browser has; empty where it has none.
            namespaces: The namespaces that have pods to show.

        Raises:
            ViewRefused: The user is not admitted.
        """


class Open:
    """Admits every request."""

    def viewer(self, request: Request, session: str, namespaces: Iterable[str]) -> Viewer:
        """Return a user without a name, who sees all pods."""
        return Viewer()


class Proxied:
    """Trusts the user name that a proxy of certain networks sends; the proxy admits users."""

    def __init__(self, networks: Iterable[settings.Network], header: str) -> None:
        self._networks = tuple(networks)
        self._header = header

    def viewer(self, request: Request, session: str, namespaces: Iterable[str]) -> Viewer:
        """Return the user that the proxy names. See `Gate`."""
        if not _comes_from(request.remote_addr, self._networks):
            raise ViewRefused(403, "Use the proxy that identifies users.")
        user = request.headers.get(self._header, "")
        if not user:
            raise ViewRefused(401, f"The proxy sent no user name in {self._header}.")
        return Viewer(user)


def _comes_from(address: str | None, networks: Iterable[settings.Network]) -> bool:
    """Whether an address is in one of the networks; an IPv4 address may be mapped into IPv6."""
    try:
        source = ipaddress.ip_address(address or "")
    except ValueError:
        return False
    mapped = getattr(source, "ipv4_mapped", None) or source
    return any(mapped in network for network in networks)


class Sessions:
    """The tokens of users who signed in. In memory only: a restart of this process ends all sessions."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._lock = threading.Lock()
        self._tokens: collections.OrderedDict[str, tuple[str, float]] = collections.OrderedDict()

    def begin(self, token: str) -> str:
        """A new number for a token; the longest unused one ends where there are too many."""
        number = secrets.token_urlsafe(32)
        with self._lock:
            self._tokens[number] = (token, self._clock())
            if len(self._tokens) > _MOST_KNOWN:
                self._tokens.popitem(last=False)
        return number

    def token(self, number: str) -> str:
        """The token of a number; empty where there is none any more."""
        with self._lock:
            token, used_at = self._tokens.get(number, ("", 0.0))
            if not token or self._clock() - used_at > _IDLE_SECONDS:
                self._tokens.pop(number, None)
                return ""
            self._tokens[number] = (token, self._clock())
            self._tokens.move_to_end(number)
            return token

    def end(self, number: str) -> None:
        """End a session: its token is forgotten."""
        with self._lock:
            self._tokens.pop(number, None)


@dataclass(slots=True)
class _Known:
    """The API server's review of a token."""

    at: float
    user: access_reviews.User | None
    sees_all: bool = False
    sees: dict[str, bool] = field(default_factory=dict)


class Reviewed:
    """Has the API server review tokens and the namespaces in which their bearers may list pods; caches for a minute."""

    def __init__(
        self, reached: cluster.Cluster, sessions: Sessions, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._cluster = reached
        self._sessions = sessions
        self._clock = clock
        self._lock = threading.Lock()
        self._known: dict[str, _Known] = {}

    def viewer(self, request: Request, session: str, namespaces: Iterable[str]) -> Viewer:
        """By a bearer token of the request, or by the one that they signed in with."""
        authorization = request.headers.get("Authorization", "")
        token = authorization[7:].strip() if authorization[:7].lower() == "bearer " else self._sessions.token(session)
        if not token:
            raise ViewRefused(401, "Sign in with a token of the cluster.")
        return self.bearer(token, namespaces)

    def bearer(self, token: str, namespaces: Iterable[str]) -> Viewer:
        """Return the bearer of a token.

        Raises:
            ViewRefused: The token is not valid, its bearer may list no pods, or the API server does not answer.
        """
        if not access_reviews.is_token(token):
            raise ViewRefused(401, "This is not a token of a cluster; get one with kubectl create token.")
        known = self._review(token, set(namespaces))
        if known.user is None:
            raise ViewRefused(401, "The cluster does not know that token; it may have ended.")
        if known.sees_all:
            return Viewer(known.user.username)
        visible = frozenset(name for name, sees in known.sees.items() if sees)
        if not visible:
            raise ViewRefused(
                403,
                f"{known.user.username} may list the pods of no namespace that has pods with GPUs: a role with list on "
                "pods is needed there.",
            )
        return Viewer(known.user.username, visible)

    def _review(self, token: str, namespaces: set[str]) -> _Known:
        key = hashlib.sha256(token.encode()).hexdigest()
        now = self._clock()
        known = self._known.get(key)
        fresh = known is not None and now - known.at < _REVIEWED_FOR_SECONDS
        if known and fresh and (known.user is None or known.sees_all or namespaces <= known.sees.keys()):
            return known
        try:
            known = self._cluster.ask(
                lambda client: _reviewed(client, token, namespaces, known if fresh else None, now)
            )
        except (errors.KubernetesError, msgspec.MsgspecError) as cause:
            if known and known.user and now - known.at < _KEPT_WITHOUT_ANSWER_SECONDS:
                return known
            raise ViewRefused(503, f"The cluster does not answer who you are: {cause}") from cause
        with self._lock:
            if len(self._known) >= _MOST_KNOWN:
                self._known.clear()
            self._known[key] = known
        return known


async def _reviewed(
    client: kubernetes.Client, token: str, namespaces: set[str], known: _Known | None, now: float
) -> _Known:
    """The API server's review of a token, extended by namespaces that were not reviewed before."""
    if known is None:
        user = await access_reviews.user_of(client, token)
        known = _Known(now, user)
        if user is None:
            return known
        known.sees_all = await access_reviews.may(client, user, access_reviews.list_pods())
    assert known.user is not None
    if known.sees_all:
        return known
    seen = await access_reviews.listable(client, known.user, namespaces - known.sees.keys())
    return _Known(known.at, known.user, sees_all=False, sees={**known.sees, **seen})
