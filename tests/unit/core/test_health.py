import dataclasses

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from gpu_sharing.core import health, xids
from gpu_sharing.core.health import Health, Reading, Rules, State
from gpu_sharing.core.xids import Need, Verdict

RULES = Rules(hold_seconds=60.0)
GOOD = Reading(recovery_action=0)


def after(state: Health, *readings: tuple[float, Reading], boot: str = "b1", rules: Rules = RULES) -> Health:
    for at, reading in readings:
        state = health.after_reading(state, reading, at, boot, rules)
    return state


def test_a_gpu_off_the_bus_comes_back_only_after_a_restart_of_the_node() -> None:
    """XID 79: nothing but a reboot helps, however good the readings look."""
    sick = health.after_xid(Health(), 79, 100.0, "b1", RULES)

    assert (sick.state, sick.need, sick.cause) == (
        State.UNHEALTHY,
        Need.REBOOT,
        "XID 79: GPU has fallen off the bus",
    )
    assert after(sick, (200.0, GOOD), (9999.0, GOOD)).state is State.UNHEALTHY
    assert after(sick, (200.0, GOOD), (261.0, GOOD), boot="b2").available


def test_an_uncontained_error_recovers_after_a_reset_and_its_hold_down() -> None:
    """XID 95: the driver requests a reset, then for nothing; a good reading in between does not count."""
    sick = health.after_xid(Health(), 95, 0.0, "b1", RULES)
    asking = after(sick, (1.0, Reading(recovery_action=1)))
    recovering = after(asking, (10.0, GOOD))

    assert asking.state is State.UNHEALTHY
    assert recovering.state is State.RECOVERING
    assert not after(recovering, (69.0, GOOD)).available
    assert after(recovering, (70.0, GOOD)).available
    assert not after(recovering, (20.0, Reading(recovery_action=1)), (75.0, GOOD)).available


def test_where_the_driver_cannot_say_only_being_away_and_back_proves_a_reset() -> None:
    sick = health.after_xid(Health(), 95, 0.0, "b1", RULES)
    silent = Reading()

    assert after(sick, (10.0, silent), (500.0, silent)).state is State.UNHEALTHY
    gone = after(sick, (10.0, Reading(answered=False, problem="timeout")), (20.0, silent), (80.0, silent))
    assert gone.available


@pytest.mark.parametrize("number", [13, 31, 43, 45, 94, 63, 14])
def test_faults_of_the_application_leave_the_gpu_healthy(number: int) -> None:
    """A crashing program must not take a GPU from its neighbours."""
    assert health.after_xid(Health(), number, 0.0, "b1", RULES) == Health()


def test_some_faults_count_only_when_they_come_often() -> None:
    state = Health()
    for at in (0.0, 10.0, 20.0):
        state = health.after_xid(state, 78, at, "b1", RULES)
        assert state.available
    assert health.after_xid(state, 78, 5000.0, "b1", RULES).available
    assert health.after_xid(state, 78, 30.0, "b1", RULES).cause.endswith("more than 3 times in an hour")


def test_a_gpu_that_does_not_answer_is_suspect_then_back_or_given_up() -> None:
    silence = Reading(answered=False, timed_out=True, problem="nothing within 5 s")
    suspect = after(Health(), (0.0, silence))

    assert (suspect.state, suspect.cause) == (State.SUSPECT, "did not answer: nothing within 5 s")
    assert after(suspect, (5.0, GOOD)).state is State.SUSPECT
    assert after(suspect, (5.0, GOOD), (15.0, GOOD)).available
    assert after(suspect, (5.0, GOOD), (6.0, silence), (12.0, GOOD)).state is State.SUSPECT
    hung = after(suspect, (200.0, silence), (301.0, silence))
    assert (hung.state, hung.need) == (State.UNHEALTHY, Need.RESET)


def test_a_call_that_is_refused_for_an_hour_asks_for_no_reset() -> None:
    """A driver that refuses does answer: a reset would end the neighbours' work for a missing right."""
    refusal = Reading(answered=False, problem="nvmlDeviceGetUUID: Insufficient Permissions")
    suspect = after(Health(), *((float(at), refusal) for at in range(0, 3600, 60)))

    assert (suspect.state, suspect.need) == (State.SUSPECT, Need.NOTHING)
    assert suspect.cause == "did not answer: nvmlDeviceGetUUID: Insufficient Permissions"
    assert after(suspect, (3600.0, GOOD), (3700.0, GOOD)).available


@pytest.mark.parametrize("action", [0, None])
def test_a_gpu_that_requires_a_reset_is_back_after_it(action: int | None) -> None:
    """Without a reboot, and with drivers too that cannot say which recovery they want."""
    required = Reading(answered=False, reset_required=True, problem="nvmlDeviceGetUUID: GPU requires restart")
    sick = after(Health(), (0.0, required), (5.0, required))
    good = Reading(recovery_action=action)

    assert (sick.state, sick.need) == (State.UNHEALTHY, Need.RESET)
    assert sick.cause == "the driver refuses calls until the GPU is reset"
    assert after(sick, (10.0, good)).state is State.RECOVERING
    assert after(sick, (10.0, good), (70.0, good)).available


