"""Calls into a driver that may never return, each with a deadline.

A hung call holds its thread for ever, so each GPU has a thread of its own: the others go on, and no more threads
pile up behind the hung one, because it is not asked again before it has answered. Calls that come while another is
under way in good time wait for their turn.
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
"""How long the driver is asked to wait for events at most."""
_IDLE_POLL_SECONDS = 0.02


class StillBusy(Exception):
    """The thread has not come back from an earlier call, whose time is over."""


class _Thread:
    """One thread that does one call after another. A daemon, so that a hung driver cannot keep the process alive."""

    def __init__(self, name: str) -> None:
        self._work: queue.SimpleQueue[Any] = queue.SimpleQueue()
        self._current: asyncio.Future[Any] | None = None
        """What the call under way is to answer."""
        self.pending = 0
        """Calls that have not come back; counted on the loop."""
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
        """End the thread, once it has nothing to do."""
        self._work.put(None)

    def _run(self) -> None:
        while (job := self._work.get()) is not None:
            loop, function, answer = job
            result, error = None, None
            if not answer.cancelled():  # Else its time was over before its turn came, and nothing waits for it.
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
    """A driver whose every call has a deadline; while there is none, it is looked for again at each enumeration."""

    def __init__(self, connect: Callable[..., gpu_source.GpuSource], timeout_seconds: float) -> None:
        """Keep what is needed; nothing is called yet.

        Args:
            connect: Finds the driver; with `attach=False` it holds no GPU that is not asked for.
            timeout_seconds: How long one call may take.
        """
        self._connect = connect
        self._released: Mapping[identifiers.GpuUuid, int] = {}
        self._open = asyncio.Event()
        """Cleared while no call may begin."""
        self._open.set()
        self._source: gpu_source.GpuSource = gpu_source.NoGpus()
        self._timeout_seconds = timeout_seconds
        self._lanes: dict[str, _Thread] = {}
        self._events_hang = ""
        """Why the wait for XIDs hangs; empty while it does not."""

    def _lane(self, name: str) -> _Thread:
        if name not in self._lanes:
            self._lanes[name] = _Thread(name)
        return self._lanes[name]

    async def devices(self) -> Sequence[gpu_source.Device]:
        """The GPUs.

        Raises:
            DriverMissing: There is none.
            DriverChanged: It was replaced.
            GpuFailed: The driver does not answer; what was known before still holds.
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
            # It was unloaded; one that is loaded again wants to be greeted anew.
            self._source.close()
            self._source = gpu_source.NoGpus()
            raise

    async def links(self) -> dict[identifiers.GpuUuid, dict[identifiers.GpuUuid, int]]:
        """Scores of the links between GPUs. Errors as `devices`."""
        return await self._answer("all", lambda: self._source.links())

    async def reading(self, uuid: identifiers.GpuUuid) -> health.Reading:
        """A look at one GPU; no answer in time is a reading, too."""
        try:
            return await self._call(uuid, lambda: self._source.reading(uuid), self._timeout_seconds)
        except StillBusy:
            return health.Reading(answered=False, timed_out=True, trouble="an earlier call has not come back")
        except TimeoutError:
            trouble = f"nothing within {self._timeout_seconds:g} s"
            return health.Reading(answered=False, timed_out=True, trouble=trouble)
        except gpu_source.GpuSourceError as refused:
            return health.Reading(answered=False, trouble=str(refused))

    async def usage(self, uuid: identifiers.GpuUuid) -> gpu_source.Usage:
        """What is used of one GPU. Errors as `GpuSource.usage`; no answer in time is `GpuFailed`."""
        return await self._answer(uuid, lambda: self._source.usage(uuid))

    async def next_faults(self, timeout_seconds: float) -> Sequence[gpu_source.Fault]:
        """XIDs, as they come. Errors as `devices`."""
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
        """What the driver refused in the last calls."""
        found = self._source.gaps()
        return replace(found, events=self._events_hang) if self._events_hang else found

    async def create_mig(self, uuid: identifiers.GpuUuid, profile: str, start: int, size: int) -> None:
        """Make a MIG instance. Errors as `GpuSource.create_mig` and `devices`."""
        await self._answer("all", lambda: self._source.create_mig(uuid, profile, start, size))

    async def destroy_mig(self, uuid: identifiers.GpuUuid, mig_uuid: str) -> None:
        """Take a MIG instance away. Errors as `GpuSource.destroy_mig` and `devices`."""
        await self._answer("all", lambda: self._source.destroy_mig(uuid, mig_uuid))

    @property
    def released(self) -> Collection[identifiers.GpuUuid]:
        """GPUs that must not be asked."""
        return self._released.keys()

    async def release(self, released: Mapping[identifiers.GpuUuid, int]) -> None:
        """Let go of GPUs, as `GpuSource.release`, once no call is under way. They are not asked meanwhile.

        Raises:
            GpuFailed: A call does not come back, so that the driver cannot be let go of.
            DriverMissing: There is no driver any more; the next one will not be asked about them either.
        """
        self._released = dict(released)
        self._open.clear()
        try:
            deadline = time.monotonic() + _LONGEST_WAIT_SECONDS + self._timeout_seconds
            while any(lane.pending for lane in self._lanes.values()):
                if time.monotonic() > deadline:
                    raise gpu_source.GpuFailed("a call to the driver does not come back")
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
            self._source = gpu_source.NoGpus()  # Greeted anew at the next enumeration.
            raise

    async def _call(self, lane: str, function: Callable[[], T], seconds: float) -> T:
        await self._open.wait()
        return await self._lane(lane).call(function, seconds)

    async def destroy_bare(self, uuid: identifiers.GpuUuid, instance_id: int) -> None:
        """Destroy a GPU instance without compute instance. Errors as `GpuSource.destroy_bare` and `devices`."""
        await self._answer("all", lambda: self._source.destroy_bare(uuid, instance_id))

    async def _answer(self, lane: str, function: Callable[[], T]) -> T:
        try:
            return await self._call(lane, function, self._timeout_seconds)
        except (StillBusy, TimeoutError) as cause:
            raise gpu_source.GpuFailed(f"the driver does not answer within {self._timeout_seconds:g} s") from cause

    def close(self) -> None:
        """End the threads that can be ended."""
        for lane in self._lanes.values():
            lane.close()
        self._source.close()
