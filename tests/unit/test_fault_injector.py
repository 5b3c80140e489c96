"""The order of steps of the fault injection service: what a crash, a failing backend or a failing record leaves."""

import asyncio
import pathlib
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Any

import pytest

from fault_injector import access, injector, metrics, tracker
from fault_injector.backends import BackendFailed
from gpu_sharing.adapters import access_reviews, http_calls
from gpu_sharing.core import error_codes, errors, faults
from gpu_sharing.core.faults import State

pytestmark = pytest.mark.unit

XID = {"kind": "xid", "node": "a", "gpu": 0, "xid": 79}


@dataclass
class FakeBackend:
    """Does nothing, and fails where a test wants it."""

    name: str = "fake"
    kinds: frozenset[str] = frozenset({"xid", "hang"})
    outlives_process: bool = False
    acts: list[str] = field(default_factory=list)
    in_effect: set[str] = field(default_factory=set)
    inject_error: Exception | None = None
    recover_error: Exception | None = None
    started: asyncio.Event = field(default_factory=asyncio.Event)
    never_ends: bool = False

    async def resolve(self, request: faults.Request) -> faults.Request:
        return request

    async def inject(self, fault: faults.Fault) -> None:
        self.acts.append(f"inject {fault.id}")
        self.started.set()
        if self.never_ends:
            await asyncio.Event().wait()
        self.in_effect.add(fault.id)
        if self.inject_error:
            raise self.inject_error

    async def recover(self, fault: faults.Fault) -> None:
        self.acts.append(f"recover {fault.id}")
        if self.recover_error:
            raise self.recover_error
        self.in_effect.discard(fault.id)


class MemoryKeep:
    """Keeps the text in memory, and fails where a test wants it."""

    def __init__(self, text: str | None = None) -> None:
        self.text = text
        self.error: Exception | None = None

    async def load(self) -> str | None:
        return self.text

    async def save(self, text: str) -> None:
        if self.error:
            raise self.error
        self.text = text

    @property
    def states(self) -> list[str]:
        return [fault.state.value for fault in faults.decode(self.text or '{"faults": []}').faults]


class AllConsent:
    async def demand(self, node: str) -> None:
        """Permit everything."""


class NoConsent:
    async def demand(self, node: str) -> None:
        raise errors.FaultRefused(error_codes.FAULT_NO_CONSENT, f"{node} does not consent")


class Clock:
    now = 1000.0

    def __call__(self) -> float:
        return self.now


def made(
    keep: tracker.Keep, backend: FakeBackend, consent: Any = None, clock: Callable[[], float] | None = None
) -> injector.Injector:
    return injector.Injector(keep, [backend], consent or AllConsent(), metrics.Metrics(), clock or Clock())


async def inject(service: injector.Injector, **more: Any) -> faults.Fault:
    return await service.inject(faults.read_request(XID | more))


async def refusal(act: Awaitable[Any]) -> error_codes.Code:
    with pytest.raises(errors.FaultRefused) as refused:
        await act
    return refused.value.code


def test_a_fault_is_recorded_before_anything_is_done() -> None:
    """So that a crash cannot leave a fault of which nothing is known."""

    async def scenario() -> None:
        keep, backend = MemoryKeep(), FakeBackend(never_ends=True)
        service = made(keep, backend)
        await service.start()
        call = asyncio.create_task(inject(service))
        await backend.started.wait()
        assert keep.states == ["injecting"]
        call.cancel()
        await asyncio.gather(call, return_exceptions=True)

        # The process has crashed between injecting and injected; the next one finds the record.
        later = FakeBackend()
        again = made(keep, later)
        await again.start()
        assert later.acts == ["recover f1"]
        assert keep.states == ["recovered"]
        assert (await inject(again)).id == "f2"

    asyncio.run(scenario())


