"""The interface of all canaries: what to send where, which answer is right, and which series count traffic."""

from __future__ import annotations

import abc
from typing import Any, ClassVar

from gpu_sharing.workload.canaries.settings import CanarySettings

MOST_TOKENS = 1
"""How many tokens a canary asks for."""


class Canary(abc.ABC):
    """The smallest request of one engine; it sends nothing itself.

    Attributes:
        engine: Its name for `--engine`.
        description: What it is for, in one sentence.
        models_path: Where the server lists its models; empty where a request needs no name.
        metrics_path: Where it exports metrics; empty where nothing is known of them.
        metrics_port: Of `metrics_path`, where it is not the server's own; 0 if it is.
        traffic_series: Counters of `metrics_path` that grow with each request or token.
    """

    engine: ClassVar[str]
    description: ClassVar[str]
    models_path: ClassVar[str] = ""
    metrics_path: ClassVar[str] = ""
    metrics_port: ClassVar[int] = 0
    traffic_series: ClassVar[tuple[str, ...]] = ()

    def first_model(self, listed: Any) -> str:
        """Return the first name in an answer of `models_path`; empty where it lists none."""
        data = listed.get("data") if isinstance(listed, dict) else None
        first = data[0] if isinstance(data, list) and data else None
        name = first.get("id") if isinstance(first, dict) else None
        return name if isinstance(name, str) else ""

    def description_path(self, model: str) -> str:
        """Return where the server describes the model, if the request depends on that; else empty."""
        return ""

    @abc.abstractmethod
    def path(self, model: str) -> str:
        """Return where to send the request."""

    @abc.abstractmethod
    def payload(self, settings: CanarySettings, model: str, description: Any = None) -> dict[str, Any]:
        """Return the request for one token.

        Args:
            settings: Prompt and token ids.
            model: Its name; empty where the server did not list one.
            description: The decoded answer of `description_path`.

        Raises:
            CanaryRefused: The model cannot be asked for one token.
        """

    @abc.abstractmethod
    def wrong(self, answer: Any) -> str:
        """Return what an answer lacks, empty for one that has a token."""


def has_list(answer: Any, key: str) -> str:
    """Return what an answer lacks that must have a list with at least one item."""
    items = answer.get(key) if isinstance(answer, dict) else None
    return "" if isinstance(items, list) and items else f"it has no {key}"
