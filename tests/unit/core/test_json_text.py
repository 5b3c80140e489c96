"""JSON of other programs: whatever is wrong with it is one error."""

import pytest

from gpu_sharing.core import json_text, xids


def test_a_value_is_read() -> None:
    """The good case, from text and from bytes."""
    assert json_text.value('{"a": [1]}') == json_text.value(b'{"a": [1]}') == {"a": [1]}


@pytest.mark.parametrize("text", ["", "{", b"\xff", "9" * 5000, "[" * 100_000, '{"a":' * 100_000])
def test_what_is_wrong_with_a_text_is_one_error(text: str | bytes) -> None:
    """Readers that expected no deep nesting ended their process."""
    with pytest.raises(ValueError, match=r"."):
        json_text.value(text)


def test_a_number_of_an_xid_that_is_too_long_is_an_unknown_word() -> None:
    """A device plugin with such a variable did not start, and said only that a text has too many digits."""
    overrides, unknown = xids.read_overrides("79," + "9" * 5000, "13")

    assert overrides == xids.Overrides(disabled=frozenset({79}), enabled=frozenset({13}))
    assert [len(word) for word in unknown] == [40]
