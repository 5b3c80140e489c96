"""Faults on purpose: what is refused before anything happens, the states, and the document that survives a crash."""

import dataclasses
import json
import math
from typing import Any

import hypothesis
import pytest
from hypothesis import strategies

from gpu_sharing.core import error_codes, errors, faults
from gpu_sharing.core.faults import Group, State
from tests.support import searching

pytestmark = pytest.mark.unit

XID = {"kind": "xid", "node": "a", "gpu": 0, "xid": 79}


def refusal(value: object, **more: Any) -> tuple[error_codes.Code, str]:
    with pytest.raises(errors.FaultRefused) as refused:
        faults.read_request(value, **more)
    return refused.value.code, str(refused.value)


def fault(state: State = State.INJECTED, **more: Any) -> faults.Fault:
    request = faults.read_request(XID | more)
    _, made = faults.Document().with_new(request, "lab", 100.0)
    if state is State.INJECTING:
        return made
    if state in (State.INJECTED, State.FAILED):
        return faults.moved(made, state, 101.0)
    made = faults.moved(faults.moved(made, State.INJECTED, 101.0), State.RECOVERING, 102.0)
    return made if state is State.RECOVERING else faults.moved(made, state, 103.0)


def test_every_kind_says_what_it_does_and_has_bounds() -> None:
    """`hamictl fault kinds` is the manual of most users, and no number reaches a backend without bounds."""
    for name, kind in faults.KINDS.items():
        assert name == kind.name
        assert kind.text.endswith(".")
        for parameter in kind.fields:
            assert parameter.accepted
            assert not parameter.is_number or parameter.lowest < parameter.highest
            if parameter.default not in (None, ""):
                assert faults._read(parameter, parameter.default) == parameter.default
    assert {kind.group for kind in faults.KINDS.values()} == set(Group)
    assert faults.KINDS["xid"].needs_consent
    assert not faults.KINDS["api-error"].needs_consent


def test_a_request_is_read_with_its_defaults() -> None:
    """The fields that a user leaves out have documented values."""
    request = faults.read_request({"kind": "overheat", "node": "a", "gpu": "GPU-1", "duration_seconds": 60})

    assert request.target == "a/GPU-1"
    assert request.values == {"node": "a", "gpu": "GPU-1", "celsius": 95}
    assert request.duration_seconds == 60
    assert request.backend == ""


def test_a_short_name_presets_its_fields() -> None:
    """`POST …/gpu/xid-79` needs the node and the GPU only, and cannot be turned into another XID."""
    preset: dict[str, faults.Value] = {"kind": "xid", "xid": 79}

    assert faults.read_request({"node": "a", "gpu": 1}, preset=preset).values["xid"] == 79
    assert faults.read_request({"node": "a", "gpu": 1, "xid": 79}, preset=preset).values["xid"] == 79
    assert "xid: is 79 here" in refusal({"node": "a", "gpu": 1, "xid": 48}, preset=preset)[1]


def test_every_problem_is_named_at_once() -> None:
    """Correcting a request takes one round, not one for each field."""
    code, sentence = refusal({"kind": "xid", "node": "A!", "gpuu": 0, "xid": 0, "duration_seconds": -1})

    assert code == error_codes.FAULT_INVALID
    for part in ("'gpuu': no such field; did you mean gpu?", "node: 'A!'", "gpu: is missing", "xid: 0", "-1"):
        assert part in sentence


@pytest.mark.parametrize(
    ("value", "part"),
    [
        (None, "write a JSON object"),
        ([], "write a JSON object"),
        ({}, "write the name of a kind"),
        ({"kind": 7}, "write the name of a kind"),
        (XID | {"xid": True}, "xid: True is not accepted; write a whole number from 1 to 1023"),
        (XID | {"xid": 79.0}, "xid: 79.0 is not accepted"),
        (XID | {"xid": "79"}, "xid: '79' is not accepted"),
        (XID | {"xid": 10**5000}, "xid: that value is not accepted"),
        (XID | {"gpu": -1}, "gpu: -1 is not accepted; write a text such as"),
        (XID | {"gpu": 10**5000}, "gpu: that value is not accepted"),
        (XID | {"gpu": True}, "gpu: True is not accepted"),
        (XID | {"node": ["a"]}, "node: that value is not accepted"),
        (XID | {"node": "a" * 300}, "node: 'aaaa"),
        (XID | {"node": ""}, "node: '' is not accepted"),
        ({"kind": "throttle", "node": "a", "gpu": 0, "reason": "termal"}, "did you mean thermal?"),
        ({"kind": "throttle", "node": "a", "gpu": 0, "reason": "?"}, "write one of thermal, power-brake"),
        (XID | {"zzzzzz": 1}, "'zzzzzz': no such field; there are backend, duration_seconds, gpu, node, xid"),
        (XID | {f"strange{number}": 1 for number in range(20)}, "15 more unknown fields"),
        ({"kind": "partition", "pair": "custom", "from_pods": "app=a"}, "namespace: is missing; pair custom needs it"),
        ({"kind": "partition", "pair": "custom", "namespace": "a", "from_pods": "*", "to_pods": "b=c"}, "pods: '*'"),
        ({"kind": "partition"}, "pair: is missing; write one of scheduler-extender"),
        ({"kind": "partition", "pair": "ui-extendr"}, "did you mean ui-extender?"),
    ],
)  # fmt: skip
def test_nonsense_is_refused_with_what_to_write(value: object, part: str) -> None:
    """Nothing is injected by a request that is not understood."""
    code, sentence = refusal(value)

    assert code == error_codes.FAULT_INVALID
    assert part in sentence


