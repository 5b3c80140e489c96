"""What remediation plans: limits that hold whatever happens, and nothing of others undone."""

import dataclasses
import itertools
import json
from collections.abc import Iterable
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gpu_sharing.core import gpus, identifiers, remediation, remediation_history, remediation_rules
from gpu_sharing.core.health import State
from gpu_sharing.core.remediation import Act, Breaker, GpuFacts, NodeFacts, Plan, Refusal, Situation
from gpu_sharing.core.remediation_history import Entry
from gpu_sharing.core.remediation_rules import HOLDING, Action, RuleSet
from gpu_sharing.core.xids import Need

NOW = 1_700_000_000.0
UUIDS = [identifiers.GpuUuid(f"GPU-{number}") for number in range(4)]
A = identifiers.NodeName("a")


def rules(**changes: Any) -> RuleSet:
    read = remediation_rules.read({**remediation_rules.DEFAULTS, **changes})
    assert isinstance(read, RuleSet), read
    return read


def one_rule(when: dict[str, Any], action: str, **fields: Any) -> RuleSet:
    release = {"name": "release", "when": {"state": ["healthy"]}, "do": "release", "forSeconds": 60}
    return rules(rules=[{"name": "r", "when": when, "do": action, **fields}, release])


def broken(number: int = 0, need: Need = Need.REBOOT, **changes: Any) -> GpuFacts:
    facts = GpuFacts(uuid=UUIDS[number], state=State.UNHEALTHY, need=need, cause="XID 79: GPU has fallen off the bus")
    return dataclasses.replace(facts, **changes)


def healthy(number: int = 0, **changes: Any) -> GpuFacts:
    return GpuFacts(uuid=UUIDS[number], **changes)


def node(*gpus_of_node: GpuFacts, name: str = "a", **changes: Any) -> NodeFacts:
    return NodeFacts(name=identifiers.NodeName(name), gpus=gpus_of_node, **changes)


def made(
    nodes: Iterable[NodeFacts], with_rules: RuleSet | None = None, now: float = NOW, *, age: float = 3600.0,
    holders: dict[str, set[identifiers.GpuUuid]] | None = None, **changes: Any,
) -> Plan:  # fmt: skip
    """Return the plan for nodes whose faults are `age` seconds old."""
    listed = list(nodes)
    chosen = with_rules or rules()
    held = {identifiers.NodeName(name): uuids for name, uuids in (holders or {}).items()}
    since = remediation.observe({}, listed, chosen, now - age)
    return remediation.plan(Situation(nodes=listed, holders=held, evictable=held, since=since, **changes), chosen, now)


def told(plan: Plan) -> list[tuple[str, str, Refusal | None]]:
    return [(act.action.value, act.gpu, act.refusal) for act in plan.acts]


def test_a_dead_gpu_is_cordoned_emptied_and_its_node_is_to_be_rebooted() -> None:
    """XID 79: its pods alone are evicted, and the healthy GPU beside it stays."""
    plan = made([node(broken(0), healthy(1))], holders={"a": {UUIDS[0], UUIDS[1]}})

    assert told(plan) == [
        ("cordon-gpu", UUIDS[0], None),
        ("evict-pods", UUIDS[0], None),
        ("request-reboot", "", None),
    ]
    assert plan.acts[0].cause == "XID 79: GPU has fallen off the bus"
    assert (plan.breaker, plan.budget_left, plan.affected_nodes) == (Breaker.CLOSED, 10, 1)


def test_a_dry_run_permits_nothing_and_says_what_it_would_do() -> None:
    plan = made([node(broken(0))], dry_run=True)

    assert {refusal for _, _, refusal in told(plan)} == {Refusal.DRY_RUN}


