"""How many examples a property test tries."""

import hypothesis

_MORE = 10


def examples(count: int) -> int:
    """Return the number of examples: `count` in `make test`, where they are always the same ones; more in a search."""
    return count * (_MORE if hypothesis.settings.get_current_profile_name() == "search" else 1)
