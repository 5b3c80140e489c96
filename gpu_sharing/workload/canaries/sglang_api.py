"""SGLang: its native `/generate`, the two halves of a divided server, a prompt with an image, and image generation.

Sources: SGLang `managers/io_struct.py::GenerateReqInput`, the page "Sampling Parameters", `disaggregation/utils.py` for
the address that stands for no peer, `multimodal_gen/runtime/entrypoints/openai/protocol.py::ImageGenerationsRequest`.
"""

from __future__ import annotations

import base64
import struct
import zlib
from typing import Any

from gpu_sharing.workload.canaries import canary
from gpu_sharing.workload.canaries.openai_api import OpenAiChat
from gpu_sharing.workload.canaries.settings import CanarySettings

_SERIES = ("sglang:generation_tokens_total", "sglang:num_requests_total")
NO_PEER = "2.2.2.2"
"""The bootstrap host with which both halves compute, and transfer nothing to a peer."""
_EDGE_PIXELS = 32
"""The smallest edge that the image processors of common models accept."""


class SGLang(canary.Canary):
    """SGLang's `/generate`, for a server that is not divided."""

    engine = "sglang"
    description = "SGLang's server"
    metrics_path = "/metrics"
    traffic_series = _SERIES

    def path(self, model: str) -> str:
        """Return the path of the API."""
        return "/generate"

    def payload(self, settings: CanarySettings, model: str, description: Any = None) -> dict[str, Any]:
        """Return the request for one token or one small image."""
        prompt = {"input_ids": list(settings.token_ids)} if settings.token_ids else {"text": settings.text}
        sampling = {"max_new_tokens": canary.MOST_TOKENS, "temperature": 0}
        # Its metrics then count requests of users only, so that canaries are no traffic.
        return {**prompt, "sampling_params": sampling, "stream": False, "log_metrics": False}

    def wrong(self, answer: Any) -> str:
        """Return what an answer of this API lacks."""
        known = isinstance(answer, dict) and ("text" in answer or "output_ids" in answer) and "error" not in answer
        return "" if known else "it has neither text nor output_ids"


class _Divided(SGLang):
    """One half of a divided server: it must not wait for the other."""

    def payload(self, settings: CanarySettings, model: str, description: Any = None) -> dict[str, Any]:
        """Return the request for one token or one small image."""
        whole = super().payload(settings, model, description)
        return {**whole, "bootstrap_host": NO_PEER, "bootstrap_room": 0}


class SGLangDecode(_Divided):
    """The decode half of a divided SGLang."""

    engine = "sglang-decode"
    description = "SGLang with --disaggregation-mode decode"


class SGLangPrefill(_Divided):
    """The prefill half of a divided SGLang."""

    engine = "sglang-prefill"
    description = "SGLang with --disaggregation-mode prefill"


class SGLangVision(OpenAiChat):
    """A prompt with an image; the chat template places the image's token, which differs between models."""

    engine = "sglang-vision"
    description = "SGLang with a model that reads images"
    metrics_path = "/metrics"
    traffic_series = _SERIES

    def content(self, settings: CanarySettings) -> Any:
        """Return the text and a small grey image."""
        image = f"data:image/png;base64,{base64.b64encode(grey_png(_EDGE_PIXELS)).decode()}"
        return [{"type": "text", "text": settings.text}, {"type": "image_url", "image_url": {"url": image}}]


class SGLangImage(canary.Canary):
    """Image generation: one small image in one step."""

    engine = "sglang-image"
    description = "SGLang with a model that generates images"
    models_path = "/v1/models"

    def path(self, model: str) -> str:
        """Return the path of the API."""
        return "/v1/images/generations"

    def payload(self, settings: CanarySettings, model: str, description: Any = None) -> dict[str, Any]:
        """Return the request for one token or one small image."""
        named = {"model": model} if model else {}
        size = {"size": "256x256", "n": 1, "num_inference_steps": 1, "response_format": "url"}
        return {**named, "prompt": settings.text, **size}

    def wrong(self, answer: Any) -> str:
        """Return what an answer of this API lacks."""
        return canary.has_list(answer, "data")


def grey_png(edge_pixels: int) -> bytes:
    """Return a grey square as a PNG file."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", edge_pixels, edge_pixels, 8, 2, 0, 0, 0)
    rows = (b"\0" + b"\x80\x80\x80" * edge_pixels) * edge_pixels
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")
