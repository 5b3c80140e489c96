"""Identify the bearer of a token and check permissions, by reviews that the API server answers.

Source: authentication.k8s.io/v1 TokenReview, authorization.k8s.io/v1 SubjectAccessReview and
SelfSubjectAccessReview.
"""

import asyncio
import re
from collections.abc import Iterable, Mapping
from typing import Any

import msgspec
import orjson

from gpu_sharing.adapters import decoding, kubernetes

Attributes = Mapping[str, Mapping[str, str]]
"""What is to be permitted, as `resourceAttributes` or `nonResourceAttributes` of a review."""
LONGEST_TOKEN = 16_384
_TIMEOUT_SECONDS = 5.0
_PATIENT_SECONDS = 30.0
_AT_ONCE = 8
"""Namespaces that are reviewed at one time for one user."""
_TOKEN = re.compile(r"[A-Za-z0-9._~+/-]{8,}=*")
"""Source: RFC 6750, `b64token`. Kubernetes' own are longer than 8 characters."""


class User(msgspec.Struct, frozen=True):
    """A user, as the API server names them."""

    username: str = ""
    uid: str = ""
    groups: list[str] | None = None
    extra: dict[str, list[str]] | None = None


class _Status(msgspec.Struct):
    authenticated: bool = False
    allowed: bool = False
    user: User | None = None


class _Review(msgspec.Struct):
    status: _Status = msgspec.field(default_factory=_Status)


def is_token(text: str) -> bool:
    """Return whether a text has the form of a bearer token, so that anything else costs the API server no review."""
    return len(text) <= LONGEST_TOKEN and _TOKEN.fullmatch(text) is not None


def list_pods(namespace: str = "") -> Attributes:
    """Return what is to be permitted for listing the pods of a namespace, or of all namespaces."""
    where = {"namespace": namespace} if namespace else {}
    return {"resourceAttributes": {"verb": "list", "resource": "pods", "version": "v1", **where}}


async def listable(client: kubernetes.Client, user: User, namespaces: Iterable[str]) -> dict[str, bool]:
    """Return for each namespace whether a user may list its pods. Errors as `user_of`."""
    turns = asyncio.Semaphore(_AT_ONCE)

    async def may_list(namespace: str) -> bool:
        async with turns:
            return await may(client, user, list_pods(namespace))

    asked = sorted(namespaces)
    answers = await asyncio.gather(*map(may_list, asked))
    return dict(zip(asked, answers, strict=True))


async def user_of(client: kubernetes.Client, token: str) -> User | None:
    """Return the bearer of a token; None where the API server does not know the token.

    Raises:
        KubernetesError: The API server does not answer.
        MsgspecError: The answer is not a review.
    """
    status = await _ask(client, "authentication.k8s.io", "TokenReview", "tokenreviews", {"token": token})
    return status.user if status.authenticated else None


async def may(client: kubernetes.Client, user: User, attributes: Attributes) -> bool:
    """Return whether a user may do something. Errors as `user_of`."""
    spec = {
        "user": user.username, "uid": user.uid, "groups": user.groups or [], "extra": user.extra or {}, **attributes,
    }  # fmt: skip
    return (await _ask(client, "authorization.k8s.io", "SubjectAccessReview", "subjectaccessreviews", spec)).allowed


async def may_we(client: kubernetes.Client, attributes: Attributes) -> bool:
    """Return whether the client's own account may do something, with a longer timeout. Errors as `may`."""
    kind, plural = "SelfSubjectAccessReview", "selfsubjectaccessreviews"
    return (await _ask(client, "authorization.k8s.io", kind, plural, attributes, _PATIENT_SECONDS)).allowed


async def _ask(
    client: kubernetes.Client,
    group: str,
    kind: str,
    plural: str,
    spec: Mapping[str, Any],
    timeout_seconds: float = _TIMEOUT_SECONDS,
) -> _Status:
    body = {"apiVersion": f"{group}/v1", "kind": kind, "spec": spec}
    answer = await client.review(f"/apis/{group}/v1/{plural}", orjson.dumps(body), timeout_seconds)
    return decoding.json_as(_Review, answer).status
