"""The table of what scenarios have shown, and what got worse since the committed baseline."""

import dataclasses
import json
import pathlib
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import msgspec

from chaos import measure

PAGE = pathlib.Path(__file__).parents[1] / "docs/explanation/when-things-break.md"
_BEGIN, _END = "<!-- table: python -m chaos --write-page -->", "<!-- end of table -->"
BASELINE = pathlib.Path(__file__).with_name("baseline.json")
_PERCENT_WORSE = 20.0
"""Points by which a percentage may be lower than in the baseline: both are of one run on a busy machine."""
_TIMES_WORSE = 2.0
_SECONDS_WORSE = 30.0
"""A recovery is worse if it takes twice as long and half a minute longer: kube-scheduler tries a pod again after up to
10 s, so that its waits come in steps."""
_LEAST_PODS = 50
"""The percentage of fewer pods says nothing."""
_RATIO_WORSE = 4.0
"""How many times the ratio of waiting in recovery to waiting before the fault may be that of the baseline."""
_LEAST_WAIT_SECONDS = 0.05
_LONG_WAIT_SECONDS = 5.0
"""A wait that is shorter is no regression, whatever its ratio."""

_HEAD = (
    "| scenario | replicas | pods | bound | in the fault phase | recovery | p95 before, during, after | lost | bindings repeated | violations |\n"  # noqa: E501
    "| --- | --- | --- | --- | --- | --- | --- | --- | --- | --- |"
)


def table(results: Iterable[measure.Result]) -> str:
    """Return the results as a Markdown table."""
    return "\n".join([_HEAD, *map(_row, results)])


def _row(result: measure.Result) -> str:
    recovery = "never" if result.recovery_seconds is None else f"{result.recovery_seconds:.1f} s"
    waits = ", ".join(f"{one.p95_seconds:.2f}" for one in (result.steady, result.fault, result.recovery))
    during = f"{result.fault.bound_percent:.0f} % of {result.fault.created}" if result.fault.created else "none created"
    cells = (
        result.title, result.replicas, result.pods, f"{result.bound_percent:.1f} %", during, recovery, f"{waits} s",
        result.lost, result.repeated_bindings, len(result.violations),
    )  # fmt: skip
    return "| " + " | ".join(map(str, cells)) + " |"


def write_page(results: Sequence[measure.Result], conditions: Mapping[str, Any], page: pathlib.Path = PAGE) -> None:
    """Replace the table of the page, and the conditions below it."""
    head, _, rest = page.read_text().partition(_BEGIN)
    foot = rest.partition(_END)[2]
    told = ", ".join(f"{name} {value}" for name, value in conditions.items())
    page.write_text(f"{head}{_BEGIN}\n\n{table(results)}\n\nConditions: {told}.\n\n{_END}{foot}")


def ratios(result: measure.Result) -> dict[str, float | None]:
    """Return what is compared with another run; None is not judged."""
    before, after = max(result.steady.p95_seconds, _LEAST_WAIT_SECONDS), result.recovery.p95_seconds
    many = result.fault.created >= _LEAST_PODS
    return {
        "bound_percent": round(result.bound_percent, 1),
        "during_percent": round(result.fault.bound_percent, 1) if many else None,
        "recovery_seconds": result.recovery_seconds,
        "wait_ratio": round(after / before, 1) if after >= _LONG_WAIT_SECONDS else 1.0,
    }


def worse(results: Iterable[measure.Result], baseline: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """Return a sentence for everything that got worse since a baseline; a scenario that is not in it is not judged."""
    found = []
    for result in results:
        before, now = baseline.get(result.name), ratios(result)
        if before is None:
            continue
        for key in ("bound_percent", "during_percent"):
            was, is_now = float(before.get(key) or 0), now[key]
            if is_now is not None and is_now < was - _PERCENT_WORSE:
                found.append(f"{result.name}: {key} is {is_now:g}, it was {was:g}")
        found += _slower(result.name, before.get("recovery_seconds"), now["recovery_seconds"])
        was = float(before.get("wait_ratio") or 0)
        if (now["wait_ratio"] or 0) > max(_RATIO_WORSE * was, _RATIO_WORSE):
            found.append(f"{result.name}: wait_ratio is {now['wait_ratio']:g}, it was {was:g}")
    return found


def _slower(name: str, was: float | None, now: float | None) -> list[str]:
    if was is None:
        return []
    if now is None:
        return [f"{name}: it does not recover; it did in {was:g} s"]
    if now > _TIMES_WORSE * was and now > was + _SECONDS_WORSE:
        return [f"{name}: recovery takes {now:g} s, it took {was:g} s"]
    return []


def write_baseline(results: Sequence[measure.Result], path: pathlib.Path = BASELINE) -> None:
    """Replace these scenarios in the baseline, and keep the others."""
    kept = read_baseline(path)
    kept |= {result.name: ratios(result) for result in results}
    path.write_text(json.dumps(dict(sorted(kept.items())), indent=1) + "\n")


def read_baseline(path: pathlib.Path = BASELINE) -> dict[str, Any]:
    """Return the baseline by scenario; empty if there is none."""
    if not path.exists():
        return {}
    found: dict[str, Any] = json.loads(path.read_text())
    return found


def from_json(text: str) -> list[measure.Result]:
    """Return what `as_json` wrote."""
    return msgspec.json.decode(text, type=list[measure.Result])


def as_json(results: Iterable[measure.Result]) -> str:
    """Return everything that was measured."""
    return json.dumps([dataclasses.asdict(result) for result in results], indent=1) + "\n"
