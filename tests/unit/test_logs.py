"""What is logged at which verbosity, in which form, and how often."""

import json
import re
import subprocess
import sys
from typing import Any

import pytest
import structlog

from gpu_sharing.adapters import logs

PROGRAM = """
import os, signal, structlog
from gpu_sharing.adapters import logs
logs.configure({verbosity}, {form!r})
log = structlog.get_logger("x")
{body}
"""


def output(body: str, verbosity: int = 3, form: str = "json") -> list[str]:
    """The lines that a process logs."""
    program = PROGRAM.format(verbosity=verbosity, form=form, body=body)
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=True)
    return done.stdout.splitlines()


def events(lines: list[str]) -> list[str]:
    return [json.loads(line)["event"] for line in lines]


EVERY = """
log.error("e"); log.warning("w"); log.info("i"); log.debug("d")
for number in range(7):
    if logs.shows(number): log.error(f"shows {number}")
"""


@pytest.mark.parametrize("verbosity", range(7))
def test_each_verbosity_adds_its_own(verbosity: int) -> None:
    """0 errors, 1 warnings, 2 changes, 6 probes."""
    expected = ["e"] + ["w"] * (verbosity >= 1) + ["i"] * (verbosity >= 2) + ["d"] * (verbosity >= 6)
    assert events(output(EVERY, verbosity)) == [*expected, *(f"shows {number}" for number in range(verbosity + 1))]


def test_the_level_changes_while_the_process_runs() -> None:
    """By signal: more, and less."""
    body = """
import time
log.debug("unheard")
for _ in range(9): os.kill(os.getpid(), signal.SIGUSR1)
while not logs.shows(6): time.sleep(0.01)
log.debug("heard")
for _ in range(9): os.kill(os.getpid(), signal.SIGUSR2)
while logs.shows(1): time.sleep(0.01)
log.warning("unheard"); log.error("still heard")
"""
    heard = [one for one in events(output(body)) if one != "verbosity changed"]
    assert heard == ["heard", "still heard"]


KLOG = re.compile(r"([IWEF])(\d{4}) (\d{2}:\d{2}:\d{2}\.\d{6}) +(\d+) ([^:\]]+):(\d+)\] (.*)")
"""Source: k8s.io/klog/v2, `klog.go`, "Log lines have this form: Lmmdd hh:mm:ss.uuuuuu threadid file:line] msg...\"."""
PAIR = re.compile(r' (\w+)=("(?:[^"\\]|\\.)*"|\[.*?\]|[^ "]+)')


def test_a_line_of_text_is_klogs_to_the_letter() -> None:
    """So that tools that parse the components of Kubernetes parse these processes too; an event is one line."""
    body = """
log.error("Failed to schedule pod", error_code="SCHED_X", pod="ai/train", node="n1", requested="8000MB",
          available="4000MB", why='0/1\\n  n1: "x"', gpus=2, share=0.5, fits=False, victims=["a", "b"], none=None)
"""
    (line,) = output(body, form="text")
    found = KLOG.fullmatch(line)
    assert found is not None, line
    letter, _, _, process, file, number, message = found.groups()
    assert (letter, file, int(number) > 0, int(process) > 0) == ("E", "<string>", True, True)
    assert line.index("]") < line.index('"Failed to schedule pod"')
    head, _, rest = message.partition('"Failed to schedule pod"')
    assert head == ""
    assert dict(PAIR.findall(rest)) == {
        "error_code": '"SCHED_X"', "pod": '"ai/train"', "node": '"n1"', "requested": '"8000MB"',
        "available": '"4000MB"', "why": r'"0/1\n  n1: \"x\""', "gpus": "2", "share": "0.5", "fits": "false",
        "victims": '["a","b"]', "none": "<nil>",
    }  # fmt: skip


def test_the_process_id_has_the_width_of_klogs() -> None:
    """Seven columns, so that the lines of one file stand below each other."""
    (line,) = output('log.warning("w")', form="text")
    assert line[0] == "W"
    assert len(line.split(" ", 2)[2].partition(" <string>")[0]) == 7


def test_repeats_are_left_out_and_counted() -> None:
    """Of warnings and errors; the decision's id and the time make no difference, the pod does."""
    now = [0.0]
    repeats = logs.Repeats(lambda: now[0])

    def write(level: str = "error", **facts: Any) -> dict[str, Any] | None:
        try:
            return dict(repeats(None, level, {"event": "refused", "level": level, **facts}))
        except structlog.DropEvent:
            return None

    first = write(pod="a", decision_id="1")
    assert first is not None
    assert "repeated" not in first
    assert [write(pod="a", decision_id="2"), write(pod="a", decision_id="3")] == [None, None]
    assert write(pod="b", decision_id="4") is not None
    assert write("info", pod="a") is not None
    assert write("info", pod="a") is not None
    now[0] = 10.0
    later = write(pod="a", decision_id="5")
    assert later is not None
    assert later["repeated"] == 2
    for number in range(3000):
        write(pod=str(number))
    assert write(pod="a") is not None
