"""What remediation does next: from the faults of the nodes, the rules, and what was done before. Pure.

    node_facts   what a node's annotations and conditions say of its GPUs
    observe      since when each rule's condition holds
    plan         each act that a rule asks for: it may be done now, or the reason why not

An act is planned again at each step until the cluster shows that it is done, so that an unfinished step, or a leader
that was killed, costs nothing but time. The limits count what is recorded on the nodes, so they hold across processes.
"""

import collections
import enum
import json
import math
import re
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import NamedTuple

from gpu_sharing.core import gpus, identifiers, remediation_history
from gpu_sharing.core.health import State
from gpu_sharing.core.remediation_history import HOUR_SECONDS, Entry, History
from gpu_sharing.core.remediation_rules import HOLDING, OF_ONE_GPU, REPAIRS, Action, Condition, Rule, RuleSet
from gpu_sharing.core.xids import Need

_MOST_BYTES = 256 * 1024
_LONGEST_CAUSE = 300
_XID = re.compile(r"XID (\d{1,4}):")
_OVERHEATED = "°C, shuts down at"
_STATES = {state.value: state for state in State}
_NEEDS = {need.name.lower(): need for need in Need}
NODE = remediation_history.NODE


@dataclass(frozen=True, slots=True, kw_only=True)
class GpuFacts:
    """One GPU, as its node's device plugin reports it."""

    uuid: identifiers.GpuUuid
    state: State = State.HEALTHY
    need: Need = Need.NOTHING
    cause: str = ""
    cordoned: bool = False
    """Whether the node's annotation names it."""
    released: bool = False
    """Whether an administrator has taken it over, to reset it: no rule applies."""

    @property
    def xid(self) -> int:
        """The XID of its fault; 0 for another fault."""
        match = _XID.search(self.cause)
        return int(match[1]) if match else 0


@dataclass(frozen=True, slots=True, kw_only=True)
class NodeFacts:
    """A node with GPUs, and what remediation did there."""

    name: identifiers.NodeName
    gpus: tuple[GpuFacts, ...] = ()
    is_alive: bool = True
    """Whether the node is Ready; else what it reported of its GPUs may be old, and leads to no act."""
    conditions: Mapping[str, str] = field(default_factory=dict)
    """Status by type."""
    problems: Collection[str] = ()
    """Error codes that its device plugin reports."""
    is_cordoned: bool = False
    is_tainted: bool = False
    """Whether it has the taint of remediation."""
    history: History = ()


def gpu_facts(
    inventory: Iterable[gpus.Gpu],
    health_text: str,
    cordoned: Collection[identifiers.GpuUuid],
    released: Collection[identifiers.GpuUuid],
) -> tuple[GpuFacts, ...]:
    """Return the GPUs of a node; of an unhealthy one without readable details the need is unknown, so nothing.

    Args:
        inventory: The node's record.
        health_text: The value of `hami.io/gpu-health`.
        cordoned: What the annotation `hami.io/device-cordon` names.
        released: What `hami.io/gpu-release` names.
    """
    details = _health_items(health_text)
    return tuple(
        replace(_gpu(gpu, details.get(gpu.uuid, {})), cordoned=gpu.uuid in cordoned, released=gpu.uuid in released)
        for gpu in inventory
    )


def _gpu(gpu: gpus.Gpu, item: Mapping[str, object]) -> GpuFacts:
    if gpu.healthy:
        return GpuFacts(uuid=gpu.uuid)
    state, need, cause = item.get("state"), item.get("need"), item.get("cause")
    return GpuFacts(
        uuid=gpu.uuid,
        state=_STATES.get(state, State.UNHEALTHY) if isinstance(state, str) else State.UNHEALTHY,
        need=_NEEDS.get(need, Need.NOTHING) if isinstance(need, str) else Need.NOTHING,
        cause=cause[:_LONGEST_CAUSE] if isinstance(cause, str) else "",
    )


def _health_items(text: str) -> dict[str, Mapping[str, object]]:
    try:
        items = json.loads(text).items() if text and len(text) <= _MOST_BYTES else ()
    except (ValueError, AttributeError, RecursionError):
        return {}
    return {uuid: item for uuid, item in items if isinstance(item, dict)}