@pytest.mark.parametrize(("outlives", "state"), [(True, "injected"), (False, "recovered")])
def test_a_restart_adopts_what_outlives_the_process_and_recovers_the_rest(outlives: bool, state: str) -> None:
    """A NetworkPolicy stays in effect without us; a fake GPU does not."""

    async def scenario() -> None:
        keep = MemoryKeep()
        first = made(keep, FakeBackend(outlives_process=outlives))
        await first.start()
        await inject(first)
        again = made(keep, FakeBackend(outlives_process=outlives))
        await again.start()
        assert keep.states == [state]
        assert again.recorded[0].state.value == state

    asyncio.run(scenario())


def test_an_interrupted_recovery_goes_on_after_a_restart() -> None:
    """A recovery that was begun is finished."""

    async def scenario() -> None:
        keep, backend = MemoryKeep(), FakeBackend(outlives_process=True)
        service = made(keep, backend)
        await service.start()
        fault = await inject(service)
        document = faults.Document(faults=(faults.moved(fault, State.RECOVERING, 1.0),), next_number=2)
        keep.text = faults.encode(document)
        await made(keep, backend).start()
        assert keep.states == ["recovered"]

    asyncio.run(scenario())


def test_a_backend_that_is_gone_leaves_the_fault_injected_with_the_reason() -> None:
    """It is not believed to be recovered."""

    async def scenario() -> None:
        keep = MemoryKeep()
        await (service := made(keep, FakeBackend(name="old"))).start()
        await inject(service)
        await (again := made(keep, FakeBackend())).start()
        assert (again.recorded[0].state, again.recorded[0].cause) == (State.INJECTED, "there is no backend old here")

    asyncio.run(scenario())


@pytest.mark.parametrize("error", [BackendFailed("no driver"), OSError("no driver"), RuntimeError("no driver")])
def test_a_failed_injection_is_undone(error: Exception) -> None:
    """Also what was done in part; `failed` means that nothing is in effect."""

    async def scenario() -> None:
        keep, backend = MemoryKeep(), FakeBackend(inject_error=error)
        service = made(keep, backend)
        await service.start()
        fault = await inject(service)
        assert fault.state is State.FAILED
        assert "no driver" in fault.cause
        assert backend.in_effect == set()
        assert (await service.recover("f1")) == fault
        backend.inject_error = None
        assert (await inject(service)).state is State.INJECTED

    asyncio.run(scenario())


def test_a_failed_injection_that_cannot_be_undone_stays_injected() -> None:
    """What may be in effect can be recovered later."""

    async def scenario() -> None:
        keep, backend = MemoryKeep(), FakeBackend(inject_error=BackendFailed("half"), recover_error=BackendFailed("no"))
        service = made(keep, backend)
        await service.start()
        fault = await inject(service)
        assert (fault.state, fault.cause) == (State.INJECTED, "half; and what was done may be in effect: no")
        fault = await service.recover("f1")
        assert (fault.state, fault.cause) == (State.INJECTED, "no")
        backend.recover_error = None
        assert (await service.recover("f1")).state is State.RECOVERED
        assert (await service.recover("f1")).state is State.RECOVERED
        assert keep.states == ["recovered"]

    asyncio.run(scenario())


def test_what_is_refused_does_nothing() -> None:
    """Every refusal comes before the record and before the backend."""

    async def scenario() -> None:
        keep, backend = MemoryKeep(), FakeBackend()
        service = made(keep, backend, NoConsent())
        await service.start()
        assert await refusal(inject(service)) == error_codes.FAULT_NO_CONSENT
        assert await refusal(inject(service, backend="dcgm")) == error_codes.FAULT_NOT_SUPPORTED
        stale = faults.read_request({"kind": "stale-reads"})
        assert await refusal(service.inject(stale)) == error_codes.FAULT_NOT_SUPPORTED
        assert await refusal(service.recover("f1")) == error_codes.FAULT_UNKNOWN
        assert (keep.text, backend.acts) == (None, [])
        consenting = made(keep, backend)
        await consenting.start()
        keep.error = OSError("disk full")
        assert await refusal(inject(consenting)) == error_codes.FAULT_TRACKER
        assert backend.acts == []
        keep.error = None
        for gpu in range(faults.MOST_IN_EFFECT):
            await inject(consenting, gpu=gpu)
        assert await refusal(inject(consenting, gpu=900)) == error_codes.FAULT_TOO_MANY
        assert await refusal(inject(consenting)) == error_codes.FAULT_COLLIDES
        recovered = await consenting.recover_all()
        assert {fault.state for fault in recovered} == {State.RECOVERED}
        assert backend.in_effect == set()

    asyncio.run(scenario())


