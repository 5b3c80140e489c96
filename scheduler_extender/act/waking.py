"""Wakes refused pods when room is made for them.

kube-scheduler wakes all refused pods when a bound pod changes, but its watch may be ahead of ours: it asks, we still
see the old state and refuse once more, and then nothing happens for minutes. So when the ledger frees something, each
refused pod that now fits, and was not asked about since, gets one annotation patch, which wakes that pod alone. Pods
that fit only one after another are woken one after another.
"""

import itertools
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

import numpy as np
import structlog

from gpu_sharing.adapters import pauses
from gpu_sharing.core import identifiers, placement, quotas, requests
from scheduler_extender import set_aside
from scheduler_extender.act import leadership, pod_writer
from scheduler_extender.cluster import from_objects
from scheduler_extender.cluster.mirror import Mirror
from scheduler_extender.decide.placer import Placer
from scheduler_extender.metrics import Metrics
from scheduler_extender.settings import Settings

RETRY = "hami.io/retry"
_EVERY_SECONDS = 0.2
_FEW_NODES = 8

log = structlog.get_logger("requeue")


@dataclass(frozen=True, slots=True)
class _Refusal:
    pod: from_objects.PendingPod
    generation: int
    """The ledger's generation when the pod was refused: what was freed later it has not seen."""
    offered: tuple[str, ...]
    """The nodes that kube-scheduler would have taken; none where nobody could be evicted anyway."""
    since: float
    """When it was refused first without having fitted in between."""


class Refusals:
    """The pods that were refused last time they were asked about."""

    def __init__(
        self,
        mirror: Mirror,
        placer: Placer,
        settings: Settings,
        metrics: Metrics,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._mirror = mirror
        self._placer = placer
        self._settings = settings
        self._metrics = metrics
        self._clock = clock
        self._refused: dict[identifiers.PodUid, _Refusal] = {}
        self._offered_last: tuple[str, ...] = ()

    def __len__(self) -> int:
        return len(self._refused)

    def add(self, pod: from_objects.PendingPod, generation: int, offered: Iterable[str] = ()) -> None:
        """A pod was refused in the light of that generation, on those nodes."""
        before = self._refused.get(pod.uid)
        since = before.since if before else self._clock()
        nodes = tuple(offered) if pod.preempts and self._mirror.ledger.holds_below(pod.priority) else ()
        if nodes == self._offered_last:
            nodes = self._offered_last  # Thousands of pods may wait for the same thousands of nodes.
        self._offered_last = nodes
        self._refused[pod.uid] = _Refusal(pod, generation, nodes, since)

    def refused_for(self, seconds: float) -> list[tuple[from_objects.PendingPod, tuple[str, ...]]]:
        """The pods that have been refused for so long, by priority, then age, each with the nodes it was offered."""
        long_ago = self._clock() - seconds
        waiting = self._mirror.waiting
        found = [one for uid, one in self._refused.items() if one.since <= long_ago and one.offered and uid in waiting]
        found.sort(key=lambda refusal: (-refusal.pod.priority, refusal.since))
        return [(waiting[one.pod.uid], one.offered) for one in found]

    def drop(self, uid: identifiers.PodUid) -> None:
        """A pod is bound or fits."""
        self._refused.pop(uid, None)

    def due(self) -> list[from_objects.PendingPod]:
        """The pods to wake now; the place of each is kept for it for a while."""
        return [pod for pod in self.looked_at() if pod is not None]

    def looked_at(self) -> Iterator[from_objects.PendingPod | None]:
        """The same with None for each refused pod that stays refused: other tasks may have their turn after each."""
        ledger = self._mirror.ledger
        ledger.expire(self._clock())
        freed, relieved = ledger.take_freed(), ledger.quotas.take_relieved()
        for uid in [uid for uid in self._refused if uid not in self._mirror.waiting]:
            del self._refused[uid]
        if not (freed or relieved) or not self._refused:
            return
        hopeless: set[tuple[str, requests.PodRequest]] = set()
        promised: dict[str, quotas.Amounts] = {}
        for refusal in sorted(self._refused.values(), key=lambda refusal: (-refusal.pod.priority, refusal.generation)):
            yield None
            pod, request = refusal.pod, refusal.pod.request
            if self._refused.get(pod.uid) is not refusal:
                continue  # It was asked about since.
            limited = pod.namespace if ledger.quotas.is_limited(pod.namespace) or pod.namespace in relieved else ""
            if isinstance(request, requests.InvalidRequest) or (limited, request) in hopeless:
                continue
            if refusal.generation >= ledger.generation:
                continue
            found = None
            with set_aside.guard("Pod", pod.key, self._metrics):
                found = self._place(pod, request, None if pod.namespace in relieved else freed)
            more = promised.get(limited, quotas.NOTHING)
            if found is not None:
                more = more.plus(quotas.amounts(request.kinds, found[1].shares))
            if found is None or ledger.quotas.excess(pod.namespace, more):
                if not pod.gang:  # A member may be held back by its gang, which says nothing of others.
                    hopeless.add((limited, request))
                continue
            promised[limited] = more
            ledger.nominate(self._placer.reservation(pod, *found, self._clock() + self._settings.nomination_seconds))
            del self._refused[pod.uid]
            yield pod

    async def run(self, writer: pod_writer.PodWriter, leads: Callable[[], bool]) -> None:
        """Wake pods for ever; ends only by cancellation."""

        async def wake_all() -> None:
            pause = pauses.Pause()
            for pod in self.looked_at():
                if pod is not None:
                    await self._wake(writer, pod)
                await pause()

        await leadership.while_leading(leads, _EVERY_SECONDS, wake_all)

    async def _wake(self, writer: pod_writer.PodWriter, pod: from_objects.PendingPod) -> None:
        if await writer.annotate(pod, RETRY, str(int(time.time() * 1000))):
            self._metrics.retries.inc()
            log.info("woken", pod=pod.key)

    def _place(
        self, pod: from_objects.PendingPod, request: requests.PodRequest, freed: frozenset[identifiers.NodeName] | None
    ) -> tuple[identifiers.NodeName, placement.Placement] | None:
        """A place for the pod on one of the nodes where something became free, or with None on any."""
        names = sorted(freed) if freed is not None else None
        if names is None or len(names) > _FEW_NODES:
            arrays = self._mirror.ledger.settle()
            fitting = np.flatnonzero(self._placer.everywhere(request).fitting.fits)
            fit = (arrays.names[column] for column in fitting)
            names = list(itertools.islice((name for name in fit if freed is None or name in freed), _FEW_NODES))
        for name in names:
            answer = self._placer.place_on(pod, name, nominations=True)
            if isinstance(answer, placement.Placement):
                return name, answer
        return None
