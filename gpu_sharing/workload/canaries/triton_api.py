"""Triton: its generate extension (TensorRT-LLM and vLLM backends), and the open inference protocol for other models.

Sources: Triton `docs/protocol/extension_generate.md`, TensorRT-LLM's backend README (`max_tokens` beside `text_input`),
the open inference protocol `specification/protocol/inference_rest.md`, Triton's page on metrics.
"""

from __future__ import annotations

from typing import Any
from urllib import parse

from gpu_sharing.core import error_codes
from gpu_sharing.workload.canaries import canary
from gpu_sharing.workload.canaries.http_calls import CanaryRefused
from gpu_sharing.workload.canaries.settings import MODEL, CanarySettings

_ENSEMBLE = "ensemble"
"""How TensorRT-LLM's templates name the model that tokenizes, generates and detokenizes."""
_MOST_INPUTS = 64
_MOST_ELEMENTS = 1_000_000
_ZEROS = {"BOOL": False, "BYTES": "", "FP16": 0.0, "FP32": 0.0, "FP64": 0.0} | {
    f"{sign}INT{bits}": 0 for sign in ("", "U") for bits in (8, 16, 32, 64)
}


class Triton(canary.Canary):
    """The generate extension: text to text."""

    engine = "triton"
    description = "Triton with a language model (TensorRT-LLM or vLLM backend)"
    metrics_path = "/metrics"
    metrics_port = 8002
    traffic_series = ("nv_inference_request_success",)

    def path(self, model: str) -> str:
        """Return the model's path."""
        return f"/v2/models/{_segment(model or _ENSEMBLE)}/generate"

    def payload(self, settings: CanarySettings, model: str, description: Any = None) -> dict[str, Any]:
        """Return the request for one token, or of zeros."""
        return {"text_input": settings.text, "max_tokens": canary.MOST_TOKENS, "temperature": 0}

    def wrong(self, answer: Any) -> str:
        """Return what an answer of this API lacks."""
        known = isinstance(answer, dict) and "text_output" in answer and "error" not in answer
        return "" if known else "it has no text_output"


class OpenInference(canary.Canary):
    """Any model of the open inference protocol: zeros in the shape that its metadata names."""

    engine = "kserve"
    description = "Triton or KServe with any model, whose name HAMI_CANARY_MODEL has"
    metrics_path = "/metrics"
    metrics_port = 8002
    traffic_series = ("nv_inference_request_success",)

    def description_path(self, model: str) -> str:
        """Return the path of the model's metadata."""
        if not model:
            sentence = f"The protocol does not list models. Set {MODEL} to the name of the model."
            raise CanaryRefused(error_codes.CANARY_BAD_SETTING, sentence)
        return f"/v2/models/{_segment(model)}"

    def path(self, model: str) -> str:
        """Return the model's path."""
        return f"/v2/models/{_segment(model)}/infer"

    def payload(self, settings: CanarySettings, model: str, description: Any = None) -> dict[str, Any]:
        """Return the request for one token, or of zeros."""
        inputs = description.get("inputs") if isinstance(description, dict) else None
        if not isinstance(inputs, list) or not 0 < len(inputs) <= _MOST_INPUTS:
            raise _unusable(model, f"its metadata has no list of 1 to {_MOST_INPUTS} inputs")
        return {"inputs": [_zeros(model, one, settings) for one in inputs]}

    def wrong(self, answer: Any) -> str:
        """Return what an answer of this API lacks."""
        return canary.has_list(answer, "outputs")


def _zeros(model: str, tensor: Any, settings: CanarySettings) -> dict[str, Any]:
    """Return the smallest input that has the type and shape of a model's metadata; -1 is any size, so 1."""
    name, kind, shape = (tensor.get(key) if isinstance(tensor, dict) else None for key in ("name", "datatype", "shape"))
    sizes = [max(size, 1) for size in shape if type(size) is int] if isinstance(shape, list) else []
    is_named = isinstance(name, str) and isinstance(kind, str) and kind in _ZEROS
    if not is_named or not isinstance(shape, list) or len(sizes) != len(shape):
        raise _unusable(model, "an input has no name, a shape that is no list of numbers, or an unknown type")
    elements = 1
    for size in sizes:
        elements *= size
        if elements > _MOST_ELEMENTS:
            raise _unusable(model, f"an input has more than {_MOST_ELEMENTS} elements")
    value = settings.text if kind == "BYTES" else _ZEROS[str(kind)]
    return {"name": name, "datatype": kind, "shape": sizes, "data": [value] * elements}


def _segment(model: str) -> str:
    return parse.quote(model, safe="")


def _unusable(model: str, why: str) -> CanaryRefused:
    sentence = (
        f"The model {model[:200]!r} cannot be asked with zeros: {why}. Set HAMI_CANARY_PAYLOAD to a request of it."
    )
    return CanaryRefused(error_codes.CANARY_INVALID_ANSWER, sentence)
