"""Read what a backup contains from a cluster, and what a restore compares with."""

import base64
import json
import zlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import msgspec

from gpu_sharing.adapters import kubernetes, objects
from gpu_sharing.core import errors, requests
from hamictl import installation, snapshot
from hamictl.operations import backup_file, installed, rollouts

_INSTANCE, _CHART = "app.kubernetes.io/instance", "helm.sh/chart"
_SYSTEM = "system-"
"""The beginning of the names of Kubernetes' own priority classes."""
_ROOT_CA = "kube-root-ca.crt"
_MOST_RELEASE_BYTES = 64 * 1024 * 1024
RIGHTS = (
    "get namespaces, list nodes, resourcequotas and priorityclasses, and list deployments, daemonsets and get and list "
    "configmaps in the extender's namespace"
)


class _ConfigMap(msgspec.Struct, rename="camel"):
    metadata: objects.Metadata = msgspec.field(default_factory=objects.Metadata)
    data: dict[str, str] | None = None
    binary_data: dict[str, str] | None = None


class _QuotaSpec(msgspec.Struct, rename="camel"):
    hard: dict[str, Any] | None = None
    scopes: list[str] | None = None
    scope_selector: dict[str, Any] | None = None


class _Quota(msgspec.Struct):
    metadata: objects.Metadata = msgspec.field(default_factory=objects.Metadata)
    spec: _QuotaSpec = msgspec.field(default_factory=_QuotaSpec)


class _PriorityClass(msgspec.Struct, rename="camel"):
    metadata: objects.Metadata = msgspec.field(default_factory=objects.Metadata)
    value: int = 0
    global_default: bool | None = None
    preemption_policy: str | None = None
    description: str | None = None


class _Secret(msgspec.Struct):
    metadata: objects.Metadata = msgspec.field(default_factory=objects.Metadata)
    type: str = ""
    data: dict[str, str] | None = None


class _Namespace(msgspec.Struct):
    metadata: objects.Metadata = msgspec.field(default_factory=objects.Metadata)


@dataclass(frozen=True, slots=True)
class ClusterState:
    """The present state of a cluster."""

    uid: str
    content: backup_file.Content
    versions: dict[str, str] = field(default_factory=dict)
    """`resourceVersion` by `node/a`, `configmap/x`, `resourcequota/ns/x`, `secret/x`: of what exists."""
    left_out: list[str] = field(default_factory=list)


async def read(
    client: kubernetes.Client, namespace: str, *, with_secrets: bool, every_node: bool = False
) -> ClusterState:
    """Return the state of the installation in a namespace. Errors as `installed.parts`.

    Args:
        client: Of the API server.
        namespace: Of the installation.
        with_secrets: Whether to read the Secrets of the installation and Helm's release.
        every_node: Whether nodes without settings are contained too.
    """
    parts = await installed.parts(client, namespace)
    names = await installation.resource_names(client, namespace)
    cluster = await client.get("/api/v1/namespaces/kube-system", _Namespace)
    state = ClusterState(cluster.metadata.uid, backup_file.Content())
    await _read_config_maps(client, namespace, parts, state)
    await _read_nodes(client, parts, state, every_node=every_node)
    await _read_quotas(client, names, state)
    await _read_priority_classes(client, state)
    if with_secrets:
        await _read_secrets(client, namespace, parts, state)
    else:
        state.left_out.append("Secrets: --with-secrets adds them")
    return state


async def _read_config_maps(
    client: kubernetes.Client, namespace: str, parts: Sequence[installed.Part], state: ClusterState
) -> None:
    """Read those with the chart's label, and those that the parts mount, which an administrator may have made."""
    path = f"/api/v1/namespaces/{namespace}/configmaps"
    found = {
        one.metadata.name: one for one in await snapshot.list_all(client, f"{path}?{installed.SELECTED}", _ConfigMap)
    }
    for name in _mounted(parts) - found.keys():
        try:
            found[name] = await client.get(f"{path}/{name}", _ConfigMap)
        except errors.NotFound:
            state.left_out.append(f"configmap/{name}: it is mounted and does not exist")
    for name, one in sorted(found.items()):
        if one.binary_data:
            state.left_out.append(f"configmap/{name}: its binaryData")
        chart = (one.metadata.labels or {}).get(_CHART, "")
        state.content.config_maps.append(backup_file.ConfigMap(name, one.data or {}, chart))
        state.versions[f"configmap/{name}"] = one.metadata.resource_version


