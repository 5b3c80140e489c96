"""The discovery documents: groups, versions and kinds."""

import collections
import functools
from typing import Any

import orjson

from lab import kinds

_VERBS = ["create", "delete", "deletecollection", "get", "list", "patch", "update", "watch"]


def version(text: str) -> bytes:
    """Return the document at `/version`."""
    return orjson.dumps({"major": "1", "minor": "36", "gitVersion": text, "platform": "linux/amd64"})


@functools.cache
def document(path: str) -> bytes | None:
    """Return the discovery document at a path, or None."""
    parts = path.strip("/").split("/")
    match parts:
        case ["healthz" | "livez" | "readyz"]:
            return b"ok"
        case ["api"]:
            return orjson.dumps({"kind": "APIVersions", "versions": ["v1"]})
        case ["api", "v1"]:
            return _resources("", "v1")
        case ["apis"]:
            return orjson.dumps({"kind": "APIGroupList", "apiVersion": "v1", "groups": _groups()})
        case ["apis", group, version]:
            return _resources(group, version)
        case ["openapi", "v3"]:
            return orjson.dumps({"paths": {path: {"serverRelativeURL": f"/openapi/v3/{path}"} for path in _paths()}})
        case ["openapi", "v3", *rest] if "/".join(rest) in _paths():
            return _openapi("/".join(rest))
        case _:
            return None


def _paths() -> list[str]:
    return sorted({f"apis/{one.group}/{one.version}" if one.group else f"api/{one.version}" for one in kinds.RESOURCES})


def _openapi(path: str) -> bytes:
    """Return the minimal schema with which `kubectl apply` leaves the validation of fields to the server."""
    paths = {}
    for one in kinds.RESOURCES:
        if path != (f"apis/{one.group}/{one.version}" if one.group else f"api/{one.version}"):
            continue
        place = f"/{path}{'/namespaces/{namespace}' if one.namespaced else ''}/{one.plural}/{{name}}"
        kind = {"group": one.group, "version": one.version, "kind": one.kind}
        parameters = [{"name": "fieldValidation", "in": "query", "schema": {"type": "string"}}]
        paths[place] = {"patch": {"x-kubernetes-group-version-kind": kind, "parameters": parameters}}
    return orjson.dumps({"openapi": "3.0.0", "info": {"title": "lab", "version": "1"}, "paths": paths})


def _groups() -> list[dict[str, Any]]:
    versions: dict[str, set[str]] = collections.defaultdict(set)
    for resource in kinds.RESOURCES:
        if resource.group:
            versions[resource.group].add(resource.version)
    groups = []
    for name, known in versions.items():
        listed = [{"groupVersion": f"{name}/{version}", "version": version} for version in sorted(known)]
        groups.append({"name": name, "versions": listed, "preferredVersion": listed[0]})
    return groups


def _resources(group: str, version: str) -> bytes | None:
    listed: list[dict[str, Any]] = []
    for resource in kinds.RESOURCES:
        if (resource.group, resource.version) != (group, version):
            continue
        entry = {
            "name": resource.plural, "singularName": resource.kind.lower(), "namespaced": resource.namespaced,
            "kind": resource.kind, "verbs": _VERBS, "shortNames": list(resource.short),
        }  # fmt: skip
        listed.append(entry)
        if resource.has_status:
            status = {"name": f"{resource.plural}/status", "verbs": ["get", "patch", "update"], "singularName": ""}
            listed.append({**entry, **status})
        if resource is kinds.PODS:
            for name, kind in (("binding", "Binding"), ("eviction", "Eviction")):
                listed.append({
                    "name": f"pods/{name}", "singularName": "", "namespaced": True, "kind": kind, "verbs": ["create"],
                })  # fmt: skip
    if not listed:
        return None
    group_version = f"{group}/{version}" if group else version
    return orjson.dumps({
        "kind": "APIResourceList", "apiVersion": "v1", "groupVersion": group_version, "resources": listed,
    })  # fmt: skip
