"""Marks of every test by its folder, and how hypothesis searches: `test` always alike, `search` at random."""

import functools
import pathlib
import re
from typing import Any

import hypothesis
import pytest
import structlog
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
# rich, which structlog takes where it is installed, needs seconds for the traceback of a page with long names.
structlog.configure(
    processors=[
        *structlog.get_config()["processors"][:-1],
        structlog.dev.ConsoleRenderer(exception_formatter=structlog.dev.plain_traceback),
    ]
)
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


REAL_NODE = re.compile(r"from tests\.e2e import .*\b(gpu_node|installed_chart)\b")


class Scheduler(xdist.scheduler.LoadScopeScheduling):  # type: ignore[misc]  # It has no types.
    """Gives each worker one test after the other; tests that share something go to one worker together."""

    def _split_scope(self, nodeid: str) -> str:
        return shared_by(nodeid.partition("::")[0]) or nodeid


@functools.cache
def shared_by(path: str) -> str:
    """Return what the tests of a file share: a fixture of their module, or the machine on which a real kubelet runs."""
    text = (HERE.parent / path).read_text()
    if REAL_NODE.search(text):
        return "real node"
    return path if 'scope="module"' in text else ""


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Scheduler:
    return Scheduler(config, log)
