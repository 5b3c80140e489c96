"""The events of one pod: the scheduler's, the device plugin's and the kubelet's.

They are read from the API server at each call: it keeps them whichever process wrote them and whatever restarts.
"""

from urllib import parse

import msgspec

from gpu_sharing.adapters import kubernetes, objects, read_api_types
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


async def read(client: kubernetes.Client, namespace: str, uid: identifiers.PodUid) -> list[read_api_types.Event]:
    """Return the events of a pod, oldest first.

    Raises:
        KubernetesError: The API server does not answer.
        MsgspecError: The answer is not a list of events.
    """
    query = parse.urlencode({"fieldSelector": f"regarding.uid={uid}", "limit": _MOST_EVENTS})
    path = f"/apis/events.k8s.io/v1/namespaces/{parse.quote(namespace, safe='')}/events?{query}"
    events = (await client.get(path, _Events, _TIMEOUT_SECONDS)).items or []
    return sorted(map(_event, events), key=lambda event: (event.first_at, event.last_at))


def _event(event: _Event) -> read_api_types.Event:
    begun = event.event_time or event.deprecated_first_timestamp or event.deprecated_last_timestamp
    first_at = objects.unix_seconds(begun)
    again = event.series.last_observed_time if event.series else event.deprecated_last_timestamp
    return read_api_types.Event(
        first_at=first_at,
        last_at=max(objects.unix_seconds(again), first_at),
        count=(event.series.count if event.series else event.deprecated_count) or 1,
        reporter=event.reporting_controller or (event.deprecated_source or _Source()).component,
        type=event.type,
        reason=event.reason,
        note=event.note,
    )
