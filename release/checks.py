"""The checks of a release, each on a folder with the project. They only read.

Built files must be newer than the last commit: an image of the previous commit has the same version and other code.
"""

import hashlib
import json
import pathlib
import re
import subprocess
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass

import yaml

IMAGES = ("hami", "hami-node")


@dataclass(frozen=True, slots=True)
class Answer:
    """The result of one check."""

    question: str
    """A sentence that is true if the check passes."""
    yes: bool
    detail: str
    """The result, or what to do."""


def all_of(tree: pathlib.Path, tag: str, pages: Mapping[str, str]) -> Iterator[Answer]:
    """Return every result, in the order in which to fix failures.

    Args:
        tree: The folder of the project.
        tag: The git tag, `v1.2.3`.
        pages: The content of the generated files as they would be written now, by their path.
    """
    version = tag.removeprefix("v")
    yield clean(tree)
    yield same_version(tree, tag)
    yield changelog(tree, version)
    yield fresh(tree, pages)
    yield images(tree, version)
    yield distributions(tree, version)
    yield collected(tree, version)


def clean(tree: pathlib.Path) -> Answer:
    """Check that everything is committed, because only then the built files match the tag."""
    changed = _git(tree, "status", "--porcelain").splitlines()
    detail = f"commit or remove: {_listed(line[3:] for line in changed)}" if changed else ""
    return Answer("the working tree is clean", not changed, detail)


def same_version(tree: pathlib.Path, tag: str) -> Answer:
    """Check that code, chart and tag have one version: the chart's image tags are derived from it."""
    question = "code, chart and tag have the same version"
    if not re.fullmatch(r"v\d+\.\d+\.\d+", tag):
        return Answer(question, False, f"{tag!r} is no tag of a release; give it as v1.2.3")
    found = re.search(r'^VERSION = "(.*)"', (tree / "gpu_sharing/core/version.py").read_text(), re.M)
    chart = yaml.safe_load((tree / "charts/hami/Chart.yaml").read_text())
    versions = {
        "gpu_sharing/core/version.py": found[1] if found else None,
        "version in charts/hami/Chart.yaml": chart.get("version"),
        "appVersion in charts/hami/Chart.yaml": chart.get("appVersion"),
    }
    wrong = [f"{place} is {value}" for place, value in versions.items() if f"v{value}" != tag]
    return Answer(question, not wrong, f"{'; '.join(wrong)}; write {tag[1:]}" if wrong else tag[1:])


def changelog(tree: pathlib.Path, version: str) -> Answer:
    """Check that the changelog has a section for the version, and that its section Unreleased is empty."""
    question = "CHANGELOG.md tells of this version"
    parts = re.split(r"^## ", (tree / "CHANGELOG.md").read_text(), flags=re.M)[1:]
    sections = [(title.strip(), text) for title, _, text in (part.partition("\n") for part in parts)]
    dated = re.compile(rf"\[?{re.escape(version)}\]? - \d{{4}}-\d{{2}}-\d{{2}}")
    if not any(dated.fullmatch(title) and _says_something(text) for title, text in sections):
        return Answer(question, False, f"write a section '## {version} - YYYY-MM-DD' with the day and what changed")
    if any(title.strip("[]") == "Unreleased" and _says_something(text) for title, text in sections):
        return Answer(question, False, f"something is still under Unreleased; move it to {version}")
    return Answer(question, True, "")


def _says_something(section: str) -> bool:
    return any(line.strip() and not line.startswith("#") for line in section.splitlines())


def fresh(tree: pathlib.Path, pages: Mapping[str, str]) -> Answer:
    """Check that the generated documents are current."""
    stale = [name for name, text in pages.items() if not (tree / name).exists() or (tree / name).read_text() != text]
    return Answer("generated pages are fresh", not stale, f"run make docs: {_listed(stale)}" if stale else "")


def images(tree: pathlib.Path, version: str) -> Answer:
    """Check that both images are built from this commit, and report their digests for pinning."""
    question, folder = "images are built", tree / "build" / "images"
    facts = folder / "images.json"
    if not facts.exists():
        return Answer(question, False, "run make images: build/images/images.json is not there")
    if _older_than_the_commit(tree, facts):
        return Answer(question, False, "run make images: they are older than the last commit")
    detail = json.loads(facts.read_text())
    digests = {name: detail.get(name, {}).get("digest") or "" for name in IMAGES}
    if not all(digests.values()):
        missing = _listed(name for name, digest in digests.items() if not digest)
        return Answer(question, False, f"run make images: no digest of {missing}")
    bills = {name: folder / f"{name}.cdx.json" for name in IMAGES}
    other = [name for name, bill in bills.items() if not bill.exists() or not _names(bill, version)]
    if other:
        return Answer(question, False, f"run make images: {_listed(other)} does not hold hami-py {version}")
    return Answer(question, True, ", ".join(f"{name} {digest}" for name, digest in digests.items()))


def _names(bill: pathlib.Path, version: str) -> bool:
    parts = json.loads(bill.read_text()).get("components", [])
    return any((part.get("name"), part.get("version")) == ("hami-py", version) for part in parts)


def distributions(tree: pathlib.Path, version: str) -> Answer:
    """Check that `make dist` has built and tested this commit."""
    question, folder = "wheel and sdist are built", tree / "dist"
    wanted = distribution_files(version)
    missing = [name for name in wanted if not (folder / name).exists()]
    if missing:
        return Answer(question, False, f"run make dist: dist/ has no {_listed(missing)}")
    if any(_older_than_the_commit(tree, folder / name) for name in wanted):
        return Answer(question, False, "run make dist: they are older than the last commit")
    return Answer(question, True, _listed(wanted))


def collected(tree: pathlib.Path, version: str) -> Answer:
    """Check that the files to publish lie together, and have the content of their checksums."""
    question, folder = "the files to publish are in build/release", tree / "build" / "release"
    sums = folder / "SHA256SUMS"
    if not sums.exists() or _older_than_the_commit(tree, sums):
        return Answer(question, False, f"run python -m release v{version} --build")
    lines = [line.partition("  ") for line in sums.read_text().splitlines()]
    listed = {name: sha256 for sha256, _, name in lines}
    wanted = {f"hami-{version}.tgz", *distribution_files(version), *(f"{name}-{version}.oci.tar" for name in IMAGES)}
    missing = sorted(wanted - listed.keys()) or [name for name in listed if not _has(folder / name, listed[name])]
    if missing:
        return Answer(question, False, f"run python -m release v{version} --build: not as built: {_listed(missing)}")
    return Answer(question, True, f"{len(listed)} files with SHA256SUMS")


def _has(path: pathlib.Path, sha256: str) -> bool:
    if not path.exists():
        return False
    with path.open("rb") as content:
        return hashlib.file_digest(content, "sha256").hexdigest() == sha256


def distribution_files(version: str) -> tuple[str, str]:
    """Return the wheel and the sdist."""
    return f"hami_py-{version}-py3-none-any.whl", f"hami_py-{version}.tar.gz"


def _older_than_the_commit(tree: pathlib.Path, path: pathlib.Path) -> bool:
    return path.stat().st_mtime < float(_git(tree, "log", "-1", "--format=%ct"))


def _listed(names: Iterable[str]) -> str:
    return ", ".join(names)


def _git(tree: pathlib.Path, *arguments: str) -> str:
    command = ("git", *arguments)
    return subprocess.run(command, cwd=tree, check=True, capture_output=True, text=True).stdout  # noqa: S603
