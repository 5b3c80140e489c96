"""GET and POST over HTTP without following redirects: a bearer token belongs to the server that it was meant for.

The standard library's opener follows a redirect to any host and sends the `Authorization` header along.
"""

import http.client
import ssl
import urllib.error
import urllib.request
from collections.abc import Mapping
from typing import IO

_MOST_BYTES = 1024 * 1024 * 1024
_LONGEST_CAUSE = 300
_MOST_REASON_BYTES = 1024 * 1024


class _NoRedirects(urllib.request.HTTPRedirectHandler):
    """Leaves a redirect to be raised as the error that it is here."""

    def redirect_request(
        self,
        req: urllib.request.Request,
        fp: IO[bytes],
        code: int,
        msg: str,
        headers: http.client.HTTPMessage,
        newurl: str,
    ) -> None:
        """Return nothing, so that the answer is an `HTTPError` with its status."""


def read(
    url: str,
    timeout_seconds: float,
    headers: Mapping[str, str] | None = None,
    tls: ssl.SSLContext | None = None,
    most_bytes: int = _MOST_BYTES,
    *,
    body: bytes | None = None,
) -> bytes:
    """Return the body of an answer with a status under 300, to GET or, with a body, to POST.

    Args:
        url: With `http` or `https`.
        timeout_seconds: For connecting and for each read.
        headers: To send.
        tls: How to verify the server; None for the system's authorities.
        most_bytes: What is longer is cut off there.
        body: To send by POST.

    Raises:
        HTTPError: Another status, a redirect among them.
        OSError: No answer, or one that is not HTTP.
        ValueError: Not a URL.
    """
    request = urllib.request.Request(url, data=body, headers=dict(headers or {}))  # noqa: S310  # settings take http and https only
    opener = urllib.request.build_opener(_NoRedirects, urllib.request.HTTPSHandler(context=tls))
    try:
        with opener.open(request, timeout=timeout_seconds) as answer:
            content: bytes = answer.read(most_bytes)
            if answer.length and len(content) < most_bytes:  # A limited read does not report an answer that was cut.
                raise OSError(f"the answer is not HTTP: {answer.length} bytes of its body are missing")
            return content
    except http.client.HTTPException as cause:  # The standard library lets it pass, and it is no OSError.
        raise OSError(f"the answer is not HTTP: {type(cause).__name__} {cause}"[:_LONGEST_CAUSE]) from cause


def body_of(refused: urllib.error.HTTPError, most_bytes: int = _MOST_REASON_BYTES) -> bytes:
    """Return the body of an answer that `read` raised, as far as it came."""
    try:
        return refused.read(most_bytes)
    except (OSError, http.client.HTTPException):
        return b""
