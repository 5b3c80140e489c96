"""The health of one GPU, from faults and readings, and when it may be used again.

Pure: the plugin passes the driver's answers and the time, and gets a new value. A GPU is healthy, suspect (it may
recover by itself), unhealthy (it needs an action), or recovering (the action is done, and the GPU is observed for a
while). A fault affects only its own GPU.
"""

import enum
from collections.abc import Mapping
from dataclasses import dataclass, replace

from gpu_sharing.core import xids
from gpu_sharing.core.xids import Need, Verdict

_HUNG_SECONDS = 300.0
"""A GPU whose calls do not return for this long needs a reset."""
_SUSPECT_HOLD_SECONDS = 10.0
_FLAP_WINDOW_SECONDS = 24 * 3600.0
_LONGEST_HOLD_SECONDS = 3600.0
_REPEAT_WINDOW_SECONDS = 3600.0

RECOVERY_ACTIONS = {
    0: Need.NOTHING, 1: Need.RESET, 2: Need.REBOOT, 3: Need.RESET, 4: Need.RESET, 5: Need.RESET, 6: Need.RESET,
    7: Need.REBOOT,
}  # fmt: skip
"""`NVML_FI_DEV_GET_GPU_RECOVERY_ACTION`: none, reset, reboot, drain P2P, drain and reset, recover the IMEX domain, bus
reset, system reboot. Source: nvml.h of driver 615."""


class State(enum.Enum):
    """The states of a GPU's health."""

    HEALTHY = "healthy"
    SUSPECT = "suspect"
    UNHEALTHY = "unhealthy"
    RECOVERING = "recovering"


@dataclass(frozen=True, slots=True, kw_only=True)
class Reading:
    """The result of a check of a GPU. None means that the driver does not report a value, which is no fault."""

    answered: bool = True
    """Whether it answered within its deadline."""
    lost: bool = False
    """Whether the driver reports that it has fallen off the bus."""
    reset_required: bool = False
    """Whether the driver refuses all calls until the GPU is reset."""
    timed_out: bool = False
    """Whether a call did not return; a refused call is an answer."""
    problem: str = ""
    """If it did not answer: the call and the driver's error, such as `nvmlDeviceGetUUID: Unknown Error`."""
    recovery_action: int | None = None
    """The driver's recovery action; see `RECOVERY_ACTIONS`."""
    rows_failed: bool = False
    """Whether a memory row could not be remapped."""
    uncorrected_errors: int | None = None
    """Uncorrected ECC errors since the last reset."""
    temperature_celsius: int | None = None
    limit_celsius: int | None = None
    """The temperature at which the GPU shuts down."""
    power_brake: bool = False
    """Whether the external power brake is on."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Health:
    """The state of a GPU, and its cause."""

    state: State = State.HEALTHY
    cause: str = ""
    """A text, with the XID if there is one; empty while healthy."""
    need: Need = Need.NOTHING
    since: float = 0.0
    """When it last became unhealthy or suspect, in the caller's seconds."""
    boot: str = ""
    """The node's boot at that time: another one is a restart of the node."""
    good_since: float | None = None
    """The time since which every reading was good, while not healthy."""
    was_lost: bool = False
    """Whether it has not answered since then, so that an answer proves a reset."""
    failures: tuple[float, ...] = ()
    """The times of its failures within a day: each one doubles the time before it is healthy again."""
    repeated: tuple[tuple[int, float], ...] = ()
    """XIDs that count only if they are frequent: number and time."""
    uncorrected_errors: int | None = None
    """The last count of ECC errors."""

    @property
    def available(self) -> bool:
        """Whether the GPU may be allocated."""
        return self.state is State.HEALTHY


@dataclass(frozen=True, slots=True)
class Rules:
    """The settings of an administrator."""

    hold_seconds: float = 60.0
    """Seconds of good readings before a GPU is healthy again; doubled for each failure of the last day."""
    overrides: xids.Overrides = xids.Overrides()


def after_xid(health: Health, number: int, now: float, boot: str, rules: Rules) -> Health:
    """Return the health after the driver reported an XID."""
    line = rules.overrides.of(number)
    if line.verdict is Verdict.FAULTY:
        return _fail(health, f"XID {number}: {line.name}", line.need, now, boot)
    if not line.most_per_hour:
        return health
    recent = tuple((seen, at) for seen, at in health.repeated if now - at < _REPEAT_WINDOW_SECONDS)
    health = replace(health, repeated=(*recent, (number, now)))
    if sum(1 for seen, _ in health.repeated if seen == number) <= line.most_per_hour:
        return health
    cause = f"XID {number}: {line.name}, more than {line.most_per_hour} times in an hour"
    return _fail(health, cause, Need.RESET, now, boot)


