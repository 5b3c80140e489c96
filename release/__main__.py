"""What is still missing for a release: `python -m release v1.2.3`. Status 1 where something is; publishes nothing."""

import argparse
import pathlib
import sys

from docs import generate
from observability import files
from release import checks

ROOT = pathlib.Path(__file__).parents[1]


def pages() -> dict[str, str]:
    """Every generated file as it would be written now."""
    reference = {f"docs/reference/{name}": page() for name, page in generate.PAGES.items()}
    return reference | files.made()


def what_remains(tag: str) -> list[str]:
    """The commands that a person runs when all is well: from here on others see it."""
    version = tag.removeprefix("v")
    pushes = [
        f"buildah --storage-driver vfs push localhost/{name} docker://REGISTRY/hami-py/{name}:{version}"
        for name in checks.IMAGES
    ]
    return [
        f"git tag --annotate {tag} --message {tag}",
        f"git push origin {tag}",
        *pushes,
        "helm package charts/hami --destination build",
        f"helm push build/hami-{version}.tgz oci://REGISTRY/charts",
        f"uv publish {' '.join(f'dist/{name}' for name in checks.distribution_files(version))}",
    ]


def main() -> int:
    """Ask, print, and say whether all is well."""
    parser = argparse.ArgumentParser(prog="python -m release", description=__doc__)
    parser.add_argument("tag", help="of the release, for example v1.2.3")
    tag = parser.parse_args().tag
    missing = 0
    for one in checks.all_of(ROOT, tag, pages()):
        missing += not one.yes
        print(f"{'yes' if one.yes else 'no':4}{one.question}{f': {one.told}' if one.told else ''}", flush=True)
    if missing:
        print(f"\n{missing} of these have to be mended first.")
        return 1
    print("\nAll is well. Nothing is published yet; that is for you to run:\n")
    print("\n".join(f"    {command}" for command in what_remains(tag)))
    return 0


if __name__ == "__main__":
    sys.exit(main())
