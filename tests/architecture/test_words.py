"""The check of words bites where it should, and nowhere else."""

import pytest

from checks import words


@pytest.mark.parametrize(
    ("source", "finding"),
    [
        ('"""A module that says what is in it."""\n', ""),
        ('"""Short."""\n', "says nothing"),
        ('def f():\n    """See `Gate`."""\n', ""),
        ('class A:\n    """Whoever reaches the address may look."""\n', "not 'Whoever'"),
        ('"""Nobody reads this docstring."""\n', "not 'Nobody'"),
        ('x = "ask for 4000 MB of memory"\n', "write MiB"),
        ('x = f"{amount}MB"\n', "write MiB"),
        ('x = "4,000 MiB"\n', ""),
    ],
)
def test_the_worst_words_are_found(source: str, finding: str) -> None:
    found = list(words.findings("some/module.py", source))

    assert len(found) == bool(finding)
    assert all(finding in one for one in found)


def test_event_texts_may_say_megabytes() -> None:
    """HAMi's do, and so do dashboards and scripts that read them."""
    name = "scheduler_extender/report/event_notes.py"
    assert name in words.MEGABYTES_ALLOWED
    assert list(words.findings(name, 'x = f"{amount}MB"\n')) == []
