"""Discover the optional APIs of a cluster: some are alpha and disabled, others come with an add-on.

Source: k8s.io/apimachinery meta/v1, APIGroupList and APIResourceList, as in `kubectl api-resources`.
"""

import asyncio
import time
from collections.abc import Callable
from typing import TypeVar

import structlog

from gpu_sharing.adapters import kubernetes, objects, pauses, watching
from gpu_sharing.core import errors

T = TypeVar("T")

_LOOK_AGAIN_SECONDS, _RETRY_SECONDS = 600.0, 15.0
"""Seconds until the next discovery of an API that is missing, was removed, or could not be discovered."""

log = structlog.get_logger("discovery")


async def path_of(client: kubernetes.Client, api_group: str, resource: str) -> str | None:
    """Return the path at which all objects of a kind are listed, in the API server's preferred version.

    Args:
        client: Of the API server.
        api_group: For example `resource.k8s.io`.
        resource: Plural name of the kind, for example `resourceslices`.

    Returns:
        The path, or None where the API server does not have that kind.

    Raises:
        KubernetesError: The API server does not answer.
    """
    listed = await client.get("/apis", objects.APIGroupList)
    versions = [one for group in listed.groups or () if group.name == api_group for one in group.versions or ()]
    for version in versions:
        path = f"/apis/{version.group_version}"
        resources = await client.get(path, objects.APIResourceList)
        if any(kind.name == resource for kind in resources.resources or ()):
            return f"{path}/{resource}"
    return None


async def follow(
    client: kubernetes.Client,
    api_group: str,
    resource: str,
    kind: type[T],
    sink: watching.Sink[T],
    version_of: Callable[[T], str],
) -> None:
    """List and watch an optional kind, in the version that the cluster has now; ends only by cancellation.

    An API that is removed, or changes its version, is discovered again. While it is missing the sink is empty.
    """
    was_there = False
    while True:
        try:
            path = await path_of(client, api_group, resource)
        except errors.KubernetesError as problem:
            log.warning("API unknown", group=api_group, resource=resource, cause=str(problem))
            await asyncio.sleep(_RETRY_SECONDS)
            continue
        if path is None:
            log.info("no such API in this cluster", group=api_group, resource=resource)
            if was_there:
                await pauses.spread(sink.replaced([], time.monotonic()))
            await asyncio.sleep(_RETRY_SECONDS if was_there else _LOOK_AGAIN_SECONDS)
            continue
        was_there = True
        try:
            await watching.Reflector(client, path, kind, sink, version_of, optional=True).run()
        except errors.NotFound as gone:
            log.warning("API went away", group=api_group, resource=resource, path=path, cause=str(gone))
            await asyncio.sleep(watching.FIRST_BACKOFF_SECONDS)
