"""How tests stand to each other: what they import, and that each mark has tests."""

import ast
import pathlib
from collections.abc import Iterator

from tests import conftest

TESTS = pathlib.Path(__file__).parents[1]


def imports(path: pathlib.Path) -> Iterator[str]:
    """Every module and name that a file imports, dotted."""
    for statement in ast.walk(ast.parse(path.read_text())):
        if isinstance(statement, ast.ImportFrom) and statement.module:
            yield from (f"{statement.module}.{alias.name}" for alias in statement.names)
        elif isinstance(statement, ast.Import):
            yield from (alias.name for alias in statement.names)


def test_only_end_to_end_tests_import_what_needs_a_real_control_plane() -> None:
    """A unit test whose helper lies there drags in, and waits for, what only a prepared machine has."""
    wrong = [
        f"{path.relative_to(TESTS)} imports {name}"
        for path in TESTS.rglob("*.py")
        if path.relative_to(TESTS).parts[0] != "e2e"
        for name in imports(path)
        if name.startswith("tests.e2e")
    ]

    assert wrong == []


def test_helpers_of_all_import_no_test() -> None:
    """They are below the tests, as the core is below the services."""
    folders = tuple(f"tests.{path.name}" for path in TESTS.iterdir() if path.is_dir() and path.name != "support")
    found = [name for path in (TESTS / "support").glob("*.py") for name in imports(path) if name.startswith(folders)]

    assert found == []


def test_every_mark_of_what_tests_need_is_on_some() -> None:
    """`-m k8s` that selects nothing looks like a success."""
    written = "".join(path.read_text() for path in TESTS.glob("*/**/test_*.py"))
    by_folder = {
        name for folder, names in conftest.NEEDS.items() if any((TESTS / folder).glob("test_*.py")) for name in names
    }

    assert by_folder == {"k8s", "etcd"}
    assert {name for name in ("gpu", "slow") if f"pytest.mark.{name}" in written} == {"gpu", "slow"}
