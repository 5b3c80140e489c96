"""The page of the chart's values, generated from the defaults and the schema."""

import json
import pathlib
from collections.abc import Iterator
from typing import Any

import yaml

CHART = pathlib.Path(__file__).parents[1] / "charts" / "hami"


def page(note: str) -> str:
    """Return the page: each value with its default and its effect."""
    values = yaml.safe_load((CHART / "values.yaml").read_text())
    schema = json.loads((CHART / "values.schema.json").read_text())
    rows = [f"| `{name}` | {default} | {text} |" for name, default, text in _rows("", values, schema)]
    return "\n".join(
        [
            "# Values of the chart", note, "",
            "helm refuses unknown and invalid values. For their use see [install](../howto/install.md).",
            "", "| value | default | meaning |", "| --- | --- | --- |", *rows, "",
        ]
    )  # fmt: skip


def _rows(path: str, values: Any, schema: Any) -> Iterator[tuple[str, str, str]]:
    for name, described in schema["properties"].items():
        full, value = f"{path}{name}", values[name]
        if described.get("type") == "object" and described.get("properties") and isinstance(value, dict):
            yield full, "", described["description"]
            yield from _rows(f"{full}.", value, described)
        else:
            choices = f" One of {', '.join(map(str, described['enum']))}." if "enum" in described else ""
            yield full, f"`{json.dumps(value)}`", (described["description"] + choices).replace("|", "\\|")
