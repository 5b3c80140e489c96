"""Faults that are injected on purpose: the kinds, the request for one, its states, and the tracker's document. Pure.

A fault is recorded as `injecting` before anything is done, so that a crash leaves a record of what may be in effect:

    injecting ─▶ injected ─▶ recovering ─▶ recovered
        │            ▲            │
        ▼            └────────────┘  the recovery failed
      failed
"""

import enum
import json
import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, NewType

from gpu_sharing.core import error_codes, errors, near_misses

CONSENT_LABEL = "hami.io/fault-injection"
CONSENT = "allowed"
"""The value of the label on a node into which faults may be injected."""
XID_SHORTCUTS = (48, 74, 79, 94, 95, 119, 120)
"""XIDs that have a short name such as `xid-79`."""
LONGEST_SECONDS = 86_400
MOST_IN_EFFECT = 64
"""The limit of faults in effect at one time."""
MOST_FINISHED = 100
"""Finished faults that stay in the document; older ones are deleted."""
_MOST_FAULTS = 10_000
_LONGEST = 253
_LONGEST_CAUSE = 500
_MOST_NAMED = 5
_LONGEST_SHOWN = 40
_MOST_VALUES = 32
_LARGEST = 2**53

FaultId = NewType("FaultId", str)
"""Such as `f7`; no two faults of one tracker have the same."""
Value = int | str
_ID = re.compile(r"f[1-9][0-9]{0,8}")
_NAME = re.compile(r"[a-z0-9]([-a-z0-9.]{0,251}[a-z0-9])?")
_GPU = re.compile(r"[0-9]{1,3}|(?:GPU|MIG)-[A-Za-z0-9-]{1,64}")
_SELECTOR = re.compile(
    r"[A-Za-z0-9./_-]{1,120}=[A-Za-z0-9._-]{0,63}(,[A-Za-z0-9./_-]{1,120}=[A-Za-z0-9._-]{0,63}){0,7}"
)
_PATH = re.compile(r"/[A-Za-z0-9/._-]{0,200}")


class Group(enum.Enum):
    """The part of the system into which a fault is injected."""

    GPU = "gpu"
    NETWORK = "network"
    API = "api"
    PROCESS = "process"


class State(enum.Enum):
    """The states of a fault."""

    INJECTING = "injecting"
    INJECTED = "injected"
    FAILED = "failed"
    """The injection failed, and nothing is in effect."""
    RECOVERING = "recovering"
    RECOVERED = "recovered"


