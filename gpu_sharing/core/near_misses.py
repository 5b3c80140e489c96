"""Finds the known word that a user most likely meant by a word that has no effect."""

import functools

_CLOSE = 0.75
"""Of 1, as `difflib` counts: `gpu-memory` is as close as that to `gpumem`."""
_LONGEST = 100


@functools.lru_cache(maxsize=4096)
def closest(key: str, known: frozenset[str]) -> str:
    """Return the known key that is nearest to a key with a prefix, by the part after the prefix; empty for none."""
    if len(key) > _LONGEST:
        return ""
    import difflib  # Here, because the processes of a GPU node never need it, and have little memory.

    by_word = {one.rpartition("/")[2]: one for one in sorted(known)}
    matches = difflib.get_close_matches(key.rpartition("/")[2].lower(), by_word, 1, _CLOSE)
    return by_word[matches[0]] if matches else ""