def test_a_rule_waits_until_its_condition_has_lasted() -> None:
    """A fault that ends by itself within that time costs no pod."""
    cordon = one_rule({"state": ["suspect"]}, "cordon-gpu", forSeconds=300)
    suspect = broken(0, state=State.SUSPECT)

    (early,) = made([node(suspect)], cordon, age=100.0).acts
    assert (early.refusal, early.wait_seconds) == (Refusal.NOT_YET, 200)
    assert made([node(suspect)], cordon, age=300.0).acts[0].refusal is None
    since = remediation.observe({}, [node(suspect)], cordon, 1.0)
    assert list(remediation.observe(since, [node(suspect)], cordon, 9.0).values()) == [1.0]
    gone = remediation.observe(since, [node(healthy(0))], cordon, 9.0)
    assert remediation.observe(gone, [node(suspect)], cordon, 10.0) == {remediation.Match(A, UUIDS[0], "r"): 10.0}


def test_pods_of_a_gpu_are_evicted_until_none_is_left() -> None:
    """A pod that a disruption budget protects is tried again after the cool-down, and not for ever."""
    evict = one_rule({"xid": [79]}, "evict-pods", attempts=2, coolDownSeconds=60)

    def after(*ages: int, held: bool = True) -> list[tuple[str, str, Refusal | None]]:
        times = tuple(sorted(int(NOW) - age for age in ages))
        history = (Entry(action=Action.EVICT_PODS, gpu=UUIDS[0], rule="r", times=times),) if ages else ()
        return told(made([node(broken(0), history=history)], evict, holders={"a": {UUIDS[0]} if held else set()}))

    assert after(held=False) == []
    assert after()[0][2] is None
    assert after(59)[0][2] is Refusal.COOL_DOWN
    assert after(60)[0][2] is None
    assert after(60, 120)[0][2] is Refusal.ATTEMPTS
    assert after(60, 86_400)[0][2] is None


def test_a_history_without_times_allows_the_act() -> None:
    evict = one_rule({"xid": [79]}, "evict-pods")
    history = (Entry(action=Action.EVICT_PODS, gpu=UUIDS[0], rule="r"),)

    assert made([node(broken(0), history=history)], evict, holders={"a": {UUIDS[0]}}).acts[0].refusal is None


def test_a_cordon_of_an_administrator_is_neither_repeated_nor_released() -> None:
    """The person who cordoned a GPU ends that, nobody else."""
    assert told(made([node(broken(0, cordoned=True))]))[0] == ("cordon-gpu", UUIDS[0], Refusal.FOREIGN)
    assert made([node(healthy(0, cordoned=True))]).acts == ()
    ours = (Entry(action=Action.CORDON_GPU, gpu=UUIDS[0], rule="r", times=(int(NOW) - 900,), holds=True),)
    assert made([node(broken(0, cordoned=True), history=ours)]).acts[0].action is Action.REQUEST_REBOOT


def test_what_a_person_undid_is_not_done_again() -> None:
    ours = (Entry(action=Action.CORDON_GPU, gpu=UUIDS[0], rule="r", times=(int(NOW) - 900,), holds=True),)

    assert told(made([node(broken(0), history=ours)]))[0] == ("cordon-gpu", UUIDS[0], Refusal.UNDONE)


def test_our_cordon_is_released_once_the_gpu_is_healthy_for_long_enough() -> None:
    ours = (Entry(action=Action.CORDON_GPU, gpu=UUIDS[0], rule="r", times=(int(NOW) - 900,), holds=True),)
    recovered = node(healthy(0, cordoned=True), healthy(1, cordoned=True), history=ours)

    (early,) = made([recovered], age=10.0).acts
    assert (early.refusal, early.wait_seconds) == (Refusal.NOT_YET, 50)
    (act,) = made([recovered], age=60.0).acts
    assert (act.action, act.gpu, act.refusal, act.releases) == (Action.RELEASE, UUIDS[0], None, ours)
    assert made([dataclasses.replace(recovered, is_alive=False)]).acts == ()


def test_the_cordon_of_a_gpu_that_was_replaced_is_released() -> None:
    """The new hardware has another UUID; the entry of the old one would stay for ever."""
    ours = (Entry(action=Action.CORDON_GPU, gpu=UUIDS[0], rule="r", holds=True),)

    (act,) = made([node(healthy(1), history=ours)]).acts
    assert (act.action, act.gpu, act.cause) == (Action.RELEASE, UUIDS[0], "gone")
    assert made([node(history=ours)]).acts == ()