IN_EFFECT = frozenset({State.INJECTING, State.INJECTED, State.RECOVERING})
"""The states in which a fault is, or may be, in effect."""
_NEXT = {
    State.INJECTING: frozenset({State.INJECTED, State.FAILED, State.RECOVERING}),
    State.INJECTED: frozenset({State.RECOVERING}),
    State.RECOVERING: frozenset({State.RECOVERED, State.INJECTED, State.RECOVERING}),
    State.FAILED: frozenset[State](),
    State.RECOVERED: frozenset[State](),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Parameter:
    """One field of a request. It is a word of `words`, a text of `pattern`, or else a whole number."""

    name: str
    text: str
    words: tuple[str, ...] = ()
    pattern: re.Pattern[str] | None = None
    example: str = ""
    """Of a text."""
    lowest: int = 0
    highest: int = 0
    unit: str = ""
    default: Value | None = None
    """None: the field is required. An empty text stands for an absent one."""

    @property
    def is_number(self) -> bool:
        """Whether the value is a whole number."""
        return not self.words and self.pattern is None

    @property
    def accepted(self) -> str:
        """The accepted values, for people."""
        if self.words:
            return f"one of {', '.join(self.words)}"
        if self.pattern is not None:
            return f"a text such as {self.example}"
        return f"a whole number from {self.lowest} to {self.highest}{' ' if self.unit else ''}{self.unit}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Kind:
    """One kind of fault: a line of the table."""

    name: str
    group: Group
    text: str
    """What it does, in one sentence."""
    effect: str
    """Faults with one effect on one target exclude each other."""
    parameters: tuple[Parameter, ...] = ()
    """Without those that name the target, which depend on the group."""

    @property
    def needs_consent(self) -> bool:
        """Whether the node must have the label of consent."""
        return self.group is Group.GPU

    @property
    def fields(self) -> tuple[Parameter, ...]:
        """All fields of a request: of the target, then of the fault."""
        return (*TARGETS[self.group], *self.parameters)


_NODE = Parameter(name="node", text="the node's name", pattern=_NAME, example="gpu-node-1")
_WHICH_GPU = Parameter(name="gpu", text="the GPU's index or UUID", pattern=_GPU, example="0 or GPU-8dcd4ba5")
PAIRS = (
    "scheduler-extender", "extender-apiserver", "plugin-apiserver", "plugin-kubelet", "ui-extender", "worker-worker",
    "custom",
)  # fmt: skip
_PAIR = Parameter(name="pair", text="the two sides between which traffic is affected", words=PAIRS)
_PROCESS = Parameter(name="process", text="the process's name", pattern=_NAME, example="extender")
TARGETS: Mapping[Group, tuple[Parameter, ...]] = {
    Group.GPU: (_NODE, _WHICH_GPU),
    Group.NETWORK: (_PAIR,),
    Group.API: (),
    Group.PROCESS: (_PROCESS,),
}
"""The fields that name the target."""
_API_TARGET = "apiserver"

_SELECTORS = (
    Parameter(name="namespace", text="namespace of the selected pods", pattern=_NAME, example="default", default=""),
    Parameter(
        name="from_pods", text="labels of the pods on one side", pattern=_SELECTOR, example="app=trainer", default=""
    ),
    Parameter(
        name="to_pods", text="labels of the pods on the other side", pattern=_SELECTOR, example="app=store", default=""
    ),
)
_SHARE = Parameter(
    name="share_percent", text="share of the calls that it affects", lowest=1, highest=100, unit="%", default=100
)
_CALLS = (
    Parameter(
        name="method", text="HTTP method of the affected calls",
        words=("any", "GET", "POST", "PUT", "PATCH", "DELETE"), default="any",
    ),
    Parameter(name="path", text="start of the path of the affected calls", pattern=_PATH, example="/api", default="/"),
    _SHARE,
)  # fmt: skip


def _percent(name: str, text: str, default: int) -> Parameter:
    return Parameter(name=name, text=text, lowest=0, highest=100, unit="%", default=default)


def _kind(group: Group, name: str, effect: str, text: str, *parameters: Parameter) -> Kind:
    return Kind(name=name, group=group, effect=effect, text=text, parameters=parameters)


_TABLE = (
    _kind(
        Group.GPU, "xid", "driver", "The driver reports an XID, and asks for the action that follows from it.",
        Parameter(name="xid", text="the number", lowest=1, highest=1023),
    ),
    _kind(Group.GPU, "lost", "driver", "The GPU falls off the bus: it answers no call until the node is restarted."),
    _kind(Group.GPU, "hang", "driver", "Calls to the driver about the GPU do not return."),
    _kind(Group.GPU, "reset", "driver", "The driver refuses all calls, as while the GPU is being reset."),
    _kind(
        Group.GPU, "ecc", "ecc", "Uncorrected ECC errors are counted.",
        Parameter(name="count", text="errors", lowest=1, highest=1_000_000, default=1),
    ),
    _kind(
        Group.GPU, "overheat", "temperature", "The GPU is as hot as the temperature at which it shuts down, or hotter.",
        Parameter(name="celsius", text="temperature", lowest=1, highest=150, unit="°C", default=95),
    ),
    _kind(
        Group.GPU, "throttle", "temperature", "The GPU lowers its clocks.",
        Parameter(name="reason", text="why", words=("thermal", "power-brake"), default="thermal"),
    ),
    _kind(
        Group.GPU, "memory-pressure", "memory", "The GPU's memory is used.",
        _percent("percent", "used part of the memory", 95),
    ),
    _kind(
        Group.GPU, "saturation", "utilization", "The GPU's cores are used.",
        _percent("percent", "utilization of the cores", 100),
    ),
    _kind(Group.NETWORK, "partition", "path", "No traffic passes between the two sides.", *_SELECTORS),
    _kind(
        Group.NETWORK, "network-latency", "path", "Traffic between the two sides is delayed.",
        Parameter(name="latency_ms", text="delay", lowest=1, highest=60_000, unit="ms"), *_SELECTORS,
    ),
    _kind(
        Group.NETWORK, "packet-loss", "path", "Packets between the two sides are lost.",
        Parameter(name="loss_percent", text="lost part", lowest=1, highest=100, unit="%"), *_SELECTORS,
    ),
    _kind(
        Group.API, "api-latency", "latency", "The API server answers late.",
        Parameter(name="latency_ms", text="delay", lowest=1, highest=60_000, unit="ms"), *_CALLS,
    ),
    _kind(
        Group.API, "api-error", "answer", "The API server refuses calls with a status.",
        Parameter(name="status", text="HTTP status", words=("409", "410", "429", "500", "503")), *_CALLS,
    ),
    _kind(
        Group.API, "api-lost-answer", "answer", "The API server executes calls, and their answers are lost.", *_CALLS
    ),
    _kind(Group.API, "watch-drop", "watch", "The API server ends every watch within a second of its start."),
    _kind(Group.API, "watch-silent", "watch", "Watches stay open, and nothing arrives on them."),
    _kind(Group.API, "stale-reads", "reads", "The API server answers reads with its state at the injection."),
    _kind(Group.PROCESS, "kill", "process", "The process is killed; recovery starts it again where nothing else does."),
    _kind(Group.PROCESS, "stop", "process", "The process is stopped (SIGSTOP), and keeps its connections."),
    _kind(
        Group.PROCESS, "slow", "process", "The process runs for a part of the time only.",
        Parameter(name="percent", text="part of the time in which it runs", lowest=1, highest=90, unit="%", default=20),
    ),
)  # fmt: skip
KINDS: Mapping[str, Kind] = {kind.name: kind for kind in _TABLE}
COMMON = (
    Parameter(
        name="duration_seconds", text="after which it is recovered; 0: when it is asked for", highest=LONGEST_SECONDS,
        unit="s", default=0,
    ),
    Parameter(name="backend", text="which backend injects it", pattern=_NAME, example="kmsg", default=""),
)  # fmt: skip
"""The fields that a request of every kind has."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """A request to inject a fault, checked."""

    kind: Kind
    values: Mapping[str, Value]
    """Every field of the kind."""
    duration_seconds: int = 0
    """0: until it is recovered by a call."""
    backend: str = ""
    """Empty: the first that can."""

    @property
    def target(self) -> str:
        """The name of what is affected."""
        return target_of(self.kind, self.values)


@dataclass(frozen=True, slots=True, kw_only=True)
class Fault:
    """One fault, from its injection on."""

    id: FaultId
    kind: Kind
    values: Mapping[str, Value]
    backend: str
    state: State = State.INJECTING
    created_at: float
    """Unix seconds, as the next two; 0 for what has not happened yet."""
    injected_at: float = 0.0
    finished_at: float = 0.0
    """When it was recovered, or failed."""
    duration_seconds: int = 0
    cause: str = ""
    """Why the injection, or the last recovery, failed."""

    @property
    def target(self) -> str:
        """The name of what is affected."""
        return target_of(self.kind, self.values)

    @property
    def is_in_effect(self) -> bool:
        """Whether it is, or may be, in effect."""
        return self.state in IN_EFFECT

    @property
    def ends_at(self) -> float:
        """Unix seconds at which it is recovered by itself; infinite for none."""
        return self.created_at + self.duration_seconds if self.duration_seconds else math.inf


def target_of(kind: Kind, values: Mapping[str, Value]) -> str:
    """Return the name of what a fault affects, such as `gpu-node-1/0` or `scheduler-extender`."""
    names = [parameter.name for parameter in TARGETS[kind.group]]
    if values.get("pair") == "custom":
        names += ["namespace", "from_pods", "to_pods"]
    return "/".join(str(values[name]) for name in names) or _API_TARGET


def moved(fault: Fault, state: State, now: float, cause: str = "") -> Fault:
    """Return the fault in its next state.

    Raises:
        ValueError: The state does not follow from the fault's.
    """
    if state not in _NEXT[fault.state]:
        raise ValueError(f"a fault that is {fault.state.value} cannot become {state.value}")
    is_finished = state in (State.RECOVERED, State.FAILED)
    return replace(
        fault,
        state=state,
        injected_at=fault.injected_at or (now if state is State.INJECTED else 0.0),
        finished_at=now if is_finished else 0.0,
        cause=cause[:_LONGEST_CAUSE],
    )


def collides(request: Request, others: Iterable[Fault]) -> Fault | None:
    """Return a fault in effect that has the same effect on the same target; None where there is none."""
    for other in others:
        if other.is_in_effect and other.kind.effect == request.kind.effect and other.target == request.target:
            return other
    return None


def kind_of(name: str, group: Group | None = None) -> Kind:
    """Return the kind of that name, of a group or of any.

    Raises:
        FaultRefused: There is none; the sentence has the nearest name.
    """
    kinds = [kind.name for kind in _TABLE if group in (None, kind.group)]
    if name in kinds:
        return KINDS[name]
    meant = near_misses.nearest(name, kinds)
    hint = f"did you mean {meant}?" if meant else f"there are {', '.join(kinds)}"
    of_group = f" of group {group.value}" if group else ""
    raise errors.FaultRefused(
        error_codes.FAULT_UNKNOWN_KIND, f"no kind of fault{of_group} is named {_shown(name)}; {hint}"
    )


def read_request(value: object, group: Group | None = None, preset: Mapping[str, Value] | None = None) -> Request:
    """Return the request in a decoded JSON object, with defaults for absent fields.

    Args:
        value: Such as `{"kind": "xid", "node": "gpu-1", "gpu": 0, "xid": 79, "duration_seconds": 60}`.
        group: The only group that is accepted.
        preset: Fields that the caller may leave out, and may not change.

    Raises:
        FaultRefused: It is invalid; the sentence names every problem.
    """
    preset = preset or {}
    if not isinstance(value, dict):
        raise errors.FaultRefused(error_codes.FAULT_INVALID, "write a JSON object with the field kind")
    name = preset.get("kind", value.get("kind"))
    if not isinstance(name, str):
        raise errors.FaultRefused(error_codes.FAULT_INVALID, "kind: write the name of a kind of fault")
    kind = kind_of(name, group)
    known = {parameter.name: parameter for parameter in (*kind.fields, *COMMON)}
    problems = [
        f"{field}: is {preset[field]} here; leave it out"
        for field in preset
        if value.get(field, preset[field]) != preset[field]
    ]
    problems += _unknown_fields([field for field in value if field != "kind"], frozenset(known))
    given = {**value, **preset}
    values: dict[str, Value] = {}
    for parameter in known.values():
        read = _read(parameter, given.get(parameter.name))
        if read is None:
            problems.append(f"{parameter.name}: {_problem(parameter, given.get(parameter.name))}")
        else:
            values[parameter.name] = read
    problems += _missing_selectors(values)
    if problems:
        more = len(problems) - 2 * _MOST_NAMED
        shown = problems[: 2 * _MOST_NAMED] + ([f"and {more} more"] if more > 0 else [])
        raise errors.FaultRefused(error_codes.FAULT_INVALID, "; ".join(shown))
    duration_seconds, backend = int(values.pop("duration_seconds")), str(values.pop("backend"))
    return Request(kind=kind, values=values, duration_seconds=duration_seconds, backend=backend)


def _unknown_fields(names: list[object], known: frozenset[str]) -> list[str]:
    unknown = [str(name) for name in names if name not in known]
    problems = []
    for name in unknown[:_MOST_NAMED]:
        meant = near_misses.nearest(name, known)
        hint = f"did you mean {meant}?" if meant else f"there are {', '.join(sorted(known))}"
        problems.append(f"{_shown(name)}: no such field; {hint}")
    more = len(unknown) - _MOST_NAMED
    return problems + ([f"{more} more unknown fields"] if more > 0 else [])


def _read(parameter: Parameter, raw: object) -> Value | None:
    """Return the value of a field; None where it is absent although required, or not accepted."""
    if raw is None:
        return parameter.default
    if parameter.is_number:
        is_whole = isinstance(raw, int) and not isinstance(raw, bool)
        return raw if is_whole and parameter.lowest <= raw <= parameter.highest else None  # type: ignore[operator,return-value]
    text = str(raw) if isinstance(raw, int) and not isinstance(raw, bool) and abs(raw) < _LARGEST else raw
    if not isinstance(text, str) or len(text) > _LONGEST:
        return None
    if parameter.words:
        return text if text in parameter.words else None
    assert parameter.pattern is not None
    return text if parameter.pattern.fullmatch(text) or text == parameter.default else None


def _problem(parameter: Parameter, raw: object) -> str:
    if raw is None:
        return f"is missing; write {parameter.accepted}"
    meant = near_misses.nearest(raw, parameter.words) if isinstance(raw, str) else ""
    hint = f"did you mean {meant}?" if meant else f"write {parameter.accepted}"
    return f"{_shown(raw)} is not accepted; {hint}"


def _missing_selectors(values: Mapping[str, Value]) -> list[str]:
    """Return what is missing for a pair that the caller defines: no selector would select every pod."""
    if values.get("pair") != "custom":
        return []
    names = ("namespace", "from_pods", "to_pods")
    return [f"{name}: is missing; pair custom needs it" for name in names if not values.get(name, "missing elsewhere")]


def _shown(raw: object) -> str:
    text = repr(raw) if isinstance(raw, str | bool | float | int | type(None)) and not _is_huge(raw) else "that value"
    return text if len(text) <= _LONGEST_SHOWN else f"{text[: _LONGEST_SHOWN - 3]}..."


def _is_huge(raw: object) -> bool:
    """Return whether a number has so many digits that to print it costs time, or fails."""
    return isinstance(raw, int) and abs(raw) > _LARGEST


@dataclass(frozen=True, slots=True, kw_only=True)
class Document:
    """All faults of one tracker."""

    next_number: int = 1
    faults: tuple[Fault, ...] = ()
    """In the order of their injection."""
    unreadable: tuple[object, ...] = field(default=())
    """Entries that do not decode, as another version wrote them; they stay as they are."""

    def find(self, fault_id: str) -> Fault | None:
        """Return the fault of that id."""
        return next((fault for fault in self.faults if fault.id == fault_id), None)

    def with_new(self, request: Request, backend: str, now: float) -> tuple["Document", Fault]:
        """Return the document with a new fault in the state `injecting`, and the fault."""
        fault = Fault(
            id=FaultId(f"f{self.next_number}"),
            kind=request.kind,
            values=dict(request.values),
            backend=backend,
            created_at=now,
            duration_seconds=request.duration_seconds,
        )
        return replace(self, next_number=self.next_number + 1, faults=(*self.faults, fault)), fault

    def with_changed(self, changed: Fault) -> "Document":
        """Return the document with the new state of a fault, without the oldest of too many finished ones."""
        faults = tuple(changed if fault.id == changed.id else fault for fault in self.faults)
        finished = [fault.id for fault in faults if not fault.is_in_effect]
        deleted = frozenset(finished[:-MOST_FINISHED])
        return replace(self, faults=tuple(fault for fault in faults if fault.id not in deleted))

    def merged_with(self, other: "Document") -> "Document":
        """Return the document with the faults of another one that it does not have."""
        more = tuple(fault for fault in other.faults if self.find(fault.id) is None)
        unreadable = tuple(entry for entry in other.unreadable if entry not in self.unreadable)
        return Document(
            next_number=max(self.next_number, other.next_number),
            faults=(*self.faults, *more),
            unreadable=(*self.unreadable, *unreadable),
        )


def encode(document: Document) -> str:
    """Return the document as JSON."""
    entries = [to_entry(fault) for fault in document.faults]
    return json.dumps({"version": 1, "next": document.next_number, "faults": [*entries, *document.unreadable]})


def to_entry(fault: Fault) -> dict[str, Any]:
    """Return a fault as JSON values."""
    return {
        "id": fault.id, "kind": fault.kind.name, "values": dict(fault.values), "backend": fault.backend,
        "state": fault.state.value, "created_at": fault.created_at, "injected_at": fault.injected_at,
        "finished_at": fault.finished_at, "duration_seconds": fault.duration_seconds, "cause": fault.cause,
    }  # fmt: skip


def decode(text: str) -> Document:
    """Return the document in a text. An entry that does not decode is kept as it is, and loses no other.

    Raises:
        CorruptRecord: The text is no document: what cannot be read is never taken for "no faults".
    """
    try:
        value = json.loads(text)
    except (ValueError, RecursionError) as cause:
        raise errors.CorruptRecord(f"the record of faults is not JSON: {cause}") from cause
    entries = value.get("faults") if isinstance(value, dict) else None
    if not isinstance(entries, list) or len(entries) > _MOST_FAULTS:
        raise errors.CorruptRecord(f"the record of faults has no list of at most {_MOST_FAULTS} faults")
    read: dict[FaultId, Fault] = {}
    unreadable: list[object] = []
    for entry in entries:
        fault = _from_entry(entry)
        if fault is None or fault.id in read:
            unreadable.append(entry)
        else:
            read[fault.id] = fault
    ids = [fault_id for fault_id in (*read, *_ids(unreadable)) if _ID.fullmatch(fault_id)]
    highest = max((int(fault_id[1:]) for fault_id in ids), default=0)
    number = _whole(value.get("next"), highest=_LARGEST) or 1
    return Document(next_number=max(number, highest + 1), faults=tuple(read.values()), unreadable=tuple(unreadable))


def _ids(entries: Iterable[object]) -> Iterable[str]:
    """Return the ids of entries that do not decode otherwise, so that no new fault gets one of them."""
    return (entry["id"] for entry in entries if isinstance(entry, dict) and isinstance(entry.get("id"), str))


def _from_entry(entry: object) -> Fault | None:
    if not isinstance(entry, dict):
        return None
    fault_id, backend, cause = (_text(entry.get(name)) for name in ("id", "backend", "cause"))
    kind = KINDS.get(_text(entry.get("kind")) or "")
    values = _values(kind, entry.get("values"))
    state = next((one for one in State if one.value == entry.get("state")), None)
    times = [_moment(entry.get(name)) for name in ("created_at", "injected_at", "finished_at")]
    created_at, injected_at, finished_at = times
    duration_seconds = _whole(entry.get("duration_seconds"), highest=LONGEST_SECONDS)
    if kind is None or values is None or state is None or duration_seconds is None or backend is None or cause is None:
        return None
    if created_at is None or injected_at is None or finished_at is None:
        return None
    if fault_id is None or not _ID.fullmatch(fault_id):
        return None
    return Fault(
        id=FaultId(fault_id),
        kind=kind,
        values=values,
        backend=backend,
        state=state,
        created_at=created_at,
        injected_at=injected_at,
        finished_at=finished_at,
        duration_seconds=duration_seconds,
        cause=cause,
    )


def _text(raw: object) -> str | None:
    return raw if isinstance(raw, str) and len(raw) <= _LONGEST_CAUSE else None


def _values(kind: Kind | None, raw: object) -> dict[str, Value] | None:
    """Return the values of a fault; None unless every field of its kind is there and accepted."""
    if kind is None or not isinstance(raw, dict) or len(raw) > _MOST_VALUES:
        return None
    read = {parameter.name: _read(parameter, raw.get(parameter.name)) for parameter in kind.fields}
    whole = {name: value for name, value in read.items() if value is not None}
    return whole if len(whole) == len(read) else None


def _whole(raw: object, *, highest: int) -> int | None:
    return raw if isinstance(raw, int) and not isinstance(raw, bool) and 0 <= raw <= highest else None


def _moment(raw: object) -> float | None:
    is_number = isinstance(raw, int | float) and not isinstance(raw, bool)
    return float(raw) if is_number and 0 <= raw <= _LARGEST else None  # type: ignore[operator,arg-type]
