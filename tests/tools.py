"""Programs of others that some tests need; where they are missing the test is skipped, and in CI it fails."""

import os
import shutil

import pytest


def find(name: str) -> str:
    """The path of a program."""
    found = shutil.which(name)
    if found is None:
        if os.environ.get("REQUIRE_TOOLS"):
            pytest.fail(f"{name} is not installed, and REQUIRE_TOOLS is set")
        pytest.skip(f"{name} is not installed (Debian: apt-get install prometheus prometheus-alertmanager chromium)")
    return found
