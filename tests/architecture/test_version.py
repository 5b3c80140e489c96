"""There is one version of the project, and everything that names one names it."""

import pathlib
import re

import yaml

from gpu_sharing.core import version

ROOT = pathlib.Path(__file__).parents[2]


def test_the_chart_has_the_version_of_the_code() -> None:
    """The chart's default image tags are its `appVersion`: another would start images that are not there."""
    chart = yaml.safe_load((ROOT / "charts/hami/Chart.yaml").read_text())

    assert (chart["version"], chart["appVersion"]) == (version.VERSION, version.VERSION)


def test_the_images_that_the_documents_push_have_it_too() -> None:
    """Who follows the page pushes under the tag that the chart requests."""
    tags = re.findall(r"docker://REGISTRY/hami[\w-]*:(\S+)", (ROOT / "docs/howto/install.md").read_text())

    assert set(tags) == {version.VERSION}
