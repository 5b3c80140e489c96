"""Decode JSON that another program wrote: whatever is wrong with it is one error, so that no reader forgets a kind."""

import json
from typing import Any


def value(text: str | bytes) -> Any:
    """Return the value of a JSON text.

    Raises:
        ValueError: It is not JSON, not UTF-8, or nested more deeply than Python's stack allows.
    """
    try:
        return json.loads(text)
    except RecursionError as cause:
        raise ValueError("it is nested too deeply") from cause
