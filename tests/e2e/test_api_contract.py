"""A real kube-apiserver keeps the contract that the lab is held to, so that the lab may stand in for it."""

import pathlib
from collections.abc import Iterator

import pytest

from lab.real import client, control_plane
from tests.contracts.api_server import *  # noqa: F403  # the tests themselves


@pytest.fixture(scope="module")
def api(programs: pathlib.Path) -> Iterator[client.Api]:
    assert programs.is_dir()
    with control_plane.running() as plane:
        yield plane.api
