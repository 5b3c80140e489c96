"""Asks a Prometheus one question: an instant query, as labels and values.

Source: Prometheus HTTP API v1, `/api/v1/query`.
"""

import asyncio
import urllib.error
import urllib.request
from urllib import parse

import msgspec

from gpu_sharing.core import errors

_MOST_BYTES = 32 * 1024 * 1024


class NoAnswer(errors.GpuSharingError):
    """Prometheus did not answer, or not with a vector."""


class _Sample(msgspec.Struct, gc=False):
    metric: dict[str, str]
    value: tuple[float, str]


class _Data(msgspec.Struct, gc=False, rename="camel"):
    result: list[_Sample]


class _Answer(msgspec.Struct, gc=False):
    status: str
    data: _Data


async def query(url: str, text: str, timeout_seconds: float) -> list[tuple[dict[str, str], float]]:
    """The labels and the value of every series of an instant vector.

    Args:
        url: Where Prometheus is, without `/api`.
        text: The query.
        timeout_seconds: For connecting and for each read.

    Raises:
        NoAnswer: There is none, or it is not one.
    """
    return await asyncio.to_thread(ask, url, text, timeout_seconds)


def ask(url: str, text: str, timeout_seconds: float) -> list[tuple[dict[str, str], float]]:
    """The same, for those who can wait. Errors as `query`."""
    address = f"{url.rstrip('/')}/api/v1/query?{parse.urlencode({'query': text})}"
    try:
        # The setting takes http and https only.
        with urllib.request.urlopen(address, timeout=timeout_seconds) as answer:  # noqa: S310
            body = answer.read(_MOST_BYTES)
        found = msgspec.json.decode(body, type=_Answer)
        return [(one.metric, float(one.value[1])) for one in found.data.result]
    except (OSError, ValueError, msgspec.MsgspecError) as cause:
        raise NoAnswer(str(cause)) from cause
