"""The rules of remediation: which fault of a GPU or node leads to which act, and how many acts may follow.

A rule file is refused as a whole, with every problem of it, before anything is done: an unknown word, two rules that
contradict each other, and a condition that is true of a healthy GPU, which would evict every pod.
"""

import enum
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple, TypeVar

from gpu_sharing.core import error_codes, near_misses
from gpu_sharing.core.health import State
from gpu_sharing.core.xids import Need

MOST_RULES = 64
MOST_ATTEMPTS = 20
LONGEST_SECONDS = 86_400
MOST_ACTS_AN_HOUR = 1_000
MOST_PERCENT = 50
"""Of the nodes with GPUs: beyond it a breaker would not limit anything that matters."""
_MOST_NODES = 1_000
_MOST_PRIORITY = 1_000
_MOST_ITEMS = 64
_NAME = re.compile(r"[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?")
_CONDITION = re.compile(r"([A-Za-z0-9][-A-Za-z0-9_./]{0,252})=(True|False|Unknown)")
_PROBLEM = re.compile(r"[A-Z][A-Z0-9_]{2,63}")
_T = TypeVar("_T")


class Action(enum.Enum):
    """What remediation can do."""

    CORDON_GPU = "cordon-gpu"
    """Keep new pods off one GPU."""
    EVICT_PODS = "evict-pods"
    """Evict the pods of one GPU, and no others of its node."""
    RESTART_MPS = "restart-mps"
    """Evict the pod of the node's MPS daemon; its DaemonSet starts another."""
    TAINT_NODE = "taint-node"
    """Keep pods without a toleration off the node."""
    CORDON_NODE = "cordon-node"
    """Keep all new pods off the node."""
    REQUEST_RESET = "request-reset"
    """Request the reset of one GPU from what maintains the nodes."""
    REQUEST_REBOOT = "request-reboot"
    """Request a reboot of the node from what maintains the nodes."""
    RELEASE = "release"
    """Undo the cordons, taints and requests of remediation itself."""


OF_ONE_GPU = frozenset({Action.CORDON_GPU, Action.EVICT_PODS, Action.REQUEST_RESET})
REPAIRS = frozenset({Action.RESTART_MPS, Action.REQUEST_RESET, Action.REQUEST_REBOOT})
"""Alternatives: the next one is tried when the attempts of the one before are used up."""
HOLDING = frozenset({
    Action.CORDON_GPU, Action.TAINT_NODE, Action.CORDON_NODE, Action.REQUEST_RESET, Action.REQUEST_REBOOT
})  # fmt: skip
"""Acts whose effect stays until a release."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Condition:
    """When a rule applies; each field that is not empty must hold, by any of its values."""

    states: frozenset[State] = frozenset()
    needs: frozenset[Need] = frozenset()
    xids: frozenset[int] = frozenset()
    overheated: bool = False
    """Whether the GPU must have reached the temperature at which it shuts down."""
    node_conditions: frozenset[tuple[str, str]] = frozenset()
    """Type and status of conditions of the node."""
    problems: frozenset[str] = frozenset()
    """Error codes of the problems that the node's device plugin reports."""

    @property
    def is_about_gpus(self) -> bool:
        """Whether a GPU must be in some state, not only its node."""
        return bool(self.states or self.needs or self.xids or self.overheated)

    @property
    def holds_for_healthy(self) -> bool:
        """Whether a healthy GPU on a healthy node satisfies it."""
        if self.is_about_gpus:
            excludes_healthy = self.xids or self.overheated or (self.needs and Need.NOTHING not in self.needs)
            return not excludes_healthy and (not self.states or State.HEALTHY in self.states)
        return not self.problems and (not self.node_conditions or ("Ready", "True") in self.node_conditions)


