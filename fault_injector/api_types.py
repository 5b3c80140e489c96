"""The answers of the fault injection API, and its description as OpenAPI. `hamictl fault` decodes them as these."""

from typing import Annotated, Any, Literal

import msgspec

from gpu_sharing.core import faults

Count = Annotated[int, msgspec.Meta(ge=0)]
Seconds = Annotated[float, msgspec.Meta(ge=0)]
_Moment = Annotated[float, msgspec.Meta(description="Unix seconds; 0 for what has not happened.")]
StateName = Literal["injecting", "injected", "failed", "recovering", "recovered"]


class Fault(msgspec.Struct, frozen=True):
    """A fault, from its injection on."""

    id: str
    kind: str
    group: str
    target: str
    state: StateName
    values: Annotated[dict[str, int | str], msgspec.Meta(description="The fields of the request, with defaults.")]
    backend: str
    created_at: _Moment
    injected_at: _Moment
    finished_at: _Moment
    duration_seconds: Annotated[int, msgspec.Meta(ge=0, description="0: until it is recovered by a call.")]
    cause: Annotated[str, msgspec.Meta(description="Why the injection, or the last recovery, failed.")]


class Faults(msgspec.Struct, frozen=True):
    """A list of faults, in the order of their injection."""

    faults: list[Fault]


class GpuMeasurement(msgspec.Struct, frozen=True):
    """The GPUs of the cluster, by their nodes' annotations."""

    gpus: Count
    healthy: Count
    unhealthy: Count
    cordoned: Count
    causes: Annotated[dict[str, str], msgspec.Meta(description="Why GPUs are unhealthy, by UUID.")]


class NetworkMeasurement(msgspec.Struct, frozen=True):
    """The connection to the API server, and the faults of the network in effect."""

    apiserver_answers: bool
    apiserver_seconds: Seconds
    faults_in_effect: list[str]


class SchedulingMeasurement(msgspec.Struct, frozen=True):
    """Pods that have, or request, GPUs."""

    bound: Annotated[int, msgspec.Meta(ge=0, description="With a record of their GPUs.")]
    running: Count
    pending: Count
    ended: Count


class NodeMeasurement(msgspec.Struct, frozen=True):
    """The nodes that have GPUs."""

    nodes: Count
    ready: Count
    cordoned: Count
    problems: Annotated[dict[str, list[str]], msgspec.Meta(description="Codes of problems, by node.")]


class Problem(msgspec.Struct, frozen=True):
    """Every answer that is not 200 or 201."""

    error_code: str
    message: str


def fault_of(fault: faults.Fault) -> Fault:
    """Return a fault as the API shows it."""
    return Fault(
        id=fault.id,
        kind=fault.kind.name,
        group=fault.kind.group.value,
        target=fault.target,
        state=fault.state.value,
        values=dict(fault.values),
        backend=fault.backend,
        created_at=fault.created_at,
        injected_at=fault.injected_at,
        finished_at=fault.finished_at,
        duration_seconds=fault.duration_seconds,
        cause=fault.cause,
    )


MEASUREMENTS: dict[str, type[msgspec.Struct]] = {
    "gpu": GpuMeasurement,
    "network": NetworkMeasurement,
    "scheduling": SchedulingMeasurement,
    "node-health": NodeMeasurement,
}
"""What `/api/v1/metrics/…` answers."""
_REFUSED = ("400", "401", "403", "404", "405", "409", "413", "422", "429", "501", "502", "503")


