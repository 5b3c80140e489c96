"""Report what is missing for a release: `python -m release v1.2.3`. Status 1 if a check fails; publishes nothing.

With `--build` it makes the files first, in `build/release`: images, chart, wheel and sdist, ready to publish.
"""

import argparse
import pathlib
import sys

from docs import generate
from observability import files
from release import artifacts, checks

ROOT = pathlib.Path(__file__).parents[1]


def pages() -> dict[str, str]:
    """Return every generated file as it would be written now."""
    reference = {f"docs/reference/{name}": page() for name, page in generate.PAGES.items()}
    return reference | files.made()


def what_remains(tag: str) -> list[str]:
    """Return the commands that publish the release, for a person to run."""
    version = tag.removeprefix("v")
    made = artifacts.folder(ROOT).relative_to(ROOT)
    pushes = [
        f"buildah --storage-driver vfs push localhost/{name} docker://{repository}:{version}"
        for name, repository in artifacts.repositories(ROOT).items()
    ]
    return [
        f"git tag --annotate {tag} --message {tag}",
        f"git push origin {tag}",
        *pushes,
        f"helm push {made}/hami-{version}.tgz oci://{artifacts.registry(ROOT)}/charts",
        f"uv publish {' '.join(f'{made}/{name}' for name in checks.distribution_files(version))}",
    ]


def main() -> int:
    """Run and print the checks. Returns the exit status."""
    parser = argparse.ArgumentParser(prog="python -m release", description=__doc__)
    parser.add_argument("tag", help="of the release, for example v1.2.3")
    parser.add_argument("--build", action="store_true", help="make the files first (root, as for make images)")
    options = parser.parse_args()
    tag = options.tag
    if options.build:
        artifacts.make(ROOT, tag.removeprefix("v"), lambda line: print(line, file=sys.stderr, flush=True))
    missing = 0
    for one in checks.all_of(ROOT, tag, pages()):
        missing += not one.yes
        print(f"{'yes' if one.yes else 'no':4}{one.question}{f': {one.detail}' if one.detail else ''}", flush=True)
    if missing:
        print(f"\n{missing} of these must be fixed first.")
        return 1
    print("\nAll checks passed. Nothing is published yet; run these commands to publish:\n")
    print("\n".join(f"    {command}" for command in what_remains(tag)))
    return 0


if __name__ == "__main__":
    sys.exit(main())