def test_many_problems_are_cut() -> None:
    """The answer stays readable."""
    value = {f"strange{number}": 1 for number in range(9)} | {
        "kind": "api-error", "status": "1", "method": "1", "path": "1", "share_percent": 0, "backend": "!",
    }  # fmt: skip
    assert refusal(value)[1].endswith("and 1 more")


def test_an_unknown_kind_is_refused_with_the_nearest_name() -> None:
    """A misspelled kind is the most frequent mistake."""
    code, sentence = refusal({"kind": "overheet"})

    assert code == error_codes.FAULT_UNKNOWN_KIND
    assert "did you mean overheat?" in sentence
    assert "there are xid, lost" in refusal({"kind": "???"})[1]
    assert "of group network" in refusal({"kind": "xid"}, group=Group.NETWORK)[1]


def test_the_target_names_what_is_affected() -> None:
    """Faults are compared and listed by it."""
    pair = {"kind": "partition", "pair": "ui-extender"}
    custom = {"kind": "partition", "pair": "custom", "namespace": "n", "from_pods": "a=b", "to_pods": "c=d"}

    assert faults.read_request(pair).target == "ui-extender"
    assert faults.read_request(custom).target == "custom/n/a=b/c=d"
    assert faults.read_request({"kind": "stale-reads"}).target == "apiserver"
    assert fault().target == "a/0"


def test_a_fault_collides_with_the_same_effect_on_the_same_target() -> None:
    """Recovering one of two would undo the other."""
    request = faults.read_request(XID)
    lost = faults.read_request({"kind": "lost", "node": "a", "gpu": 0})

    assert faults.collides(request, [fault()]) == fault()
    assert faults.collides(lost, [fault()]) == fault()
    assert faults.collides(request, [fault(gpu=1)]) is None
    assert faults.collides(request, [fault(State.RECOVERED), fault(State.FAILED)]) is None
    assert faults.collides(faults.read_request({"kind": "ecc", "node": "a", "gpu": 0}), [fault()]) is None


def test_the_states_follow_each_other() -> None:
    """What may be in effect is always known."""
    injected = fault()
    assert (injected.injected_at, injected.finished_at) == (101.0, 0.0)
    recovering = faults.moved(injected, State.RECOVERING, 102.0)
    back = faults.moved(recovering, State.INJECTED, 103.0, "no answer" * 1000)
    assert (back.injected_at, back.finished_at) == (101.0, 0.0)
    assert back.is_in_effect
    assert back.cause.startswith("no answer")
    assert len(back.cause) == 500
    recovered = fault(State.RECOVERED)
    assert (recovered.finished_at, recovered.cause, recovered.is_in_effect) == (103.0, "", False)
    for wrong in (State.INJECTED, State.RECOVERING):
        with pytest.raises(ValueError, match="recovered cannot become"):
            faults.moved(recovered, wrong, 104.0)
    with pytest.raises(ValueError, match="injected cannot become recovered"):
        faults.moved(injected, State.RECOVERED, 104.0)


def test_a_duration_ends_a_fault() -> None:
    """A forgotten fault ends by itself."""
    assert fault(duration_seconds=60).ends_at == 160.0
    assert fault().ends_at == math.inf


def test_the_document_is_read_as_it_was_written() -> None:
    """After a crash the process knows what may be in effect."""
    document = faults.Document()
    for state in State:
        document, made = document.with_new(faults.read_request(XID | {"gpu": len(document.faults)}), "lab", 100.0)
        document = document.with_changed(dataclasses.replace(made, state=state, cause="because"))

    assert faults.decode(faults.encode(document)) == document
    assert document.find("f2") == document.faults[1]
    assert document.find("f9") is None