@pytest.mark.parametrize(
    ("reading", "cause", "need"),
    [
        (Reading(lost=True, answered=False), "the GPU has fallen off the bus", Need.REBOOT),
        (Reading(rows_failed=True), "a memory row could not be remapped", Need.REPLACEMENT),
        (Reading(recovery_action=7), "the driver requests recovery action 7", Need.REBOOT),
        (Reading(recovery_action=99), "the driver requests recovery action 99", Need.REPLACEMENT),
        (Reading(temperature_celsius=93, limit_celsius=92), "93 °C, shuts down at 92 °C", Need.NOTHING),
        (Reading(power_brake=True), "the external power brake is on", Need.NOTHING),
    ],
)
def test_readings_that_speak_against_a_gpu(reading: Reading, cause: str, need: Need) -> None:
    sick = after(Health(), (0.0, reading))

    assert (sick.available, sick.cause, sick.need) == (False, cause, need)


def test_new_uncorrected_errors_make_a_gpu_suspect_old_ones_do_not() -> None:
    known = after(Health(), (0.0, Reading(recovery_action=0, uncorrected_errors=3)))
    more = after(known, (5.0, Reading(recovery_action=0, uncorrected_errors=5)))

    assert known.available
    assert (more.state, more.cause) == (State.SUSPECT, "2 uncorrected ECC errors")


def test_the_graver_need_and_its_cause_stay() -> None:
    state = health.after_xid(Health(), 95, 0.0, "b1", RULES)
    graver = health.after_xid(state, 79, 5.0, "b1", RULES)
    lighter = health.after_xid(graver, 95, 6.0, "b1", RULES)

    assert graver.need is Need.REBOOT
    assert (lighter.cause, lighter.need, lighter.since) == (graver.cause, Need.REBOOT, 0.0)


def test_each_failure_of_a_day_doubles_the_hold_down() -> None:
    """A GPU that comes and goes must not take pods down with it again and again."""
    once = health.after_xid(Health(), 95, 0.0, "b1", RULES)
    back = after(once, (10.0, GOOD), (70.0, GOOD))
    twice = after(health.after_xid(back, 95, 100.0, "b1", RULES), (110.0, GOOD))

    assert back.available
    assert not after(twice, (229.0, GOOD)).available
    assert after(twice, (230.0, GOOD)).available


def test_what_outlives_the_process_comes_back_as_it_was() -> None:
    sick = health.after_xid(Health(), 79, 5.0, "b1", RULES)

    assert health.from_facts(health.to_facts(sick), 5.0) == sick
    assert health.from_facts({"need": "magic", "cause": "x", "boot": "b"}, 0.0) == Health()
    assert health.from_facts({"need": "reset", "cause": 1, "boot": "b"}, 0.0) == Health()


def test_an_administrator_may_overrule_the_table() -> None:
    """As NVIDIA's plugin reads the two variables: enabled wins."""
    off, strange = xids.read_overrides("79, xyz", "")
    everything, _ = xids.read_overrides("all", "13")
    on, _ = xids.read_overrides("", "all")

    assert strange == ("xyz",)
    assert health.after_xid(Health(), 79, 0.0, "b", dataclasses.replace(RULES, overrides=off)).available
    assert health.after_xid(Health(), 95, 0.0, "b", dataclasses.replace(RULES, overrides=everything)).available
    assert not health.after_xid(Health(), 13, 0.0, "b", dataclasses.replace(RULES, overrides=everything)).available
    assert on.of(95).need is Need.RESET
    assert on.of(31).verdict is Verdict.FAULTY


def test_an_unlisted_code_is_a_fault() -> None:
    assert (xids.of(999).verdict, xids.of(999).need) == (Verdict.FAULTY, Need.RESET)
    assert xids.of(154).verdict is Verdict.ASK_DRIVER


readings = st.builds(
    Reading,
    answered=st.booleans(),
    lost=st.booleans(),
    recovery_action=st.sampled_from([None, 0, 1, 2, 42]),
    rows_failed=st.booleans(),
    uncorrected_errors=st.none() | st.integers(0, 3),
    temperature_celsius=st.none() | st.integers(0, 120),
    limit_celsius=st.none() | st.just(92),
)


BAD = Reading(answered=False)


def good(reading: Reading) -> bool:
    """Whether nothing in it speaks against the GPU; new ECC errors show only beside an earlier reading."""
    hot = reading.temperature_celsius is not None and reading.temperature_celsius >= (reading.limit_celsius or 1000)
    return reading.answered and not (reading.lost or reading.recovery_action or reading.rows_failed or hot)


def counts(number: int, earlier: Health, now: float) -> bool:
    """Whether an XID makes a GPU fail that is healthy, after the same XIDs as this one."""
    return not health.after_xid(Health(repeated=earlier.repeated), number, now, "b1", RULES).available


@given(st.lists(st.tuples(st.integers(0, 400), st.integers(1, 170) | readings), max_size=20))
@example([(0, BAD), (1, GOOD), (9, 13), (2, GOOD)])
def test_a_gpu_is_never_back_before_its_hold_down(story: list[tuple[int, int | Reading]]) -> None:
    """Whatever happens in whatever order: from unhealthy to healthy lie good readings over the whole hold-down.

    An XID that is a program's own fault does not begin it anew, or a crashing tenant would keep a GPU from the others.
    """
    state, now, good_since = Health(), 0.0, None
    for seconds, what in story:
        now += seconds
        before = state
        if isinstance(what, int):
            state = health.after_xid(state, what, now, "b1", RULES)
            good_since = None if counts(what, before, now) else good_since
        else:
            state = health.after_reading(state, what, now, "b1", RULES)
            good_since = (now if good_since is None else good_since) if good(what) else None
        if state.available and not before.available:
            assert good_since is not None
            assert now - good_since >= min(10.0, RULES.hold_seconds)
        assert state.available == (state.cause == "")
