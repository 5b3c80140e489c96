"""The Kubernetes objects in the YAML blocks of the how-to pages."""

import pathlib
import re
import textwrap
from typing import Any

import yaml

PAGES = pathlib.Path(__file__).parents[2] / "docs" / "howto"
_BLOCK = re.compile(r"^( *)```yaml\n(.*?)^\1```$", re.M | re.S)


def _blocks(page: str) -> list[str]:
    return [textwrap.dedent(text) for _, text in _BLOCK.findall((PAGES / f"{page}.md").read_text())]


def values_files(page: str) -> list[str]:
    """Every YAML block of a page that is no object: values of the chart."""
    return [block for block in _blocks(page) if not re.search(r"^kind:", block, re.M)]


def objects(page: str) -> list[dict[str, Any]]:
    """Every object with a kind that a page shows, by the name of the page without `.md`."""
    found = [one for block in _blocks(page) for one in yaml.safe_load_all(block)]
    return [one for one in found if isinstance(one, dict) and "kind" in one]


def one(page: str, kind: str, name: str) -> dict[str, Any]:
    """The object of that kind and name."""
    (match,) = (each for each in objects(page) if (each["kind"], each["metadata"]["name"]) == (kind, name))
    return match
