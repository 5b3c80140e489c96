"""Whether this replica may bind: its kube-scheduler holds the Lease, by a read that is fresh enough.

kube-scheduler elects its leader by a Lease; the extender beside it reads the holder once a second. Clocks of two
machines differ, so no time that is written in the Lease is compared with ours. Instead a read is valid for
`VALID_SECONDS` from when it began: whichever way the Lease changes hands (it expired, was released, or was deleted and
created anew), the replica that lost it starts no bind later than that. Its call reaches the API server within
`CALL_SECONDS`, or never, and is done within `BINDING_TIMEOUT_SECONDS` more, or not at all. A replica that gets the
Lease waits for all three, lists consistently, and only then binds.

A replica that ends and has no call under way says so in the Lease, and then its successor does not wait. It does so
once its kube-scheduler has released the Lease: kube-scheduler releases with the version that it read, so that a write
of ours in between would make it fail, and the Lease would have to expire.

What this cannot exclude is a process that is stopped between the check and its call, and an etcd that commits after the
API server has given up. Then the device plugin refuses the container whose GPU is allocated twice.

Source: k8s.io/client-go/tools/leaderelection: the holder identity is the hostname, an underscore and a UUID, a change
of holder increments the transitions, and a kube-scheduler that ends releases its Lease.
"""

import asyncio
import contextlib
import time
from collections.abc import Awaitable, Callable

import orjson
import structlog

from gpu_sharing.adapters import kubernetes, objects
from gpu_sharing.core import error_codes, errors

POLL_SECONDS = 1.0
READ_WITHIN_SECONDS = 2.0
VALID_SECONDS = 4.0
"""How long after the start of a read its answer counts."""
CALL_SECONDS = 3.0
"""After this the call that sends a Binding is aborted, and its connection reset."""
BINDING_TIMEOUT_SECONDS = 2.0
"""After this the API server gives a Binding up; the remaining second is for its answer."""
SUCCESSOR_WAITS_SECONDS = VALID_SECONDS + CALL_SECONDS + BINDING_TIMEOUT_SECONDS
RELEASED_WITHIN_SECONDS = 4.0
"""How long a replica that ends lets its kube-scheduler release the Lease; one that goes on does not release it."""
RELEASE_POLL_SECONDS = 0.2

log = structlog.get_logger("leadership")


async def while_leading(leads: Callable[[], bool], every_seconds: float, step: Callable[[], Awaitable[None]]) -> None:
    """Take a step now and then while this replica leads, for ever; a defect in one costs no more than that one."""
    while True:
        await asyncio.sleep(every_seconds)
        if leads():
            try:
                await step()
            except Exception:
                log.exception("defect", error_code=error_codes.INTERNAL)


HANDED_OVER = "hami.io/handed-over"
"""The Lease's annotation with the transitions of the last term whose replica has ended with no call under way."""


class OnlyScheduler:
    """There is no Lease: this is the only scheduler."""

    holder = ""

    async def hand_over(self) -> None:
        """Do nothing: there is no successor."""

    def leads(self) -> bool:
        """Return True: there is no other scheduler."""
        return True

    async def run(self) -> None:
        """Do nothing for ever: there is no Lease to watch."""
        await asyncio.Event().wait()


