"""What each verbosity of a real extender adds to its log, and that every line has the form that was asked for."""

import pathlib
import re
import signal
import subprocess
from collections.abc import Iterator

import pytest

from lab import api_server, extender_process, gpus, kinds
from tests.component import calls

pytestmark = pytest.mark.slow

ADDED = {
    3: {"bound"},
    4: {"node"},
    5: {"gpu", "score"},
    6: {"API call", "API watch", "fit cache", "probe"},
}
"""Events that are written from a verbosity on."""
KLOG = re.compile(r'[IWEF]\d{4} \d{2}:\d{2}:\d{2}\.\d{6} +\d+ [^:\]]+:\d+\] "(?:[^"\\]|\\.)*"(?: \w+=.*)?')


def decided(server: api_server.Running, folder: pathlib.Path, *flags: str) -> extender_process.ExtenderProcess:
    """An extender that has placed one pod and rejected another; it has ended, and its log is complete."""
    folder.mkdir()
    kubeconfig = server.write_kubeconfig(folder / "kubeconfig")
    with extender_process.running(kubeconfig, folder / "log", *flags) as extender:
        pod = calls.create(server, f"fits-{folder.name}")
        calls.filtered(extender, pod, "a", "b")
        calls.call(extender, "prioritize", {"Pod": pod, "Nodes": None, "NodeNames": ["a", "b"]})
        assert calls.bind(extender, pod, "a") == ""
        calls.filtered(extender, calls.create(server, f"large-{folder.name}", {"nvidia.com/gpu": "9"}), "a", "b")
    return extender


@pytest.fixture
def server() -> Iterator[api_server.Running]:
    with api_server.running() as running:
        keep = running.app.store
        running.call(lambda: [keep.create(kinds.NODES, "", gpus.gpu_node(name, gpus.A100, 2)) for name in "ab"])
        yield running


def test_each_verbosity_adds_what_the_page_says(server: api_server.Running, tmp_path: pathlib.Path) -> None:
    """The operator who raises it by one sees one more kind of detail, and none of the next."""
    for verbosity in range(2, 7):
        extender = decided(server, tmp_path / str(verbosity), "--v", str(verbosity))
        written = {str(line["event"]) for line in extender.log_lines()}
        assert "Failed to schedule pod" in written
        for level, events in ADDED.items():
            if level <= verbosity:
                assert events <= written, (verbosity, events - written)
            else:
                assert not events & written, (verbosity, events & written)


def test_a_score_is_shown_with_the_parts_that_it_comes_from(server: api_server.Running, tmp_path: pathlib.Path) -> None:
    """By the policy, of how many GPUs stay free: an operator can compute it."""
    extender = decided(server, tmp_path / "scores", "--v", "5")

    scores = [line for line in extender.log_lines() if line["event"] == "score"]
    assert {line["node"] for line in scores} == {"a", "b"}
    assert [line["node"] for line in scores if line["best"]] == ["a"]
    for line in scores:
        assert abs(line["score"] - 100 / (1 + line["free_gpus_after"])) < 1


def test_every_line_of_text_is_klogs(server: api_server.Running, tmp_path: pathlib.Path) -> None:
    """Also those of starts and stops, at the highest verbosity."""
    folder = tmp_path / "text"
    folder.mkdir()
    kubeconfig = server.write_kubeconfig(folder / "kubeconfig")
    extender = extender_process.ExtenderProcess(kubeconfig, folder / "log", "--v", "6", "--log-format", "text")
    with subprocess.Popen(extender.command(), stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        lines = [next(process.stdout).rstrip("\n") for _ in range(10)]
        process.send_signal(signal.SIGTERM)
        lines += process.stdout.read().splitlines()
    assert '"listening"' in "".join(lines)
    assert [line for line in lines if not KLOG.fullmatch(line)] == []
