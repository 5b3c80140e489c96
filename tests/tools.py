"""Programs of others that some tests need; where they are missing the test is skipped, and in CI it fails."""

import os
import shutil
from typing import NoReturn

import pytest

from lab.real import build


def find(name: str) -> str:
    """The path of a program."""
    found = shutil.which(name)
    if found is None:
        missing(f"{name} is not installed (Debian: apt-get install prometheus prometheus-alertmanager chromium)")
    return found


def kubectl() -> str:
    """The path of a kubectl: the one on the path, or that which `make e2e` has built."""
    found = shutil.which("kubectl") or shutil.which("kubectl", path=str(build.folder_of_binaries()))
    if found is None:
        missing("there is no kubectl, and `make e2e` has not built one")
    return found


def missing(what: str) -> NoReturn:
    """Skip the test, or fail it in CI."""
    if os.environ.get("REQUIRE_TOOLS"):
        pytest.fail(f"{what}; REQUIRE_TOOLS is set")
    pytest.skip(what)
