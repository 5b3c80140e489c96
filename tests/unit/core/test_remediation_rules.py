"""Rule files of remediation: what is read, and what is refused before anything happens."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gpu_sharing.core import error_codes, remediation_rules
from gpu_sharing.core.health import State
from gpu_sharing.core.remediation_rules import Action, Condition, RuleSet
from gpu_sharing.core.xids import Need

RULE = {"name": "r", "when": {"need": ["reset"]}, "do": "cordon-gpu"}


def refused(*rules: Any, **top: Any) -> list[tuple[str, str]]:
    read = remediation_rules.read({"rules": list(rules), **top})
    assert not isinstance(read, RuleSet), read
    return [(problem.code, problem.sentence) for problem in read]


def sentences(*rules: Any, **top: Any) -> str:
    return "\n".join(sentence for _, sentence in refused(*rules, **top))


def test_the_shipped_rules_are_valid() -> None:
    """An operator who switches remediation on without a file gets rules that work."""
    rules = remediation_rules.read(remediation_rules.DEFAULTS)

    assert isinstance(rules, RuleSet)
    assert [rule.action for rule in rules.rules][:2] == [Action.CORDON_GPU, Action.EVICT_PODS]
    assert (rules.acts_per_hour, rules.most_nodes, rules.most_percent, rules.uses_nvsentinel) == (10, 2, 20, False)


def test_every_field_of_a_rule_is_read() -> None:
    read = remediation_rules.read({
        "actsPerHour": 3, "breaker": {"nodes": 5, "percent": 10, "halfOpenSeconds": 60}, "nvsentinel": True,
        "rules": [{
            "name": "all", "do": "cordon-node", "priority": 7, "attempts": 2, "coolDownSeconds": 30, "forSeconds": 5,
            "when": {
                "state": ["unhealthy", "suspect"], "need": ["reboot"], "xid": [79, 95], "overheated": True,
                "nodeCondition": ["KernelDeadlock=True"], "problem": ["PLUGIN_MPS"],
            },
        }],
    })  # fmt: skip

    assert isinstance(read, RuleSet)
    (rule,) = read.rules
    assert rule.when == Condition(
        states=frozenset({State.UNHEALTHY, State.SUSPECT}), needs=frozenset({Need.REBOOT}), xids=frozenset({79, 95}),
        overheated=True, node_conditions=frozenset({("KernelDeadlock", "True")}), problems=frozenset({"PLUGIN_MPS"}),
    )  # fmt: skip
    assert (rule.priority, rule.attempts, rule.cool_down_seconds, rule.for_seconds) == (7, 2, 30, 5)
    assert (read.acts_per_hour, read.half_open_seconds, read.uses_nvsentinel) == (3, 60, True)


def test_every_problem_of_a_file_is_named_at_once_with_a_hint() -> None:
    """An operator corrects a file once, not once a mistake."""
    text = sentences(
        {"name": "Bad Name", "when": {"sate": ["unhealthy"]}, "do": "cordon-gup"},
        {"name": "b", "when": {"need": ["rset"], "xid": ["79"], "nodeCondition": ["Deadlock"]}, "do": 7},
        "no rule",
        {**RULE, "attempts": 0, "coolDownSeconds": True},
        actPerHour=3,
    )

    for expected in (
        "did you mean actsPerHour?", "rules[0].name is 'Bad Name'", "did you mean cordon-gpu?", "did you mean state?",
        "rule b: when.need is 'rset'; did you mean reset?", "has '79', not the number of an XID",
        "write it like KernelDeadlock=True", "rules[2] is no object", "rule r.attempts is '0'",
        "rule r.coolDownSeconds is 'True'", "rule b: do is '7'; known are cordon-gpu",
    ):  # fmt: skip
        assert expected in text, (expected, text)


@pytest.mark.parametrize(
    ("when", "holds"),
    [
        ({}, True),
        ({"state": ["healthy", "unhealthy"]}, True),
        ({"need": ["nothing"]}, True),
        ({"nodeCondition": ["Ready=True"]}, True),
        ({"state": ["unhealthy"], "need": ["nothing"]}, False),
        ({"need": ["reset"]}, False),
        ({"xid": [79]}, False),
        ({"overheated": True}, False),
        ({"problem": ["PLUGIN_MPS"]}, False),
        ({"nodeCondition": ["Ready=False"]}, False),
    ],
)
def test_a_rule_that_would_act_on_everything_healthy_is_refused(when: dict[str, Any], holds: bool) -> None:
    """One forgotten word must not evict every pod of a cluster."""
    rule = {"name": "r", "when": when, "do": "cordon-node"}
    if holds:
        assert [code for code, _ in refused(rule)] == [error_codes.REMEDIATION_UNBOUNDED]
    else:
        assert isinstance(remediation_rules.read({"rules": [rule]}), RuleSet)


def test_a_breaker_that_allows_most_nodes_is_refused() -> None:
    assert refused(RULE, breaker={"percent": 80})[0][0] == error_codes.REMEDIATION_UNBOUNDED
    assert refused(RULE, breaker={"percent": -1})[0][0] == error_codes.REMEDIATION_RULES


@pytest.mark.parametrize(
    ("rules", "part"),
    [
        ([RULE, RULE], "rule r is there twice"),
        ([RULE, {**RULE, "name": "s", "do": "release"}], "rule s releases while the fault lasts"),
        ([RULE, {**RULE, "name": "s", "do": "release"}], "rules r and s have one condition and priority"),
        (
            [{**RULE, "do": "request-reset"}, {**RULE, "name": "s", "do": "request-reboot"}],
            "do request-reset and request-reboot",
        ),
        ([RULE, {**RULE, "name": "s"}], "do cordon-gpu and cordon-gpu"),
        ([{**RULE, "when": {"problem": ["PLUGIN_MPS"]}}], "no GPU to act on"),
    ],
)
def test_rules_that_contradict_each_other_are_refused(rules: list[Any], part: str) -> None:
    found = [sentence for code, sentence in refused(*rules) if code == error_codes.REMEDIATION_CONTRADICTION]

    assert any(part in sentence for sentence in found), found


def test_rules_of_one_condition_may_complement_each_other() -> None:
    other = {**RULE, "name": "s", "do": "evict-pods"}
    ladder = [{**RULE, "do": "request-reset"}, {**RULE, "name": "s", "do": "request-reboot", "priority": 1}]

    assert isinstance(remediation_rules.read({"rules": [RULE, other]}), RuleSet)
    assert isinstance(remediation_rules.read({"rules": ladder}), RuleSet)


@pytest.mark.parametrize(
    "document",
    [None, [], {"rules": []}, {"rules": {}}, {"rules": [RULE] * 65}, {"rules": [RULE], "nvsentinel": 1}, {},
     {"rules": [{**RULE, "when": {"need": []}}]}, {"rules": [{**RULE, "when": {"need": "reset"}}]},
     {"rules": [{**RULE, "when": {"need": ["reset"], "overheated": False}}]}, {"rules": [RULE], 7: 1},
     {"rules": [{**RULE, "when": {"nodeCondition": [3]}}]}],
)  # fmt: skip
def test_nonsense_is_refused_with_a_sentence(document: Any) -> None:
    read = remediation_rules.read(document)

    assert not isinstance(read, RuleSet)
    assert all(problem.code in error_codes.REGISTRY and problem.sentence for problem in read)


_JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=8),
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.dictionaries(
            st.sampled_from(["rules", "name", "when", "do", "need", "state", "xid", "breaker", "percent", "priority"]),
            inner,
            max_size=6,
        )
    ),
    max_leaves=20,
)


@given(_JSON)
def test_whatever_a_file_has_it_is_read_or_refused(document: object) -> None:
    """A bad file stops the start with a sentence, never with a traceback."""
    read = remediation_rules.read(document)

    assert isinstance(read, RuleSet) or read
