"""Calls into a driver that may never return, each with a deadline.

A hung call blocks its thread, so each GPU has its own thread and the others go on. A GPU is not called again before the
hung call has returned, so that no more threads are blocked. Calls wait while an earlier one is within its deadline.
"""

import asyncio
import queue
import threading
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import replace
from typing import Any, TypeVar

from device_plugin.driver import gpu_source
from gpu_sharing.core import health, identifiers

T = TypeVar("T")

_LONGEST_WAIT_SECONDS = 5.0
"""Longest wait for events in the driver."""
_IDLE_POLL_SECONDS = 0.02


class StillBusy(Exception):
    """An earlier call has passed its deadline and has not returned."""


class _Thread:
    """One thread that runs one call after another: a daemon, so that a hung driver does not keep the process alive."""

    def __init__(self, name: str) -> None:
        self._work: queue.SimpleQueue[Any] = queue.SimpleQueue()
        self._current: asyncio.Future[Any] | None = None
        """Result of the running call."""
        self.pending = 0
        """Calls that have not returned; counted on the event loop."""
        threading.Thread(target=self._run, name=f"nvml {name}", daemon=True).start()

    async def call(self, function: Callable[[], T], timeout_seconds: float) -> T:
        """Raises `StillBusy` at once, or `TimeoutError`, or what the function raises."""
        current = self._current
        if current is not None and current.cancelled():
            raise StillBusy
        loop = asyncio.get_running_loop()
        answer: asyncio.Future[T] = loop.create_future()
        self.pending += 1
        self._work.put((loop, function, answer))
        return await asyncio.wait_for(answer, timeout_seconds)

    def close(self) -> None:
        """End the thread after the calls that wait."""
        self._work.put(None)

    def _run(self) -> None:
        while (job := self._work.get()) is not None:
            loop, function, answer = job
            result, error = None, None
            if not answer.cancelled():  # Otherwise its deadline passed before its turn.
                self._current = answer
                try:
                    result = function()
                except Exception as raised:
                    error = raised
                self._current = None
            if not loop.is_closed():
                loop.call_soon_threadsafe(self._back, answer, result, error)

    def _back(self, answer: "asyncio.Future[Any]", result: Any, error: Exception | None) -> None:
        self.pending -= 1
        _settle(answer, result, error)


def _settle(answer: "asyncio.Future[Any]", result: Any, error: Exception | None) -> None:
    if answer.done():
        return
    if error is None:
        answer.set_result(result)
    else:
        answer.set_exception(error)