class Match(NamedTuple):
    """A rule whose condition holds for a GPU, or with an empty UUID for a node."""

    node: identifiers.NodeName
    gpu: identifiers.GpuUuid
    rule: str


def matches(nodes: Iterable[NodeFacts], rules: RuleSet) -> Iterator[Match]:
    """Return every rule that applies now, with its GPU; a rule about the node alone has none."""
    for node in nodes:
        for rule in rules.rules:
            if not _node_matches(node, rule.when):
                continue
            if not rule.when.is_about_gpus:
                yield Match(node.name, NODE, rule.name)
            elif node.is_alive:
                for gpu in node.gpus:
                    if not gpu.released and _gpu_matches(gpu, rule.when):
                        yield Match(node.name, gpu.uuid, rule.name)


def _node_matches(node: NodeFacts, when: Condition) -> bool:
    holds = any(node.conditions.get(kind) == status for kind, status in when.node_conditions)
    reported = node.is_alive and any(code in node.problems for code in when.problems)
    return (holds or not when.node_conditions) and (reported or not when.problems)


def _gpu_matches(gpu: GpuFacts, when: Condition) -> bool:
    return (
        (not when.states or gpu.state in when.states)
        and (not when.needs or gpu.need in when.needs)
        and (not when.xids or gpu.xid in when.xids)
        and (not when.overheated or _OVERHEATED in gpu.cause)
    )


Since = Mapping[Match, float]
"""Seconds on the caller's clock since when each match holds."""


def observe(before: Since, nodes: Iterable[NodeFacts], rules: RuleSet, now: float) -> Since:
    """Return since when each rule applies; a match that ended in between begins anew."""
    return {match: before.get(match, now) for match in matches(nodes, rules)}


class Refusal(enum.Enum):
    """Why an act is not done now."""

    NOT_YET = "not long enough"
    COOL_DOWN = "cool-down"
    ATTEMPTS = "attempts used up"
    BUDGET = "budget used up"
    BREAKER = "breaker open"
    FOREIGN = "cordoned by someone else"
    UNDONE = "undone by someone else"
    PODS_REMAIN = "pods remain"
    DRY_RUN = "dry run"


PASSING = frozenset({Refusal.NOT_YET, Refusal.COOL_DOWN})
"""Reasons that end by themselves, after `Act.wait_seconds`."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Act:
    """One act that a rule asks for."""

    node: identifiers.NodeName
    gpu: identifiers.GpuUuid
    """Empty for an act on the node."""
    rule: Rule
    cause: str
    """The fault, for people."""
    releases: tuple[Entry, ...] = ()
    """For a release: what it ends."""
    refusal: Refusal | None = None
    """Why it is not done; None where it may be done."""
    wait_seconds: int = 0
    """For `NOT_YET` and `COOL_DOWN`: how long still."""

    @property
    def action(self) -> Action:
        """The action of the rule."""
        return self.rule.action


class Breaker(enum.Enum):
    """Whether acts are stopped because too many nodes are affected."""

    CLOSED = "closed"
    OPEN = "open"
    HALF_OPEN = "half-open"
    """One act may be done."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Situation:
    """What a plan is made for.

    Attributes:
        nodes: Every node with GPUs.
        holders: The GPUs that pods hold, by node.
        evictable: Likewise, of pods that may be evicted: they are not ending, and an owner starts them again.
        since: What `observe` returned, in Unix seconds.
        breaker_opened_at: Since when too many nodes are affected, by the previous plan; None while they are not.
        dry_run: Whether nothing may be done.
    """

    nodes: Sequence[NodeFacts]
    holders: Mapping[identifiers.NodeName, Collection[identifiers.GpuUuid]]
    evictable: Mapping[identifiers.NodeName, Collection[identifiers.GpuUuid]]
    since: Since
    breaker_opened_at: float | None = None
    dry_run: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """What to do now, in this order, and what not."""

    acts: tuple[Act, ...]
    breaker: Breaker
    breaker_opened_at: float | None
    budget_left: int
    """Before the acts of this plan."""
    affected_nodes: int


