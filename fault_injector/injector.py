"""Injects and recovers faults, in an order that a crash at any step cannot spoil.

A fault is saved as `injecting` before anything is done. What a process finds in a state that it did not finish may be
in effect, and is recovered at its start.
"""

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Callable, Sequence

import structlog

from fault_injector.backends import Backend, BackendFailed
from fault_injector.consent import Consent
from fault_injector.metrics import Metrics
from fault_injector.tracker import Keep
from gpu_sharing.core import error_codes, errors, faults
from gpu_sharing.core.faults import Fault, State

_BACKEND_SECONDS = 60.0
"""How long a backend may take to inject or to recover."""
_RETRY_SECONDS = 5.0
"""Between attempts to recover by itself, or to save the record."""

log = structlog.get_logger("faults")


class Injector:
    """All faults of this service. Every call is made on one event loop."""

    def __init__(
        self,
        keep: Keep,
        backends: Sequence[Backend],
        consent: Consent,
        metrics: Metrics,
        clock: Callable[[], float] = time.time,
    ) -> None:
        """Make the service; `start` reads what an earlier process left.

        Args:
            keep: Where the record is kept.
            backends: The first that can inject a kind does.
            consent: Knows which nodes permit faults.
            metrics: Counts.
            clock: Unix seconds.
        """
        self._keep = keep
        self._backends = tuple(backends)
        self._consent = consent
        self._metrics = metrics
        self._clock = clock
        self._document = faults.Document()
        self._started = False
        self._unsaved = False
        self._changing = asyncio.Lock()
        self._busy: dict[str, asyncio.Lock] = {}
        self._wake = asyncio.Event()
        self._retry_at: dict[str, float] = {}

    @property
    def is_ready(self) -> bool:
        """Whether the record was read, and what an earlier process left is recovered or in effect."""
        return self._started

    @property
    def problem(self) -> str:
        """Why the record on disk or in the cluster is behind; empty if it is not."""
        return "the record of faults cannot be saved" if self._unsaved else ""

    @property
    def recorded(self) -> tuple[Fault, ...]:
        """All faults, in the order of their injection."""
        return self._document.faults

    @property
    def kinds(self) -> frozenset[str]:
        """The names of the kinds that can be injected here."""
        return frozenset().union(*(backend.kinds for backend in self._backends))

    def find(self, fault_id: str) -> Fault:
        """Return the fault of that id.

        Raises:
            FaultRefused: There is none.
        """
        fault = self._document.find(fault_id)
        if fault is None:
            raise errors.FaultRefused(error_codes.FAULT_UNKNOWN, f"no fault has the id {fault_id[:40]!r}")
        return fault

    async def start(self) -> None:
        """Read the record, and recover what an earlier process left half done, or what ended with it.

        Raises:
            FaultRefused: The record cannot be read.
        """
        try:
            text = await self._keep.load()
            self._document = faults.decode(text) if text is not None else faults.Document()
        except (OSError, errors.KubernetesError, errors.CorruptRecord) as cause:
            raise errors.FaultRefused(
                error_codes.FAULT_TRACKER, f"the record of faults cannot be read: {cause}"
            ) from cause
        if self._document.unreadable:
            log.error("unreadable faults", error_code=error_codes.FAULT_TRACKER, count=len(self._document.unreadable))
        for fault in self._document.faults:
            backend = self._backend_named(fault.backend)
            stays = fault.state is State.INJECTED and backend is not None and backend.outlives_process
            if fault.is_in_effect and not stays:
                log.info("recovering what an earlier process left", fault=fault.id, state=fault.state.value)
                await self.recover(fault.id)
        self._started = True
        self._show()

    async def run(self) -> None:
        """Recover each fault when its time has come, and save what could not be saved; ends only by cancellation."""
        while True:
            self._wake.clear()
            now = self._clock()
            for fault in self._document.faults:
                if self._is_due(fault, now):
                    self._retry_at[fault.id] = now + _RETRY_SECONDS
                    await self.recover(fault.id)
            self._retry_at = {name: at for name, at in self._retry_at.items() if at > now}
            if self._unsaved:
                async with self._changing:
                    await self._save_if_possible()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(self._pause_seconds()):
                    await self._wake.wait()

    def _is_due(self, fault: Fault, now: float) -> bool:
        """Return whether a fault is to be recovered now: its time is over, or it was adopted and never carried out."""
        if fault.state is State.INJECTED:
            return max(fault.ends_at, self._retry_at.get(fault.id, 0.0)) <= now
        lock = self._busy.get(fault.id)
        return fault.is_in_effect and (lock is None or not lock.locked())

    def _pause_seconds(self) -> float:
        ends = [
            max(fault.ends_at, self._retry_at.get(fault.id, 0.0))
            for fault in self._document.faults
            if fault.state is State.INJECTED
        ]
        return max(min([_RETRY_SECONDS, *(end - self._clock() for end in ends)]), 0.01)

    async def inject(self, request: faults.Request) -> Fault:
        """Inject a fault. Return it with its state: `injected`, or `failed` with the cause.

        Raises:
            FaultRefused: Nothing was done.
        """
        try:
            backend = self._backend_for(request)
            request = await backend.resolve(request)
            if request.kind.needs_consent:
                await self._consent.demand(str(request.values["node"]))
            fault = await self._record(request, backend.name)
        except errors.FaultRefused:
            self._metrics.injections.labels(kind=request.kind.name, outcome="refused").inc()
            raise
        async with self._alone(fault.id):
            # A call to recover it may have been first.
            return await self._carry_out(fault, backend) if self.find(fault.id) is fault else self.find(fault.id)

    def _backend_for(self, request: faults.Request) -> Backend:
        named = [one for one in self._backends if request.backend in ("", one.name)]
        able = [one for one in named if request.kind.name in one.kinds]
        if able:
            return able[0]
        known = ", ".join(sorted(self.kinds)) or "none"
        by = f" by {request.backend}" if request.backend else ""
        text = f"{request.kind.name} cannot be injected here{by}; what can: {known}"
        raise errors.FaultRefused(error_codes.FAULT_NOT_SUPPORTED, text)

    def _backend_named(self, name: str) -> Backend | None:
        return next((one for one in self._backends if one.name == name), None)

    async def _record(self, request: faults.Request, backend: str) -> Fault:
        """Save a new fault as `injecting`."""
        async with self._changing:
            in_effect = [fault for fault in self._document.faults if fault.is_in_effect]
            other = faults.collides(request, in_effect)
            if other is not None:
                text = f"{other.id} ({other.kind.name}) is {other.state.value} on {other.target}; recover it first"
                raise errors.FaultRefused(error_codes.FAULT_COLLIDES, text)
            if len(in_effect) >= faults.MOST_IN_EFFECT:
                text = f"{len(in_effect)} faults are in effect, and no more are permitted"
                raise errors.FaultRefused(error_codes.FAULT_TOO_MANY, text)
            document, fault = self._document.with_new(request, backend, self._clock())
            try:
                await self._keep.save(faults.encode(document))
            except (OSError, errors.KubernetesError) as cause:
                self._unsaved = True  # It may have been written although the answer is lost.
                await self._adopt(cause)
                text = f"the record of faults cannot be saved: {cause}"
                raise errors.FaultRefused(error_codes.FAULT_TRACKER, text) from cause
            self._document = document
            return fault

    async def _carry_out(self, fault: Fault, backend: Backend) -> Fault:
        cause = await _attempt(backend.inject, fault)
        if not cause:
            changed = await self._change(fault, State.INJECTED)
        else:
            left = await _attempt(backend.recover, fault)
            changed = (
                await self._change(fault, State.INJECTED, f"{cause}; and what was done may be in effect: {left}")
                if left
                else await self._change(fault, State.FAILED, cause)
            )
        self._metrics.injections.labels(kind=fault.kind.name, outcome="failed" if cause else "injected").inc()
        log.info("injected" if not cause else "injection failed", fault=fault.id, kind=fault.kind.name,
                 target=fault.target, cause=cause)  # fmt: skip
        self._wake.set()
        return changed

    async def recover(self, fault_id: str) -> Fault:
        """Recover a fault. Return it with its state: `recovered`, or `injected` with the cause.

        A fault that is not in effect is returned as it is.

        Raises:
            FaultRefused: There is no fault of that id.
        """
        self.find(fault_id)
        async with self._alone(fault_id):
            fault = self.find(fault_id)
            if not fault.is_in_effect:
                return fault
            fault = await self._change(fault, State.RECOVERING, fault.cause)
            backend = self._backend_named(fault.backend)
            cause = await _attempt(backend.recover, fault) if backend else f"there is no backend {fault.backend} here"
            changed = await self._change(fault, State.INJECTED if cause else State.RECOVERED, cause)
            self._metrics.recoveries.labels(kind=fault.kind.name, outcome="failed" if cause else "recovered").inc()
            log.info("recovered" if not cause else "recovery failed", fault=fault.id, kind=fault.kind.name,
                     target=fault.target, cause=cause)  # fmt: skip
            return changed

    async def recover_all(self) -> list[Fault]:
        """Recover every fault in effect, the newest first. Return them with their states."""
        in_effect = [fault.id for fault in self._document.faults if fault.is_in_effect]
        return [await self.recover(fault_id) for fault_id in reversed(in_effect)]

    @contextlib.asynccontextmanager
    async def _alone(self, fault_id: str) -> AsyncIterator[None]:
        """Let one call at a time change a fault."""
        async with self._busy.setdefault(fault_id, asyncio.Lock()):
            yield

    async def _change(self, fault: Fault, state: State, cause: str = "") -> Fault:
        """Set the next state of a fault.

        A record that cannot be saved stays behind until it can; after a crash more is recovered then than is in effect,
        and never less.
        """
        async with self._changing:
            changed = faults.moved(fault, state, self._clock(), cause)
            self._document = self._document.with_changed(changed)
            await self._save_if_possible()
        self._busy = {name: lock for name, lock in self._busy.items() if self._document.find(name)}
        self._show()
        return changed

    async def _save_if_possible(self) -> None:
        try:
            await self._keep.save(faults.encode(self._document))
            self._unsaved = False
        except (OSError, errors.KubernetesError) as cause:
            self._unsaved = True
            log.error("record not saved", error_code=error_codes.FAULT_TRACKER, cause=str(cause))
            await self._adopt(cause)

    async def _adopt(self, cause: Exception) -> None:
        """Read the record after a conflict, mostly with a write of ours whose answer was lost, and adopt its faults."""
        if not isinstance(cause, errors.Conflict):
            return
        with contextlib.suppress(OSError, errors.KubernetesError, errors.CorruptRecord):
            text = await self._keep.load()
            if text is not None:
                self._document = self._document.merged_with(faults.decode(text))
                self._wake.set()

    def _show(self) -> None:
        self._metrics.show(self._document.faults)


async def _attempt(act: Callable[[Fault], object], fault: Fault) -> str:
    """Let a backend act on a fault. Return why that failed; empty if it did not."""
    try:
        async with asyncio.timeout(_BACKEND_SECONDS):
            await act(fault)  # type: ignore[misc]
    except TimeoutError:
        return f"no end within {_BACKEND_SECONDS:g} s"
    except (BackendFailed, OSError, errors.GpuSharingError) as cause:
        return str(cause) or type(cause).__name__
    except Exception as defect:
        log.exception("defect", error_code=error_codes.INTERNAL, fault=fault.id)
        return f"a defect: {type(defect).__name__}: {defect}"
    return ""
