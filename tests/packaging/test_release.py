"""The checklist of a release, asked about made-up trees."""

import json
import os
import pathlib
import subprocess
import tarfile
from collections.abc import Callable

import pytest
import yaml

from release import __main__ as checklist
from release import artifacts, checks

ROOT = pathlib.Path(__file__).parents[2]
PAGES = {"docs/reference/events.md": "# Events\n"}
CHANGELOG = "# Changelog\n\n## Unreleased\n\n### Added\n\n## 1.2.3 - 2026-03-01\n\n### Added\n\n- Everything.\n"


def write(tree: pathlib.Path, name: str, text: str) -> None:
    path = tree / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


def git(tree: pathlib.Path, *arguments: str) -> None:
    who = ("-c", "user.name=somebody", "-c", "user.email=somebody@example.com", "-c", "commit.gpgsign=false")
    subprocess.run(("git", *who, *arguments), cwd=tree, check=True, capture_output=True)


def bill(version: str) -> str:
    return json.dumps({"components": [{"name": "hami-py", "version": version}]})


@pytest.fixture
def tree(tmp_path: pathlib.Path) -> pathlib.Path:
    """A tree that is ready to be released as v1.2.3."""
    write(tmp_path, ".gitignore", "build/\ndist/\n")
    write(tmp_path, "gpu_sharing/core/version.py", '"""Which."""\n\nVERSION = "1.2.3"\n')
    write(tmp_path, "charts/hami/Chart.yaml", "version: 1.2.3\nappVersion: 1.2.3\n")
    write(tmp_path, "CHANGELOG.md", CHANGELOG)
    write(tmp_path, "docs/reference/events.md", "# Events\n")
    write(tmp_path, "charts/hami/values.yaml", (ROOT / "charts/hami/values.yaml").read_text())
    git(tmp_path, "init")
    git(tmp_path, "add", ".")
    git(tmp_path, "commit", "--message", "1.2.3")
    write(tmp_path, "dist/hami_py-1.2.3-py3-none-any.whl", "")
    write(tmp_path, "dist/hami_py-1.2.3.tar.gz", "")
    write(tmp_path, "build/images/images.json", json.dumps({name: {"digest": "sha256:0"} for name in checks.IMAGES}))
    for name in checks.IMAGES:
        write(tmp_path, f"build/images/{name}.cdx.json", bill("1.2.3"))
        write(tmp_path, f"build/images/{name}.tar", name)
    write(tmp_path, "build/release/hami-1.2.3.tgz", "")
    artifacts.collect(tmp_path, "1.2.3", tmp_path / "build" / "release")
    return tmp_path


def refused(tree: pathlib.Path, tag: str = "v1.2.3") -> dict[str, str]:
    """What is answered with no, and what is told to do."""
    return {one.question: one.detail for one in checks.all_of(tree, tag, PAGES) if not one.yes}


def made_before_the_commit(tree: pathlib.Path, name: str) -> None:
    os.utime(tree / name, (0, 0))


def test_a_tree_that_is_ready_gets_a_yes_to_all(tree: pathlib.Path) -> None:
    """Nobody is held up by a list that is never satisfied; the digests are told, to be written down."""
    answers = list(checks.all_of(tree, "v1.2.3", PAGES))

    assert [one.question for one in answers if not one.yes] == []
    assert len(answers) == 7
    assert "hami sha256:0, hami-node sha256:0" in [one.detail for one in answers]


CASES: list[tuple[str, Callable[[pathlib.Path], None], str, str]] = [
    (
        "a file that is not committed",
        lambda tree: write(tree, "new.py", ""),
        "the working tree is clean",
        "commit or remove: new.py",
    ),
    (
        "a file that was changed",
        lambda tree: write(tree, ".gitignore", "build/\ndist/\nmore/\n"),
        "the working tree is clean",
        "commit or remove: .gitignore",
    ),
    (
        "the code of another version",
        lambda tree: write(tree, "gpu_sharing/core/version.py", 'VERSION = "1.2.2"\n'),
        "code, chart and tag have the same version",
        "gpu_sharing/core/version.py is 1.2.2; write 1.2.3",
    ),
    (
        "a chart that starts images of another version",
        lambda tree: write(tree, "charts/hami/Chart.yaml", "version: 1.2.3\nappVersion: 1.2.2\n"),
        "code, chart and tag have the same version",
        "appVersion in charts/hami/Chart.yaml is 1.2.2; write 1.2.3",
    ),
    (
        "no section",
        lambda tree: write(tree, "CHANGELOG.md", CHANGELOG.replace("1.2.3", "1.2.2")),
        "CHANGELOG.md tells of this version",
        "write a section '## 1.2.3 - YYYY-MM-DD' with the day and what changed",
    ),
    (
        "a section without a day",
        lambda tree: write(tree, "CHANGELOG.md", CHANGELOG.replace(" - 2026-03-01", "")),
        "CHANGELOG.md tells of this version",
        "write a section '## 1.2.3 - YYYY-MM-DD' with the day and what changed",
    ),
    (
        "a section that says nothing",
        lambda tree: write(tree, "CHANGELOG.md", CHANGELOG.replace("- Everything.", "")),
        "CHANGELOG.md tells of this version",
        "write a section '## 1.2.3 - YYYY-MM-DD' with the day and what changed",
    ),
    (
        "a change that no version has",
        lambda tree: write(tree, "CHANGELOG.md", CHANGELOG.replace("### Added\n", "### Added\n\n- More.\n", 1)),
        "CHANGELOG.md tells of this version",
        "something is still under Unreleased; move it to 1.2.3",
    ),
    (
        "a page of an older version",
        lambda tree: write(tree, "docs/reference/events.md", "# Old\n"),
        "generated pages are fresh",
        "run make docs: docs/reference/events.md",
    ),
    (
        "a page that was never made",
        lambda tree: (tree / "docs/reference/events.md").unlink(),
        "generated pages are fresh",
        "run make docs: docs/reference/events.md",
    ),
    (
        "no images",
        lambda tree: (tree / "build/images/images.json").unlink(),
        "images are built",
        "run make images: build/images/images.json is not there",
    ),
    (
        "images of the commit before",
        lambda tree: made_before_the_commit(tree, "build/images/images.json"),
        "images are built",
        "run make images: they are older than the last commit",
    ),
    (
        "one image of two",
        lambda tree: write(tree, "build/images/images.json", '{"hami": {"digest": "sha256:0"}}'),
        "images are built",
        "run make images: no digest of hami-node",
    ),
    (
        "an image of another version",
        lambda tree: write(tree, "build/images/hami-node.cdx.json", bill("1.2.2")),
        "images are built",
        "run make images: hami-node does not hold hami-py 1.2.3",
    ),
    (
        "no sdist",
        lambda tree: (tree / "dist/hami_py-1.2.3.tar.gz").unlink(),
        "wheel and sdist are built",
        "run make dist: dist/ has no hami_py-1.2.3.tar.gz",
    ),
    (
        "a wheel of the commit before",
        lambda tree: made_before_the_commit(tree, "dist/hami_py-1.2.3-py3-none-any.whl"),
        "wheel and sdist are built",
        "run make dist: they are older than the last commit",
    ),
    (
        "files that were not collected",
        lambda tree: (tree / "build/release/SHA256SUMS").unlink(),
        "the files to publish are in build/release",
        "run python -m release v1.2.3 --build",
    ),
    (
        "a file that was changed after its checksum",
        lambda tree: write(tree, "build/release/hami-1.2.3.tgz", "other"),
        "the files to publish are in build/release",
        "run python -m release v1.2.3 --build: not as built: hami-1.2.3.tgz",
    ),
]