@pytest.mark.parametrize(("action", "field"), [("cordon-node", "is_cordoned"), ("taint-node", "is_tainted")])
def test_a_node_is_released_once_all_its_gpus_are_healthy(action: str, field: str) -> None:
    chosen = one_rule({"need": ["reboot"]}, action)
    ours = (Entry(action=Action(action), rule="r", times=(int(NOW) - 900,), holds=True),)
    states: dict[str, Any] = {field: True, "history": ours}
    foreign: dict[str, Any] = {field: True}

    assert told(made([node(broken(0), broken(1))], chosen)) == [(action, "", None)]
    assert told(made([node(broken(0), **foreign)], chosen)) == [(action, "", Refusal.FOREIGN)]
    assert made([node(broken(0), healthy(1), **states)], chosen).acts == ()
    assert told(made([node(healthy(0), healthy(1), **states)], chosen)) == [("release", "", None)]


def test_a_node_stays_cordoned_while_its_own_condition_lasts() -> None:
    chosen = one_rule({"nodeCondition": ["KernelDeadlock=True"]}, "cordon-node")
    ours = (Entry(action=Action.CORDON_NODE, rule="r", holds=True),)
    locked = node(healthy(0), conditions={"KernelDeadlock": "True"}, is_cordoned=True, history=ours)

    assert made([locked], chosen).acts == ()
    assert told(made([dataclasses.replace(locked, conditions={})], chosen)) == [("release", "", None)]
    fresh = made([dataclasses.replace(locked, history=(), is_cordoned=False)], chosen).acts
    assert [(act.action, act.cause) for act in fresh] == [(Action.CORDON_NODE, "KernelDeadlock=True")]


def test_mps_is_restarted_where_the_plugin_reports_it() -> None:
    chosen = one_rule({"problem": ["PLUGIN_MPS"]}, "restart-mps")

    assert told(made([node(healthy(0), problems=("PLUGIN_MPS",))], chosen)) == [("restart-mps", "", None)]
    assert made([node(healthy(0), problems=("PLUGIN_MPS",), is_alive=False)], chosen).acts == ()
    assert made([node(healthy(0))], chosen).acts == ()


def test_nothing_is_done_about_a_gpu_that_a_person_resets_or_whose_node_is_silent() -> None:
    """What a node reported before it went silent may be old."""
    assert made([node(broken(0, released=True))]).acts == ()
    assert made([node(broken(0), is_alive=False)]).acts == ()


def test_an_overheated_gpu_has_a_condition_of_its_own() -> None:
    chosen = one_rule({"overheated": True}, "cordon-gpu")

    assert made([node(broken(0))], chosen).acts == ()
    hot = broken(0, need=Need.NOTHING, cause="95 °C, shuts down at 95 °C")
    assert told(made([node(hot)], chosen)) == [("cordon-gpu", UUIDS[0], None)]


def test_a_gpu_in_use_is_not_to_be_reset_and_resets_without_effect_lead_to_a_reboot() -> None:
    """Each repair has its attempts and its time before the next, stronger one is requested."""
    sick = broken(0, need=Need.RESET)
    chosen = rules(rules=[rule for rule in DEFAULT_RULES if str(rule["do"]).startswith(("request", "release"))])

    def after(*ages: int) -> list[tuple[str, str, Refusal | None]]:
        times = tuple(sorted(int(NOW) - age for age in ages))
        history = (Entry(action=Action.REQUEST_RESET, gpu=UUIDS[0], rule="r", times=times, holds=True),) if ages else ()
        return told(made([node(sick, history=history)], chosen))

    held = made([node(sick)], chosen, holders={"a": {UUIDS[0]}})
    assert told(held) == [("request-reset", UUIDS[0], Refusal.PODS_REMAIN)]
    assert after() == [("request-reset", UUIDS[0], None)]
    assert after(100) == [("request-reset", UUIDS[0], Refusal.COOL_DOWN)]
    assert after(700) == [("request-reset", UUIDS[0], None)]
    assert after(100, 800) == [("request-reset", UUIDS[0], Refusal.COOL_DOWN)]
    assert after(700, 1400) == [("request-reboot", "", None)]