def _mounted(parts: Sequence[installed.Part]) -> set[str]:
    volumes = [volume for part in parts for volume in part.workload.spec.template.spec.get("volumes") or ()]
    names = {str((volume.get("configMap") or {}).get("name", "")) for volume in volumes}
    return names - {"", _ROOT_CA}


async def _read_nodes(
    client: kubernetes.Client, parts: Sequence[installed.Part], state: ClusterState, *, every_node: bool
) -> None:
    keys = selecting_labels(parts)
    kept = (*backup_file.SET_BY_ADMINISTRATORS, *backup_file.LEARNED)
    for node in await snapshot.list_all(client, "/api/v1/nodes", objects.Node):
        annotations = {key: text for key, text in (node.metadata.annotations or {}).items() if key in kept and text}
        labels = {key: text for key, text in (node.metadata.labels or {}).items() if key in keys}
        if annotations or labels or every_node:
            state.content.nodes.append(backup_file.NodeState(node.metadata.name, annotations, labels))
        state.versions[f"node/{node.metadata.name}"] = node.metadata.resource_version


def selecting_labels(parts: Sequence[installed.Part]) -> set[str]:
    """Return the labels of nodes by which our DaemonSets select them, without Kubernetes' own."""
    selectors = [
        part.workload.spec.template.spec.get("nodeSelector") or {}
        for part in parts
        if part.kind == rollouts.DAEMON_SETS
    ]
    return {key for selector in selectors for key in selector if not key.startswith("kubernetes.io/")}


async def _read_quotas(client: kubernetes.Client, names: requests.ResourceNames, state: ClusterState) -> None:
    ours = {f"{prefix}{name}" for name in names.managed() for prefix in ("", "limits.", "requests.")}
    for quota in await snapshot.list_all(client, "/api/v1/resourcequotas", _Quota):
        hard = {key: str(amount) for key, amount in (quota.spec.hard or {}).items()}
        if ours.isdisjoint(hard):
            continue
        metadata, spec = quota.metadata, quota.spec
        kept = backup_file.Quota(metadata.namespace, metadata.name, hard, spec.scopes or [], spec.scope_selector or {})
        state.content.quotas.append(kept)
        state.versions[f"resourcequota/{metadata.namespace}/{metadata.name}"] = metadata.resource_version


async def _read_priority_classes(client: kubernetes.Client, state: ClusterState) -> None:
    path = "/apis/scheduling.k8s.io/v1/priorityclasses"
    for one in await snapshot.list_all(client, path, _PriorityClass):
        if not one.metadata.name.startswith(_SYSTEM):
            kept = backup_file.PriorityClass(
                one.metadata.name, one.value, bool(one.global_default), one.preemption_policy or "",
                one.description or "",
            )  # fmt: skip
            state.content.priority_classes.append(kept)


async def _read_secrets(
    client: kubernetes.Client, namespace: str, parts: Sequence[installed.Part], state: ClusterState
) -> None:
    path = f"/api/v1/namespaces/{namespace}/secrets"
    for secret in await snapshot.list_all(client, f"{path}?{installed.SELECTED}", _Secret):
        state.content.secrets.append(backup_file.Secret(secret.metadata.name, secret.type, secret.data or {}))
        state.versions[f"secret/{secret.metadata.name}"] = secret.metadata.resource_version
    release = (parts[0].workload.metadata.labels or {}).get(_INSTANCE, "")
    selector = f"labelSelector=owner%3Dhelm%2Cstatus%3Ddeployed%2Cname%3D{release}"
    releases = await snapshot.list_all(client, f"{path}?{selector}", _Secret) if release else []
    for secret in releases[-1:]:
        state.content.helm_values = _values_of(secret)


def _values_of(secret: _Secret) -> dict[str, Any] | None:
    """Return the values of a Helm release; None where its record is not readable.

    Source: Helm's storage driver for Secrets: the release as JSON, by gzip and base64, in a Secret's base64.
    """
    try:
        packed = base64.b64decode(base64.b64decode((secret.data or {}).get("release", "")))
        unpacker = zlib.decompressobj(wbits=zlib.MAX_WBITS | 16)
        values = json.loads(unpacker.decompress(packed, _MOST_RELEASE_BYTES)).get("config")
    except (ValueError, zlib.error, AttributeError, RecursionError):
        return None
    return values if isinstance(values, dict) else None