def openapi() -> dict[str, Any]:
    """Return the description of the fault injection API as OpenAPI 3.1."""
    kinds = [Fault, Faults, Problem, *MEASUREMENTS.values()]
    schemas, components = msgspec.json.schema_components(kinds, ref_template="#/components/schemas/{name}")
    by_kind = dict(zip(kinds, schemas, strict=True))
    fault, listed = by_kind[Fault], by_kind[Faults]
    paths: dict[str, Any] = {
        "/api/v1/faults": {"get": _operation("listFaults", "Every recorded fault.", listed, by_kind[Problem])},
        "/api/v1/faults/cleanup": {
            "post": _operation("cleanup", "Recover every fault in effect.", listed, by_kind[Problem])
        },
        "/api/v1/faults/{id}": {"get": _operation("showFault", "One fault.", fault, by_kind[Problem], "id")},
        "/api/v1/faults/{id}/recover": {
            "post": _operation("recoverFault", "Recover one fault.", fault, by_kind[Problem], "id")
        },
    }
    for group in faults.Group:
        members = [kind for kind in faults.KINDS.values() if kind.group is group]
        body = {"oneOf": [_request_schema(kind) for kind in members]}
        operation = _operation(f"inject-{group.value}", f"Inject a fault ({group.value}).", fault, by_kind[Problem])
        paths[f"/api/v1/faults/{group.value}/inject"] = {"post": _injecting(operation, body)}
    for number in faults.XID_SHORTCUTS:
        body = _request_schema(faults.KINDS["xid"], preset=("kind", "xid"))
        operation = _operation(f"inject-xid-{number}", f"Inject XID {number}.", fault, by_kind[Problem])
        paths[f"/api/v1/faults/gpu/xid-{number}"] = {"post": _injecting(operation, body)}
    for name, measured in MEASUREMENTS.items():
        summary = (measured.__doc__ or "").partition("\n")[0]
        paths[f"/api/v1/metrics/{name}"] = {
            "get": _operation(f"measure-{name}", summary, by_kind[measured], by_kind[Problem])
        }
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "GPU sharing fault injection API",
            "version": "1",
            "description": "Faults that are injected on purpose, and measurements for the checks of a scenario.",
        },
        "security": [{}, {"bearer": []}],
        "paths": paths,
        "components": {
            "schemas": components,
            "securitySchemes": {"bearer": {"type": "http", "scheme": "bearer"}},
        },
    }


def _operation(name: str, summary: str, answer: Any, problem: Any, parameter: str = "") -> dict[str, Any]:
    def response(schema: Any) -> dict[str, Any]:
        return {"description": "As JSON.", "content": {"application/json": {"schema": schema}}}

    path = {"name": parameter, "in": "path", "required": True, "schema": {"type": "string", "minLength": 1}}
    return {
        "operationId": name,
        "summary": summary,
        "parameters": [path] if parameter else [],
        "responses": {"200": response(answer), **{status: response(problem) for status in _REFUSED}},
    }


def _injecting(operation: dict[str, Any], body: dict[str, Any]) -> dict[str, Any]:
    responses = dict(operation["responses"])
    responses["201"] = responses.pop("200")
    content = {"application/json": {"schema": body}}
    return {**operation, "requestBody": {"required": True, "content": content}, "responses": responses}


def _request_schema(kind: faults.Kind, preset: tuple[str, ...] = ()) -> dict[str, Any]:
    """Return the schema of a request for a kind of fault, without the fields that the path presets."""
    properties: dict[str, Any] = {"kind": {"const": kind.name, "description": kind.text}}
    properties |= {parameter.name: _field_schema(parameter) for parameter in (*kind.fields, *faults.COMMON)}
    required = ["kind", *(parameter.name for parameter in kind.fields if parameter.default is None)]
    return {
        "type": "object",
        "additionalProperties": False,
        "properties": {name: schema for name, schema in properties.items() if name not in preset},
        "required": [name for name in required if name not in preset],
    }


def _field_schema(parameter: faults.Parameter) -> dict[str, Any]:
    text = parameter.text + (f", in {parameter.unit}" if parameter.unit else "")
    schema: dict[str, Any] = {"description": text}
    if parameter.words:
        schema |= {"type": "string", "enum": list(parameter.words)}
    elif parameter.pattern is not None:
        schema |= {"type": "string", "pattern": f"^({parameter.pattern.pattern})$"}
        if parameter.name == "gpu":
            schema = {"description": text, "anyOf": [schema, {"type": "integer", "minimum": 0, "maximum": 999}]}
    else:
        schema |= {"type": "integer", "minimum": parameter.lowest, "maximum": parameter.highest}
    return schema if parameter.default in (None, "") else {**schema, "default": parameter.default}
