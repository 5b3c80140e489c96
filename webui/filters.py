"""Filters of a list, read from the URL."""

from typing import Any

import flask

from webui import models

_LONGEST_TEXT = 200
_LONGEST_NUMBER = 9


def from_url() -> models.Filters:
    """Return the filters of the current request.

    Raises:
        BadRequest: A number is not one.
    """
    given = flask.request.args
    chosen: dict[str, Any] = {}
    for name, field in models.PARAMETERS.items():
        text = given.get(name, "").strip()[:_LONGEST_TEXT]
        if name in ("free", "page"):
            if text and (not text.isascii() or not text.isdigit() or len(text) > _LONGEST_NUMBER):
                flask.abort(400, f"{name} must be a whole number, not {text[:20]!r}.")
            if text:
                chosen[field] = int(text)
        else:
            chosen[field] = text
    return models.Filters(**chosen)