def test_the_last_repair_ends_with_its_attempts() -> None:
    times = (int(NOW) - 9000, int(NOW) - 4000)
    history = (Entry(action=Action.REQUEST_REBOOT, rule="r", times=times, holds=True),)

    assert told(made([node(broken(0), history=history)]))[-1] == ("request-reboot", "", Refusal.ATTEMPTS)


def test_two_gpus_of_a_node_need_one_reboot() -> None:
    plan = made([node(broken(0), broken(1))])

    assert [act.action for act in plan.acts].count(Action.REQUEST_REBOOT) == 1


DEFAULT_RULES: Any = remediation_rules.DEFAULTS["rules"]


def test_the_breaker_opens_when_many_nodes_fail_and_half_opens_by_itself() -> None:
    """A bad driver update breaks all nodes at once; evicting everything would make it worse."""
    nodes = [node(broken(0), name=f"n{number}") for number in range(4)]

    first = made(nodes)
    assert (first.breaker, first.affected_nodes, first.breaker_opened_at) == (Breaker.OPEN, 4, NOW)
    assert {refusal for _, _, refusal in told(first)} == {Refusal.BREAKER}
    later = made(nodes, now=NOW + 900, breaker_opened_at=NOW)
    assert later.breaker is Breaker.HALF_OPEN
    assert [refusal for _, _, refusal in told(later)].count(None) == 1
    acted = Entry(action=Action.CORDON_GPU, gpu=UUIDS[0], rule="r", times=(int(NOW) + 900,), holds=True)
    nodes[0] = node(broken(0, cordoned=True), name="n0", history=(acted,))
    assert made(nodes, now=NOW + 901, breaker_opened_at=NOW).breaker is Breaker.OPEN
    assert made(nodes, now=NOW + 1800, breaker_opened_at=NOW).breaker is Breaker.HALF_OPEN
    assert made(nodes[:2], now=NOW + 901, breaker_opened_at=NOW).breaker_opened_at is None


def test_a_large_cluster_may_have_more_broken_nodes() -> None:
    nodes = [node(broken(0) if number < 4 else healthy(0), name=f"n{number:02}") for number in range(20)]

    assert made(nodes).breaker is Breaker.CLOSED
    assert made(nodes[:19]).breaker is Breaker.OPEN


def test_releases_go_on_while_the_breaker_is_open_and_the_budget_is_used_up() -> None:
    """To undo is never what makes an outage worse."""
    ours = (Entry(action=Action.CORDON_GPU, gpu=UUIDS[1], rule="r", times=(int(NOW) - 900,), holds=True),)
    nodes = [node(broken(0), name=f"n{number}") for number in range(3)]
    nodes.append(node(broken(0), healthy(1, cordoned=True), name="n3", history=ours))

    assert next(act for act in made(nodes, rules(actsPerHour=1)).acts if act.refusal is None).action is Action.RELEASE


def test_the_budget_of_an_hour_is_never_exceeded() -> None:
    recent = Entry(action=Action.CORDON_GPU, gpu=UUIDS[1], rule="r", times=(int(NOW) - 10, int(NOW) - 3599))
    old = Entry(action=Action.EVICT_PODS, gpu=UUIDS[1], rule="r", times=(int(NOW) - 3600,))
    plan = made([node(broken(0), history=(recent, old))], rules(actsPerHour=3), holders={"a": {UUIDS[0]}})

    assert plan.budget_left == 1
    assert [refusal for _, _, refusal in told(plan)] == [None, Refusal.BUDGET, Refusal.BUDGET]


# What nodes say.