class LeaseGuard:
    """Reads kube-scheduler's Lease.

    Attributes:
        holder: The Lease's holder as last read.
    """

    def __init__(
        self,
        client: kubernetes.Client,
        lease: str,
        identity: str,
        list_again: Callable[[], Awaitable[None]],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        namespace, _, name = lease.partition("/")
        self._path = f"/apis/coordination.k8s.io/v1/namespaces/{namespace}/leases/{name}"
        self._client = client
        self._identity = identity
        self._list_again = list_again
        self._clock = clock
        self._valid_until = float("-inf")
        self._usable_from = float("inf")
        self._seen: objects.Lease | None = None
        self._led: objects.Lease | None = None
        """The Lease when it was last ours and usable."""
        self._handed_over = asyncio.Event()
        self.holder = ""

    def leads(self) -> bool:
        """Whether a bind may start now: by a valid read the Lease is ours, and the predecessor is surely done."""
        return self._is_ours(self.holder) and self._usable_from <= self._clock() <= self._valid_until

    def see(self, lease: objects.Lease, asked_at: float) -> float | None:
        """Evaluate the Lease.

        Args:
            lease: As read.
            asked_at: When that read began, on our clock.

        Returns:
            The seconds until the predecessor is done, if the Lease has just become ours: then this replica must list
            the cluster and call `begin`. None if there is nothing to do.
        """
        before, self._seen = self._seen, lease
        self._valid_until = asked_at + VALID_SECONDS
        if _is_handed_over(lease):
            self._handed_over.set()
        else:
            self._handed_over.clear()
        holder = lease.spec.holder_identity or ""
        if before is not None and holder == self.holder and lease.metadata.uid == before.metadata.uid:
            return None
        self.holder = holder
        log.info("lease holder", holder=holder, ours=self._is_ours(holder))
        if self._usable_from < float("inf"):
            self._led = before
        self._usable_from = float("inf")
        if not self._is_ours(holder):
            return None
        if self._led is not None and _follows(lease, self._led):
            self.begin(lease)  # The kube-scheduler beside us was restarted, and none led in between.
            return None
        is_first = before is None and not lease.spec.lease_transitions
        return BINDING_TIMEOUT_SECONDS if is_first else SUCCESSOR_WAITS_SECONDS

    def begin(self, lease: objects.Lease) -> None:
        """Lead from now on, unless the Lease has changed hands since that read of it."""
        if self._seen is not None and lease.spec.holder_identity == self.holder:
            self._usable_from = self._clock()

    async def run(self) -> None:
        """Follow the Lease for ever; ends only by cancellation."""
        async with asyncio.TaskGroup() as tasks:
            taking_over: asyncio.Task[None] | None = None
            while True:
                try:
                    asked_at = self._clock()
                    lease = await self._client.get(self._path, objects.Lease, READ_WITHIN_SECONDS)
                    seconds = self.see(lease, asked_at)
                    if seconds is not None:
                        if taking_over is not None:
                            taking_over.cancel()
                        # Beside the reads, as without them none of this would be valid at its end.
                        taking_over = tasks.create_task(self._take_over(lease, seconds))
                except errors.KubernetesError as problem:
                    log.warning("lease unreadable", cause=str(problem))
                await asyncio.sleep(POLL_SECONDS)

    async def hand_over(self) -> None:
        """Write into the Lease that no call of this replica is under way any more; only if it led."""
        led = self._seen if self._usable_from < float("inf") else self._led
        self._usable_from = float("inf")
        if led is None or not self._is_ours(led.spec.holder_identity or ""):
            return
        with contextlib.suppress(errors.KubernetesError, TimeoutError):
            async with asyncio.timeout(RELEASED_WITHIN_SECONDS):
                while await self._names_us():
                    await asyncio.sleep(RELEASE_POLL_SECONDS)
        annotations = {HANDED_OVER: str(led.spec.lease_transitions or 0)}
        body = orjson.dumps({"metadata": {"uid": led.metadata.uid, "annotations": annotations}})
        try:
            await self._client.patch(self._path, body, READ_WITHIN_SECONDS)
            log.info("handed over")
        except errors.KubernetesError as problem:
            log.info("not handed over", cause=str(problem))  # The successor waits.

    async def _names_us(self) -> bool:
        lease = await self._client.get(self._path, objects.Lease, READ_WITHIN_SECONDS)
        return self._is_ours(lease.spec.holder_identity or "")

    async def _take_over(self, lease: objects.Lease, seconds: float) -> None:
        started = self._clock()
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self._handed_over.wait(), seconds)
        await self._list_again()
        self.begin(lease)
        log.info("leading", holder=self.holder, waited_seconds=round(self._clock() - started, 1))

    def _is_ours(self, holder: str) -> bool:
        return holder == self._identity or holder.startswith(self._identity + "_")


def _is_handed_over(lease: objects.Lease) -> bool:
    """Whether the replica of the term before has ended with no call under way."""
    handed = (lease.metadata.annotations or {}).get(HANDED_OVER)
    return handed == str((lease.spec.lease_transitions or 0) - 1)


def _follows(lease: objects.Lease, led: objects.Lease) -> bool:
    """Whether no other can have held the Lease between two records of it."""
    transitions = lease.spec.lease_transitions or 0
    return lease.metadata.uid == led.metadata.uid and transitions == (led.spec.lease_transitions or 0) + 1