def plan(situation: Situation, rules: RuleSet, now: float) -> Plan:
    """Return the acts that the rules ask for, each permitted or with the reason why not.

    Args:
        situation: The cluster.
        rules: The rules.
        now: Unix seconds, as in the histories of the nodes.
    """
    by_name = {rule.name: rule for rule in rules.rules}
    affected = {match.node for match in situation.since if by_name[match.rule].action is not Action.RELEASE}
    times = [at for node in situation.nodes for one in node.history for at in one.times]
    breaker, opened_at = _breaker(situation, rules, len(affected), times, now)
    left = max(rules.acts_per_hour - sum(1 for at in times if at > now - HOUR_SECONDS), 0)
    permitted = 0
    may_act = {Breaker.CLOSED: left, Breaker.HALF_OPEN: min(left, 1), Breaker.OPEN: 0}[breaker]
    acts = []
    for act in _wanted(situation, rules, now):
        if act.refusal is None and act.action is not Action.RELEASE:
            if permitted >= may_act:
                act = _refused(act, Refusal.BUDGET if permitted >= left else Refusal.BREAKER)
            else:
                permitted += 1
        if act.refusal is None and situation.dry_run:
            act = _refused(act, Refusal.DRY_RUN)
        acts.append(act)
    return Plan(
        acts=tuple(acts), breaker=breaker, breaker_opened_at=opened_at, budget_left=left, affected_nodes=len(affected)
    )


