"""The page of the chart's values, generated from the defaults and the schema."""

import itertools
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


def from_hami_page(note: str) -> str:
    """Return the page of the values of HAMi's chart, and what this chart does with each."""
    entries = yaml.safe_load((CHART / "files" / "hami-values.yaml").read_text())
    rows = []
    for here, alike in itertools.groupby(entries, _here):
        names = ", ".join(f"`{entry['path']}`" for entry in alike)
        rows.append(f"| {names} | {here} |")
    return "\n".join(
        [
            "# Values of HAMi's chart", note, "",
            "What each value of HAMi's chart (v2.10) is here. A value without effect is refused, with this sentence:",
            "remove it from your file. For the whole migration see [migrate from HAMi](../howto/come-from-hami.md).",
            "", "| HAMi's value | here |", "| --- | --- |", *rows, "",
        ]
    )  # fmt: skip


def _here(entry: dict[str, str]) -> str:
    if "same" in entry:
        return "the same" + (f": {entry['same']}" if entry["same"] else "")
    if "use" in entry:
        return ", ".join(f"`{name}`" for name in entry["use"].split(", ")) + f". {entry['why']}".rstrip()
    return f"not offered. {entry['absent']}"


def _rows(path: str, values: Any, schema: Any) -> Iterator[tuple[str, str, str]]:
    for name, described in schema["properties"].items():
        if name not in values:  # A name of HAMi's that is refused with the reason.
            continue
        full, value = f"{path}{name}", values[name]
        if described.get("type") == "object" and described.get("properties") and isinstance(value, dict):
            yield full, "", described["description"]
            yield from _rows(f"{full}.", value, described)
        else:
            words = [one for one in described.get("enum", ()) if isinstance(one, str)]
            choices = f" One of {', '.join(words)}." if words and isinstance(value, str) else ""
            yield full, f"`{json.dumps(value)}`", (described["description"] + choices).replace("|", "\\|")
