"""Scenario files, what is measured of them, and what counts as worse than before."""

import pathlib
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from chaos import __main__ as command
from chaos import faults, measure, report, scenario

GOOD: dict[str, Any] = {"title": "x", "faults": [{"kind": "api-gone"}]}


def problems(values: Any) -> str:
    with pytest.raises(scenario.BadScenario) as refused:
        scenario.parse("name", values, faults.OPTIONS)
    return str(refused.value)


def test_every_scenario_can_be_read_and_those_of_ci_exist() -> None:
    """There are at least 25, each with a title of its own, and CI's take at most ten minutes with their clusters."""
    known = {one.name: one for one in scenario.all_of(scenario.FOLDER, faults.OPTIONS)}
    assert len(known) >= 25
    assert len({one.title for one in known.values()}) == len(known)
    assert len(command.QUICK) == 8
    assert set(command.QUICK) <= known.keys()


@pytest.mark.parametrize(
    ("change", "text"),
    [
        ({"title": ""}, "title is missing"),
        ({"replicas": 4}, "replicas is 4, not a number from 0 to 3"),
        ({"replicas": 0}, "replicas is 0; 1 to 3 can be run"),
        ({"fault_seconds": -1}, "fault_seconds is -1, not a number"),
        ({"fault_seconds": float("inf")}, "fault_seconds is inf, not a number"),
        ({"fault_seconds": True}, "fault_seconds is True, not a number"),
        ({"sleep": 3}, "sleep is unknown; known are title"),
        ({"faults": []}, "faults is no list of tables"),
        ({"faults": ["x"]}, "faults[0] is no table"),
        ({"faults": [{"kind": "meteor"}]}, "kind 'meteor' is unknown; known are api-fails"),
        ({"faults": [{"kind": "api-gone", "share": 1}]}, "faults[0].share is unknown"),
        ({"faults": [{"kind": "api-gone", "seconds": 99}]}, "faults[0].seconds is 99, not a number from 0 to 20"),
        ({"faults": [{"kind": "api-slow"}]}, "http_faults = true is missing"),
        ({"http_faults": "yes"}, "http_faults is 'yes', not true or false"),
        ({"node_gpus": 4, "replicas": 2}, "a real node has one scheduler here"),
        ({"expect": {"bound_percent": 101}}, "expect.bound_percent is 101, not a number from 0 to 100"),
        ({"expect": {"luck": 1}}, "expect.luck is unknown"),
        ({"expect": 3}, "expect is no table"),
    ],
)
def test_a_scenario_that_cannot_be_run_is_refused_with_its_problem(change: dict[str, Any], text: str) -> None:
    """Before any cluster is started."""
    assert text in problems({**GOOD, **change})


def test_every_problem_is_named_at_once() -> None:
    """So that a file is corrected in one go."""
    found = problems({"title": 3, "nodes": "many", "faults": [{"kind": "x"}, 7]})
    assert len(found.splitlines()) == 5


def test_a_file_that_is_no_toml_is_refused_with_its_name(
    tmp_path: pathlib.Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """By its exit status too; the other files of the folder are read all the same."""
    (tmp_path / "broken.toml").write_text("title = ")
    (tmp_path / "wrong.toml").write_text('title = "x"')
    with pytest.raises(scenario.BadScenario, match=r"(?s)broken.toml: .*wrong: faults"):
        scenario.all_of(tmp_path, faults.OPTIONS)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("sys.argv", ["chaos", "--list", "--folder", str(tmp_path)])
        assert command.main() == 2
    assert "CHAOS_BAD_SCENARIO" in capsys.readouterr().err


JSON = st.recursive(
    st.none() | st.booleans() | st.floats() | st.integers() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(scenario.KEYS), inner, max_size=6),
    max_leaves=12,
)


@given(st.dictionaries(st.sampled_from(scenario.KEYS), JSON, max_size=8))
def test_no_values_crash_the_reader(values: dict[str, Any]) -> None:
    """Whatever a file holds, it is a scenario or refused."""
    try:
        found = scenario.parse("x", values, faults.OPTIONS)
    except scenario.BadScenario as refused:
        assert str(refused)
    else:
        assert 0 < found.all_seconds < 1e5


def pods(*times: tuple[float, float | None]) -> list[measure.PodTimes]:
    return [measure.PodTimes(f"p{number}", created, bound) for number, (created, bound) in enumerate(times)]


