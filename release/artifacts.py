"""Make the files of a release in one folder: image archives, bills of materials, chart, wheel, sdist, checksums."""

import hashlib
import pathlib
import shutil
import subprocess
import sys
from collections.abc import Callable

import yaml

from lab.real import helm
from release import checks

_HELM_MAJOR = 4


def folder(tree: pathlib.Path) -> pathlib.Path:
    """Return the folder of a release's files."""
    return tree / "build" / "release"


def repositories(tree: pathlib.Path) -> dict[str, str]:
    """Return the repository of each image, as the chart's values have it."""
    values = yaml.safe_load((tree / "charts/hami/values.yaml").read_text())
    return {"hami": values["image"]["repository"], "hami-node": values["nodeImage"]["repository"]}


def registry(tree: pathlib.Path) -> str:
    """Return the registry and owner that the images have in common, such as `ghcr.io/hami-py`."""
    return repositories(tree)["hami"].rpartition("/")[0]


def make(tree: pathlib.Path, version: str, say: Callable[[str], None]) -> None:
    """Build everything of a version, and collect it.

    Args:
        tree: The folder of the project.
        version: Without `v`.
        say: Receives a line before each step.

    Raises:
        SystemExit: A step fails; its output is on stderr.
    """
    say("1 of 4: both images, about three minutes")
    _run(tree, sys.executable, "-m", "images.build")
    say("2 of 4: wheel and sdist")
    for name in checks.distribution_files(version):
        (tree / "dist" / name).unlink(missing_ok=True)
    _run(tree, sys.executable, "-m", "hatchling", "build")
    say("3 of 4: the chart's package")
    into = folder(tree)
    shutil.rmtree(into, ignore_errors=True)
    into.mkdir(parents=True)
    package_chart(tree, into)
    say("4 of 4: one folder with checksums")
    collect(tree, version, into)


def package_chart(tree: pathlib.Path, into: pathlib.Path) -> None:
    """Package the chart as `hami-VERSION.tgz`."""
    _run(tree, str(helm.program(_HELM_MAJOR)), "package", "charts/hami", "--destination", str(into))


def collect(tree: pathlib.Path, version: str, into: pathlib.Path) -> None:
    """Copy images, bills of materials, wheel and sdist beside the chart's package, and write `SHA256SUMS`."""
    for name in checks.IMAGES:
        shutil.copy2(tree / f"build/images/{name}.tar", into / f"{name}-{version}.oci.tar")
        shutil.copy2(tree / f"build/images/{name}.cdx.json", into / f"{name}-{version}.cdx.json")
    for name in checks.distribution_files(version):
        shutil.copy2(tree / "dist" / name, into / name)
    sums = [f"{_sha256(path)}  {path.name}\n" for path in sorted(into.iterdir())]
    (into / "SHA256SUMS").write_text("".join(sums))


def _sha256(path: pathlib.Path) -> str:
    with path.open("rb") as content:
        return hashlib.file_digest(content, "sha256").hexdigest()


def _run(tree: pathlib.Path, *command: str) -> None:
    done = subprocess.run(command, cwd=tree, stdout=sys.stderr)  # noqa: S603
    if done.returncode:
        raise SystemExit(f"{' '.join(command[:4])} failed; its messages are above")
