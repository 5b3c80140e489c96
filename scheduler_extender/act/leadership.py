"""Whether this replica may bind: its kube-scheduler holds the lease, and the time of the previous holder has passed.

kube-scheduler elects its leader by a Lease; the extender beside it reads the holder. All times are on our monotonic
clock, counted from when *we* saw the Lease renewed, because clocks of two machines differ. After a change of holder
the new side waits until the old lease has expired, and the 2 s that a Binding may be under way, then lists
consistently, before its first bind.

Source: k8s.io/client-go/tools/leaderelection: the holder identity is the hostname, an underscore and a UUID.
"""

import asyncio
import time
from collections.abc import Awaitable, Callable

import structlog

from gpu_sharing.adapters import kubernetes, objects
from gpu_sharing.core import error_codes, errors

POLL_SECONDS = 2.0
LEAST_REMAINING_SECONDS = 3.0
BINDING_TIMEOUT_SECONDS = 2.0
_DEFAULT_DURATION_SECONDS = 15

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


class OnlyScheduler:
    """There is no Lease: this is the only scheduler."""

    holder = ""

    def leads(self) -> bool:
        """Return True: there is no other scheduler."""
        return True

    async def run(self) -> None:
        """Return at once: there is no Lease to watch."""


class LeaseGuard:
    """Reads kube-scheduler's Lease.

    Attributes:
        holder: The Lease's holder as last seen.
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
        self._version = ""
        self._renewed_at = float("-inf")
        self._duration = float(_DEFAULT_DURATION_SECONDS)
        self._usable_from = float("inf")
        self.holder = ""

    def leads(self) -> bool:
        """Whether a bind may start now: ours is the lease, it lasts 3 s more, and the predecessor is surely done."""
        now = self._clock()
        return self._is_ours(self.holder) and self._usable_from <= now <= self._expires_at() - LEAST_REMAINING_SECONDS

    def see(self, lease: objects.Lease) -> bool:
        """Evaluate the Lease. Returns whether this replica has just become the leader, and so must list the cluster."""
        now = self._clock()
        holder = lease.spec.holder_identity or ""
        first_look = not self._version
        if lease.metadata.resource_version != self._version:
            self._version = lease.metadata.resource_version
            # The first read does not show when the Lease was renewed, so it proves nothing yet.
            self._renewed_at = float("-inf") if first_look else now
        before, self.holder = self.holder, holder
        waited = self._duration
        self._duration = float(lease.spec.lease_duration_seconds or _DEFAULT_DURATION_SECONDS)
        if holder == before:
            return False
        log.info("lease holder", holder=holder, ours=self._is_ours(holder))
        if not self._is_ours(holder):
            self._usable_from = float("inf")
            return False
        alone = first_look and not lease.spec.lease_transitions
        self._usable_from = now + BINDING_TIMEOUT_SECONDS + (0.0 if alone else waited)
        return True

    async def run(self) -> None:
        """Follow the Lease for ever; ends only by cancellation."""
        while True:
            try:
                if self.see(await self._client.get(self._path, objects.Lease, POLL_SECONDS)):
                    await asyncio.sleep(max(self._usable_from - self._clock(), 0))
                    self._usable_from = float("inf")  # Until the list is there.
                    await self._list_again()
                    self._usable_from = self._clock()
            except errors.KubernetesError as problem:
                log.warning("lease unreadable", cause=str(problem))
            await asyncio.sleep(POLL_SECONDS)

    def _expires_at(self) -> float:
        return self._renewed_at + self._duration

    def _is_ours(self, holder: str) -> bool:
        return holder == self._identity or holder.startswith(self._identity + "_")
