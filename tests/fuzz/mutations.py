"""Inputs from samples: one sample, changed at a few places, as bytes or as the JSON value that it holds."""

import json
import random
from collections.abc import Iterator, Sequence
from typing import Any

LONGEST = 256 * 1024
_MOST_CHANGES = 6
VALUES: tuple[Any, ...] = (
    None, True, False, 0, -1, 1, 2**31, 2**63, -(2**63), 10**30, 10**400, 0.5, -0.0, 1e308, float("inf"), float("nan"),
    "", " ", "0", "-1", "1e999", "4k", "64Mi", "1" * 5000, "x" * 5000, "\x00", "\ud800", "\u0663", "\u00b2", "a/b",
    "../../etc/passwd", "%00", "2026-99-99", "{{.}}", "GPU-" + "a" * 200, [], [[]], {}, {"": ""}, [None], [{}],
    ["a"] * 300, {str(number): number for number in range(300)},
)  # fmt: skip
TOKENS: tuple[bytes, ...] = (
    b"", b"\x00", b"\xff\xfe", b"\xef\xbb\xbf", b"\xed\xa0\x80", b"\r\n", b"\n", b"\r\n\r\n", b"\t", b",", b";", b":",
    b"=", b'"', b"'", b"{", b"}", b"[", b"]", b"<", b"&", b"*", b"%", b"%00", b"%2e%2e%2f", b"-", b"--", b"-1",
    b"1e999", b"9" * 5000, b"x" * 5000, b"[" * 3000, b'{"a":' * 3000, b"null", b"NaN", b"Infinity",
    b"&a [*a,*a]", b"*a",
    b"!!timestamp x", b"!!int x", b"!!float x", b"!!python/object:os.system x", b"2026-99-99", b"---\n", b"<<: 1",
    b"0x", b"0b2", b"1_000", b"\xd9\xa3", b"\xc2\xb2", b"? [a]\n: 1", b"\x00" * 64, b"\xff" * 64,
)  # fmt: skip


class Mutator:
    """Makes inputs without end; equal seeds make equal inputs.

    Args:
        samples: Accepted inputs, to start from.
        seed: Of the random numbers.
    """

    def __init__(self, samples: Sequence[bytes], seed: int) -> None:
        self._random = random.Random(seed)
        self._samples = [*samples, b""]
        self._values = [value for value in map(_value, samples) if value is not None]

    def inputs(self) -> Iterator[bytes]:
        """Yield the samples as they are, then changed ones."""
        yield from self._samples
        while True:
            structural = bool(self._values) and self._random.random() < 0.6
            yield (self._changed_value() if structural else self._changed_bytes())[:LONGEST]

    def _changed_value(self) -> bytes:
        value = json.loads(json.dumps(self._random.choice(self._values)))
        for _ in range(self._random.randint(1, _MOST_CHANGES)):
            value = self._change(value)
        text = json.dumps(value, ensure_ascii=self._random.random() < 0.9)
        return text.encode(errors="surrogatepass")

    def _change(self, value: Any) -> Any:
        """Return the value with one change somewhere inside it, or another value in its place."""
        if isinstance(value, dict) and value and self._random.random() < 0.9:
            return self._changed_object(value)
        if isinstance(value, list) and value and self._random.random() < 0.9:
            index = self._random.randrange(len(value))
            match self._random.randrange(6):
                case 0:
                    return value[:index] + value[index + 1 :]
                case 1:
                    return value + [value[index]] * self._random.choice((1, 2, 300))
                case _:
                    return [*value[:index], self._change(value[index]), *value[index + 1 :]]
        if isinstance(value, str) and value and self._random.random() < 0.5:
            changed = self._edited(value.encode(errors="surrogatepass"))
            return changed.decode(errors="replace")
        return self._random.choice(VALUES)

    def _changed_object(self, value: dict[str, Any]) -> dict[str, Any]:
        key = self._random.choice(list(value))
        match self._random.randrange(8):
            case 0:
                return {name: inner for name, inner in value.items() if name != key}
            case 1:
                return {**value, f"{key}x": value[key]}
            case 2:
                return {**value, self._random.choice(list(value)): value[key]}
            case _:
                return {**value, key: self._change(value[key])}

    def _changed_bytes(self) -> bytes:
        data = self._random.choice(self._samples)
        for _ in range(self._random.randint(1, _MOST_CHANGES)):
            data = self._edited(data)
        return data

    def _edited(self, data: bytes) -> bytes:
        start, end = sorted((self._random.randint(0, len(data)), self._random.randint(0, len(data))))
        match self._random.randrange(7):
            case 0:
                return data[:start] + self._random.choice(TOKENS) + data[start:]
            case 1:
                return data[:start] + self._random.choice(TOKENS) + data[end:]
            case 2:
                return data[:start] + data[end:]
            case 3:
                return data[:end] + data[start:]
            case 4:
                other = self._random.choice(self._samples)
                return data[:start] + other[self._random.randint(0, len(other)) :]
            case 5:
                return data[:start] + self._random.randbytes(self._random.randint(1, 8)) + data[start:]
            case _:
                return (
                    data[:start] + bytes([data[start] ^ (1 << self._random.randrange(8))]) + data[start + 1 :]
                    if (start < len(data))
                    else data
                )


def _value(sample: bytes) -> Any:
    try:
        value = json.loads(sample)
    except ValueError:
        return None
    return value if isinstance(value, dict | list) else None
