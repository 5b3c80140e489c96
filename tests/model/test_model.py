"""The extender keeps its ledger right, whatever arrives late, twice, garbled or not at all."""

import copy
from typing import Any

import pytest

from gpu_sharing.core import identifiers
from scheduler_extender.act import binding
from scheduler_extender.cluster.mirror import Mirror
from scheduler_extender.fleet import facts
from scheduler_extender.fleet.ledger import Ledger
from tests.model import walk

pytestmark = pytest.mark.slow

STEPS = 20_000


def test_no_walk_promises_a_gpu_twice_loses_a_slice_or_ends_the_process() -> None:
    """Relists over read-through binds, late and garbled answers, deletions between any two steps, nodes that go."""
    assert walk.walk_all(STEPS) >= STEPS


def _lists_forget_younger_pods(patch: pytest.MonkeyPatch) -> None:
    """A list that lacks a pending pod makes the mirror forget it, however old the list is."""
    right = Mirror._compare

    def wrong(self: Mirror, uid: identifiers.PodUid, bound: bool | None, listed_at: float) -> None:
        if bound is None and uid in self.pending:
            self.forget_pod(uid)
        else:
            right(self, uid, bound, listed_at)

    patch.setattr(Mirror, "_compare", wrong)


def _holds_need_their_node(patch: pytest.MonkeyPatch) -> None:
    """A hold whose node is gone cannot be dropped."""

    def wrong(self: Ledger, reservation: facts.Reservation) -> None:
        self._nodes[reservation.node].reservations.pop(reservation.key, None)
        self._touch(reservation.node, freed=True)

    patch.setattr(Ledger, "_unreserve", wrong)


def _late_reads_revive(patch: pytest.MonkeyPatch) -> None:
    """A read that is answered after the watch said "deleted" counts."""
    right = Mirror.forget_pod

    def wrong(self: Mirror, uid: identifiers.PodUid) -> None:
        right(self, uid)
        self._gone_at.clear()

    patch.setattr(Mirror, "forget_pod", wrong)


def _garbled_answers_leak(patch: pytest.MonkeyPatch) -> None:
    """What is no error of ours ends a bind where it is."""
    right = binding.Binder._post

    async def wrong(self: binding.Binder, order: Any, body: bytes) -> None:
        outcome: Exception | bytes
        try:
            outcome = await self._client.post(f"/api/v1/namespaces/x/pods/{order.pod.key.partition('/')[2]}", body)
        except UnicodeDecodeError:
            raise
        except Exception as refused:
            outcome = refused
        answered = copy.copy(self)
        answered._client = _Answered(outcome)  # type: ignore[assignment]
        await right(answered, order, body)

    patch.setattr(binding.Binder, "_post", wrong)


class _Answered:
    """A client whose call has been answered already."""

    def __init__(self, outcome: Exception | bytes) -> None:
        self._outcome = outcome

    async def post(self, path: str, body: bytes, timeout_seconds: float) -> bytes:
        if isinstance(self._outcome, Exception):
            raise self._outcome
        return self._outcome


@pytest.mark.parametrize(
    "without", [_lists_forget_younger_pods, _holds_need_their_node, _late_reads_revive, _garbled_answers_leak]
)
def test_the_walk_finds_each_fault_that_was_there_once(without: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """A model that finds nothing proves nothing."""
    without(monkeypatch)

    with pytest.raises(walk.Violation, match="seed"):
        walk.walk_all(STEPS)
