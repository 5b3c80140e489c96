"""Marks of every test by its folder, and how hypothesis searches: `test` always alike, `search` at random."""

import pathlib

import hypothesis
import pytest

HERE = pathlib.Path(__file__).parent
FOLDERS = ("unit", "model", "component", "architecture", "e2e")
NEEDS = {"e2e": ("k8s", "etcd"), "docs": ("k8s",)}
MADE_OF_PROCESSES = ("e2e", "docs", "observability", "images", "packaging", "webui", "chart")
"""Folders of which every test takes seconds."""

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
        for name in NEEDS.get(folder, ()):
            item.add_marker(getattr(pytest.mark, name))
        if folder in MADE_OF_PROCESSES:
            item.add_marker(pytest.mark.slow)
        if shares_a_fixture(item):
            item.add_marker(pytest.mark.xdist_group(str(item.path)))


def shares_a_fixture(item: pytest.Item) -> bool:
    """Return whether a test has a fixture of its module: its group runs in one worker, which makes the fixture once."""
    found = getattr(item, "_fixtureinfo", None)
    definitions = found.name2fixturedefs.values() if found else ()
    return any(one.scope == "module" for several in definitions for one in several)
