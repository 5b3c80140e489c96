"""Who may bind, and from when to when."""

import asyncio
import contextlib
from typing import Any, ClassVar

import orjson
import pytest

from gpu_sharing.adapters import objects
from gpu_sharing.core import errors
from scheduler_extender.act import leadership


class Clock:
    now = 100.0

    def __call__(self) -> float:
        return self.now


def lease(holder: str, transitions: int = 0, uid: str = "one") -> objects.Lease:
    return objects.Lease(
        objects.Metadata(uid=uid),
        objects.LeaseSpec(holder_identity=holder, lease_duration_seconds=15, lease_transitions=transitions),
    )


def guard(clock: Clock) -> leadership.LeaseGuard:
    async def list_again() -> None:
        raise AssertionError("only `run` lists")

    return leadership.LeaseGuard(None, "kube-system/hami", "host-1", list_again, clock)  # type: ignore[arg-type]


def leading(clock: Clock, transitions: int = 0) -> leadership.LeaseGuard:
    one, ours = guard(clock), lease("host-1_abc", transitions)
    assert one.see(ours, clock.now) is not None
    one.begin(ours)
    assert one.leads()
    return one


def test_the_first_holder_waits_for_a_binding_that_its_own_predecessor_sent() -> None:
    """The process before it, on the same host, may have been killed a moment ago."""
    clock = Clock()
    one, ours = guard(clock), lease("host-1_abc")

    assert one.see(ours, clock.now) == leadership.BINDING_TIMEOUT_SECONDS
    assert not one.leads()

    one.begin(ours)
    assert one.leads()


def test_a_read_is_valid_for_some_seconds_from_its_start() -> None:
    """A replica that cannot read the Lease does not know whether it still leads."""
    clock = Clock()
    one = leading(clock)
    clock.now += leadership.VALID_SECONDS
    assert one.leads()

    clock.now += 0.1
    assert not one.leads()

    one.see(lease("host-1_abc"), clock.now - 1)
    assert one.leads()
    clock.now += leadership.VALID_SECONDS - 0.9
    assert not one.leads()


@pytest.mark.parametrize(
    "ours",
    [lease("host-1_abc", 1), lease("host-1_abc", 3), lease("host-1_abc", 0, uid="made anew")],
    ids=["expired or released", "others in between", "deleted and made anew"],
)
def test_a_successor_waits_until_the_predecessor_cannot_write_any_more(ours: objects.Lease) -> None:
    """Whichever way the Lease changed hands: the other's last valid read, its last call, and that call's end."""
    clock = Clock()
    one = guard(clock)
    assert one.see(lease("host-2_xyz"), clock.now) is None
    clock.now += 1

    assert one.see(ours, clock.now) == leadership.SUCCESSOR_WAITS_SECONDS

    assert not one.leads()


def test_a_restart_of_the_kube_scheduler_beside_costs_no_wait() -> None:
    """It has a new identity, and the transitions show that none led in between; so also after it released the Lease."""
    clock = Clock()
    for records in ([lease("host-1_new", 1)], [lease("", 0), lease("host-1_new", 1)]):
        one = leading(clock)
        for record in records:
            assert one.see(record, clock.now) is None
        assert one.leads()


@pytest.mark.parametrize("ours", [lease("host-1_new", 2), lease("host-1_new", 1, uid="made anew")])
def test_it_waits_if_another_may_have_led_in_between(ours: objects.Lease) -> None:
    """Between two reads the Lease can change hands twice."""
    clock = Clock()
    one = leading(clock)

    assert one.see(ours, clock.now) == leadership.SUCCESSOR_WAITS_SECONDS
    assert not one.leads()


def test_a_replica_that_was_about_to_lead_does_not_once_another_holds_the_lease() -> None:
    """It took time to list; what it listed is of no use any more."""
    clock = Clock()
    one, ours = guard(clock), lease("host-1_abc", 1)
    one.see(ours, clock.now)
    one.see(lease("host-2_xyz", 2), clock.now)

    one.begin(ours)

    assert not one.leads()


def test_a_replica_that_loses_the_lease_stops_at_once() -> None:
    """And a host of a similar name is another host."""
    clock = Clock()
    one = leading(clock)

    one.see(lease("host-10_abc", 1), clock.now)

    assert not one.leads()
    assert one.holder == "host-10_abc"


def test_the_only_scheduler_always_leads() -> None:
    """Without a lease there is no other to wait for."""
    assert leadership.OnlyScheduler().leads()


