"""Servers with OpenAI's API: any of them, vLLM, and TensorRT-LLM's own server.

Sources: OpenAI's API reference (completions, chat completions, models); vLLM's metrics page and
`entrypoints/openai/completion/protocol.py`; TensorRT-LLM `tensorrt_llm/serve/openai_protocol.py`, which refuses fields
that it does not know.
"""

from __future__ import annotations

from typing import Any

from gpu_sharing.workload.canaries import canary
from gpu_sharing.workload.canaries.settings import CanarySettings


class OpenAiCompletions(canary.Canary):
    """`/v1/completions` of any compatible server."""

    engine = "openai"
    description = "any server with OpenAI's completions"
    models_path = "/v1/models"

    def path(self, model: str) -> str:
        """Return the path of the API."""
        return "/v1/completions"

    def payload(self, settings: CanarySettings, model: str, description: Any = None) -> dict[str, Any]:
        """Return the request, with token ids as the prompt where there are some."""
        prompt = list(settings.token_ids) or settings.text
        named = {"model": model} if model else {}
        return {**named, "prompt": prompt, "max_tokens": canary.MOST_TOKENS, "temperature": 0, "stream": False}

    def wrong(self, answer: Any) -> str:
        """Return that it has no choices, if so."""
        return canary.has_list(answer, "choices")


class OpenAiChat(canary.Canary):
    """`/v1/chat/completions` of any compatible server; the chat template adds BOS itself."""

    engine = "openai-chat"
    description = "any server with OpenAI's chat completions"
    models_path = "/v1/models"

    def path(self, model: str) -> str:
        """Return the path of the API."""
        return "/v1/chat/completions"

    def payload(self, settings: CanarySettings, model: str, description: Any = None) -> dict[str, Any]:
        """Return the request, with token ids as the prompt where there are some."""
        messages = [{"role": "user", "content": self.content(settings)}]
        named = {"model": model} if model else {}
        return {**named, "messages": messages, "max_tokens": canary.MOST_TOKENS, "temperature": 0, "stream": False}

    def content(self, settings: CanarySettings) -> Any:
        """Return what the user says."""
        return settings.text

    def wrong(self, answer: Any) -> str:
        """Return that it has no choices, if so."""
        return canary.has_list(answer, "choices")


class Vllm(OpenAiCompletions):
    """vLLM: completions, with its own counters of tokens and requests."""

    engine = "vllm"
    description = "vLLM's server"
    metrics_path = "/metrics"
    traffic_series = ("vllm:generation_tokens_total", "vllm:request_success_total")


class TensorRtLlm(OpenAiCompletions):
    """`trtllm-serve`; TensorRT-LLM behind Triton is `triton`."""

    engine = "trtllm"
    description = "TensorRT-LLM's own server, trtllm-serve"
    metrics_path = "/prometheus/metrics"
    traffic_series = ("trtllm_request_success_total",)
