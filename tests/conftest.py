"""Marks of every test by its folder, and how hypothesis searches: `test` always alike, `search` at random."""

import pathlib

import hypothesis
import pytest

HERE = pathlib.Path(__file__).parent
FOLDERS = ("unit", "model", "component", "architecture", "e2e")

_BOTH = hypothesis.settings(
    deadline=None, database=None, print_blob=True, suppress_health_check=[hypothesis.HealthCheck.too_slow]
)
hypothesis.settings.register_profile("test", _BOTH, derandomize=True)
hypothesis.settings.register_profile("search", _BOTH, derandomize=False, max_examples=1000)
hypothesis.settings.load_profile("test")
pytest.register_assert_rewrite("tests.contracts")  # So that a failure there says what was compared, too.


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        folder = item.path.relative_to(HERE).parts[0]
        if folder in FOLDERS:
            item.add_marker(getattr(pytest.mark, folder))