@pytest.mark.parametrize("transitions", [0, 6])
def test_a_replica_that_ends_says_so_in_the_lease(transitions: int) -> None:
    """With the term that it led: an older mark means nothing to a later successor."""

    class Patches:
        bodies: ClassVar[list[dict[str, Any]]] = []

        async def get(self, path: str, kind: type[objects.Lease], seconds: float) -> objects.Lease:
            return lease("", transitions)

        async def patch(self, path: str, body: bytes, seconds: float) -> None:
            self.bodies.append(orjson.loads(body))

    clock = Clock()
    one = leading(clock, transitions)
    one._client = Patches()  # type: ignore[assignment]
    asyncio.run(one.hand_over())
    assert not one.leads()
    assert Patches.bodies.pop() == {
        "metadata": {"uid": "one", "annotations": {leadership.HANDED_OVER: str(transitions)}}
    }

    other = guard(clock)
    other._client = Patches()  # type: ignore[assignment]
    other.see(lease("host-2_xyz"), clock.now)
    asyncio.run(other.hand_over())
    assert Patches.bodies == []


@pytest.mark.parametrize("reads", [3, 1000])
def test_the_mark_is_written_once_the_lease_is_released_or_is_not_going_to_be(
    reads: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A write of ours between the read and the write of a release makes it fail; a scheduler may also just go on."""
    monkeypatch.setattr(leadership, "RELEASE_POLL_SECONDS", 0.001)
    monkeypatch.setattr(leadership, "RELEASED_WITHIN_SECONDS", 0.1 if reads > 3 else 60.0)
    order: list[str] = []

    class Calls:
        async def get(self, path: str, kind: type[objects.Lease], seconds: float) -> objects.Lease:
            order.append("read")
            return lease("host-1_abc" if len(order) < reads else "")

        async def patch(self, path: str, body: bytes, seconds: float) -> None:
            order.append("mark")

    one = leading(Clock())
    one._client = Calls()  # type: ignore[assignment]
    asyncio.run(one.hand_over())

    assert order[-1] == "mark"
    assert set(order[:-1]) == {"read"}
    assert len(order) == reads + 1 or reads > len(order) > 1


def test_a_successor_of_a_replica_that_has_ended_does_not_wait(monkeypatch: pytest.MonkeyPatch) -> None:
    """Also where the mark comes while it waits; a mark of an older term is none."""
    monkeypatch.setattr(leadership, "POLL_SECONDS", 0.01)
    ours = lease("host-1_abc", 7)
    stale, marked = lease("host-1_abc", 7), lease("host-1_abc", 7)
    stale.metadata.annotations = {leadership.HANDED_OVER: "5"}
    marked.metadata.annotations = {leadership.HANDED_OVER: "6"}

    async def list_again() -> None:
        await asyncio.sleep(0)

    async def leads(*reads: objects.Lease, seconds: float) -> bool:
        one = leadership.LeaseGuard(Reads(*reads), "kube-system/hami", "host-1", list_again)  # type: ignore[arg-type]
        running = asyncio.create_task(one.run())
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                while not one.leads():
                    await asyncio.sleep(0.01)
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)
        return one.leads()

    # Less than the 9 s that it would wait; the other one is a proof that it waits.
    assert asyncio.run(leads(lease("host-2_xyz", 6), ours, stale, ours, marked, seconds=7))
    assert not asyncio.run(leads(lease("host-2_xyz", 6), ours, stale, seconds=1))


class Reads:
    """A client whose reads of the Lease a test plans; the last is repeated."""

    def __init__(self, *answers: objects.Lease | errors.KubernetesError) -> None:
        self._answers = list(answers)

    async def get(self, path: str, kind: type[objects.Lease], seconds: float) -> objects.Lease:
        answer = self._answers.pop(0) if len(self._answers) > 1 else self._answers[0]
        if isinstance(answer, errors.KubernetesError):
            raise answer
        return answer


def test_reads_go_on_while_a_successor_waits_and_lists(monkeypatch: pytest.MonkeyPatch) -> None:
    """Otherwise no read would be valid when the list is there, and a Lease that was lost meanwhile not noticed."""
    monkeypatch.setattr(leadership, "POLL_SECONDS", 0.01)
    monkeypatch.setattr(leadership, "BINDING_TIMEOUT_SECONDS", 0.02)
    lists = []

    async def list_again() -> None:
        lists.append(1)
        await asyncio.sleep(0.02)

    async def main() -> None:
        client = Reads(errors.Unavailable("no answer"), lease("host-1_abc"))
        one = leadership.LeaseGuard(client, "kube-system/hami", "host-1", list_again)  # type: ignore[arg-type]
        monkeypatch.setattr(leadership, "VALID_SECONDS", 0.5)
        running = asyncio.create_task(one.run())
        async with asyncio.timeout(60):
            while not one.leads():
                await asyncio.sleep(0.01)
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)

    asyncio.run(main())
    assert lists == [1]
