"""Wheel and sdist as `make dist` left them in dist/: what they hold, and that they run where there is no clone."""

import email.message
import email.parser
import os
import pathlib
import re
import subprocess
import sys
import tarfile
import tomllib
import zipfile
from typing import Any

import pytest

from gpu_sharing.core import version

ROOT = pathlib.Path(__file__).parents[2]
WHEEL = ROOT / "dist" / f"hami_py-{version.VERSION}-py3-none-any.whl"
SDIST = ROOT / "dist" / f"hami_py-{version.VERSION}.tar.gz"
PYPROJECT: dict[str, Any] = tomllib.loads((ROOT / "pyproject.toml").read_text())
PACKAGES: list[str] = PYPROJECT["tool"]["hatch"]["build"]["targets"]["wheel"]["packages"]


@pytest.fixture(scope="module", autouse=True)
def built() -> None:
    assert WHEEL.exists(), "build them first: make dist"
    assert SDIST.exists(), "build them first: make dist"


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    """The programs of a fresh environment with what is locked, and the wheel."""
    folder = tmp_path_factory.mktemp("installed")
    subprocess.run([sys.executable, "-m", "venv", folder], check=True)
    pip = (folder / "bin" / "pip", "install", "--quiet", "--disable-pip-version-check")
    subprocess.run([*pip, "--require-hashes", "-r", ROOT / "requirements" / "run.txt"], check=True)
    subprocess.run([*pip, "--no-index", "--no-deps", WHEEL], check=True)
    return folder / "bin"


def contents(wheel: pathlib.Path) -> dict[str, bytes]:
    with zipfile.ZipFile(wheel) as opened:
        return {name: opened.read(name) for name in opened.namelist()}


def metadata() -> email.message.Message:
    with zipfile.ZipFile(WHEEL) as opened:
        text = opened.read(f"hami_py-{version.VERSION}.dist-info/METADATA").decode()
    return email.parser.Parser().parsestr(text)


def ours() -> set[str]:
    """The files of the packages in this tree, of those that git does not ignore."""
    listed = ("git", "ls-files", "--cached", "--others", "--exclude-standard", "--", *PACKAGES)
    said = subprocess.run(listed, cwd=ROOT, check=True, capture_output=True, text=True).stdout
    return {name for name in said.splitlines() if (ROOT / name).exists()}


def name_of(requirement: str) -> str:
    return re.split(r"[^\w.-]", requirement, maxsplit=1)[0]


def run(installed: pathlib.Path, folder: pathlib.Path, *command: str) -> str:
    """What a program of the wheel prints, started where nothing of the tree is in reach."""
    clean = {name: value for name, value in os.environ.items() if not name.startswith(("PYTHON", "HAMI_"))}
    done = subprocess.run(
        [installed / command[0], *command[1:]], cwd=folder, env=clean, capture_output=True, text=True, timeout=180
    )
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    return done.stdout


def test_the_wheel_holds_our_packages_as_they_are_and_nothing_else() -> None:
    """What was tested is what is installed, with templates, scripts and traces; tests are for those with a clone."""
    held = {name: data for name, data in contents(WHEEL).items() if ".dist-info/" not in name}

    assert set(held) == ours()
    assert [name for name, data in held.items() if data != (ROOT / name).read_bytes()] == []
    assert [name for name in held if "tests" in pathlib.PurePath(name).parts or "test_" in name] == []


@pytest.mark.parametrize(
    "name",
    [
        "webui/templates/base.html",
        "webui/static/page.js",
        "webui/static/vendor/htmx-LICENSE.txt",
        "webui/static/vendor/uplot-LICENSE.txt",
        "lab/fake_driver/nvml.c",
        "lab/fake_driver/personalities/h100.toml",
        "lab/traces/openb-small-nodes.csv",
        "lab/traces/openb-small-pods.csv",
        "lab/traces/README.md",
    ],
)
def test_the_wheel_holds_what_is_no_python(name: str) -> None:
    """A page without its style, or a trace without its source, shows only at whoever installed it."""
    assert contents(WHEEL)[name]


def test_licences_travel_with_what_they_are_of() -> None:
    """Those who pass the wheel on pass on the terms, those of the JavaScript in it too."""
    told = metadata()

    assert told["License-Expression"] == "Apache-2.0 AND 0BSD AND MIT"
    files = set(told.get_all("License-File", []))
    assert files == {"LICENSE", *(f"webui/static/vendor/{one}-LICENSE.txt" for one in ("htmx", "uplot"))}
    held = contents(WHEEL)
    for name in files:
        assert held[f"hami_py-{version.VERSION}.dist-info/licenses/{name}"] == (ROOT / name).read_bytes()


def test_the_base_requires_nothing_and_an_extra_only_what_its_part_needs() -> None:
    """A tenant's image gets two libraries, and no part those of another; extras are those of pyproject.toml."""
    wanted = [one.partition(";") for one in metadata().get_all("Requires-Dist", [])]
    extras: dict[str, set[str]] = {}
    for requirement, _, marker in wanted:
        found = re.search(r"extra == '([\w-]+)'", marker)
        extras.setdefault(found[1] if found else "", set()).add(name_of(requirement.strip()))

    assert "" not in extras
    assert extras["workload"] == {"nvidia-ml-py", "prometheus-client"}
    declared = PYPROJECT["project"]["optional-dependencies"]
    # An extra of extras is written out in the metadata.
    plain = {extra: {name_of(one) for one in told} - {"hami-py"} for extra, told in declared.items()}
    for part in ("extender", "node", "webui"):
        plain[part] |= plain["service"]
    plain["cli"] |= plain["extender"] | plain["kubeconfig"] | plain["node"]
    assert extras == plain


def test_the_sdist_gives_the_same_wheel(tmp_path: pathlib.Path) -> None:
    """Who builds from the source gets what we published, and needs nothing that is not in it."""
    with tarfile.open(SDIST) as opened:
        opened.extractall(tmp_path, filter="data")
    source = tmp_path / f"hami_py-{version.VERSION}"
    build = (sys.executable, "-m", "hatchling", "build", "--target", "wheel", "--directory", tmp_path)
    subprocess.run(build, cwd=source, check=True, capture_output=True)

    assert contents(tmp_path / WHEEL.name) == contents(WHEEL)
    assert not (source / "tests").exists()


def test_the_demo_runs_from_the_wheel_alone(installed: pathlib.Path, tmp_path: pathlib.Path) -> None:
    """The first thing that somebody tries after `pip install` works without a clone."""
    said = run(installed, tmp_path, "hamictl", "demo", "--once")

    assert "GPU memory insufficient" in said
    assert "Traceback" not in said


def test_the_trace_is_replayed_from_the_wheel_alone(installed: pathlib.Path, tmp_path: pathlib.Path) -> None:
    """The trace's tables are data of the wheel, and found where it is installed."""
    assert run(installed, tmp_path, "hamictl", "demo", "--once", "--trace")


def test_a_code_is_explained_from_the_wheel_alone(installed: pathlib.Path, tmp_path: pathlib.Path) -> None:
    """Whoever meets a code can look it up where only the command line is."""
    assert "SCHED_NOT_READY" in run(installed, tmp_path, "hamictl", "explain-code", "SCHED_NOT_READY")
    assert "hami" in run(installed, tmp_path, "kubectl-hami", "--help")
