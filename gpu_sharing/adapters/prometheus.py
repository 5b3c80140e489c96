"""Query a Prometheus: an instant query, as labels and values, or one number over time.

Source: Prometheus HTTP API v1, `/api/v1/query` and `/api/v1/query_range`.
"""

import asyncio
import http.client
import urllib.error
import urllib.request
from collections.abc import Mapping
from typing import TypeVar
from urllib import parse

import msgspec

from gpu_sharing.adapters import decoding
from gpu_sharing.core import errors

_MOST_BYTES = 32 * 1024 * 1024
T = TypeVar("T")


class NoAnswer(errors.GpuSharingError):
    """Prometheus did not answer, or not with a vector."""


class _Sample(msgspec.Struct, gc=False):
    metric: dict[str, str]
    value: tuple[float, str]


class _Curve(msgspec.Struct, gc=False):
    values: list[tuple[float, str]]


class _Vector(msgspec.Struct, gc=False):
    result: list[_Sample]


class _Matrix(msgspec.Struct, gc=False):
    result: list[_Curve]


class _InstantAnswer(msgspec.Struct, gc=False):
    data: _Vector


class _RangeAnswer(msgspec.Struct, gc=False):
    data: _Matrix


async def query(url: str, text: str, timeout_seconds: float) -> list[tuple[dict[str, str], float]]:
    """Return the labels and the value of every series of an instant vector.

    Args:
        url: The address of Prometheus, without `/api`.
        text: The query.
        timeout_seconds: For connecting and for each read.

    Raises:
        NoAnswer: There is no answer, or it is not a vector.
    """
    return await asyncio.to_thread(ask, url, text, timeout_seconds)


def ask(url: str, text: str, timeout_seconds: float) -> list[tuple[dict[str, str], float]]:
    """Return the same, blocking the caller. Errors as `query`."""
    answer = _ask(f"{url.rstrip('/')}/api/v1/query", {"query": text}, timeout_seconds, _InstantAnswer)
    return [(one.metric, _number(one.value[1])) for one in answer.data.result]


def ask_range(
    url: str, text: str, start: float, end: float, step_seconds: float, timeout_seconds: float
) -> dict[float, float]:
    """Return one number over time, by Unix seconds; empty if there is none. Errors as `query`."""
    asked: dict[str, str | float] = {"query": text, "start": start, "end": end, "step": step_seconds}
    answer = _ask(f"{url.rstrip('/')}/api/v1/query_range", asked, timeout_seconds, _RangeAnswer)
    return {at: _number(value) for one in answer.data.result[:1] for at, value in one.values}


def _number(text: str) -> float:
    try:
        return float(text)
    except ValueError as cause:
        raise NoAnswer(f"{text[:20]!r} is no number") from cause


def _ask(address: str, asked: Mapping[str, str | float], timeout_seconds: float, kind: type[T]) -> T:
    try:
        # The setting accepts http and https only.
        with urllib.request.urlopen(f"{address}?{parse.urlencode(asked)}", timeout=timeout_seconds) as answer:  # noqa: S310
            return decoding.json_as(kind, answer.read(_MOST_BYTES))
    except (OSError, ValueError, http.client.HTTPException) as cause:
        raise NoAnswer(str(cause)) from cause
