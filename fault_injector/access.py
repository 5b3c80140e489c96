"""Access to the fault injection API: which callers may read faults, and which may inject and recover them.

On loopback it is open to programs of this machine, and closed to web pages. Elsewhere a bearer token is required: the
API server names its bearer (TokenReview) and what the bearer may do (SubjectAccessReview). The resource exists in RBAC
rules only.

| rule | what it permits |
| --- | --- |
| `get` on `faults.hami.io` | to read faults and measurements |
| `create` on `faults.hami.io` | to inject faults, and to recover them |
"""

import collections
import hashlib
import re
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Protocol

import msgspec

from gpu_sharing.adapters import access_reviews, http_calls, kubernetes
from gpu_sharing.adapters.http_calls import CallRefused
from gpu_sharing.core import error_codes, errors

READ, INJECT = "get", "create"
"""The verbs on the resource."""
_REVIEWED_FOR_SECONDS = 10.0
_MOST_TOKENS = 1_000
_OWN_HOST = re.compile(r"(?:localhost|127\.0\.0\.1|\[::1\])(?::\d{1,5})?", re.I)


@dataclass(frozen=True, slots=True)
class Caller:
    """What a request says about its caller."""

    token: str
    host: str
    origin: str

    @classmethod
    def of(cls, headers: dict[bytes, bytes]) -> "Caller":
        """Return the caller of a request by its headers."""
        host, origin = (headers.get(name, b"").decode("latin-1") for name in (b"host", b"origin"))
        return cls(http_calls.bearer_token(headers.get(b"authorization", b"")), host, origin)


class Gate(Protocol):
    """Decides which callers may do what."""

    async def demand(self, caller: Caller, verb: str) -> None:
        """Check that a caller may do something.

        Raises:
            CallRefused: It may not.
        """


class LoopbackGate:
    """Admits programs of this machine. A web page in a browser is refused: its requests carry an origin or a name."""

    async def demand(self, caller: Caller, verb: str) -> None:
        """See `Gate`."""
        if caller.origin or not _OWN_HOST.fullmatch(caller.host):
            text = "on loopback this API answers requests to localhost that no web page makes"
            raise CallRefused(403, error_codes.FAULT_FORBIDDEN, text)


@dataclass(slots=True)
class _Known:
    """The API server's answers about a token."""

    at: float
    user: access_reviews.User | None
    permitted: dict[str, bool] = field(default_factory=dict)


class TokenGate:
    """Has the API server review each token, and caches the answers for some seconds."""

    def __init__(self, client: kubernetes.Client, clock: Callable[[], float] = time.monotonic) -> None:
        self._client = client
        self._clock = clock
        self._known: collections.OrderedDict[bytes, _Known] = collections.OrderedDict()

    async def demand(self, caller: Caller, verb: str) -> None:
        """See `Gate`."""
        if not access_reviews.is_token(caller.token):
            raise CallRefused(401, error_codes.FAULT_UNAUTHORIZED, "send a bearer token of this cluster")
        try:
            known = await self._review(caller.token)
            if known.user is None:
                text = "the API server does not know the token; it may have expired"
                raise CallRefused(401, error_codes.FAULT_UNAUTHORIZED, text)
            if verb not in known.permitted:
                attributes = {"resourceAttributes": {"group": "hami.io", "resource": "faults", "verb": verb}}
                known.permitted[verb] = await access_reviews.may(self._client, known.user, attributes)
        except (errors.KubernetesError, msgspec.MsgspecError) as cause:
            text = f"the API server does not answer what the token permits: {cause}"
            raise CallRefused(503, error_codes.FAULT_REVIEW_FAILED, text) from cause
        if not known.permitted[verb]:
            text = f"{known.user.username} may not {verb} faults.hami.io: a role with that rule is needed"
            raise CallRefused(403, error_codes.FAULT_FORBIDDEN, text)

    async def _review(self, token: str) -> _Known:
        key = hashlib.sha256(token.encode()).digest()
        known = self._known.get(key)
        if known is None or self._clock() - known.at >= _REVIEWED_FOR_SECONDS:
            known = _Known(self._clock(), await access_reviews.user_of(self._client, token))
            self._known[key] = known
            self._known.move_to_end(key)
            if len(self._known) > _MOST_TOKENS:
                self._known.popitem(last=False)
        return known
