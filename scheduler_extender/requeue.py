"""Wakes refused pods when room is made for them.

kube-scheduler wakes all refused pods when a bound pod changes, but its watch may be ahead of ours: it asks, we still
see the old state and refuse once more, and then nothing happens for minutes. So when the ledger frees something, each
refused pod that now fits, and was not asked about since, gets one annotation patch, which wakes that pod alone. Pods
that fit only one after another are woken one after another.
"""

import asyncio
import time
from collections.abc import Callable
from dataclasses import dataclass
from urllib import parse

import numpy as np
import orjson
import structlog

from gpu_sharing.adapters import kubernetes
from gpu_sharing.core import errors, identifiers, placement, requests, reservations
from scheduler_extender import facts, metrics, mirror, settings
from scheduler_extender.fleet import fit, ledger

RETRY = "hami.io/retry"
_EVERY_SECONDS = 0.2
_FEW_NODES = 8

log = structlog.get_logger("requeue")


@dataclass(frozen=True, slots=True)
class _Refusal:
    pod: facts.Waiting
    generation: int
    """The ledger's generation when the pod was refused: what was freed later it has not seen."""


class Refusals:
    """The pods that were refused last time they were asked about."""

    def __init__(
        self,
        cluster: mirror.Mirror,
        options: settings.Settings,
        counters: metrics.Metrics,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._mirror = cluster
        self._options = options
        self._metrics = counters
        self._clock = clock
        self._refused: dict[identifiers.PodUid, _Refusal] = {}

    def __len__(self) -> int:
        return len(self._refused)

    def add(self, pod: facts.Waiting, generation: int) -> None:
        """A pod was refused in the light of that generation."""
        self._refused[pod.uid] = _Refusal(pod, generation)

    def drop(self, uid: identifiers.PodUid) -> None:
        """A pod is bound or fits."""
        self._refused.pop(uid, None)

    def due(self) -> list[facts.Waiting]:
        """The pods to wake now; the place of each is kept for it for a while."""
        books = self._mirror.ledger
        books.expire(self._clock())
        freed = books.take_freed()
        for uid in [uid for uid in self._refused if uid not in self._mirror.waiting]:
            del self._refused[uid]
        if not freed or not self._refused:
            return []
        hopeless: set[requests.PodRequest] = set()
        woken = []
        for refusal in sorted(self._refused.values(), key=lambda refusal: (-refusal.pod.priority, refusal.generation)):
            pod, request = refusal.pod, refusal.pod.request
            if isinstance(request, requests.InvalidRequest) or request in hopeless:
                continue
            if refusal.generation >= books.generation:
                continue
            place = self._place(pod, request, freed)
            if place is None:
                hopeless.add(request)
                continue
            books.nominate(place)
            del self._refused[pod.uid]
            woken.append(pod)
        return woken

    async def run(self, client: kubernetes.Client, leads: Callable[[], bool]) -> None:
        """Wake pods for ever; ends only by cancellation."""
        while True:
            await asyncio.sleep(_EVERY_SECONDS)
            if leads():
                for pod in self.due():
                    await self._wake(client, pod)

    async def _wake(self, client: kubernetes.Client, pod: facts.Waiting) -> None:
        namespace, _, name = pod.key.partition("/")
        body = {"metadata": {"uid": pod.uid, "annotations": {RETRY: str(int(time.time() * 1000))}}}
        try:
            await client.patch(
                f"/api/v1/namespaces/{parse.quote(namespace)}/pods/{parse.quote(name)}", orjson.dumps(body), 5
            )
        except errors.KubernetesError as trouble:
            log.warning("pod not woken", pod=pod.key, cause=str(trouble))
        else:
            self._metrics.retries.inc()
            log.info("woken", pod=pod.key)

    def _place(
        self, pod: facts.Waiting, request: requests.PodRequest, freed: frozenset[identifiers.NodeName]
    ) -> ledger.Claim | None:
        """A place for the pod on one of the nodes where something became free."""
        books = self._mirror.ledger
        policy = request.gpu_policy_or(self._options.gpu_policy)
        names = sorted(freed)
        if len(names) > _FEW_NODES:
            arrays = books.settle()
            fitting = np.flatnonzero(fit.fit_all(arrays, request, policy).fits)
            names = [name for column in fitting if (name := arrays.names[column]) in freed][:_FEW_NODES]
        for name in names:
            answer = placement.fit(request, books.view_for(name, pod.uid, pod.priority, nominations=True), policy)
            if isinstance(answer, placement.Placement):
                bookings = reservations.booked(request.kinds, answer.shares)
                expires_at = self._clock() + self._options.nomination_seconds
                return ledger.Claim(pod.uid, name, bookings, pod.priority, expires_at=expires_at)
        return None
