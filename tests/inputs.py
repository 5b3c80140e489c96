"""Inputs that once went wrong, as users wrote them: the files of `tests/cases`."""

import json
import pathlib
from typing import Any

import yaml

FOLDER = pathlib.Path(__file__).parent / "cases"


def documents(name: str) -> list[dict[str, Any]]:
    """Every object of a file."""
    text = (FOLDER / name).read_text()
    return [json.loads(text)] if name.endswith(".json") else [one for one in yaml.safe_load_all(text) if one]


def pod(name: str, **status: Any) -> dict[str, Any]:
    """The one pod of a file as the API server stores it: with a namespace, a UID and a version."""
    (body,) = documents(name)
    metadata = body["metadata"]
    own = {"namespace": "default", "uid": f"uid-{metadata['name']}", "resourceVersion": "1"}
    return {**body, "metadata": {**own, **metadata}, "status": {"phase": "Pending", **status}}
