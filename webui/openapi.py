"""The description of the JSON API, made of the page models themselves, so that both always agree."""

import dataclasses
from typing import Any

import msgspec

from webui import history, models

_LISTS: dict[str, tuple[str, Any]] = {
    "/api/v1/overview": ("How full the cluster is, and which pods are pending.", models.Overview),
    "/api/v1/nodes": ("Nodes, narrowed and ordered.", models.Page[models.Node]),
    "/api/v1/nodes/{name}": ("One node.", models.Node),
    "/api/v1/pods": ("Pods with GPUs, narrowed and ordered.", models.Page[models.Pod]),
    "/api/v1/pods/{namespace}/{name}": ("One pod.", models.Pod),
    "/api/v1/changes": ("What happened lately, newest first.", list[models.Change]),
    "/api/v1/history": ("Memory over time, of the cluster or of a node.", history.Series),
}


def document() -> dict[str, Any]:
    """The description, as OpenAPI 3.1."""
    schemas, components = msgspec.json.schema_components(
        [kind for _, kind in _LISTS.values()], ref_template="#/components/schemas/{name}"
    )
    problem = {
        "type": "object", "required": ["message", "status"], "additionalProperties": False,
        "properties": {"message": {"type": "string"}, "status": {"type": "integer"}},
    }  # fmt: skip
    paths = {
        path: {"get": _operation(path, summary, schema)}
        for (path, (summary, _)), schema in zip(_LISTS.items(), schemas, strict=True)
    }
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "GPU sharing page models",
            "version": "1",
            "description": "What the WebUI's pages show. Memory is MiB; what is null is not known.",
        },
        "paths": paths,
        "components": {"schemas": {**components, "Problem": problem}},
    }


def _operation(path: str, summary: str, schema: Any) -> dict[str, Any]:
    def answer(of: Any) -> dict[str, Any]:
        return {"description": "As JSON.", "content": {"application/json": {"schema": of}}}

    problem = answer({"$ref": "#/components/schemas/Problem"})
    return {
        "operationId": path.removeprefix("/api/v1/").replace("/", "_").replace("{", "").replace("}", ""),
        "summary": summary,
        "parameters": [*_in_path(path), *_in_query(path)],
        "responses": {"200": answer(schema), **dict.fromkeys(("400", "401", "403", "404", "503"), problem)},
    }


def _in_path(path: str) -> list[dict[str, Any]]:
    names = [part[1:-1] for part in path.split("/") if part.startswith("{")]
    return [
        {"name": name, "in": "path", "required": True, "schema": {"type": "string", "minLength": 1}} for name in names
    ]


def _in_query(path: str) -> list[dict[str, Any]]:
    if path.endswith("/history"):
        return [
            {"name": "node", "in": "query", "schema": {"type": "string"}},
            {"name": "pod", "in": "query", "description": "As NAMESPACE/NAME.", "schema": {"type": "string"}},
            {"name": "window", "in": "query", "schema": {"enum": list(history.WINDOWS)}},
        ]
    if path not in ("/api/v1/nodes", "/api/v1/pods"):
        return []
    kinds = {one.name: one.type for one in dataclasses.fields(models.Filters)}
    return [
        {
            "name": name,
            "in": "query",
            "schema": {"type": "integer", "minimum": 0} if kinds[field] is int else {"type": "string"},
        }
        for name, field in models.PARAMETERS.items()
    ]
