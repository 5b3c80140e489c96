"""Marks every test by the folder it lies in, and sets how hard hypothesis tries."""

import pathlib

import hypothesis
import pytest

HERE = pathlib.Path(__file__).parent

hypothesis.settings.register_profile(
    "default", deadline=None, suppress_health_check=[hypothesis.HealthCheck.too_slow], print_blob=True
)
hypothesis.settings.load_profile("default")
pytest.register_assert_rewrite("tests.contracts")  # So that a failure there says what was compared, too.


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        folder = item.path.relative_to(HERE).parts[0]
        if folder in ("unit", "component", "architecture", "e2e"):
            item.add_marker(getattr(pytest.mark, folder))
