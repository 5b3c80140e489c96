"""What the checks of `hamictl doctor` find. Pure, and without the extender's code: a GPU node needs only this part."""

import collections
import textwrap
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from gpu_sharing.core import error_codes
from hamictl import output

ERROR, WARNING = "error", "warning"
ABSENT = "not installed"
"""The severity of a part that is left out here on purpose: not a problem."""
MOST_LISTED = 5
"""Findings with one code that a table lists one by one; more are counted."""
COLUMNS = 80
_PLURALS = {"gpu": "GPUs", "quota": "quotas", "extender": "components of the extender"}


@dataclass(frozen=True, slots=True)
class Finding:
    """One problem that a check found."""

    code: error_codes.Code
    severity: str
    about: str
    """The object, such as `node/a` or `pod/default/train`."""
    detail: str

    def to_facts(self) -> dict[str, str]:
        """Return the finding for JSON, with the meaning and remedy of its code."""
        entry = error_codes.REGISTRY[self.code]
        return {
            "code": self.code, "severity": self.severity, "about": self.about, "detail": self.detail,
            "meaning": entry.meaning, "remedy": entry.remedy,
        }  # fmt: skip


Check = tuple[str, Iterable[Finding]]
"""Its name, and what it found."""


def rows(findings: Iterable[Finding]) -> list[dict[str, str]]:
    """Return the rows of a wide table, one a finding, in the order of the checks by code."""
    return [
        {
            "SEVERITY": finding.severity,
            "ABOUT": finding.about,
            "CODE": finding.code,
            "DETAIL": finding.detail,
            "WHAT TO DO": error_codes.REGISTRY[finding.code].remedy,
        }
        for some in _by_code(findings).values()
        for finding in some
    ]


def blocks(findings: Iterable[Finding], style: output.Style) -> list[str]:
    """Return the lines of the findings, a block for each code, for a terminal of 80 columns.

    Of more than `MOST_LISTED` findings with one code the block has their number, and the detail of the first one.
    """
    lines: list[str] = []
    for (code, severity), some in _by_code(findings).items():
        lines.append(f"{output.painted('SEVERITY', severity.ljust(len(WARNING)), style)}  {code}")
        if len(some) <= MOST_LISTED:
            for finding in some:
                lines += _wrapped(f"{finding.about}: {finding.detail}")
        else:
            lines += _wrapped(f"{_together(some)}; {some[0].about.partition('/')[2]}: {some[0].detail}")
        lines += _wrapped(f"what to do: {error_codes.REGISTRY[code].remedy}")
    return lines


def _by_code(findings: Iterable[Finding]) -> Mapping[tuple[error_codes.Code, str], list[Finding]]:
    by_code: dict[tuple[error_codes.Code, str], list[Finding]] = collections.defaultdict(list)
    for finding in findings:
        by_code[finding.code, finding.severity].append(finding)
    return by_code


def _wrapped(text: str) -> list[str]:
    """Return a sentence as lines; a name that is longer than a line is not divided, so that it can be copied."""
    return textwrap.wrap(
        output.clean(text), COLUMNS, initial_indent="  ", subsequent_indent="    ", break_long_words=False,
        break_on_hyphens=False,
    )  # fmt: skip


def _together(some: Sequence[Finding]) -> str:
    """Return the number of objects and the first of them, such as `2,070 pods: ai/a, ai/b, …`."""
    kinds = collections.Counter(finding.about.partition("/")[0] for finding in some)
    counts = " and ".join(f"{count:,} {_PLURALS.get(kind, f'{kind}s')}" for kind, count in kinds.items())
    first = ", ".join(finding.about.partition("/")[2] or finding.about for finding in some[:MOST_LISTED])
    return f"{counts}: {first}, …"


def line(name: str, some: Sequence[Finding]) -> str:
    """Return the line of one check, with what its number counts."""
    problems = sum(1 for finding in some if finding.severity != ABSENT)
    if problems:
        return f"bad  {name}: {problems:,} problem{'s' if problems > 1 else ''}"
    return f"none {name}: not installed here" if some else f"ok   {name}"


def summary(checks: int, some: Sequence[Finding]) -> Mapping[str, int]:
    """Return the numbers of checks, errors and warnings."""
    severities = collections.Counter(finding.severity for finding in some)
    return {"checks": checks, "errors": severities[ERROR], "warnings": severities[WARNING]}
