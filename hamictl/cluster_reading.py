"""Reads a cluster for `hamictl doctor`: the input of `record_checks` and `cluster_checks`. Nothing is written.

Objects that the account may not read are skipped and reported; only nodes and pods are required.
"""

import asyncio
import base64
import json
import pathlib
import time
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import msgspec

from gpu_sharing.adapters import access_reviews, certificates, decoding, kubernetes, objects
from gpu_sharing.core import errors, requests
from hamictl import api_server, cluster_checks, failures, reader, record_checks, snapshot

_TRIES, _PAUSE_SECONDS = 5, 0.5
_PINGS = 3
_PAGE_SIZE = 1000
_STATIC = "kubernetes.io/config.mirror"
"""The annotation of the object that stands for a static pod, whose controller is its node."""

T = TypeVar("T")


class _Object(msgspec.Struct):
    webhooks: list[dict[str, Any]] | None = None
    spec: dict[str, Any] | None = None


def read(
    kubeconfigs: Sequence[pathlib.Path], context: str, where: reader.Address
) -> tuple[record_checks.Observation, cluster_checks.Environment]:
    """Read everything once.

    Raises:
        CommandFailed: The API server cannot be reached, or the account may not list nodes and pods.
    """

    async def around(client: kubernetes.Client) -> cluster_checks.Environment:
        return await _around(client, where)

    seen = api_server.call(kubeconfigs, context, around, rights="create selfsubjectaccessreviews")

    names: requests.ResourceNames | None = None

    def cluster() -> snapshot.State:
        with_quotas = cluster_checks.QUOTAS not in seen.missing
        return snapshot.read_cluster(kubeconfigs, context, where.system_namespace, names=names, with_quotas=with_quotas)

    reported, remediation, problem = None, None, ""
    try:
        with reader.reaching(where) as api:
            names = api.resource_names()
            remediation = api.remediation()
            before, surroundings, after = _agreeing(api, cluster)
            reported = after if before == after else None
            problem = "" if reported is not None else "the cluster changes too fast to compare"
    except failures.CommandFailed as cause:
        problem = f"{cause}. {cause.hint}".strip()
        surroundings = cluster()
    return record_checks.Observation(surroundings, reported, problem, seen.now, remediation), seen


def _agreeing(api: reader.Reader, cluster: Callable[[], snapshot.State]) -> tuple[Any, snapshot.State, Any]:
    """Return the extender's pods before and after a read of the cluster; repeat until both are equal."""
    for _ in range(_TRIES):
        before = api.pods()
        surroundings = cluster()
        after = api.pods()
        if before == after:
            break
        time.sleep(_PAUSE_SECONDS)
    return before, surroundings, after


async def _around(client: kubernetes.Client, where: reader.Address) -> cluster_checks.Environment:
    ping = min([await client.ping() for _ in range(_PINGS)], key=lambda one: one.seconds)
    rights = cluster_checks.RIGHTS + (() if where.url else cluster_checks.forwarding(where.system_namespace))
    allowed = await asyncio.gather(*(_may(client, right) for right in rights))
    missing = {right for right, may in zip(rights, allowed, strict=True) if not may}
    hooks = await _list(client, cluster_checks.WEBHOOKS, _Object, missing)
    policies = await _list(client, cluster_checks.POLICIES, _Object, missing)
    leases = await _list(client, cluster_checks.LEASES, objects.Lease, missing)
    daemon_sets = await _list(client, cluster_checks.DAEMON_SETS, cluster_checks.DaemonSet, missing)
    classes = await _list(client, cluster_checks.DEVICE_CLASSES, objects.DeviceClass, missing)
    plugin_pods = [] if cluster_checks.PODS in missing else await _plugin_pods(client)
    return cluster_checks.Environment(
        missing=missing,
        ping=ping,
        webhooks=None if hooks is None else [one for hook in hooks for one in _webhooks(hook)],
        guarded=None if policies is None else any("hami.io/vgpu" in json.dumps(one.spec or {}) for one in policies),
        leases=leases,
        daemon_sets=daemon_sets,
        plugin_pods=plugin_pods,
        device_classes=classes,
        components=reader.components(where),
        now=time.time(),
    )


async def _may(client: kubernetes.Client, right: cluster_checks.Right) -> bool:
    """Return whether the account has a right; True if the API server does not answer, as the read itself then fails."""
    wanted = {
        "verb": right.verb, "group": right.group, "resource": right.resource, "subresource": right.subresource,
        "namespace": right.namespace,
    }  # fmt: skip
    try:
        return await access_reviews.may_we(
            client, {"resourceAttributes": {key: value for key, value in wanted.items() if value}}
        )
    except errors.KubernetesError:
        return True


async def _list(
    client: kubernetes.Client, right: cluster_checks.Right, kind: type[T], missing: set[cluster_checks.Right]
) -> Sequence[T] | None:
    """Return all objects of a kind; None, with the right added to `missing`, where the account may not list them."""
    if right in missing:
        return None
    try:
        return await snapshot.list_all(client, f"/apis/{right.group}/v1/{right.resource}", kind)
    except errors.Forbidden:
        missing.add(right)
        return None
    except errors.NotFound:
        return []  # The server does not have this kind.


async def _plugin_pods(client: kubernetes.Client) -> list[cluster_checks.PodTemplate]:
    """Return the pods outside DaemonSets that mount a folder of device plugins, page by page, as there may be many."""
    kept = []
    async for page in client.pages("/api/v1/pods", _PAGE_SIZE):
        for raw in page.items or ():
            if b"/device-plugins" in bytes(raw):
                pod = decoding.json_as(cluster_checks.PodTemplate, raw)
                if not pod.metadata.controller or _STATIC in (pod.metadata.annotations or {}):
                    kept.append(pod)
    return kept


def _webhooks(configuration: _Object) -> list[cluster_checks.Webhook]:
    """Return the webhooks of a configuration that call `/webhook`."""
    webhooks = []
    for hook in configuration.webhooks or ():
        config = hook.get("clientConfig") or {}
        service = config.get("service") or {}
        called = str(service.get("path") or config.get("url") or "")
        if called.rstrip("/").endswith("/webhook"):
            callee = f"{service.get('namespace', 'default')}/{service['name']}" if service else called
            ends_at = _ends_at(config.get("caBundle") or "")
            webhooks.append(cluster_checks.Webhook(str(hook.get("name", "")), callee, ends_at))
    return webhooks


def _ends_at(bundle: str) -> float:
    """Return when a bundle's first certificate ends; infinity if unreadable, because cert-manager may add it later."""
    try:
        text = base64.b64decode(bundle, validate=True).decode()
    except ValueError:
        return float("inf")
    end = certificates.ends_at(text)
    return float("inf") if end is None else end