def test_old_finished_faults_are_deleted_and_no_id_comes_twice() -> None:
    """The document fits into a ConfigMap for ever."""
    document = faults.Document()
    for _ in range(faults.MOST_FINISHED + 10):
        document, made = document.with_new(faults.read_request(XID), "lab", 100.0)
        document = document.with_changed(faults.moved(made, State.FAILED, 101.0))

    assert len(document.faults) == faults.MOST_FINISHED
    assert document.faults[0].id == "f11"
    assert document.next_number == faults.MOST_FINISHED + 11


def test_a_document_adopts_what_another_write_added() -> None:
    """A write whose answer was lost is found at the next one, and its fault is recovered."""
    ours, _ = faults.Document(unreadable=(1,)).with_new(faults.read_request(XID), "lab", 100.0)
    theirs, made = ours.with_new(faults.read_request(XID | {"gpu": 1}), "lab", 101.0)
    merged = ours.merged_with(dataclasses.replace(theirs, unreadable=(1, 2)))

    assert merged.faults == theirs.faults
    assert merged.find("f2") == made
    assert merged.next_number == 3
    assert merged.unreadable == (1, 2)


BROKEN: list[dict[str, object]] = [
    {"id": "x"}, {"id": "f0"}, {"id": None}, {"kind": "flood"}, {"kind": 1}, {"values": {}}, {"values": None},
    {"values": {str(number): 1 for number in range(50)}}, {"values": {"node": "a", "gpu": "0", "xid": 0}},
    {"state": "odd"}, {"created_at": -1}, {"injected_at": "x"}, {"finished_at": 1e300}, {"duration_seconds": True},
    {"backend": None}, {"cause": 5},
]  # fmt: skip


@pytest.mark.parametrize("change", BROKEN)
def test_one_unreadable_entry_loses_no_other_and_stays(change: dict[str, object]) -> None:
    """A newer version may have written a kind that this one does not know."""
    text = json.dumps(
        {"next": 3, "faults": [faults.to_entry(fault()) | {"id": "f7"} | change, faults.to_entry(fault())]}
    )
    document = faults.decode(text)

    assert document.faults == (fault(),)
    assert len(document.unreadable) == 1
    assert faults.decode(faults.encode(document)) == document


def test_entries_that_are_no_objects_or_come_twice_stay_too() -> None:
    """Nothing that was written is dropped."""
    entry = faults.to_entry(fault())
    document = faults.decode(json.dumps({"next": True, "faults": [5, entry, entry, {"id": "f12"}, {"id": 4}]}))

    assert document.faults == (fault(),)
    assert document.unreadable == (5, entry, {"id": "f12"}, {"id": 4})
    assert document.next_number == 13


@pytest.mark.parametrize("text", ["", "[", "[]", "{}", '{"faults": 3}', "[" * 100_000, "1" * 5000])
def test_a_damaged_document_is_not_taken_for_none(text: str) -> None:
    """Faults that may be in effect are never forgotten silently."""
    with pytest.raises(errors.CorruptRecord):
        faults.decode(text)


SCALARS = strategies.none() | strategies.booleans() | strategies.integers() | strategies.floats() | strategies.text()
ANYTHING = strategies.recursive(
    SCALARS, lambda inner: strategies.lists(inner) | strategies.dictionaries(strategies.text(), inner), max_leaves=10
)
FIELDS = sorted({parameter.name for kind in faults.KINDS.values() for parameter in kind.fields} | {"duration_seconds"})
REQUESTS = strategies.builds(
    lambda kind, more: {"kind": kind, **more},
    strategies.sampled_from(sorted(faults.KINDS)) | ANYTHING,
    strategies.dictionaries(strategies.sampled_from(FIELDS) | strategies.text(), ANYTHING),
)


@hypothesis.settings(max_examples=searching.examples(300))
@hypothesis.given(value=ANYTHING | REQUESTS)
def test_any_json_is_read_or_refused_with_a_code(value: object) -> None:
    """The service is open to whatever a client sends."""
    try:
        request = faults.read_request(value)
    except errors.FaultRefused as refused:
        assert refused.code in error_codes.REGISTRY
        assert len(str(refused)) < 5_000
    else:
        assert set(request.values) == {parameter.name for parameter in request.kind.fields}


ENTRIES = strategies.fixed_dictionaries(
    {"id": strategies.sampled_from(["f1", "f2"])},
    optional={name: ANYTHING for name in faults.to_entry(fault()) if name != "id"},
)


@hypothesis.settings(max_examples=searching.examples(200))
@hypothesis.given(entries=strategies.lists(ANYTHING | ENTRIES))
def test_any_document_keeps_all_of_its_entries(entries: list[object]) -> None:
    """A restart after any damage loses nothing."""
    document = faults.decode(json.dumps({"next": 1, "faults": entries}))

    assert len(document.faults) + len(document.unreadable) == len(entries)
    assert faults.decode(faults.encode(document)).faults == document.faults
