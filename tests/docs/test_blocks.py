"""Blocks, commands and what they print are told apart as the convention says."""

from tests.docs import blocks

PAGE = """\
Text.

<!-- not run: it needs a GPU -->
```sh
reset
```

```console
$ apply <<'END'
kind: Pod
$ no command
END
made …
$ look
NAME   AGE
a      …
```
"""


def test_a_block_knows_whether_it_is_excused() -> None:
    """A comment counts for the block that follows it, and for no other."""
    first, second = blocks.blocks(PAGE)

    assert (first.language, first.line, first.excused, first.lines) == ("sh", 4, True, ("reset",))
    assert (second.language, second.excused) == ("console", False)


def test_a_here_document_belongs_to_its_command() -> None:
    """Whatever its lines look like."""
    made, looked = blocks.commands(list(blocks.blocks(PAGE))[1])

    assert made == blocks.Command("apply <<'END'\nkind: Pod\n$ no command\nEND", ("made …",))
    assert looked == blocks.Command("look", ("NAME   AGE", "a      …"))


def test_shown_lines_have_to_be_printed_in_their_order() -> None:
    """Other lines between them and the width of gaps do not count; anything else does."""
    printed = "NAME  AGE\nb     3s\na     4s\n"

    assert blocks.missing(("NAME   AGE", "a   …"), printed) == ""
    assert blocks.missing(("a   …", "b   …"), printed) == "b   …"
    assert blocks.missing(("a   5s",), printed) == "a   5s"
