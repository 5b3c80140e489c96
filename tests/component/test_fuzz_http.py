"""schemathesis over the HTTP surface: no answer is a 500 of ours, and each is what the description says."""

import contextlib
import pathlib
from collections.abc import Sequence
from typing import Any

import hypothesis
import pytest
import schemathesis
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    response_schema_conformance,
    status_code_conformance,
)

from fault_injector import api_types as fault_types
from gpu_sharing.adapters import read_api_types
from gpu_sharing.core import faults
from lab import api_server, extender_process, fault_backends, fault_service, gpus, kinds
from tests.component import calls
from tests.support import searching

pytestmark = pytest.mark.slow


VERBS = {
    "openapi": "3.1.0",
    "info": {"title": "extender/v1", "version": "1"},
    "paths": {
        f"/{verb}": {
            "post": {
                "requestBody": {"required": True, "content": {"application/json": {"schema": schema}}},
                "responses": {"200": {"description": "an answer"}},
            }
        }
        for verb, schema in (
            (
                "filter",
                {
                    "type": "object",
                    "required": ["Pod", "NodeNames"],
                    "properties": {
                        "Pod": {
                            "type": "object",
                            "required": ["metadata", "spec"],
                            "properties": {
                                "metadata": {
                                    "type": "object",
                                    "required": ["name", "uid"],
                                    "properties": {
                                        "name": {"type": "string", "minLength": 1},
                                        "uid": {"type": "string", "minLength": 1},
                                        "annotations": {"type": "object", "additionalProperties": {"type": "string"}},
                                    },
                                },
                                "spec": {
                                    "type": "object",
                                    "required": ["containers"],
                                    "properties": {
                                        "containers": {
                                            "type": "array",
                                            "items": {
                                                "type": "object",
                                                "properties": {
                                                    "resources": {
                                                        "type": "object",
                                                        "properties": {
                                                            "limits": {
                                                                "type": "object",
                                                                "required": ["nvidia.com/gpu"],
                                                                "properties": {
                                                                    "nvidia.com/gpu": {"type": ["string", "integer"]},
                                                                    "nvidia.com/gpumem": {
                                                                        "type": ["string", "integer"]
                                                                    },
                                                                },
                                                            }
                                                        },
                                                    }
                                                },
                                            },
                                        }
                                    },
                                },
                            },
                        },
                        "NodeNames": {"type": ["array", "null"], "items": {"enum": ["a", "b", "ghost"]}},
                    },
                },
            ),
            (
                "bind",
                {"type": "object", "properties": {name: {"type": "string"} for name in ("PodName", "Node", "PodUID")}},
            ),
        )
    },
}


def strategy(operation: Any) -> Any:
    return operation.ok().as_strategy()


@pytest.mark.hypothesis
def test_the_read_api_is_what_its_description_says(
    extender: extender_process.ExtenderProcess, server: api_server.Running
) -> None:
    """The WebUI and hamictl are written against it."""
    calls.bind(extender, calls.create(server, "p"), "a")
    calls.create(server, "q", {"nvidia.com/gpu": "1", "nvidia.com/gpumem": "99000"})
    schema = schemathesis.openapi.from_dict(read_api_types.openapi())
    checks = [status_code_conformance, content_type_conformance, response_schema_conformance]
    seen = 0

    for operation in schema.get_all_operations():

        @hypothesis.settings(max_examples=searching.examples(30), suppress_health_check=list(hypothesis.HealthCheck))
        @hypothesis.given(case=strategy(operation))
        def check(case: Any) -> None:
            case.call_and_validate(base_url=f"http://{extender.api}", checks=checks)

        check()
        seen += 1
    assert seen == 7
    pods = ("explain/default/p", "explain/default/q", "events/default/p")
    for path in ("cluster", "nodes", "pods", "remediation", "profile/1", *pods):
        assert calls.read(extender, path)


@pytest.mark.hypothesis
def test_the_verbs_answer_whatever_they_are_sent(
    extender: extender_process.ExtenderProcess, server: api_server.Running
) -> None:
    """200 with an answer or a coded `Error`; never a defect of ours."""
    for operation in schemathesis.openapi.from_dict(VERBS).get_all_operations():

        @hypothesis.settings(max_examples=searching.examples(100), suppress_health_check=list(hypothesis.HealthCheck))
        @hypothesis.given(case=strategy(operation))
        def check(case: Any) -> None:
            answer = case.call(base_url=f"http://{extender.verbs}")
            assert answer.status_code == 200
            error = answer.json().get("Error", "")
            assert not error or error.startswith("SCHED_")
            assert "SCHED_INTERNAL" not in error

        check()
    assert calls.read(extender, "cluster")["pods_bound"] == 0


@pytest.mark.hypothesis
def test_the_fault_injection_api_is_what_its_description_says(tmp_path: pathlib.Path) -> None:
    """Scenarios and `hamictl fault` are written against it; nonsense is refused, and ends no process."""
    node = gpus.gpu_node("a", gpus.A100, 1, labels={faults.CONSENT_LABEL: faults.CONSENT})
    checks = [status_code_conformance, content_type_conformance, response_schema_conformance]
    with contextlib.ExitStack() as stack:
        running = stack.enter_context(api_server.running())
        running.call(lambda: running.app.store.create(kinds.NODES, "", node))
        kubeconfig = running.write_kubeconfig(tmp_path / "kubeconfig")
        service = stack.enter_context(
            fault_service.running(kubeconfig, tmp_path / "faults.json", [fault_backends.LabGpus({"a": _Silent()})])
        )
        schema = schemathesis.openapi.from_dict(fault_types.openapi())
        for operation in schema.get_all_operations():

            @hypothesis.settings(
                max_examples=searching.examples(20), suppress_health_check=list(hypothesis.HealthCheck)
            )
            @hypothesis.given(case=strategy(operation))
            def check(case: Any) -> None:
                case.call_and_validate(base_url=service.url, checks=checks)
                if isinstance(case.body, dict) and "node" in case.body:
                    case.body |= {"node": "a", "gpu": 0}  # A target that exists.
                    case.body.pop("backend", None)
                    case.call_and_validate(base_url=service.url, checks=checks)

            check()
        text = (tmp_path / "faults.json").read_text()
    assert faults.decode(text).faults
    assert not faults.decode(text).unreadable


class _Silent:
    """A node's GPUs that take every fault."""

    def uuids(self) -> Sequence[str]:
        return ["GPU-1", "GPU-2"]

    async def set(self, uuid: str, in_effect: Sequence[faults.Fault], new: faults.Fault | None) -> None:
        """Change nothing."""

    def reboot(self) -> None:
        """Change nothing."""
