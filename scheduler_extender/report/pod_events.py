"""What happened to a pod, as its events tell it: the scheduler's, the device plugin's and the kubelet's, oldest first.

They are read from the API server when somebody asks, because it keeps them whoever wrote them and whatever restarts.
"""

from typing import Any
from urllib import parse

import msgspec

from gpu_sharing.adapters import kubernetes, objects
from gpu_sharing.core import identifiers

_MOST_EVENTS = 500
_TIMEOUT_SECONDS = 5.0


class _Source(msgspec.Struct):
    component: str = ""


class _Series(msgspec.Struct, rename="camel"):
    count: int = 1
    last_observed_time: str | None = None


class _Event(msgspec.Struct, rename="camel"):
    """Source: k8s.io/api events/v1; the deprecated fields are those that older writers fill."""

    event_time: str | None = None
    deprecated_first_timestamp: str | None = None
    deprecated_last_timestamp: str | None = None
    deprecated_count: int | None = None
    deprecated_source: _Source | None = None
    series: _Series | None = None
    reporting_controller: str = ""
    type: str = ""
    reason: str = ""
    note: str = ""


class _Events(msgspec.Struct):
    items: list[_Event] | None = None


async def read(client: kubernetes.Client, namespace: str, uid: identifiers.PodUid) -> list[dict[str, Any]]:
    """The events of a pod, as JSON values: when it was first and last told (Unix seconds), how often, by whom, what.

    Raises:
        KubernetesError: The API server does not say.
        MsgspecError: It says what are no events.
    """
    query = parse.urlencode({"fieldSelector": f"regarding.uid={uid}", "limit": _MOST_EVENTS})
    path = f"/apis/events.k8s.io/v1/namespaces/{parse.quote(namespace, safe='')}/events?{query}"
    found = (await client.get(path, _Events, _TIMEOUT_SECONDS)).items or []
    return sorted((_told(one) for one in found), key=lambda one: (one["first_at"], one["last_at"]))


def _told(event: _Event) -> dict[str, Any]:
    begun = event.event_time or event.deprecated_first_timestamp or event.deprecated_last_timestamp
    first = objects.unix_seconds(begun)
    again = event.series.last_observed_time if event.series else event.deprecated_last_timestamp
    writer = event.reporting_controller or (event.deprecated_source or _Source()).component
    return {
        "first_at": first, "last_at": max(objects.unix_seconds(again), first),
        "count": (event.series.count if event.series else event.deprecated_count) or 1,
        "by": writer, "type": event.type, "reason": event.reason, "note": event.note,
    }  # fmt: skip
