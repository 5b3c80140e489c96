"""Decode what another program wrote, JSON into structs and YAML: whatever is wrong with it is one error."""

from typing import TYPE_CHECKING, Any, TypeVar

import msgspec

if TYPE_CHECKING:
    from collections.abc import Buffer  # type: ignore[attr-defined,unused-ignore]  # of Python 3.12

T = TypeVar("T")


def json_as(kind: type[T], body: "Buffer | str") -> T:
    """Return the JSON value of a body as a struct.

    Raises:
        DecodeError: It is not JSON, not UTF-8, nested too deeply, or not of that kind.
    """
    return json_by(msgspec.json.Decoder(kind), body)


def json_by(decoder: "msgspec.json.Decoder[T]", body: "Buffer | str") -> T:
    """Return the same by a decoder that is made once. Errors as `json_as`."""
    try:
        return decoder.decode(body)
    except RecursionError as cause:  # Fields that the struct does not have are read, too.
        raise msgspec.DecodeError("JSON is nested too deeply") from cause
    except UnicodeDecodeError as cause:
        raise msgspec.DecodeError(f"JSON is not UTF-8: {cause.reason}") from cause


def yaml_documents(text: str) -> list[Any]:
    """Return every document of a YAML text.

    Raises:
        ValueError: It is not YAML, nested too deeply, or a value is not of the type that its tag or form names, such as
            the date 2026-99-99.
    """
    import yaml  # Here, because a service in a pod reads no YAML.

    try:
        return list(yaml.safe_load_all(text))
    except RecursionError as cause:
        raise ValueError("it is nested too deeply") from cause
    except (yaml.YAMLError, ValueError, AttributeError, OverflowError) as cause:
        raise ValueError(str(cause)) from cause