def test_a_record_that_cannot_be_read_is_not_taken_for_none() -> None:
    """Faults that may be in effect are not forgotten: the service does not start."""

    async def scenario() -> None:
        service = made(MemoryKeep("damaged"), FakeBackend())
        assert await refusal(service.start()) == error_codes.FAULT_TRACKER
        assert not service.is_ready

    asyncio.run(scenario())


def test_a_record_that_cannot_be_saved_stops_no_recovery() -> None:
    """The API server that is broken on purpose is also where the record lies."""

    async def scenario() -> None:
        keep, backend = MemoryKeep(), FakeBackend()
        service = made(keep, backend)
        await service.start()
        await inject(service)
        keep.error = errors.Unavailable("no answer")
        assert (await service.recover("f1")).state is State.RECOVERED
        assert backend.in_effect == set()
        assert service.problem
        keep.error = None
        run = asyncio.create_task(service.run())
        while service.problem:
            await asyncio.sleep(0.001)
        assert keep.states == ["recovered"]
        run.cancel()

    asyncio.run(scenario())


def test_a_write_whose_answer_was_lost_is_adopted_and_recovered() -> None:
    """The record has a fault that was refused to its caller: the next write finds it, and it ends."""

    async def scenario() -> None:
        keep, backend = MemoryKeep(), FakeBackend()
        service = made(keep, backend)
        await service.start()
        keep.error = errors.Conflict("written by another")
        lost, _ = faults.Document().with_new(faults.read_request(XID), "fake", 1.0)
        keep.text = faults.encode(lost)
        assert await refusal(inject(service, gpu=1)) == error_codes.FAULT_TRACKER
        keep.error = None
        run = asyncio.create_task(service.run())
        while keep.states != ["recovered"]:
            await asyncio.sleep(0.001)
        assert (await inject(service)).id == "f2"
        run.cancel()

    asyncio.run(scenario())


def test_a_duration_ends_a_fault_and_a_failed_end_is_tried_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody has to remember it."""
    monkeypatch.setattr(injector, "_RETRY_SECONDS", 0.01)

    async def scenario() -> None:
        keep, clock = MemoryKeep(), Clock()
        backend = FakeBackend(recover_error=BackendFailed("not yet"))
        service = made(keep, backend, clock=clock)
        await service.start()
        run = asyncio.create_task(service.run())
        await inject(service, duration_seconds=60)
        await inject(service, gpu=1)
        clock.now += 61.0
        while "recover f1" not in backend.acts:
            await asyncio.sleep(0.001)
        backend.recover_error = None
        clock.now += 61.0
        while keep.states != ["recovered", "injected"]:
            await asyncio.sleep(0.001)
        run.cancel()

    asyncio.run(scenario())


def test_a_backend_that_never_ends_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    """A caller gets an answer, and the fault is undone."""
    monkeypatch.setattr(injector, "_BACKEND_SECONDS", 0.01)

    async def scenario() -> None:
        backend = FakeBackend(never_ends=True)
        service = made(MemoryKeep(), backend)
        await service.start()
        fault = await inject(service)
        assert fault.state is State.FAILED
        assert fault.cause.startswith("no end within")

    asyncio.run(scenario())


def test_the_record_in_a_file_is_replaced_whole(tmp_path: pathlib.Path) -> None:
    """A crash while it is written leaves the one before."""

    async def scenario() -> None:
        keep = tracker.FileKeep(tmp_path / "faults.json")
        assert await keep.load() is None
        await keep.save("one")
        (tmp_path / "faults.json.part").write_text("half of the ne")
        assert await keep.load() == "one"
        await keep.save("two")
        assert await tracker.FileKeep(tmp_path / "faults.json").load() == "two"
        (tmp_path / "faults.json").write_text("x" * 2_000_000)
        with pytest.raises(OSError, match="larger than"):
            await keep.load()

    asyncio.run(scenario())


def test_unreadable_entries_stay_in_the_record() -> None:
    """A newer version's faults are still there for it after a downgrade."""

    async def scenario() -> None:
        keep = MemoryKeep('{"version": 1, "next": 5, "faults": [{"id": "f4", "kind": "flood"}]}')
        service = made(keep, FakeBackend())
        await service.start()
        assert (await inject(service)).id == "f5"
        assert '{"id": "f4", "kind": "flood"}' in (keep.text or "")

    asyncio.run(scenario())


