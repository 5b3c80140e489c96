"""Finds the known word that a user most likely meant by a word that has no effect."""

import functools
from collections.abc import Iterable

_CLOSE = 0.75
"""Of 1, as `difflib` counts: `gpu-memory` is as close as that to `gpumem`."""
_LONGEST = 100


@functools.lru_cache(maxsize=4096)
def closest(key: str, known: frozenset[str]) -> str:
    """Return the known key that is nearest to a key with a prefix, by the part after the prefix; empty for none."""
    if len(key) > _LONGEST:
        return ""
    by_word = {one.rpartition("/")[2]: one for one in sorted(known)}
    return by_word.get(nearest(key.rpartition("/")[2].lower(), by_word), "")


@functools.lru_cache(maxsize=4096)
def has_near_prefix(key: str, prefixes: tuple[str, ...]) -> bool:
    """Whether a key such as `nvida.com/gpu` has a prefix that is one of these, or nearly."""
    if key.startswith(prefixes):
        return True
    written = f"{key[:_LONGEST].partition('/')[0]}/"
    alike = [one for one in prefixes if abs(len(one) - len(written)) <= 2 and len(set(one) ^ set(written)) <= 2]
    return bool(alike and nearest(written, alike))


def nearest(word: str, known: Iterable[str]) -> str:
    """Return the known word that is nearest to a word; empty where none is near. It takes about 10 us a known word."""
    import difflib  # Here, because the processes of a GPU node never need it, and have little memory.

    matches = difflib.get_close_matches(word[:_LONGEST], list(known), 1, _CLOSE)
    return matches[0] if matches else ""
