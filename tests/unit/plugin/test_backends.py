import inspect
import json
import pathlib

import pytest

from device_plugin import settings
from device_plugin.isolation import table
from device_plugin.isolation.backend import Backend, BackendSettings
from gpu_sharing.core import error_codes

ROOT = pathlib.Path(__file__).parents[3]


@pytest.fixture(params=table.BACKENDS)
def name(request: pytest.FixtureRequest) -> str:
    found: str = request.param
    return found


def test_a_backend_has_all_that_the_plugin_calls(name: str, tmp_path: pathlib.Path) -> None:
    """A backend that lacks a method fails here, and not when the first container starts."""
    backend = table.build(BackendSettings(hook_path=tmp_path, mps_root=tmp_path))[name]
    members = {member for member in vars(Backend) if not member.startswith("_")}

    assert {member for member in members if not hasattr(backend, member)} == set()
    for member in members:
        if callable(getattr(backend, member)):
            wanted = inspect.signature(getattr(Backend, member))
            given = inspect.signature(getattr(type(backend), member))
            assert list(given.parameters) == list(wanted.parameters), member


def test_a_backends_codes_say_what_to_do(name: str, tmp_path: pathlib.Path) -> None:
    """A node whose backend is not available shows a code, and `hamictl doctor` its remedy."""
    backend = table.build(BackendSettings(hook_path=tmp_path, mps_root=tmp_path))[name]

    if backend.problem():
        assert backend.unavailable_code is not None
    for code in (backend.unavailable_code, backend.conflict_code):
        assert code is None or error_codes.REGISTRY[code].remedy


def test_a_backend_can_be_chosen_and_is_described(name: str) -> None:
    """By the flag, by the chart, and by a person who reads which one to take."""
    schema = json.loads((ROOT / "charts/hami/values.schema.json").read_text())

    assert settings.parse(["--node-name", "n", "--isolation", name], {}).sharing.isolation == name
    assert name in settings.HELP["isolation"]
    assert name in schema["properties"]["devicePlugin"]["properties"]["isolation"]["enum"]
    assert f"`{name}`" in (ROOT / "docs/howto/isolate.md").read_text()