@dataclass(frozen=True, slots=True, kw_only=True)
class Rule:
    """A fault, the act that answers it, and how often."""

    name: str
    when: Condition
    action: Action
    for_seconds: int = 0
    """How long the condition must have held."""
    priority: int = 0
    """Rules of higher priority act first."""
    attempts: int = 3
    """Acts on one GPU or node within a day."""
    cool_down_seconds: int = 600
    """Between two of them."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RuleSet:
    """All rules, and what limits them together."""

    rules: tuple[Rule, ...]
    acts_per_hour: int = 10
    """Acts in the whole cluster; releases do not count."""
    most_nodes: int = 2
    most_percent: int = 20
    """Of the nodes with GPUs. The breaker opens where more nodes are affected than both of these numbers allow."""
    half_open_seconds: int = 900
    """The time after which an open breaker lets one act through."""
    uses_nvsentinel: bool = False
    """Whether requests also become objects of NVSentinel, which then resets and reboots by itself."""


class Problem(NamedTuple):
    """Why a file of rules is refused."""

    code: error_codes.Code
    sentence: str


@dataclass(slots=True)
class _Reader:
    """Collects the problems of one file."""

    problems: list[Problem] = field(default_factory=list)

    def refuse(self, sentence: str) -> None:
        self.problems.append(Problem(error_codes.REMEDIATION_RULES, sentence))

    def fields(self, where: str, item: object, known: Sequence[str]) -> Mapping[str, object]:
        """Return the fields of an object; unknown ones are problems."""
        if not isinstance(item, Mapping):
            self.refuse(f"{where} is no object with the fields {', '.join(known)}")
            return {}
        for key in list(item)[:_MOST_ITEMS]:
            if key not in known:
                meant = near_misses.nearest(str(key), known)
                hint = f"did you mean {meant}?" if meant else f"known are {', '.join(known)}"
                self.refuse(f"{where} has the unknown field {str(key)[:60]!r}; {hint}")
        return item

    def number(self, where: str, item: Mapping[str, object], key: str, default: int, most: int, least: int = 0) -> int:
        value = item.get(key, default)
        if type(value) is not int or not least <= value <= most:
            self.refuse(f"{where}.{key} is {str(value)[:40]!r}, not a whole number from {least} to {most}")
            return default
        return value

    def truth(self, where: str, item: Mapping[str, object], key: str) -> bool:
        value = item.get(key, False)
        if not isinstance(value, bool):
            self.refuse(f"{where}.{key} is {str(value)[:40]!r}, not true or false")
        return value is True

    def word(self, where: str, value: object, known: Mapping[str, _T]) -> _T | None:
        if isinstance(value, str) and value in known:
            return known[value]
        meant = near_misses.nearest(str(value)[:60], known)
        hint = f"did you mean {meant}?" if meant else f"known are {', '.join(known)}"
        self.refuse(f"{where} is {str(value)[:60]!r}; {hint}")
        return None

    def items(
        self, where: str, item: Mapping[str, object], key: str, read: Callable[[str, object], _T | None]
    ) -> set[_T]:
        """Return the values of a list."""
        values = item.get(key, [])
        if not isinstance(values, list) or len(values) > _MOST_ITEMS or (key in item and not values):
            self.refuse(f"{where}.{key} is not a list of 1 to {_MOST_ITEMS} values")
            return set()
        found = (read(f"{where}.{key}", value) for value in values)
        return {value for value in found if value is not None}


_STATES = {state.value: state for state in State}
_NEEDS = {need.name.lower(): need for need in Need}
_ACTIONS = {action.value: action for action in Action}
_WHEN = ("state", "need", "xid", "overheated", "nodeCondition", "problem")
_RULE = ("name", "when", "do", "forSeconds", "priority", "attempts", "coolDownSeconds")
_TOP = ("rules", "actsPerHour", "breaker", "nvsentinel")
_BREAKER = ("nodes", "percent", "halfOpenSeconds")


def read(document: object) -> RuleSet | tuple[Problem, ...]:
    """Return the rules of a decoded file, or every reason why it is refused.

    Args:
        document: What JSON or YAML decoded to, of a bounded size.
    """
    reader = _Reader()
    top = reader.fields("the file", document, _TOP)
    listed = top.get("rules", [])
    if not isinstance(listed, list) or not 0 < len(listed) <= MOST_RULES:
        reader.refuse(f"rules is not a list of 1 to {MOST_RULES} rules")
        listed = []
    rules = [rule for number, item in enumerate(listed) if (rule := _rule(reader, f"rules[{number}]", item))]
    default = RuleSet(rules=())
    breaker = reader.fields("breaker", top.get("breaker", {}), _BREAKER)
    half_open = reader.number("breaker", breaker, "halfOpenSeconds", default.half_open_seconds, LONGEST_SECONDS, 60)
    rule_set = RuleSet(
        rules=tuple(sorted(rules, key=lambda rule: (-rule.priority, rule.name))),
        acts_per_hour=reader.number("the file", top, "actsPerHour", default.acts_per_hour, MOST_ACTS_AN_HOUR, 1),
        most_nodes=reader.number("breaker", breaker, "nodes", default.most_nodes, _MOST_NODES, 1),
        most_percent=_percent(reader, breaker, default.most_percent),
        half_open_seconds=half_open,
        uses_nvsentinel=reader.truth("the file", top, "nvsentinel"),
    )
    problems = (*reader.problems, *_contradictions(rule_set.rules), *_unbounded(rule_set.rules))
    return problems or rule_set


def _percent(reader: _Reader, breaker: Mapping[str, object], default: int) -> int:
    """Return the share of nodes; one that limits nothing is refused with a code of its own."""
    value = breaker.get("percent", default)
    if type(value) is int and value > MOST_PERCENT:
        sentence = (
            f"breaker.percent is {str(value)[:40]}: over {MOST_PERCENT} percent it bounds the affected nodes no more"
        )
        reader.problems.append(Problem(error_codes.REMEDIATION_UNBOUNDED, sentence))
        return default
    return reader.number("breaker", breaker, "percent", default, MOST_PERCENT)


def _rule(reader: _Reader, where: str, item: object) -> Rule | None:
    before = len(reader.problems)
    values = reader.fields(where, item, _RULE)
    name = values.get("name", "")
    if not isinstance(name, str) or not _NAME.fullmatch(name):
        reader.refuse(f"{where}.name is {str(name)[:60]!r}, not 1 to 63 of a-z, 0-9 and -")
        name = ""
    where = f"rule {name}" if name else where
    action = reader.word(f"{where}: do", values.get("do", ""), _ACTIONS)
    default = Rule(name="", when=Condition(), action=Action.RELEASE)
    for_seconds = reader.number(where, values, "forSeconds", default.for_seconds, LONGEST_SECONDS)
    rule = Rule(
        name=name,
        when=_condition(reader, f"{where}: when", values.get("when", {})),
        action=action or Action.RELEASE,
        for_seconds=for_seconds,
        priority=reader.number(where, values, "priority", default.priority, _MOST_PRIORITY),
        attempts=reader.number(where, values, "attempts", default.attempts, MOST_ATTEMPTS, 1),
        cool_down_seconds=reader.number(
            where, values, "coolDownSeconds", default.cool_down_seconds, LONGEST_SECONDS, 1
        ),
    )
    return rule if len(reader.problems) == before else None


def _condition(reader: _Reader, where: str, item: object) -> Condition:
    values = reader.fields(where, item, _WHEN)

    def number(at: str, value: object) -> int | None:
        if type(value) is int and 0 < value < 10_000:
            return value
        reader.refuse(f"{at} has {str(value)[:40]!r}, not the number of an XID")
        return None

    def matched(pattern: re.Pattern[str], example: str) -> Callable[[str, object], re.Match[str] | None]:
        def match(at: str, value: object) -> re.Match[str] | None:
            found = pattern.fullmatch(value) if isinstance(value, str) else None
            if found is None:
                reader.refuse(f"{at} has {str(value)[:60]!r}; write it like {example}")
            return found

        return match

    conditions = reader.items(where, values, "nodeCondition", matched(_CONDITION, "KernelDeadlock=True"))
    problems = reader.items(where, values, "problem", matched(_PROBLEM, error_codes.PLUGIN_MPS))
    overheated = reader.truth(where, values, "overheated")
    if "overheated" in values and not overheated:
        reader.refuse(f"{where}.overheated can only be true: a healthy GPU is not overheated either")
    return Condition(
        states=frozenset(reader.items(where, values, "state", lambda at, value: reader.word(at, value, _STATES))),
        needs=frozenset(reader.items(where, values, "need", lambda at, value: reader.word(at, value, _NEEDS))),
        xids=frozenset(reader.items(where, values, "xid", number)),
        overheated=overheated,
        node_conditions=frozenset((one[1], one[2]) for one in conditions),
        problems=frozenset(one[0] for one in problems),
    )


def _contradictions(rules: Sequence[Rule]) -> list[Problem]:
    """Return the rules that cannot be meant together."""
    sentences = []
    names = [rule.name for rule in rules]
    sentences += [f"rule {name} is there twice" for name in sorted(set(names)) if names.count(name) > 1]
    healthy = Condition(states=frozenset({State.HEALTHY}))
    for rule in rules:
        if rule.action is Action.RELEASE and rule.when != healthy:
            sentences.append(f"rule {rule.name} releases while the fault lasts: release needs when: state: [healthy]")
        if rule.action in OF_ONE_GPU and not rule.when.is_about_gpus:
            sentences.append(f"rule {rule.name} names no state of a GPU, so {rule.action.value} has no GPU to act on")
    for number, rule in enumerate(rules):
        for other in rules[number + 1 :]:
            if rule.when == other.when and rule.priority == other.priority and _exclude(rule.action, other.action):
                sentences.append(
                    f"rules {rule.name} and {other.name} have one condition and priority, and do "
                    f"{rule.action.value} and {other.action.value}: give one of them another priority"
                )
    return [Problem(error_codes.REMEDIATION_CONTRADICTION, sentence) for sentence in sentences]


def _exclude(action: Action, other: Action) -> bool:
    """Return whether two actions cannot both answer one condition at once."""
    is_release = Action.RELEASE in (action, other)
    return action is other or is_release or (action in REPAIRS and other in REPAIRS)


def _unbounded(rules: Sequence[Rule]) -> list[Problem]:
    """Return the rules that act on healthy GPUs or nodes."""
    return [
        Problem(
            error_codes.REMEDIATION_UNBOUNDED,
            f"rule {rule.name} would do {rule.action.value} to every healthy GPU or node; "
            "name the fault: the state unhealthy, a need, an XID or a problem",
        )
        for rule in rules
        if rule.action is not Action.RELEASE and rule.when.holds_for_healthy
    ]


DEFAULTS: Mapping[str, object] = {
    "actsPerHour": 10,
    "breaker": {"nodes": 2, "percent": 20, "halfOpenSeconds": 900},
    "nvsentinel": False,
    "rules": [
        {
            "name": "cordon-broken-gpu", "when": {"need": ["reset", "reboot", "replacement"]}, "do": "cordon-gpu",
            "priority": 100,
        },
        {
            "name": "evict-from-broken-gpu", "when": {"need": ["reset", "reboot", "replacement"]}, "do": "evict-pods",
            "priority": 90, "attempts": 20, "coolDownSeconds": 60,
        },
        {"name": "request-reset", "when": {"need": ["reset"]}, "do": "request-reset", "priority": 50, "attempts": 2},
        {
            "name": "request-reboot-after-resets", "when": {"need": ["reset"]}, "do": "request-reboot",
            "priority": 40, "attempts": 2, "coolDownSeconds": 3600,
        },
        {
            "name": "request-reboot", "when": {"need": ["reboot"]}, "do": "request-reboot", "priority": 50,
            "attempts": 2, "coolDownSeconds": 3600,
        },
        {"name": "release-healthy", "when": {"state": ["healthy"]}, "do": "release", "priority": 10, "forSeconds": 60},
    ],
}  # fmt: skip
"""The rules without a file."""


def default() -> RuleSet:
    """Return the rules without a file."""
    rules = read(DEFAULTS)
    assert isinstance(rules, RuleSet)
    return rules
