"""`examples/hami-ops.sh`: what it passes on, and how a nightly run reports a failure."""

import os
import pathlib
import stat
import subprocess

import pytest

SCRIPT = pathlib.Path(__file__).parents[2] / "examples" / "hami-ops.sh"
STUB = """#!/bin/sh
echo "$*" >>"{calls}"
case "$2" in
  backup) echo saved >"$3" ;;
  {failing}) exit 1 ;;
esac
"""


@pytest.fixture
def folder(tmp_path: pathlib.Path) -> pathlib.Path:
    (tmp_path / "backups").mkdir()
    return tmp_path


def run(folder: pathlib.Path, *words: str, failing: str = "none", **environment: str) -> tuple[int, list[str]]:
    """Run the script with a hamictl that writes down its calls. Returns the status and the calls."""
    stub, called = folder / "stub", folder / "calls"
    stub.write_text(STUB.format(calls=called, failing=failing))
    stub.chmod(stub.stat().st_mode | stat.S_IXUSR)
    called.write_text("")
    done = subprocess.run(
        [str(SCRIPT), *words], capture_output=True, text=True, timeout=60,
        env={"PATH": os.environ["PATH"], "HAMICTL": str(stub), **environment},
    )  # fmt: skip
    return done.returncode, called.read_text().splitlines()


def test_an_operation_is_passed_on_as_it_is(folder: pathlib.Path) -> None:
    """With the exit status."""
    assert run(folder, "scale", "2", "--dry-run") == (0, ["ops scale 2 --dry-run"])
    assert run(folder, "disk", failing="disk") == (1, ["ops disk"])
    assert run(folder) == (2, [])
    assert run(folder, "nightly") == (2, [])
    assert run(folder, "nightly", str(folder / "missing")) == (2, [])


def test_the_help_is_the_head_of_the_script(folder: pathlib.Path) -> None:
    """Without a line of code."""
    done = subprocess.run([str(SCRIPT), "--help"], capture_output=True, text=True, timeout=60)

    assert done.returncode == 0
    assert done.stdout.startswith("Operate an installation")
    assert "HAMI_KEEP_DAYS" in done.stdout
    assert "set -eu" not in done.stdout


def test_a_good_night_deletes_old_backups_and_says_nothing(folder: pathlib.Path) -> None:
    """A file of another name stays."""
    old, other = folder / "backups" / "hami-old.json", folder / "backups" / "other.json"
    for path in (old, other):
        path.write_text("x")
        os.utime(path, (0, 0))
    address = folder / "address"

    status, called = run(folder, "nightly", str(folder / "backups"), HAMI_NOTIFY_FILE=str(address))

    assert status == 0
    assert [call.split()[1] for call in called] == ["backup", "cleanup", "disk", "health"]
    assert not old.exists()
    assert other.exists()


def test_a_bad_night_goes_on_and_is_reported_once_with_what_failed(folder: pathlib.Path) -> None:
    """Old backups stay: the new one may be the broken one. Without an address nothing is sent."""
    old = folder / "backups" / "hami-old.json"
    old.write_text("x")
    os.utime(old, (0, 0))

    status, called = run(folder, "nightly", str(folder / "backups"), failing="cleanup | health", HAMI_NOTIFY_FILE="f")
    silent, quiet = run(folder, "nightly", str(folder / "backups"), failing="health")

    assert (status, silent) == (1, 1)
    assert [call.split()[1] for call in called] == ["backup", "cleanup", "disk", "health", "notify"]
    assert called[-1].startswith("ops notify --url-file f --text GPU sharing, nightly run on ")
    assert called[-1].endswith(": failed: cleanup health")
    assert "notify" not in " ".join(quiet)
    assert old.exists()


def test_ci_reports_a_failed_run_only_where_an_address_is_set(tmp_path: pathlib.Path) -> None:
    """A report that is not sent does not hide the failure."""
    text = (SCRIPT.parents[1] / ".ci" / "run").read_text()
    functions = (
        "report_failure()" + text.split("\nreport_failure()")[1].split("\npackages=")[0].rsplit("\nmissing()")[0]
    )
    program = tmp_path / ".venv" / "bin" / "hamictl"
    program.parent.mkdir(parents=True)
    (tmp_path / "failed").write_text("test\nchart\n")
    head = "set -euo pipefail; logs=.; begin=0; minutes() { echo 1; }\n"

    def ci(status: int, **environment: str) -> tuple[int, str]:
        program.write_text(f'#!/bin/sh\necho "$*" >>calls\nexit {status}\n')
        program.chmod(0o700)
        (tmp_path / "calls").write_text("")
        done = subprocess.run(
            ["bash", "-c", f"{head}{functions}\nfinish"], cwd=tmp_path, capture_output=True, text=True, timeout=60,
            env={"PATH": os.environ["PATH"], **environment},
        )  # fmt: skip
        assert "FAILED: test chart" in done.stdout, done
        return done.returncode, (tmp_path / "calls").read_text()

    assert ci(0) == (1, "")
    for status in (0, 1):
        found, calls = ci(status, HAMI_CI_NOTIFY_FILE="address")
        assert found == 1
        assert calls.startswith("ops notify --url-file address --text CI of ")
        assert calls.endswith("failed: test chart \n")
