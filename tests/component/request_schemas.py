"""The request of each engine's API as a JSON schema, written from what the engine publishes.

Only fields that a canary could send are listed by name; where an engine ignores or passes on what it does not know,
`additionalProperties` says so.
"""

from typing import Any

_NUMBER, _WHOLE, _TEXT, _TRUTH = {"type": "number"}, {"type": "integer"}, {"type": "string"}, {"type": "boolean"}
_IDS = {"type": "array", "items": {"type": "integer", "minimum": 0}, "minItems": 1}
_PROMPT = {"anyOf": [_TEXT, {"type": "array", "items": _TEXT, "minItems": 1}, _IDS]}


def _object(required: list[str], extra: bool, **fields: Any) -> dict[str, Any]:
    return {"type": "object", "required": required, "properties": fields, "additionalProperties": extra}


OPENAI_COMPLETIONS = _object(
    ["model", "prompt"], False,
    model=_TEXT, prompt=_PROMPT, max_tokens={"type": "integer", "minimum": 0}, stream=_TRUTH, echo=_TRUTH, n=_WHOLE,
    temperature={"type": "number", "minimum": 0, "maximum": 2}, top_p=_NUMBER, stop={}, seed=_WHOLE, user=_TEXT,
)  # fmt: skip
"""Source: OpenAI's API reference, "Create completion": model and prompt are required."""

_IMAGE = {"type": "string", "pattern": "^(https?:|data:image/)"}
_PART = {
    "oneOf": [
        _object(["type", "text"], False, type={"const": "text"}, text=_TEXT),
        _object(
            ["type", "image_url"], False, type={"const": "image_url"},
            image_url=_object(["url"], False, url=_IMAGE, detail=_TEXT),
        ),
    ]
}  # fmt: skip
OPENAI_CHAT = _object(
    ["model", "messages"], False,
    model=_TEXT, max_tokens={"type": "integer", "minimum": 1}, stream=_TRUTH,
    temperature={"type": "number", "minimum": 0, "maximum": 2},
    messages={
        "type": "array", "minItems": 1,
        "items": _object(
            ["role", "content"], False, role={"enum": ["system", "user", "assistant", "developer"]},
            content={"anyOf": [_TEXT, {"type": "array", "items": _PART, "minItems": 1}]},
        ),
    },
)  # fmt: skip
"""Source: OpenAI's API reference, "Create chat completion", with its parts for text and images."""

VLLM_COMPLETIONS = OPENAI_COMPLETIONS | {"required": ["prompt"]}
"""Source: vLLM `vllm/entrypoints/openai/completion/protocol.py::CompletionRequest`: no model is the served one."""

TENSORRT_LLM_COMPLETIONS = OPENAI_COMPLETIONS
"""Source: TensorRT-LLM `tensorrt_llm/serve/openai_protocol.py::CompletionRequest`: as OpenAI's, no other."""

SGLANG_GENERATE = _object(
    ["sampling_params"], True,
    text={"anyOf": [_TEXT, {"type": "array", "items": _TEXT}]}, input_ids=_IDS, stream=_TRUTH, log_metrics=_TRUTH,
    sampling_params=_object(
        ["max_new_tokens"], False, max_new_tokens={"type": "integer", "minimum": 0},
        temperature={"type": "number", "minimum": 0},
    ),
    bootstrap_host=_TEXT, bootstrap_port=_WHOLE, bootstrap_room=_WHOLE,
) | {"oneOf": [{"required": ["text"]}, {"required": ["input_ids"]}]}  # fmt: skip
"""Source: SGLang `python/sglang/srt/managers/io_struct.py::GenerateReqInput`, and its page "Sampling Parameters"."""

SGLANG_DIVIDED = SGLANG_GENERATE | {"required": ["sampling_params", "bootstrap_host", "bootstrap_room"]}
"""Source: SGLang's own `/health_generate`, which sets both where the server is divided."""

SGLANG_IMAGES = _object(
    ["prompt"], True,
    prompt=_TEXT, model=_TEXT, n=_WHOLE, num_inference_steps={"type": "integer", "minimum": 1},
    size={"type": "string", "pattern": r"^\d+x\d+$"}, response_format={"enum": ["url", "b64_json"]},
)  # fmt: skip
"""Source: SGLang `multimodal_gen/runtime/entrypoints/openai/protocol.py::ImageGenerationsRequest`."""

_PARAMETER = {"type": ["string", "number", "boolean"]}
TRITON_GENERATE = {
    "type": "object", "required": ["text_input"],
    "properties": {"text_input": _TEXT, "parameters": {"type": "object", "additionalProperties": _PARAMETER}},
    # "Any additional properties in the request object are passed either as parameters or tensors".
    "additionalProperties": _PARAMETER,
}  # fmt: skip
"""Source: Triton `docs/protocol/extension_generate.md`, `$generate_request`."""

_INPUT = _object(
    ["name", "shape", "datatype", "data"], True,
    name=_TEXT, shape={"type": "array", "items": {"type": "integer", "minimum": 1}}, parameters={"type": "object"},
    datatype={"pattern": "^(BOOL|U?INT(8|16|32|64)|FP(16|32|64)|BYTES)$"},
    data={"type": "array", "items": {"type": ["number", "string", "boolean"]}},
)  # fmt: skip
KSERVE_INFER = _object(["inputs"], True, inputs={"type": "array", "items": _INPUT, "minItems": 1})
"""Source: open inference protocol `specification/protocol/open_inference_rest.yaml`, `inference_request`."""
