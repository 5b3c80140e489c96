"""The demo, as a newcomer runs it."""

import json
import subprocess
import sys

import pytest

from gpu_sharing.core import error_codes

pytestmark = pytest.mark.slow


def hamictl(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-m", "hamictl", *arguments], capture_output=True, text=True, timeout=120)


def test_the_story_goes_as_told_and_is_printed_as_one_json_object() -> None:
    """Exit status 0 means that every expectation held, and the object shows it."""
    done = hamictl("demo", "--once", "--output", "json")

    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout)
    assert set(told) == {"pods", "nodes", "expectations"}
    assert all(one["held"] for one in told["expectations"])
    by_name = {pod["name"]: pod for pod in told["pods"]}
    assert by_name["share-a"]["gpus"] == by_name["share-b"]["gpus"]
    assert by_name["share-a"]["gpus"][0].keys() == {"uuid", "memory_mib", "cores_percent"}
    assert by_name["too-big"]["node"] is None
    assert by_name["too-big"]["reason"] == "0/3 nodes available: 3 GPU memory insufficient"


def test_many_pods_and_a_trace_end_with_figures() -> None:
    """Allocation, pods per second and latencies."""
    for arguments in (("--nodes", "4", "--pods", "40"), ("--trace",)):
        done = hamictl("demo", "--once", *arguments)
        assert done.returncode == 0, done.stdout + done.stderr
        assert "pods/s" in done.stdout
        assert "allocated" in done.stdout
        assert "bind: p50" in done.stdout


def test_a_trace_that_is_none_is_refused(tmp_path: object) -> None:
    """With the name of the file and what is missing."""
    done = hamictl("demo", "--once", "--trace", f"{tmp_path}/nothing.csv")

    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == f"hamictl demo: no such file or folder: {tmp_path}/nothing.csv\n"


def test_codes_are_explained_and_unknown_ones_are_listed() -> None:
    """From the log line to what to do."""
    known = hamictl("explain-code", "sched_insufficient_gpu_memory")
    unknown = hamictl("explain-code", "SCHED_NONSENSE")

    entry = error_codes.REGISTRY[error_codes.INSUFFICIENT_GPU_MEMORY]
    assert known.stdout == f"{entry.code}\n  {entry.meaning}\n  {entry.remedy}\n"
    assert unknown.returncode == 1
    assert "SCHED_INSUFFICIENT_GPU_MEMORY" in unknown.stderr


def test_explain_says_when_there_is_no_extender(monkeypatch: pytest.MonkeyPatch) -> None:
    """Not a traceback; the flag wins over the environment."""
    monkeypatch.setenv("HAMI_EXTENDER", "http://127.0.0.1:2")

    for flag, port in (((), 2), (("--extender", "http://127.0.0.1:1"), 1)):
        done = hamictl("explain", "p", *flag)
        assert done.returncode == 2
        assert done.stderr.startswith(f"hamictl: no answer from http://127.0.0.1:{port}")