def test_the_facts_of_gpus_come_from_the_annotations_of_the_node() -> None:
    inventory = [
        gpus.Gpu(uuid=uuid, index=0, memory_mib=1, cores_percent=100, slots=1, type="T", healthy=uuid == UUIDS[3])
        for uuid in UUIDS
    ]
    item = {"state": "recovering", "need": "reboot", "cause": "XID 79: x" + "y" * 999}
    text = json.dumps({UUIDS[0]: item, UUIDS[1]: {"state": 1, "need": "x", "cause": 3}, UUIDS[2]: 7, UUIDS[3]: item})

    read = remediation.gpu_facts(inventory, text, {UUIDS[1]}, {UUIDS[2]})

    assert (read[0].state, read[0].need, read[0].xid, len(read[0].cause)) == (State.RECOVERING, Need.REBOOT, 79, 300)
    assert (read[1].state, read[1].need, read[1].cause, read[1].cordoned) == (State.UNHEALTHY, Need.NOTHING, "", True)
    assert (read[2].released, read[2].xid, read[3]) == (True, 0, GpuFacts(uuid=UUIDS[3]))
    assert remediation.gpu_facts(inventory, json.dumps({UUIDS[0]: {"need": 3}}), (), ())[0].need is Need.NOTHING
    for nonsense in ("", "{", "[]", " " * 300_000, "[" * 100_000):
        assert remediation.gpu_facts(inventory, nonsense, (), ())[0].state is State.UNHEALTHY


# The annotation.


def test_a_history_survives_its_encoding() -> None:
    history = (
        Entry(action=Action.CORDON_GPU, gpu=UUIDS[0], rule="r", times=(1, 2), holds=True),
        Entry(action=Action.TAINT_NODE, rule="s", times=(3,)),
    )

    assert set(remediation_history.decode(remediation_history.encode(history) or "")) == set(history)
    assert remediation_history.encode(()) is None


@pytest.mark.parametrize(
    "item",
    [{"action": "explode"}, {"action": 3}, {"action": "release", "rule": 3}, {"action": "release", "gpu": 3},
     {"action": "release", "gpu": "a b"}, {"action": "release", "at": 3}, {"action": "release", "at": ["x"]},
     {"action": "release", "at": [-1]}, {"action": "release", "at": [2**50]}, {"action": "release", "rule": "x" * 64},
     7, None],
)  # fmt: skip
def test_an_entry_that_cannot_be_read_is_ignored_and_the_others_count(item: Any) -> None:
    """A person's typo in one entry must not let remediation forget its other acts."""
    good = {"action": "cordon-gpu", "gpu": UUIDS[0], "rule": "r", "at": [1], "holds": True}

    read = remediation_history.decode(json.dumps([item, good, {**good, "rule": "twice"}]))

    assert [(one.action, one.rule, one.holds) for one in read] == [(Action.CORDON_GPU, "r", True)]


@pytest.mark.parametrize("text", ["", "{", "{}", "7", "[" * 100_000, '["' + "x" * 70_000 + '"]'])
def test_nonsense_in_the_annotation_is_no_history(text: str) -> None:
    assert remediation_history.decode(text) == ()


def test_an_act_and_a_release_change_one_entry_and_old_ones_go() -> None:
    old = Entry(action=Action.EVICT_PODS, gpu=UUIDS[1], rule="r", times=(int(NOW) - 90_000,))
    kept = Entry(action=Action.CORDON_GPU, gpu=UUIDS[1], rule="r", times=(int(NOW) - 90_000,), holds=True)
    cordon = Entry(action=Action.CORDON_GPU, gpu=UUIDS[0], rule="r", holds=True)

    acted = remediation_history.with_act((old, kept), cordon, NOW)
    assert acted == (kept, dataclasses.replace(cordon, times=(int(NOW),)))
    again = remediation_history.with_act(acted, cordon, NOW + 5)
    assert again[1].times == (int(NOW), int(NOW) + 5)
    assert remediation_history.without_hold(again, [kept], NOW) == again[1:]
    (released, other) = remediation_history.without_hold(again, [again[1]], NOW)[::-1]
    assert (released.holds, released.times, other) == (False, again[1].times, kept)


# A cluster that goes on: whatever fails when, the limits hold.


@st.composite
def _faults(draw: st.DrawFn) -> list[tuple[str, int, int]]:
    kinds = st.sampled_from(["break", "heal", "step", "step", "step", "crash", "foreign", "unforeign"])
    return draw(st.lists(st.tuples(kinds, st.integers(0, 5), st.integers(0, 900)), max_size=60))