class DriverThreads:
    """A driver whose every call has a deadline; without one, each call of `devices` tries to connect again."""

    def __init__(self, connect: Callable[..., gpu_source.GpuSource], timeout_seconds: float) -> None:
        """Set what is called; nothing is called yet.

        Args:
            connect: Connects to the driver; with `attach=False` it opens a GPU only at the first call to it.
            timeout_seconds: How long one call may take.
        """
        self._connect = connect
        self._released: Mapping[identifiers.GpuUuid, int] = {}
        self._open = asyncio.Event()
        """Cleared while no call may begin: the driver releases GPUs."""
        self._open.set()
        self._source: gpu_source.GpuSource = gpu_source.NoGpus()
        self._timeout_seconds = timeout_seconds
        self._lanes: dict[str, _Thread] = {}
        self._events_hang = ""
        """Why the wait for XIDs hangs; empty while it does not hang."""

    def _lane(self, name: str) -> _Thread:
        if name not in self._lanes:
            self._lanes[name] = _Thread(name)
        return self._lanes[name]

    async def devices(self) -> Sequence[gpu_source.Device]:
        """Return the GPUs.

        Raises:
            DriverMissing: There is no driver.
            DriverChanged: It was replaced.
            GpuFailed: The driver does not answer; the GPUs known before are still there.
        """
        return await self._answer("all", self._devices)

    def _devices(self) -> Sequence[gpu_source.Device]:
        if isinstance(self._source, gpu_source.NoGpus):
            self._source = self._connect(attach=False) if self._released else self._connect()
            if self._released:
                self._source.release(self._released)
        try:
            return self._source.devices()
        except gpu_source.DriverMissing:
            # It was unloaded; one that is loaded again has to be initialized again.
            self._source.close()
            self._source = gpu_source.NoGpus()
            raise

    async def links(self) -> dict[identifiers.GpuUuid, dict[identifiers.GpuUuid, int]]:
        """Return scores of the links between GPUs. Raises errors as `devices` does."""
        return await self._answer("all", lambda: self._source.links())

    async def reading(self, uuid: identifiers.GpuUuid) -> health.Reading:
        """Return the health reading of one GPU; a call that passes its deadline is a reading, too."""
        try:
            return await self._call(uuid, lambda: self._source.reading(uuid), self._timeout_seconds)
        except StillBusy:
            return health.Reading(answered=False, timed_out=True, problem="an earlier call has not returned")
        except TimeoutError:
            problem = f"no answer within {self._timeout_seconds:g} s"
            return health.Reading(answered=False, timed_out=True, problem=problem)
        except gpu_source.GpuSourceError as refused:
            return health.Reading(answered=False, problem=str(refused))

    async def usage(self, uuid: identifiers.GpuUuid) -> gpu_source.Usage:
        """Return what is used of one GPU. Raises errors as `GpuSource.usage`, and `GpuFailed` after the deadline."""
        return await self._answer(uuid, lambda: self._source.usage(uuid))

    async def next_faults(self, timeout_seconds: float) -> Sequence[gpu_source.Fault]:
        """Return the next XIDs. Raises errors as `devices` does."""
        try:
            faults = await self._call(
                "events", lambda: self._source.next_faults(timeout_seconds), timeout_seconds + self._timeout_seconds
            )
        except (StillBusy, TimeoutError) as cause:
            self._events_hang = "the driver does not return from waiting for events"
            raise gpu_source.GpuFailed(self._events_hang) from cause
        self._events_hang = ""
        return faults

    @property
    def gaps(self) -> gpu_source.Gaps:
        """Return what the driver refused in the last calls."""
        gaps = self._source.gaps()
        return replace(gaps, events=self._events_hang) if self._events_hang else gaps

    async def create_mig(self, uuid: identifiers.GpuUuid, profile: str, start: int, size: int) -> None:
        """Make a MIG instance. Raises errors as `GpuSource.create_mig` and `devices` do."""
        await self._answer("all", lambda: self._source.create_mig(uuid, profile, start, size))

    async def destroy_mig(self, uuid: identifiers.GpuUuid, mig_uuid: str) -> None:
        """Destroy a MIG instance. Raises errors as `GpuSource.destroy_mig` and `devices` do."""
        await self._answer("all", lambda: self._source.destroy_mig(uuid, mig_uuid))

    @property
    def released(self) -> Collection[identifiers.GpuUuid]:
        """GPUs that must not be called."""
        return self._released.keys()

    async def release(self, released: Mapping[identifiers.GpuUuid, int]) -> None:
        """Release GPUs, as `GpuSource.release` does, once no call is running. They are not called meanwhile.

        Raises:
            GpuFailed: A call does not return, so that the driver cannot release them.
            DriverMissing: There is no driver any more; the next one will not open them either.
        """
        self._released = dict(released)
        self._open.clear()
        try:
            deadline = time.monotonic() + _LONGEST_WAIT_SECONDS + self._timeout_seconds
            while any(lane.pending for lane in self._lanes.values()):
                if time.monotonic() > deadline:
                    raise gpu_source.GpuFailed("a call to the driver does not return")
                await asyncio.sleep(_IDLE_POLL_SECONDS)
            await self._lane("all").call(lambda: self._release(released), self._timeout_seconds)
        except (StillBusy, TimeoutError) as cause:
            raise gpu_source.GpuFailed(f"the driver does not answer within {self._timeout_seconds:g} s") from cause
        finally:
            self._open.set()

    def _release(self, released: Mapping[identifiers.GpuUuid, int]) -> None:
        try:
            self._source.release(released)
        except gpu_source.GpuSourceError:
            self._source = gpu_source.NoGpus()  # The next call of `devices` connects again.
            raise

    async def _call(self, lane: str, function: Callable[[], T], seconds: float) -> T:
        await self._open.wait()
        return await self._lane(lane).call(function, seconds)

    async def destroy_bare(self, uuid: identifiers.GpuUuid, instance_id: int) -> None:
        """Destroy a bare GPU instance. Raises errors as `GpuSource.destroy_bare` and `devices` do."""
        await self._answer("all", lambda: self._source.destroy_bare(uuid, instance_id))

    async def _answer(self, lane: str, function: Callable[[], T]) -> T:
        try:
            return await self._call(lane, function, self._timeout_seconds)
        except (StillBusy, TimeoutError) as cause:
            raise gpu_source.GpuFailed(f"the driver does not answer within {self._timeout_seconds:g} s") from cause

    def close(self) -> None:
        """End the threads whose calls return."""
        for lane in self._lanes.values():
            lane.close()
        self._source.close()
