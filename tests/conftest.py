"""Marks of every test by its folder, and how hypothesis searches: `test` always alike, `search` at random."""

import functools
import pathlib
from typing import Any

import hypothesis
import pytest
import xdist.scheduler

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


class Scheduler(xdist.scheduler.LoadScopeScheduling):  # type: ignore[misc]  # It has no types.
    """Gives each worker one test after the other, but all tests of a module that has a fixture of its own to one."""

    def _split_scope(self, nodeid: str) -> str:
        path = nodeid.partition("::")[0]
        return path if has_fixture_of_module(path) else nodeid


@functools.cache
def has_fixture_of_module(path: str) -> bool:
    """Return whether a file makes something once for all of its tests."""
    return 'scope="module"' in (HERE.parent / path).read_text()


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Scheduler:
    return Scheduler(config, log)
