"""The part of `make fuzz` that always has the same inputs: every reader of outside bytes, a little."""

from collections.abc import Iterator

import pytest
import structlog

from tests.fuzz import __main__ as fuzz
from tests.fuzz import answers, kubelet_socket, listeners, mutations, parsers, targets

SEED = 20_261_130
IN_PROCESS = (*parsers.PARSERS, *answers.ANSWERS)
OF_THE_SAME_CODE = frozenset({"webhook: wire", "extender health: wire", "WebUI health: wire", "monitor: wire"})
"""Listeners that another one of the list stands for here, because a process takes seconds to start."""
LISTENERS = [one for one in (*kubelet_socket.SOCKETS, *listeners.LISTENERS) if one.name not in OF_THE_SAME_CODE]


@pytest.fixture(autouse=True)
def _quiet() -> Iterator[None]:
    """The readers log every refusal."""
    before = structlog.get_config()["processors"]
    structlog.configure(processors=[fuzz._drop])
    yield
    structlog.configure(processors=before)


@pytest.mark.parametrize("target", IN_PROCESS, ids=[one.name for one in IN_PROCESS])
def test_no_input_gets_an_answer_that_is_not_defined(target: targets.Target) -> None:
    """What a tenant, another program or a broken disk writes is refused with a reason; it ends no process."""
    tally = targets.run(target, seed=SEED, most_inputs=60)

    assert tally.inputs == 60
    assert not tally.defects, "\n".join(tally.defects.values())


@pytest.mark.slow
@pytest.mark.parametrize("target", LISTENERS, ids=[one.name for one in LISTENERS])
def test_no_bytes_on_a_socket_end_a_process(target: targets.Target) -> None:
    """The listeners are reached by everything in the cluster."""
    tally = targets.run(target, seed=SEED, most_inputs=30)

    assert tally.inputs == 30
    assert not tally.defects, "\n".join(tally.defects.values())


@pytest.mark.parametrize("target", IN_PROCESS, ids=[one.name for one in IN_PROCESS])
def test_each_sample_is_one_that_the_reader_accepts(target: targets.Target) -> None:
    """Changes of an input that is refused at its first byte reach nothing behind it."""
    tally = targets.run(target, seed=SEED, most_inputs=len(target.samples))

    assert tally.outcomes[targets.ACCEPTED] > 0


def test_equal_seeds_make_equal_inputs() -> None:
    """A defect is found again by the seed that was printed."""
    first, second = (mutations.Mutator([b'{"a": [1, "b"]}'], 5).inputs() for _ in range(2))

    assert [next(first) for _ in range(200)] == [next(second) for _ in range(200)]


def test_a_reader_that_fails_or_takes_long_is_reported(monkeypatch: pytest.MonkeyPatch) -> None:
    """Else a table without defects says nothing."""

    def planted(data: bytes) -> str:
        if b"9" in data:
            raise RecursionError
        return targets.ACCEPTED

    tally = targets.run(targets.parser("planted", planted, (), b'{"a": 9}'), seed=SEED, most_inputs=5)
    monkeypatch.setattr(targets, "MOST_CPU_SECONDS", -1.0)
    slow = targets.run(targets.parser("slow", lambda data: "x", (), b""), seed=SEED, most_inputs=5)

    assert [place.partition(" ")[0] for place in tally.defects] == ["RecursionError"]
    assert list(slow.defects) == ["slow: x"]
    assert "| planted | 5 |" in fuzz.table([tally])
