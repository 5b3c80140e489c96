"""The three kinds of patch that Kubernetes clients send. Pure; the original is never changed.

Source: RFC 7386 (merge), RFC 6902 (JSON patch), and Kubernetes' strategic merge for the lists that clients patch.
"""

import copy
from typing import Any

from lab import store

MERGE_KEYS = {
    "conditions": "type", "containers": "name", "initContainers": "name", "containerStatuses": "name",
    "taints": "key", "env": "name", "volumes": "name", "ownerReferences": "uid", "addresses": "type",
}  # fmt: skip


def merge(target: Any, patch: Any) -> Any:
    """RFC 7386: objects merge, null removes, everything else replaces."""
    if not isinstance(patch, dict):
        return patch
    result = dict(target) if isinstance(target, dict) else {}
    for key, value in patch.items():
        if value is None:
            result.pop(key, None)
        else:
            result[key] = merge(result.get(key), value)
    return result


def strategic(target: Any, patch: Any) -> Any:
    """Apply a strategic merge: like merge, but lists whose items have a key merge item by item."""
    if not isinstance(patch, dict):
        return patch
    result = dict(target) if isinstance(target, dict) else {}
    for key, value in patch.items():
        if key.startswith("$"):
            continue
        if value is None:
            result.pop(key, None)
        elif key in MERGE_KEYS and isinstance(value, list):
            result[key] = _merge_list(result.get(key) or [], value, MERGE_KEYS[key])
        else:
            result[key] = strategic(result.get(key), value)
    return result


def _merge_list(target: list[Any], patch: list[Any], key: str) -> list[Any]:
    """Return items in the order of the patch; unnamed ones keep their place before the next one, or last.

    Source: k8s.io/apimachinery pkg/util/strategicpatch, normalizeElementOrder.
    """
    items = {item.get(key): item for item in target}
    place = {name: index for index, name in enumerate(items)}
    named = {change.get(key) for change in patch}
    rest = [item for name, item in items.items() if name not in named]
    merged: list[Any] = []
    for change in patch:
        if change.get("$patch") == "delete":
            continue
        name = change.get(key)
        while rest and place[rest[0].get(key)] < place.get(name, 0):
            merged.append(rest.pop(0))
        merged.append(strategic(items.get(name), change))
    return merged + rest


def json_patch(target: Any, operations: Any) -> Any:
    """RFC 6902: add, remove, replace and test, in order, all or nothing.

    Raises:
        ApiError: 422 if a test fails or a path does not exist.
    """
    document = copy.deepcopy(target)
    if not isinstance(operations, list):
        raise store.ApiError(400, "BadRequest", "a JSON patch is a list of operations")
    for operation in operations:
        try:
            _apply(document, operation)
        except (KeyError, IndexError, ValueError, TypeError, AttributeError) as cause:
            raise store.ApiError(422, "Invalid", f"the JSON patch does not apply: {operation}") from cause
    return document


def _apply(document: Any, operation: dict[str, Any]) -> None:
    steps = [step.replace("~1", "/").replace("~0", "~") for step in operation["path"].split("/")[1:]]
    parent = document
    for step in steps[:-1]:
        parent = parent[int(step)] if isinstance(parent, list) else parent[step]
    last = steps[-1]
    match operation["op"]:
        case "add" if isinstance(parent, list):
            parent.insert(len(parent) if last == "-" else int(last), operation["value"])
        case "add":
            parent[last] = operation["value"]
        case "replace" if isinstance(parent, list):
            parent[int(last)] = operation["value"]
        case "replace":
            if last not in parent:
                raise KeyError(last)
            parent[last] = operation["value"]
        case "remove":
            del parent[int(last) if isinstance(parent, list) else last]
        case "test":
            if (parent[int(last)] if isinstance(parent, list) else parent[last]) != operation["value"]:
                raise ValueError(last)
        case unknown:
            raise ValueError(unknown)
