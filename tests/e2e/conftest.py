"""Clusters for the tests. What is missing is a skip that names it, or a failure where REQUIRE_E2E=1."""

import os
import pathlib
from collections.abc import Iterator

import pytest

from lab.real import build
from tests.e2e import site as sites


@pytest.fixture(scope="session")
def programs() -> pathlib.Path:
    try:
        return build.binaries()
    except build.BuildFailed as missing:
        if os.environ.get("REQUIRE_E2E") == "1":
            raise
        pytest.skip(str(missing))


@pytest.fixture
def own_site(tmp_path: pathlib.Path, request: pytest.FixtureRequest) -> Iterator[sites.Site]:
    """A fresh control plane: for tests that restart things, or need to be alone."""
    if os.environ.get("E2E_KUBECONFIG"):
        pytest.skip("needs a control plane of its own; run without E2E_KUBECONFIG")
    request.getfixturevalue("programs")
    with sites.own(tmp_path) as site:
        yield site


@pytest.fixture
def site(request: pytest.FixtureRequest) -> Iterator[sites.Site]:
    """A cluster with our scheduler: the one of E2E_KUBECONFIG, or a fresh one."""
    kubeconfig = os.environ.get("E2E_KUBECONFIG")
    if not kubeconfig:
        yield request.getfixturevalue("own_site")
        return
    with sites.existing(kubeconfig) as found:
        yield found
