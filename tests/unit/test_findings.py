"""How `hamictl doctor` prints what it found, and how hamictl reads numbers."""

import argparse

import pytest

from gpu_sharing.core import error_codes
from hamictl import findings, flags, output

PLAIN = output.Style()


def finding(number: int, code: error_codes.Code = error_codes.DOCTOR_DRIFT) -> findings.Finding:
    return findings.Finding(
        code, findings.ERROR, f"pod/team-{number}/a-pod-with-a-long-name-{number}", "a detail " * 12
    )


def test_findings_fit_a_terminal_of_80_columns() -> None:
    """Lines that wrap anywhere make a table of five columns unreadable."""
    every = [finding(number, code) for code in error_codes.REGISTRY for number in range(3)]

    lines = findings.blocks(every, PLAIN)

    assert [line for line in lines if len(line) > findings.COLUMNS] == []
    assert sum(line.startswith("  what to do: ") for line in lines) == len(error_codes.REGISTRY)


def test_a_name_that_is_longer_than_a_line_stays_whole() -> None:
    """It is copied into the next command."""
    name = f"pod/team/{'x' * 120}"

    lines = findings.blocks([findings.Finding(error_codes.DOCTOR_DRIFT, findings.ERROR, name, "why")], PLAIN)

    assert any(f"{name}:" in line for line in lines)


def test_many_findings_with_one_code_are_one_block() -> None:
    """2,000 pods with one problem have one cause, and one remedy."""
    lines = findings.blocks([finding(number) for number in range(2000)], PLAIN)

    assert len(lines) < 20
    assert "2,000 pods: team-0/" in lines[1]


def test_the_severity_is_coloured_and_no_name_can_be() -> None:
    """Names come from the cluster, and may hold the codes of a terminal."""
    planted = findings.Finding(error_codes.DOCTOR_DRIFT, findings.ERROR, "pod/\033[31m", "why")

    first, second, *_ = findings.blocks([planted], output.Style(coloured=True))

    assert first.startswith("\033[31merror\033[0m")
    assert "\033" not in second


@pytest.mark.parametrize(("text", "number"), [("1", 1), ("65535", 65_535), ("007", 7)])
def test_a_whole_number_in_the_range_is_read(text: str, number: int) -> None:
    """Both ends of the range are accepted."""
    assert flags.whole(1, 65_535)(text) == number


@pytest.mark.parametrize(
    "text", ["", "0", "65536", "-1", "+1", "1.0", "1e3", " 1", "\u0663", "\u00b2", "x", "9" * 5000]
)
def test_any_other_text_is_refused_with_the_range(text: str) -> None:
    """The same flag accepted digits of other scripts in one command, and not in another."""
    with pytest.raises(argparse.ArgumentTypeError, match=r"is not a port from 1 to 65,535") as refused:
        flags.whole(1, 65_535, "a port")(text)

    assert len(str(refused.value)) < 100
