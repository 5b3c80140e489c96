"""A scenario as its file defines it: cluster, load, faults, and what is expected.

A file is refused before anything is started, with every problem of it named at once.
"""

import pathlib
import tomllib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

FOLDER = pathlib.Path(__file__).with_name("scenarios")
_MOST_SECONDS = 7200.0


class BadScenario(Exception):
    """A scenario file that cannot be run; the text has one line for each problem."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Fault:
    """One fault of a scenario."""

    kind: str
    after_seconds: float
    """From the start of the fault phase."""
    seconds: float
    """How long it lasts."""
    options: Mapping[str, Any]
    """What its kind needs besides."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Expected:
    """What must hold at the end. None: not judged, and the scenario says why in its `note`."""

    bound_percent: float = 99.0
    """Of all pods, by the end of the recovery phase."""
    during_percent: float | None = None
    """Of the pods that were created during the fault phase, by its end."""
    recovery_seconds: float = 60.0
    """Until no pod older than two seconds is unbound."""
    recovers_during: bool = False
    """Whether that counts from the start of the fault phase, because another replica takes over; else from its end."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Scenario:
    """One scenario."""

    name: str
    title: str
    note: str
    replicas: int
    """Extenders, each with a kube-scheduler; more than one are elected by a Lease."""
    nodes: int
    """Nodes without kubelet, with 8 GPUs each; 0 for one real node."""
    node_gpus: int
    """GPUs of the real node; 0 for nodes without kubelet."""
    chart: bool
    """Whether helm installs the chart, and its images run on a real node."""
    http_faults: bool
    """Whether the extenders reach the API server by a proxy that can fail calls."""
    pods_per_second: float
    burst_pods: int
    """Pods that are created at once when the fault phase begins."""
    steady_seconds: float
    fault_seconds: float
    faults: Sequence[Fault]
    expected: Expected

    @property
    def all_seconds(self) -> float:
        """How long it takes at most, without the start of its cluster."""
        return self.steady_seconds + self.fault_seconds + self.expected.recovery_seconds


class _Reader:
    """Reads tables of a scenario file and collects what is wrong with them."""

    def __init__(self) -> None:
        self.problems: list[str] = []

    def number(self, table: Mapping[str, Any], where: str, key: str, default: float, most: float) -> float:
        value = table.get(key, default)
        if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 <= value <= most:
            self.problems.append(f"{where}{key} is {value!r}, not a number from 0 to {most:g}")
            return default
        return float(value)

    def text(self, table: Mapping[str, Any], where: str, key: str, default: str = "") -> str:
        value = table.get(key, default)
        if not isinstance(value, str) or len(value) > 500:
            self.problems.append(f"{where}{key} is no text of at most 500 characters")
            return default
        return value

    def truth(self, table: Mapping[str, Any], where: str, key: str) -> bool:
        value = table.get(key, False)
        if not isinstance(value, bool):
            self.problems.append(f"{where}{key} is {value!r}, not true or false")
        return value is True

    def known(self, table: Mapping[str, Any], where: str, keys: Sequence[str]) -> None:
        for key in table:
            if key not in keys:
                self.problems.append(f"{where}{key} is unknown; known are {', '.join(keys)}")

    def table(self, values: Mapping[str, Any], key: str) -> Mapping[str, Any]:
        value = values.get(key, {})
        if not isinstance(value, Mapping):
            self.problems.append(f"{key} is no table")
            return {}
        return value


_TOP = (
    "title", "note", "replicas", "nodes", "node_gpus", "chart", "http_faults", "pods_per_second", "burst_pods",
    "steady_seconds", "fault_seconds", "faults", "expect",
)  # fmt: skip
KEYS = (*_TOP, "kind", "seconds", "after_seconds", "bound_percent", "recovery_seconds")
"""Words that occur in files, for whatever makes some at random."""
_EXPECT = ("bound_percent", "during_percent", "recovery_seconds", "recovers_during")


def read(path: pathlib.Path, kinds: Mapping[str, Sequence[str]]) -> Scenario:
    """Read a scenario file.

    Args:
        path: The file; its name without suffix is the scenario's.
        kinds: The options of each kind of fault.

    Raises:
        BadScenario: It cannot be read, or something in it is wrong.
    """
    try:
        values = tomllib.loads(path.read_text())
    except (OSError, ValueError, RecursionError) as cause:  # ValueError: no UTF-8, or no TOML.
        raise BadScenario(f"{path.name}: {cause}") from cause
    return parse(path.stem, values, kinds)


def parse(name: str, values: Mapping[str, Any], kinds: Mapping[str, Sequence[str]]) -> Scenario:
    """Return the scenario of a decoded file.

    Raises:
        BadScenario: Something in it is wrong.
    """
    reader = _Reader()
    reader.known(values, "", _TOP)
    expect = reader.table(values, "expect")
    reader.known(expect, "expect.", _EXPECT)
    fault_seconds = reader.number(values, "", "fault_seconds", 20, _MOST_SECONDS)
    during = reader.number(expect, "expect.", "during_percent", 0, 100) if "during_percent" in expect else None
    scenario = Scenario(
        name=name,
        title=reader.text(values, "", "title"),
        note=reader.text(values, "", "note"),
        replicas=int(reader.number(values, "", "replicas", 1, 3)),
        nodes=int(reader.number(values, "", "nodes", 20, 1000)),
        node_gpus=int(reader.number(values, "", "node_gpus", 0, 16)),
        chart=reader.truth(values, "", "chart"),
        http_faults=reader.truth(values, "", "http_faults"),
        pods_per_second=reader.number(values, "", "pods_per_second", 10, 1000),
        burst_pods=int(reader.number(values, "", "burst_pods", 0, 10_000)),
        steady_seconds=reader.number(values, "", "steady_seconds", 8, _MOST_SECONDS),
        fault_seconds=fault_seconds,
        faults=tuple(_faults(values.get("faults"), fault_seconds, kinds, reader)),
        expected=Expected(
            bound_percent=reader.number(expect, "expect.", "bound_percent", 99, 100),
            during_percent=during,
            recovery_seconds=reader.number(expect, "expect.", "recovery_seconds", 60, _MOST_SECONDS),
            recovers_during=reader.truth(expect, "expect.", "recovers_during"),
        ),
    )
    if not scenario.title:
        reader.problems.append("title is missing")
    if scenario.replicas < 1:
        reader.problems.append("replicas is 0; 1 to 3 can be run")
    if scenario.node_gpus and scenario.replicas > 1:
        reader.problems.append("node_gpus with more than one replica: a real node has one scheduler here")
    if any((fault.kind in _NEED_CHART) != scenario.chart for fault in scenario.faults):
        reader.problems.append(f"chart = true fits {', '.join(_NEED_CHART)} and no other fault, and these nothing else")
    if scenario.chart and (scenario.node_gpus or scenario.http_faults):
        reader.problems.append("chart = true fits neither node_gpus nor http_faults")
    if not scenario.http_faults and any(fault.kind in _NEED_HTTP for fault in scenario.faults):
        reader.problems.append("http_faults = true is missing: a fault fails calls of the API server")
    if reader.problems:
        raise BadScenario("\n".join(f"{name}: {problem}" for problem in reader.problems))
    return scenario


_NEED_CHART = ("upgraded",)
_NEED_HTTP = ("api-fails", "api-slow", "api-loses-answers", "api-stale", "watches-dropped", "watches-silent")


def _faults(values: Any, fault_seconds: float, kinds: Mapping[str, Sequence[str]], reader: _Reader) -> Iterator[Fault]:
    if not isinstance(values, list) or not values:
        reader.problems.append("faults is no list of tables ([[faults]])")
        return
    for number, value in enumerate(values):
        where = f"faults[{number}]."
        if not isinstance(value, Mapping):
            reader.problems.append(f"{where[:-1]} is no table")
            continue
        kind = reader.text(value, where, "kind")
        if kind not in kinds:
            reader.problems.append(f"{where}kind {kind!r} is unknown; known are {', '.join(sorted(kinds))}")
            continue
        reader.known(value, where, ("kind", "after_seconds", "seconds", *kinds[kind]))
        after = reader.number(value, where, "after_seconds", 0, fault_seconds)
        seconds = reader.number(value, where, "seconds", max(fault_seconds - after, 0), max(fault_seconds - after, 0))
        options = {key: value[key] for key in kinds[kind] if key in value}
        yield Fault(kind=kind, after_seconds=after, seconds=seconds, options=options)


def all_of(folder: pathlib.Path, kinds: Mapping[str, Sequence[str]]) -> list[Scenario]:
    """Return every scenario of a folder, by name.

    Raises:
        BadScenario: At least one is wrong; the text has the problems of all.
    """
    scenarios, problems = [], []
    for path in sorted(folder.glob("*.toml")):
        try:
            scenarios.append(read(path, kinds))
        except BadScenario as bad:
            problems.append(str(bad))
    if problems:
        raise BadScenario("\n".join(problems))
    return scenarios