def _breaker(
    situation: Situation, rules: RuleSet, affected: int, times: Sequence[int], now: float
) -> tuple[Breaker, float | None]:
    """Return the breaker's state, and since when too many nodes are affected.

    It is half-open once that time, and the time since the last act anywhere, are both long enough; so one act follows
    another at that distance, whichever process does it.
    """
    with_gpus = sum(1 for node in situation.nodes if node.gpus)
    if affected <= max(rules.most_nodes, with_gpus * rules.most_percent // 100):
        return Breaker.CLOSED, None
    opened_at = now if situation.breaker_opened_at is None else situation.breaker_opened_at
    quiet_since = max([opened_at, *times])
    return (Breaker.HALF_OPEN if now - quiet_since >= rules.half_open_seconds else Breaker.OPEN), opened_at


def _refused(act: Act, refusal: Refusal, wait_seconds: float = 0.0) -> Act:
    return replace(act, refusal=refusal, wait_seconds=math.ceil(wait_seconds))


def _wanted(situation: Situation, rules: RuleSet, now: float) -> list[Act]:
    """Return what the rules ask for by the state of each node alone, in the order of priority."""
    by_node: dict[identifiers.NodeName, list[Match]] = collections.defaultdict(list)
    for match in situation.since:
        by_node[match.node].append(match)
    acts = [
        act
        for node in situation.nodes
        if by_node[node.name] or node.history
        for act in _on_node(node, by_node[node.name], situation, rules, now)
    ]
    return sorted(acts, key=lambda act: -act.rule.priority)  # Stable: the order of nodes and GPUs stays.


def _on_node(
    node: NodeFacts, matched: Sequence[Match], situation: Situation, rules: RuleSet, now: float
) -> Iterator[Act]:
    by_name = {rule.name: rule for rule in rules.rules}
    by_uuid = {gpu.uuid: gpu for gpu in node.gpus}
    positions = {uuid: number for number, uuid in enumerate(by_uuid)}
    ordered = sorted(matched, key=lambda one: (-by_name[one.rule].priority, positions.get(one.gpu, -1)))
    begun: set[tuple[Action, identifiers.GpuUuid]] = set()
    repaired: set[identifiers.GpuUuid] = set()
    for match in ordered:
        rule = by_name[match.rule]
        target = match.gpu if rule.action in OF_ONE_GPU else NODE
        if rule.action is Action.RELEASE or (rule.action in REPAIRS and match.gpu in repaired):
            continue
        if rule.action in REPAIRS:
            if _is_used_up(node.history, rule, target, now) and _has_next(match, ordered, by_name):
                continue
            repaired.add(match.gpu)
        if (rule.action, target) in begun:
            continue
        begun.add((rule.action, target))
        gpu = by_uuid.get(match.gpu)
        act = Act(node=node.name, gpu=target, rule=rule, cause=gpu.cause if gpu else _node_cause(rule))
        if not _is_done(act, node, match.gpu in situation.evictable.get(node.name, ())):
            held = match.gpu in situation.holders.get(node.name, ())
            yield _judged(act, node, held, situation.since[match], now)
    yield from _releases(node, situation, rules, now)


def _node_cause(rule: Rule) -> str:
    named = [f"{kind}={status}" for kind, status in sorted(rule.when.node_conditions)]
    return ", ".join([*named, *sorted(rule.when.problems)])


def _is_used_up(history: History, rule: Rule, target: identifiers.GpuUuid, now: float) -> bool:
    """Return whether a repair was tried as often as it may be, and the last one had its time."""
    done = remediation_history.entry(history, rule.action, target)
    if done is None or done.within(remediation_history.DAY_SECONDS, now) < rule.attempts:
        return False
    return now - done.times[-1] >= rule.cool_down_seconds


def _has_next(match: Match, ordered: Sequence[Match], by_name: Mapping[str, Rule]) -> bool:
    """Return whether another repair of lower priority applies to the same GPU."""
    later = ordered[ordered.index(match) + 1 :]
    return any(one.gpu == match.gpu and by_name[one.rule].action in REPAIRS for one in later)


def _is_done(act: Act, node: NodeFacts, evictable: bool) -> bool:
    """Return whether the cluster shows that nothing is to be done."""
    own = remediation_history.entry(node.history, act.action, act.gpu)
    if act.action is Action.EVICT_PODS:
        return not evictable
    return own is not None and own.holds and _stands(act.action, act.gpu, node)


def _stands(action: Action, uuid: identifiers.GpuUuid, node: NodeFacts) -> bool:
    """Return whether the effect of an act is there now, by whatever cause; that of a request is not known."""
    match action:
        case Action.CORDON_GPU:
            return any(gpu.cordoned for gpu in node.gpus if gpu.uuid == uuid)
        case Action.CORDON_NODE:
            return node.is_cordoned
        case Action.TAINT_NODE:
            return node.is_tainted
        case _:
            return False


def _judged(act: Act, node: NodeFacts, held: bool, since: float, now: float) -> Act:
    """Return the act, with the reason why it is not done now if there is one."""
    rule = act.rule
    own = remediation_history.entry(node.history, act.action, act.gpu)
    if _stands(act.action, act.gpu, node):
        return _refused(act, Refusal.FOREIGN)
    if own is not None and own.holds and act.action not in REPAIRS:
        return _refused(act, Refusal.UNDONE)
    if now - since < rule.for_seconds:
        return _refused(act, Refusal.NOT_YET, rule.for_seconds - (now - since))
    if own is not None:
        waited = now - own.times[-1] if own.times else rule.cool_down_seconds
        if waited < rule.cool_down_seconds:
            return _refused(act, Refusal.COOL_DOWN, rule.cool_down_seconds - waited)
        if own.within(remediation_history.DAY_SECONDS, now) >= rule.attempts:
            return _refused(act, Refusal.ATTEMPTS)
    return _refused(act, Refusal.PODS_REMAIN) if act.action is Action.REQUEST_RESET and held else act


def _releases(node: NodeFacts, situation: Situation, rules: RuleSet, now: float) -> Iterator[Act]:
    """Return the releases of what remediation itself did: of each GPU that is healthy or gone, and of the node."""
    holding = [one for one in node.history if one.holds and one.action in HOLDING]
    release = next((rule for rule in rules.rules if rule.action is Action.RELEASE), None)
    if release is None or not holding or not node.is_alive:
        return
    healthy_for = {
        match.gpu: now - at
        for match, at in situation.since.items()
        if match.node == node.name and match.rule == release.name
    }
    present = [gpu.uuid for gpu in node.gpus]
    of_rules = {match.rule for match in situation.since if match.node == node.name}
    still = {rule.action for rule in rules.rules if rule.name in of_rules and not rule.when.is_about_gpus}
    for target in dict.fromkeys(one.gpu for one in holding):
        watched = present if target == NODE else [uuid for uuid in present if uuid == target]
        waits = [release.for_seconds - healthy_for[uuid] if uuid in healthy_for else None for uuid in watched]
        ended = tuple(one for one in holding if one.gpu == target and (target != NODE or one.action not in still))
        if not ended or not present or None in waits:
            continue
        act = Act(node=node.name, gpu=target, rule=release, cause="healthy" if watched else "gone", releases=ended)
        left = max([wait for wait in waits if wait is not None], default=0)
        yield _refused(act, Refusal.NOT_YET, left) if left > 0 else act
