"""What the checks of `hamictl doctor` find. Pure, and without the extender's code: a GPU node needs only this part."""

import collections
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from gpu_sharing.core import error_codes

ERROR, WARNING = "error", "warning"
ABSENT = "not installed"
"""The severity of a part that is left out here on purpose: not a problem."""
MOST_LISTED = 5
"""Findings with one code that a table lists one by one; more are counted."""
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


def rows(findings: Iterable[Finding], *, each: bool) -> list[dict[str, str]]:
    """Return the rows of a table.

    Args:
        findings: In the order of the checks.
        each: Whether each finding has a row; else more than `MOST_LISTED` with one code have one together.
    """
    by_code: dict[tuple[str, str], list[Finding]] = collections.defaultdict(list)
    for finding in findings:
        by_code[finding.code, finding.severity].append(finding)
    listed: list[dict[str, str]] = []
    for some in by_code.values():
        if each or len(some) <= MOST_LISTED:
            listed += [_row(finding, finding.about, finding.detail) for finding in some]
        else:
            listed.append(_row(some[0], _together(some), f"{some[0].about.partition('/')[2]}: {some[0].detail}"))
    return listed


def _row(finding: Finding, about: str, detail: str) -> dict[str, str]:
    return {
        "SEVERITY": finding.severity,
        "ABOUT": about,
        "CODE": finding.code,
        "DETAIL": detail,
        "WHAT TO DO": error_codes.REGISTRY[finding.code].remedy,
    }


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