@pytest.mark.parametrize(("spoil", "question", "told"), [case[1:] for case in CASES], ids=[case[0] for case in CASES])
def test_what_is_missing_is_named_with_what_to_do(
    tree: pathlib.Path, spoil: Callable[[pathlib.Path], None], question: str, told: str
) -> None:
    """A release that is wrong in one point is stopped at that point, before others can see it."""
    spoil(tree)

    assert refused(tree)[question] == told


@pytest.mark.parametrize("tag", ["1.2.3", "v1.2", "v1.2.3-rc1", "latest"])
def test_a_tag_has_the_form_of_a_version(tree: pathlib.Path, tag: str) -> None:
    """Whoever looks for a version finds its tag, and no second form of it."""
    assert "no tag of a release" in refused(tree, tag)["code, chart and tag have the same version"]


def test_another_tag_than_the_version_is_refused(tree: pathlib.Path) -> None:
    """A slip of the finger publishes nothing under a wrong number."""
    assert len(refused(tree, "v1.2.4")) == 5


def ask(tree: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> int:
    monkeypatch.setattr(checklist, "ROOT", tree)
    monkeypatch.setattr(checklist, "pages", lambda: PAGES)
    monkeypatch.setattr("sys.argv", ["release", "v1.2.3"])
    return checklist.main()


def test_what_remains_is_printed_and_not_run(
    tree: pathlib.Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Nothing leaves the machine by asking whether it may."""
    status = ask(tree, monkeypatch)

    said = capsys.readouterr().out
    assert status == 0
    assert said.count("yes ") == 7
    assert "    git push origin v1.2.3\n" in said
    assert "docker://ghcr.io/hami-py/hami-node:1.2.3" in said
    assert "helm push build/release/hami-1.2.3.tgz oci://ghcr.io/hami-py/charts" in said
    assert "uv publish build/release/hami_py-1.2.3-py3-none-any.whl build/release/hami_py-1.2.3.tar.gz" in said
    tags = subprocess.run(("git", "tag"), cwd=tree, check=True, capture_output=True, text=True)
    assert tags.stdout == ""


def test_nothing_is_told_to_be_run_while_something_is_missing(
    tree: pathlib.Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The commands are seen only by those who may run them."""
    write(tree, "new.py", "")

    assert ask(tree, monkeypatch) == 1
    said = capsys.readouterr().out
    assert "no  the working tree is clean: commit or remove: new.py\n" in said
    assert "git push" not in said


def test_the_chart_is_packaged_with_the_images_of_its_version(tmp_path: pathlib.Path) -> None:
    """The package that is pushed starts the images that are pushed, by the names of the documents."""
    artifacts.package_chart(ROOT, tmp_path)

    (package,) = tmp_path.glob("hami-*.tgz")
    with tarfile.open(package) as content:
        values = content.extractfile("hami/values.yaml")
        assert values is not None
        packaged = yaml.safe_load(values.read())
    assert {packaged["image"]["repository"], packaged["nodeImage"]["repository"]} == set(
        artifacts.repositories(ROOT).values()
    )
    for page in ("README.md", "docs/howto/install.md"):
        text = (ROOT / page).read_text()
        assert all(name in text for name in artifacts.repositories(ROOT).values()), page
        assert f"oci://{artifacts.registry(ROOT)}/charts/hami" in text, page


def test_the_pages_of_this_tree_are_those_that_are_asked_about() -> None:
    """A page that is generated and not in the list would go out stale."""
    root = pathlib.Path(__file__).parents[2]
    note = "Generated by docs/generate.py"
    generated = {str(path.relative_to(root)) for path in root.glob("docs/reference/*.md") if note in path.read_text()}

    assert generated <= set(checklist.pages())