def after_reading(health: Health, reading: Reading, now: float, boot: str, rules: Rules) -> Health:
    """Return the health after a check of the GPU."""
    before, health = health.uncorrected_errors, replace(health, uncorrected_errors=reading.uncorrected_errors)
    fault = _fault(health, reading, before, now)
    if fault is not None:
        cause, need = fault
        failed = _fail(health, cause, need, now, boot)
        away = reading.lost or reading.reset_required or not reading.answered
        return replace(failed, was_lost=failed.was_lost or away)
    if health.available:
        return health
    if not _done(health, reading, boot):
        return replace(health, good_since=None, state=State.UNHEALTHY)
    good_since = now if health.good_since is None else health.good_since
    if now - good_since >= _hold_seconds(health, rules):
        return Health(failures=health.failures, repeated=health.repeated, uncorrected_errors=health.uncorrected_errors)
    state = State.SUSPECT if health.need is Need.NOTHING else State.RECOVERING
    return replace(health, good_since=good_since, state=state)


def _fault(health: Health, reading: Reading, errors_before: int | None, now: float) -> tuple[str, Need] | None:
    """Return the fault of a reading, and the required action."""
    if reading.lost:
        return "the GPU has fallen off the bus", Need.REBOOT
    if reading.reset_required:
        return "the driver refuses calls until the GPU is reset", Need.RESET
    if not reading.answered:
        waited = health.state is State.SUSPECT and health.good_since is None and now - health.since > _HUNG_SECONDS
        return f"did not answer: {reading.problem}", Need.RESET if waited and reading.timed_out else Need.NOTHING
    if reading.recovery_action:
        need = RECOVERY_ACTIONS.get(reading.recovery_action, Need.REPLACEMENT)
        return f"the driver requests recovery action {reading.recovery_action}", need
    if reading.rows_failed:
        return "a memory row could not be remapped", Need.REPLACEMENT
    hot, limit = reading.temperature_celsius, reading.limit_celsius
    if hot is not None and limit is not None and hot >= limit:
        return f"{hot} °C, shuts down at {limit} °C", Need.NOTHING
    if reading.power_brake:
        return "the external power brake is on", Need.NOTHING
    errors = reading.uncorrected_errors
    if errors is not None and errors_before is not None and errors > errors_before:
        return f"{errors - errors_before} uncorrected ECC errors", Need.NOTHING
    return None


def _done(health: Health, reading: Reading, boot: str) -> bool:
    """Return whether the required action has happened, as far as a good reading shows."""
    if health.need is Need.NOTHING or boot != health.boot:
        return True
    if health.need is Need.RESET:
        # The driver reports it, or, where it cannot, the GPU was lost and answers again.
        return reading.recovery_action == 0 or (reading.recovery_action is None and health.was_lost)
    return False


def _fail(health: Health, cause: str, need: Need, now: float, boot: str) -> Health:
    """Return the unhealthy state: the graver action and its cause are kept, and earlier good readings do not count."""
    if health.available:
        failures = (*(at for at in health.failures if now - at < _FLAP_WINDOW_SECONDS), now)
        return replace(
            health, state=_down(need), cause=cause, need=need, since=now, boot=boot, good_since=None, failures=failures
        )
    graver = need > health.need
    return replace(
        health,
        state=_down(max(need, health.need)),
        cause=cause if graver else health.cause,
        need=max(need, health.need),
        boot=boot if graver else health.boot,
        good_since=None,
    )


def _down(need: Need) -> State:
    return State.SUSPECT if need is Need.NOTHING else State.UNHEALTHY


def _hold_seconds(health: Health, rules: Rules) -> float:
    base = min(_SUSPECT_HOLD_SECONDS, rules.hold_seconds) if health.need is Need.NOTHING else rules.hold_seconds
    return min(base * 2.0 ** max(len(health.failures) - 1, 0), _LONGEST_HOLD_SECONDS)


def to_facts(health: Health) -> dict[str, object]:
    """Return the part that must outlive the process, as JSON values."""
    return {"state": health.state.value, "cause": health.cause, "need": health.need.name.lower(), "boot": health.boot}


def from_facts(facts: Mapping[str, object], now: float) -> Health:
    """Return the health from an earlier process; an unreadable value is healthy, because new readings correct it."""
    need, cause, boot = facts.get("need"), facts.get("cause"), facts.get("boot")
    names = {member.name.lower(): member for member in Need}
    if not isinstance(need, str) or need not in names or not isinstance(cause, str) or not isinstance(boot, str):
        return Health()
    return Health(state=_down(names[need]), cause=cause, need=names[need], since=now, boot=boot, failures=(now,))
