"""Access to the read API: which callers may read it, and in which namespaces they see pods.

Off loopback a bearer token is required. The API server names its bearer (TokenReview) and what the bearer may read
(SubjectAccessReview). Two of the rules are on resources of our own group that exist in RBAC rules only. A
nonResourceURL under `/api` protects nothing: `system:discovery` grants those to every authenticated identity.

| rule | what it permits to read |
| --- | --- |
| `get` on `gpus.hami.io` | the read API: totals, nodes, GPUs, and of pods what the next rules open |
| `list` on `pods.hami.io` | the pods of all namespaces, as the read API shows them |
| `list` on `pods`, in a namespace or in all | the pods of that namespace, their explanations and events |
| `get` on `profiles.hami.io` | a profile of the extender; no role of the chart has it |
"""

import collections
import contextlib
import hashlib
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from typing import Protocol

import msgspec

from gpu_sharing.adapters import access_reviews, kubernetes
from gpu_sharing.adapters.http_calls import CallRefused
from gpu_sharing.core import error_codes, errors

ROLE = "hami-reader"
"""The chart's ClusterRole with the first rule."""
_READ = {"resourceAttributes": {"group": "hami.io", "resource": "gpus", "verb": "get"}}
_LIST_ALL = {"resourceAttributes": {"group": "hami.io", "resource": "pods", "verb": "list"}}
_PROFILE = {"resourceAttributes": {"group": "hami.io", "resource": "profiles", "verb": "get"}}
_REVIEWED_FOR_SECONDS = 30.0
_MOST_TOKENS = 1_000


class Reader(Protocol):
    """A caller who may read."""

    async def visible(self, namespaces: Iterable[str]) -> frozenset[str] | None:
        """Return those of some namespaces whose pods the caller may see; None for all.

        Raises:
            CallRefused: None of them, although there are some.
        """

    async def visible_among(self, namespaces: Iterable[str]) -> frozenset[str]:
        """Return the same as a set that may be empty."""

    async def require_profile(self) -> None:
        """Check that the caller may take a profile of this process.

        Raises:
            CallRefused: It may not.
        """


class Gate(Protocol):
    """Decides which callers may read what."""

    async def admit(self, token: str) -> Reader:
        """Return the caller.

        Raises:
            CallRefused: The caller may not read.
        """


class OpenGate:
    """Admits every caller that reaches the loopback address, to everything."""

    async def admit(self, token: str) -> Reader:
        """Return a reader of all."""
        return self

    async def visible(self, namespaces: Iterable[str]) -> frozenset[str] | None:
        """Return None: everything is visible."""
        return None

    async def visible_among(self, namespaces: Iterable[str]) -> frozenset[str]:
        """Return None: everything is visible."""
        return frozenset(namespaces)

    async def require_profile(self) -> None:
        """Permit it to every caller on loopback."""


@dataclass(slots=True)
class _Known:
    """The API server's answer about a token."""

    at: float
    user: access_reviews.User | None
    may_read: bool = False
    sees_all: bool = False
    sees: dict[str, bool] = field(default_factory=dict)


class TokenGate:
    """Has the API server review each token, and caches the answers for half a minute."""

    def __init__(self, client: kubernetes.Client, clock: Callable[[], float] = time.monotonic) -> None:
        self._client = client
        self._clock = clock
        self._known: collections.OrderedDict[bytes, _Known] = collections.OrderedDict()
        self._unknown: collections.OrderedDict[bytes, _Known] = collections.OrderedDict()

    async def admit(self, token: str) -> Reader:
        """Return the bearer of a token. A text that cannot be a token is refused without a review."""
        if not access_reviews.is_token(token):
            raise CallRefused(401, error_codes.UNAUTHORIZED, "send a bearer token of this cluster")
        known = self._remembered(token) or await self._review(token)
        if known.user is None:
            raise CallRefused(
                401, error_codes.UNAUTHORIZED, "the API server does not know the token; it may have expired"
            )
        if not known.may_read:
            raise CallRefused(
                403,
                error_codes.READ_FORBIDDEN,
                f"{known.user.username} may not get gpus.hami.io: bind the ClusterRole {ROLE} to this account",
            )
        return _TokenReader(self._client, known, known.user)

    def _remembered(self, token: str) -> _Known | None:
        key = _key(token)
        known = self._known.get(key) or self._unknown.get(key)
        return known if known and self._clock() - known.at < _REVIEWED_FOR_SECONDS else None

    async def _review(self, token: str) -> _Known:
        known = _Known(self._clock(), None)
        with _reviewing():
            known.user = await access_reviews.user_of(self._client, token)
            if known.user is not None:
                known.may_read = await access_reviews.may(self._client, known.user, _READ)
            if known.user is not None and known.may_read:
                known.sees_all = await access_reviews.may(
                    self._client, known.user, _LIST_ALL
                ) or await access_reviews.may(self._client, known.user, access_reviews.list_pods())
        # Apart, so that a flood of invented tokens does not make the known ones forgotten.
        kept = self._unknown if known.user is None else self._known
        kept[_key(token)] = known
        kept.move_to_end(_key(token))
        if len(kept) > _MOST_TOKENS:
            kept.popitem(last=False)
        return known


@contextlib.contextmanager
def _reviewing() -> Iterator[None]:
    """Turn an API server that does not answer a review into a refusal with that reason."""
    try:
        yield
    except (errors.KubernetesError, msgspec.MsgspecError) as cause:
        text = f"the API server does not answer what the token permits: {cause}"
        raise CallRefused(503, error_codes.REVIEW_FAILED, text) from cause


class _TokenReader:
    """A caller with a token."""

    def __init__(self, client: kubernetes.Client, known: _Known, user: access_reviews.User) -> None:
        self._client = client
        self._known = known
        self._user = user

    async def visible(self, namespaces: Iterable[str]) -> frozenset[str] | None:
        if self._known.sees_all:
            return None
        asked = frozenset(namespaces)
        allowed = await self.visible_among(asked)
        if asked and not allowed:
            where = f"namespace {min(asked)}" if len(asked) == 1 else "any namespace that has pods with GPUs"
            text = f"{self._user.username} may not list pods in {where}: a role with list on pods there is needed"
            raise CallRefused(403, error_codes.READ_FORBIDDEN, text)
        return allowed

    async def visible_among(self, namespaces: Iterable[str]) -> frozenset[str]:
        asked, sees = frozenset(namespaces), self._known.sees
        if self._known.sees_all:
            return asked
        with _reviewing():
            sees.update(await access_reviews.listable(self._client, self._user, asked - sees.keys()))
        return frozenset(name for name in asked if sees[name])

    async def require_profile(self) -> None:
        with _reviewing():
            permitted = await access_reviews.may(self._client, self._user, _PROFILE)
        if not permitted:
            text = f"{self._user.username} may not get profiles.hami.io: a role with that rule is needed"
            raise CallRefused(403, error_codes.READ_FORBIDDEN, text)


def _key(token: str) -> bytes:
    """The token itself is not kept."""
    return hashlib.sha256(token.encode()).digest()