@pytest.mark.parametrize(
    ("host", "origin", "admitted"),
    [
        ("127.0.0.1:80", "", True), ("localhost:9447", "", True), ("[::1]:1", "", True), ("LOCALHOST", "", True),
        ("", "", False), ("evil.example", "", False), ("127.0.0.1.evil.example", "", False),
        ("127.0.0.1", "null", False), ("localhost@evil.example", "", False),
    ],
)  # fmt: skip
def test_loopback_admits_programs_and_no_web_pages(host: str, origin: str, admitted: bool) -> None:
    """A page in a browser on the machine could reach the port."""

    async def scenario() -> None:
        caller = access.Caller.of({b"host": host.encode(), **({b"origin": origin.encode()} if origin else {})})
        if admitted:
            await access.LoopbackGate().demand(caller, access.INJECT)
        else:
            with pytest.raises(http_calls.CallRefused) as refused:
                await access.LoopbackGate().demand(caller, access.INJECT)
            assert (refused.value.status, refused.value.code) == (403, error_codes.FAULT_FORBIDDEN)

    asyncio.run(scenario())


def test_off_loopback_the_api_server_decides_who_may_inject(monkeypatch: pytest.MonkeyPatch) -> None:
    """Injecting is a permission of its own; answers of the API server are kept for seconds only."""
    asked: list[str] = []
    users = {"token-reader": "reader", "token-breaker": "breaker"}

    async def user_of(client: object, token: str) -> access_reviews.User | None:
        asked.append(token)
        if token == "token-silent":
            raise errors.Unavailable("no answer")
        return access_reviews.User(users[token]) if token in users else None

    async def may(client: object, user: access_reviews.User, attributes: Any) -> bool:
        wanted = attributes["resourceAttributes"]
        assert (wanted["group"], wanted["resource"]) == ("hami.io", "faults")
        return user.username == "breaker" or wanted["verb"] == "get"

    monkeypatch.setattr(access_reviews, "user_of", user_of)
    monkeypatch.setattr(access_reviews, "may", may)
    clock = Clock()
    client: Any = None
    gate = access.TokenGate(client, clock)

    async def status(token: str, verb: str) -> tuple[int, str]:
        caller = access.Caller.of({b"authorization": f"Bearer {token}".encode()})
        try:
            await gate.demand(caller, verb)
        except http_calls.CallRefused as refused:
            return refused.status, refused.code
        return 200, ""

    async def scenario() -> None:
        assert await status("token-breaker", access.INJECT) == (200, "")
        assert await status("token-reader", access.READ) == (200, "")
        assert await status("token-reader", access.INJECT) == (403, error_codes.FAULT_FORBIDDEN)
        assert await status("token-unknown", access.READ) == (401, error_codes.FAULT_UNAUTHORIZED)
        assert await status("", access.READ) == (401, error_codes.FAULT_UNAUTHORIZED)
        assert await status("no token!", access.READ) == (401, error_codes.FAULT_UNAUTHORIZED)
        assert await status("token-silent", access.READ) == (503, error_codes.FAULT_REVIEW_FAILED)
        assert asked.count("token-reader") == 1
        clock.now += 60.0
        del users["token-reader"]
        assert await status("token-reader", access.READ) == (401, error_codes.FAULT_UNAUTHORIZED)

    asyncio.run(scenario())
