"""Who somebody is by a token, and what they may do: asked of the API server, which alone knows.

Source: authentication.k8s.io/v1 TokenReview, authorization.k8s.io/v1 SubjectAccessReview and
SelfSubjectAccessReview.
"""

from collections.abc import Mapping
from typing import Any

import msgspec
import orjson

from gpu_sharing.adapters import kubernetes

_TIMEOUT_SECONDS = 5.0
_PATIENT_SECONDS = 30.0


class User(msgspec.Struct, frozen=True):
    """Somebody, as the API server names them."""

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


async def user_of(client: kubernetes.Client, token: str) -> User | None:
    """Whose token it is; None where it is nobody's.

    Raises:
        KubernetesError: The API server does not say.
        MsgspecError: It says what is no review.
    """
    status = await _ask(client, "authentication.k8s.io", "TokenReview", "tokenreviews", {"token": token})
    return status.user if status.authenticated else None


async def may(client: kubernetes.Client, user: User, attributes: Mapping[str, Mapping[str, str]]) -> bool:
    """Whether they may do that. Errors as `user_of`.

    Args:
        client: The API server.
        user: Who.
        attributes: What, as `resourceAttributes` or `nonResourceAttributes` of the review.
    """
    spec = {
        "user": user.username, "uid": user.uid, "groups": user.groups or [], "extra": user.extra or {}, **attributes,
    }  # fmt: skip
    return (await _ask(client, "authorization.k8s.io", "SubjectAccessReview", "subjectaccessreviews", spec)).allowed


async def may_we(client: kubernetes.Client, attributes: Mapping[str, Mapping[str, str]]) -> bool:
    """Whether the client's own account may do that; who asks it has patience. Arguments and errors as `may`."""
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
    answer = await client.post(f"/apis/{group}/v1/{plural}", orjson.dumps(body), timeout_seconds)
    return msgspec.json.decode(answer, type=_Review).status
