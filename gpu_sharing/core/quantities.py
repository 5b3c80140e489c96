"""Read Kubernetes quantities as whole MiB, whole percent and whole counts, never as floats.

The API server rewrites what users write (`4000` becomes `4k`, `8000000` becomes `8M`), so suffixes have a special
meaning here: no suffix, `k` and exponents are plain numbers; byte suffixes are bytes.

Source: k8s.io/apimachinery/pkg/api/resource, grammar in the documentation of `Quantity`.
"""

import functools
import math
import re
from fractions import Fraction

from gpu_sharing.core import error_codes, errors

INT64_MAX = 2**63 - 1
MIB = 2**20
SMALLEST_CLEAR_BYTES = 64 * MIB
"""A byte-suffixed amount of GPU memory below this is more likely a rewritten number of MiB."""

_GRAMMAR = re.compile(r"([+-]?)(\d+(?:\.\d*)?|\.\d+)(?:([numkMGTPE]|[KMGTPE]i)|[eE]([+-]?\d{1,2}))?")
_LONGEST = 64
_SUFFIXES = {
    "n": Fraction(1, 10**9), "u": Fraction(1, 10**6), "m": Fraction(1, 10**3), "": Fraction(1), "k": Fraction(10**3),
    "M": Fraction(10**6), "G": Fraction(10**9), "T": Fraction(10**12), "P": Fraction(10**15), "E": Fraction(10**18),
    "Ki": Fraction(2**10), "Mi": Fraction(2**20), "Gi": Fraction(2**30), "Ti": Fraction(2**40), "Pi": Fraction(2**50),
    "Ei": Fraction(2**60),
}  # fmt: skip
_PLAIN = frozenset({"", "k", "m", "u", "n"})

Raw = str | int | float | bool | None
"""The JSON types of a quantity."""


def _parse(name: str, raw: Raw) -> tuple[Fraction, str]:
    """Return the value and its suffix; the value is whole and in the range of an int64."""
    if isinstance(raw, bool) or not isinstance(raw, (str, int)):
        raise errors.BadQuantity(
            error_codes.INVALID_QUANTITY, f"{name}: {_shown(raw)} is not a quantity; write a whole number"
        )
    text = str(raw) if isinstance(raw, str) or abs(raw) <= INT64_MAX else "too large"
    match = _GRAMMAR.fullmatch(text) if len(text) <= _LONGEST else None
    if match is None or not text.isascii():
        raise errors.BadQuantity(
            error_codes.INVALID_QUANTITY, f"{name}: {_shown(raw)} is not a quantity; write a whole number"
        )
    sign, digits, suffix, exponent = match.groups()
    value = Fraction(digits.rstrip(".")) * (
        Fraction(10) ** int(exponent) if exponent is not None else _SUFFIXES[suffix or ""]
    )
    if sign == "-" and value:
        raise errors.BadQuantity(error_codes.INVALID_QUANTITY, f"{name}: {text} is negative; write a whole number")
    if value.denominator != 1:
        raise errors.BadQuantity(error_codes.INVALID_QUANTITY, f"{name}: {text} is a fraction; write a whole number")
    if value > INT64_MAX:
        raise errors.BadQuantity(error_codes.INVALID_QUANTITY, f"{name}: {text} is larger than any GPU")
    return value, suffix or ""


def _shown(raw: Raw) -> str:
    text = repr(raw)
    return text if len(text) <= 40 else text[:37] + "..."


@functools.lru_cache(maxsize=4096, typed=True)
def thousandths(raw: Raw) -> int:
    """Return a quantity in thousandths, rounded up; 0 if it is invalid.

    Only for comparing what pods free, which the API server has checked.
    """
    match = _GRAMMAR.fullmatch(str(raw)) if raw is not None and len(str(raw)) <= _LONGEST else None
    if match is None:
        return 0
    _, digits, suffix, exponent = match.groups()
    scale = Fraction(10) ** int(exponent) if exponent is not None else _SUFFIXES[suffix or ""]
    return math.ceil(Fraction(digits.rstrip(".")) * scale * 1000)


def count(name: str, raw: Raw, *, most: int = INT64_MAX) -> int:
    """Return a whole number from a quantity, regardless of its suffix.

    Raises:
        BadQuantity: It is negative, a fraction, more than `most` or not a quantity.
    """
    return _bounded(name, raw, int(_parse(name, raw)[0]), most, "")


def memory_mib(name: str, raw: Raw, *, most: int = INT64_MAX) -> int:
    """Return GPU memory in MiB: plain numbers are MiB, amounts with a byte suffix are rounded up to MiB.

    Raises:
        BadQuantity: As in `count`, or a byte amount so small that it was probably meant as MiB.
    """
    value, suffix = _parse(name, raw)
    if suffix in _PLAIN:
        return _bounded(name, raw, int(value), most, " MiB")
    if 0 < value < SMALLEST_CLEAR_BYTES:
        raise errors.BadQuantity(
            error_codes.AMBIGUOUS_MEMORY,
            f"{name}: {raw} is less than 64 MiB of bytes, or a number of MiB that the API server rewrote; "
            "write MiB such as 4000, or bytes such as 4Gi",
        )
    return _bounded(name, raw, -(-int(value) // MIB), most, " MiB")


def _bounded(name: str, raw: Raw, value: int, most: int, unit: str) -> int:
    """Refuse a number beyond what any node has, before it reaches an array, a loop or a repetition."""
    if value > most:
        raise errors.BadQuantity(
            error_codes.REQUEST_TOO_LARGE,
            f"{name}: {_shown(raw)} is more than any node has; write at most {most}{unit}",
        )
    return value


def percent(name: str, raw: Raw, *, lowest: int) -> int:
    """Return a whole percentage from `lowest` to 100.

    Raises:
        BadQuantity: It is outside that range, or as in `count`.
    """
    value = int(_parse(name, raw)[0])
    if not lowest <= value <= 100:
        raise errors.BadQuantity(
            error_codes.PERCENT_OUT_OF_RANGE, f"{name}: {_shown(raw)} is outside {lowest} to 100 percent"
        )
    return value
