"""What the environment overrides of a canary's request: model, prompt, token ids, whole payload and API key."""

from __future__ import annotations

import pathlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from gpu_sharing.core import error_codes, json_text
from gpu_sharing.workload.canaries.http_calls import CanaryRefused

MODEL, TEXT, TOKEN_IDS = "HAMI_CANARY_MODEL", "HAMI_CANARY_TEXT", "HAMI_CANARY_TOKEN_IDS"
TOKENIZER, PAYLOAD, API_KEY = "HAMI_CANARY_TOKENIZER", "HAMI_CANARY_PAYLOAD", "HAMI_CANARY_API_KEY"  # a name
VARIABLES = {
    MODEL: "the model's name; without it the first one that the server lists",
    TEXT: "the prompt; without it Hi",
    TOKEN_IDS: "token ids in place of the prompt, as 1,2,3",
    TOKENIZER: "a folder with the tokenizer's config.json; its BOS is then the only token of the prompt",
    PAYLOAD: "the whole request as a JSON object",
    API_KEY: "sent as Authorization: Bearer",
}
"""Each variable with its meaning, for the help."""
_MOST_TEXT = 4096
_MOST_IDS = 1024
_MOST_ID = 10_000_000
_MOST_PAYLOAD_BYTES = 256 * 1024
_MOST_CONFIG_BYTES = 16 * 1024 * 1024
_BOS_FILES = ("generation_config.json", "config.json")


@dataclass(frozen=True, slots=True, kw_only=True)
class CanarySettings:
    """What a canary sends; the defaults suit a server with one model."""

    model: str = ""
    """Empty: the first model that the server lists."""
    text: str = "Hi"
    token_ids: tuple[int, ...] = ()
    """In place of the text."""
    payload: Mapping[str, Any] | None = None
    """In place of all of it."""
    api_key: str = ""


def from_environment(environment: Mapping[str, str]) -> CanarySettings:
    """Return the settings that the variables name.

    Raises:
        CanaryRefused: A value that cannot be sent.
    """
    token_ids = _token_ids(environment.get(TOKEN_IDS, ""))
    folder = environment.get(TOKENIZER, "")
    if folder and not token_ids:
        bos = bos_token_id(pathlib.Path(folder))
        token_ids = () if bos is None else (bos,)
    return CanarySettings(
        model=_short(MODEL, environment.get(MODEL, "")),
        text=_short(TEXT, environment.get(TEXT, "")) or "Hi",
        token_ids=token_ids,
        payload=_payload(environment.get(PAYLOAD, "")),
        api_key=_header_text(environment.get(API_KEY, "")),
    )


def bos_token_id(folder: pathlib.Path) -> int | None:
    """Return the id of a tokenizer's BOS token; None where its files do not name one."""
    for name in _BOS_FILES:
        try:
            with (folder / name).open("rb") as file:
                value = json_text.value(file.read(_MOST_CONFIG_BYTES))
        except (OSError, ValueError):
            continue
        found = value.get("bos_token_id") if isinstance(value, dict) else None
        first: Any = found[0] if isinstance(found, list) and found else found
        if _is_id(first):
            return int(first)
    return None


def _is_id(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value <= _MOST_ID


def _token_ids(text: str) -> tuple[int, ...]:
    words = [word.strip() for word in text[: _MOST_IDS * 10].split(",")] if text.strip() else []
    if len(text) > _MOST_IDS * 9 or any(not (word.isascii() and word.isdigit() and len(word) < 9) for word in words):
        raise _refused(TOKEN_IDS, f"write at most {_MOST_IDS} whole numbers, as 1,2,3")
    if len(words) > _MOST_IDS or any(not _is_id(int(word)) for word in words):
        raise _refused(TOKEN_IDS, f"write at most {_MOST_IDS} numbers up to {_MOST_ID}")
    return tuple(int(word) for word in words)


def _short(name: str, text: str) -> str:
    if len(text) > _MOST_TEXT:
        raise _refused(name, f"it has {len(text)} characters; write at most {_MOST_TEXT}")
    return text


def _header_text(text: str) -> str:
    if not (text.isascii() and (text.isprintable() or not text)) or len(text) > _MOST_TEXT:
        raise _refused(API_KEY, "write printable ASCII, without a line's end")
    return text


def _payload(text: str) -> dict[str, Any] | None:
    if not text:
        return None
    if len(text) > _MOST_PAYLOAD_BYTES:
        raise _refused(PAYLOAD, f"it has {len(text)} characters; write at most {_MOST_PAYLOAD_BYTES}")
    try:
        value = json_text.value(text)
    except ValueError:
        value = None
    if not isinstance(value, dict):
        raise _refused(PAYLOAD, "write a JSON object")
    return value


def _refused(name: str, what: str) -> CanaryRefused:
    return CanaryRefused(error_codes.CANARY_BAD_SETTING, f"The environment variable {name} cannot be used: {what}.")
