"""What every HTTP API of ours reads of a call in one way: its path and its token, and how a call is refused."""

from urllib import parse

from gpu_sharing.core import error_codes, errors

_LONGEST_SEGMENT = 253
"""The longest name of an object."""


class CallRefused(errors.GpuSharingError):
    """A call that is not answered, or not for this caller.

    Attributes:
        status: The HTTP status.
        code: Of the registry.
    """

    def __init__(self, status: int, code: error_codes.Code, sentence: str) -> None:
        super().__init__(sentence)
        self.status = status
        self.code = code


def segments(raw_path: bytes) -> list[str] | None:
    """Return the segments of a path, each percent-decoded once, or None for a path that no route has.

    A segment that then is empty, a dot segment, longer than a name, or holds a slash or a NUL is refused, so that no
    two readers can cut the path differently.
    """
    try:
        parts = [parse.unquote_to_bytes(part).decode() for part in raw_path.partition(b"?")[0].split(b"/")]
    except UnicodeDecodeError:
        return None
    if any(part in ("", ".", "..") or len(part) > _LONGEST_SEGMENT or set("/\0") & set(part) for part in parts[1:]):
        return None
    return parts


def bearer_token(authorization: bytes) -> str:
    """Return the token of an Authorization header; empty if it has none."""
    text = authorization.decode("latin-1")
    return text[7:] if text[:7].lower() == "bearer " else ""
