"""The tables that `kubectl get` prints, as the server makes them."""

import datetime
from collections.abc import Callable, Sequence
from typing import Any

from lab import kinds, store

Row = Callable[[store.Object], list[Any]]


def _age(value: store.Object) -> str:
    made = value["metadata"].get("creationTimestamp")
    if not made:
        return "<unknown>"
    seconds = int((datetime.datetime.now(datetime.UTC) - datetime.datetime.fromisoformat(made)).total_seconds())
    for unit, length in (("d", 86_400), ("h", 3_600), ("m", 60)):
        if seconds >= 2 * length:
            return f"{seconds // length}{unit}"
    return f"{seconds}s"


def _pod(value: store.Object) -> list[Any]:
    statuses = value.get("status", {}).get("containerStatuses") or []
    ready = sum(1 for status in statuses if status.get("ready"))
    phase = "Terminating" if value["metadata"].get("deletionTimestamp") else value.get("status", {}).get("phase", "")
    return [
        f"{ready}/{len(value['spec']['containers'])}",
        phase,
        0,
        _age(value),
        value["spec"].get("nodeName", "<none>"),
    ]


def _node(value: store.Object) -> list[Any]:
    conditions = value.get("status", {}).get("conditions") or []
    ready = any(condition["type"] == "Ready" and condition["status"] == "True" for condition in conditions)
    return ["Ready" if ready else "NotReady", "<none>", _age(value), "lab"]


def _event(value: store.Object) -> list[Any]:
    about = value.get("involvedObject") or value.get("regarding") or {}
    note = str(value.get("message") or value.get("note") or "")
    name = f"{about.get('kind', '').lower()}/{about.get('name', '')}"
    return [_age(value), value.get("type", ""), value.get("reason", ""), name, note.split("\n")[0]]


_COLUMNS: dict[str, tuple[tuple[str, ...], Row]] = {
    "pods": (("Ready", "Status", "Restarts", "Age", "Node"), _pod),
    "nodes": (("Status", "Roles", "Age", "Version"), _node),
    "events": (("Last Seen", "Type", "Reason", "Object", "Message"), _event),
}


def table(resource: kinds.Resource, items: Sequence[store.Object], version: str, token: str = "") -> dict[str, Any]:
    """Return a `meta.k8s.io/v1` Table."""
    names, row = _COLUMNS.get(resource.plural, (("Age",), lambda value: [_age(value)]))
    if resource.plural != "events":
        names = ("Name", *names)
    columns = [
        {"name": name, "type": "string", "format": "name" if name == "Name" else "", "description": "", "priority": 0}
        for name in names
    ]
    rows = [
        {
            "cells": [*([item["metadata"]["name"]] if resource.plural != "events" else []), *row(item)],
            "object": {
                "kind": "PartialObjectMetadata",
                "apiVersion": "meta.k8s.io/v1",
                "metadata": item["metadata"],
            },
        }
        for item in items
    ]
    return {
        "kind": "Table", "apiVersion": "meta.k8s.io/v1",
        "metadata": {"resourceVersion": version, **({"continue": token} if token else {})},
        "columnDefinitions": columns, "rows": rows,
    }  # fmt: skip