def test_a_phase_counts_the_pods_that_were_created_in_it() -> None:
    """Bound in time, late and never."""
    found = measure.phase(pods((1, 1.5), (2, 11.0), (3, 30.0), (4, None), (10, 10.1)), 0, 10)
    assert found == measure.Phase(created=4, bound_percent=50.0, p50_seconds=9.0, p95_seconds=25.2)
    assert measure.phase([], 0, 10).bound_percent == 100
    assert measure.phase(pods((1, 1.5)), 0, 10).p95_seconds == 0.5


@pytest.mark.parametrize(
    ("times", "seconds"),
    [
        ([], 0.0),
        ([(5, 5.1)], 0.0),
        ([(5, 13.0)], 3.0),
        ([(5, 13.0), (12, 16.04)], 6.0),
        ([(5, None)], None),
        ([(19, None)], 0.0),
    ],
)
def test_recovery_is_when_the_last_pod_that_waited_is_bound(
    times: list[tuple[float, float | None]], seconds: float | None
) -> None:
    """Counted from the end of the faults, at 10; a pod that has just been created may still be unbound."""
    assert measure.recovery_seconds(pods(*times), 10, 20) == pytest.approx(seconds)


def test_a_pod_that_has_failed_for_good_is_lost_and_not_waited_for() -> None:
    """As one that the kubelet admitted while no plugin was registered."""
    failed = measure.PodTimes("p", 5, has_failed=True)
    assert measure.recovery_seconds([failed], 10, 20) == 0.0
    assert measure.phase([failed], 0, 10).bound_percent == 0


def result(**changes: Any) -> measure.Result:
    quiet = measure.Phase(created=60, bound_percent=100.0, p50_seconds=0.01, p95_seconds=0.02)
    values: dict[str, Any] = {
        "name": "x", "title": "t", "replicas": 1, "pods": 10, "bound_percent": 100.0, "steady": quiet, "fault": quiet,
        "recovery": quiet, "recovery_seconds": 3.0, "lost": 0, "repeated_bindings": 0, "violations": [], "failures": [],
    }  # fmt: skip
    return measure.Result(**{**values, **changes})


@pytest.mark.parametrize(
    ("change", "text"),
    [
        ({}, None),
        ({"bound_percent": 79.0}, "bound_percent is 79, it was 100"),
        ({"recovery_seconds": 30.0}, None),
        ({"recovery_seconds": 40.0}, "recovery takes 40 s, it took 3 s"),
        ({"recovery_seconds": None}, "it does not recover; it did in 3 s"),
        ({"fault": measure.Phase(created=49, bound_percent=0.0, p50_seconds=1, p95_seconds=1.0)}, None),
        (
            {"fault": measure.Phase(created=50, bound_percent=0.0, p50_seconds=1, p95_seconds=1.0)},
            "during_percent is 0, it was 100",
        ),
        ({"recovery": measure.Phase(created=1, bound_percent=0.0, p50_seconds=1, p95_seconds=4.9)}, None),
        (
            {"recovery": measure.Phase(created=1, bound_percent=0.0, p50_seconds=1, p95_seconds=5.0)},
            "wait_ratio is 100",
        ),
    ],
)
def test_what_got_worse_than_the_baseline_is_said(
    change: dict[str, Any], text: str | None, tmp_path: pathlib.Path
) -> None:
    """By ratios and percentages with room for a busy machine; a scenario that is new is not judged."""
    baseline = tmp_path / "baseline.json"
    report.write_baseline([result(), result(name="other")], baseline)
    found = report.worse([result(**change), result(name="new", bound_percent=0.0)], report.read_baseline(baseline))
    assert (text is None and found == []) or (text is not None and text in "".join(found))


def test_the_table_and_the_json_have_every_result() -> None:
    """And what never recovered says so."""
    assert "| t | 1 | 10 | 100.0 % | 100 % of 60 | never |" in report.table([result(recovery_seconds=None)])
    assert report.from_json(report.as_json([result()])) == [result()]


def test_the_page_keeps_its_text_around_a_new_table(tmp_path: pathlib.Path) -> None:
    """A second run replaces the first."""
    page = tmp_path / "page.md"
    page.write_text("before\n<!-- table: python -m chaos --write-page -->\n<!-- end of table -->\nafter\n")
    for pods in (10, 77):
        report.write_page([result(pods=pods)], {"cpu": "X"}, page)
    text = page.read_text()
    assert text.startswith("before\n")
    assert text.endswith("after\n")
    assert "| 77 |" in text
    assert "| 10 |" not in text
    assert "Conditions: cpu X." in text
