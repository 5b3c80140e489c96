"""Every engine's canary, by the name that `--engine` has."""

from __future__ import annotations

from gpu_sharing.workload.canaries import openai_api, sglang_api, triton_api
from gpu_sharing.workload.canaries.canary import Canary

_CLASSES: tuple[type[Canary], ...] = (
    openai_api.OpenAiCompletions, openai_api.OpenAiChat, openai_api.Vllm, openai_api.TensorRtLlm,
    sglang_api.SGLang, sglang_api.SGLangDecode, sglang_api.SGLangPrefill, sglang_api.SGLangVision,
    sglang_api.SGLangImage,
    triton_api.Triton, triton_api.OpenInference,
)  # fmt: skip
ENGINES: dict[str, Canary] = {one.engine: one() for one in _CLASSES}
