"""The Prometheus operator's published schemas, reduced to what our objects use, and how the file is made.

`python -m tests.observability.operator_schemas FOLDER` writes it from the CRDs of the Go module
`github.com/prometheus-operator/prometheus-operator`, folder `example/prometheus-operator-crd`: names and types of all
fields at every level that our objects reach, without descriptions. Below other fields anything is accepted.
"""

import json
import pathlib
import sys
from typing import Any

import yaml

from observability import operator, rules

VERSION = "v0.85.0"
FILE = pathlib.Path(__file__).parent / "schemas" / f"prometheus-operator-{VERSION}.json"
_KINDS = {
    "ServiceMonitor": "servicemonitors", "Prometheus": "prometheuses", "Alertmanager": "alertmanagers",
    "PrometheusRule": "prometheusrules",
}  # fmt: skip
_KEPT = ("type", "enum", "pattern", "minimum", "maximum", "minItems", "minLength", "format", "required")


def ours() -> list[dict[str, Any]]:
    """Our objects of the operator's kinds."""
    return [one for one in (*operator.documents(), rules.prometheus_rule()) if one["kind"] in _KINDS]


def reduced(schema: dict[str, Any], used: list[Any]) -> dict[str, Any]:
    """Return a schema as JSON Schema, closed where it names its fields, for values like those that are used."""
    if schema.get("x-kubernetes-int-or-string"):
        return {"type": ["integer", "string"]}
    found = {name: schema[name] for name in _KEPT if name in schema}
    if "items" in schema:
        found["items"] = reduced(schema["items"], [item for value in used if isinstance(value, list) for item in value])
    inner = [value for value in used if isinstance(value, dict)]
    if isinstance(schema.get("additionalProperties"), dict):
        values = [value for one in inner for value in one.values()]
        found["additionalProperties"] = reduced(schema["additionalProperties"], values)
    if "properties" in schema and inner:
        found["additionalProperties"] = False
        found["properties"] = {
            name: reduced(field, [value[name] for value in inner if name in value])
            if any(name in value for value in inner)
            else {}
            for name, field in schema["properties"].items()
        }
    return found


def _from(folder: pathlib.Path) -> dict[str, Any]:
    found = {}
    for kind, plural in _KINDS.items():
        crd = yaml.safe_load((folder / f"monitoring.coreos.com_{plural}.yaml").read_text())
        (version,) = (one for one in crd["spec"]["versions"] if one["storage"])
        assert version["name"] == "v1"
        whole = version["schema"]["openAPIV3Schema"]["properties"]["spec"]
        found[kind] = reduced(whole, [one["spec"] for one in ours() if one["kind"] == kind])
    return found


if __name__ == "__main__":
    FILE.parent.mkdir(exist_ok=True)
    FILE.write_text(json.dumps(_from(pathlib.Path(sys.argv[1])), indent=1, sort_keys=True) + "\n")