class Cluster:
    """Six nodes of one GPU, with one pod each, whose only memory is what their annotations say."""

    def __init__(self) -> None:
        self.needs = [Need.NOTHING] * 6
        self.cordons: list[set[str]] = [set() for _ in range(6)]
        self.histories: list[str] = [""] * 6
        self.has_pod = [True] * 6
        self.done: list[tuple[float, Act]] = []

    def nodes(self) -> list[NodeFacts]:
        return [
            node(
                GpuFacts(
                    uuid=UUIDS[0], state=State.UNHEALTHY if need else State.HEALTHY, need=need,
                    cordoned=bool(self.cordons[number]),
                ),
                name=f"n{number}", history=remediation_history.decode(self.histories[number]),
            )
            for number, need in enumerate(self.needs)
        ]  # fmt: skip

    def do(self, act: Act, now: float) -> None:
        """Write what the controller writes: the effect and its entry in one patch."""
        number = int(act.node[1:])
        history = remediation_history.decode(self.histories[number])
        if act.action is Action.RELEASE:
            assert act.releases
            for one in act.releases:
                if one.action is Action.CORDON_GPU:
                    assert "us" in self.cordons[number] or not self.cordons[number] or "person" in self.cordons[number]
                    self.cordons[number].discard("us")
            after = remediation_history.without_hold(history, act.releases, now)
        else:
            self.done.append((now, act))
            if act.action is Action.CORDON_GPU:
                assert not self.cordons[number], "a cordon of someone else is repeated"
                self.cordons[number].add("us")
            if act.action is Action.EVICT_PODS:
                self.has_pod[number] = False
            entry = Entry(action=act.action, gpu=act.gpu, rule=act.rule.name, holds=act.action in HOLDING)
            after = remediation_history.with_act(history, entry, now)
        self.histories[number] = remediation_history.encode(after) or ""


@given(_faults(), st.integers(1, 6))
@settings(max_examples=150)
def test_whatever_fails_when_no_limit_is_exceeded_and_nothing_foreign_is_undone(
    steps: list[tuple[str, int, int]], budget: int
) -> None:
    """The process is killed between any two acts, and its successor knows only what is written on the nodes."""
    chosen, cluster, now = rules(actsPerHour=budget), Cluster(), NOW
    since: remediation.Since = {}
    opened_at: float | None = None
    for kind, number, seconds in steps:
        now += seconds
        if kind == "break":
            cluster.needs[number] = Need.RESET if number % 2 else Need.REBOOT
        elif kind == "heal":
            cluster.needs[number], cluster.has_pod[number] = Need.NOTHING, True
        elif kind == "foreign":
            cluster.cordons[number].add("person")
        elif kind == "unforeign":
            cluster.cordons[number].clear()
        else:
            nodes = cluster.nodes()
            since = remediation.observe({} if kind == "crash" else since, nodes, chosen, now)
            held = {one.name: {UUIDS[0]} for one, has in zip(nodes, cluster.has_pod, strict=True) if has}
            situation = Situation(
                nodes=nodes,
                holders=held,
                evictable=held,
                since=since,
                breaker_opened_at=None if kind == "crash" else opened_at,
            )
            plan = remediation.plan(situation, chosen, now)
            opened_at = plan.breaker_opened_at
            permitted = [act for act in plan.acts if act.refusal is None]
            # It may be killed after any of its acts.
            for act in permitted[: number if kind == "crash" else None]:
                cluster.do(act, now)
    for at, _ in cluster.done:
        assert sum(1 for other, _ in cluster.done if at - 3600 < other <= at) <= budget
    by_target: dict[Any, list[float]] = {}
    for at, act in cluster.done:
        by_target.setdefault((act.node, act.gpu, act.action), []).append(at)
    cool_downs = {rule.action: rule.cool_down_seconds for rule in chosen.rules}
    for (_, _, action), times in by_target.items():
        assert all(later - at >= cool_downs[action] for at, later in itertools.pairwise(times))
        assert all(sum(1 for other in times if at - 86_400 < other <= at) <= 20 for at in times)
