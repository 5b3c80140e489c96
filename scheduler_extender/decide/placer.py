"""Places one pod: its policies, quota and gang, on top of `core.placement`.

Filter, bind, wake-ups and explanations all ask here whether a pod fits, so that they cannot disagree.
"""

import dataclasses
import time
from collections.abc import Callable, Iterable, Sequence

from gpu_sharing.core import allocations, gpus, identifiers, placement, policies, quotas, rejections, requests
from gpu_sharing.core.rejections import Reason
from scheduler_extender.cluster import pending
from scheduler_extender.cluster.pending import PendingPod
from scheduler_extender.decide import packing
from scheduler_extender.fleet import facts, fit_cache, never_fits
from scheduler_extender.fleet.ledger import Ledger
from scheduler_extender.settings import Settings


class Placer:
    """Places one pod at a time by the ledger as it is.

    Attributes:
        packing: What `fragmentation-aware` decides by.
    """

    def __init__(self, ledger: Ledger, settings: Settings, clock: Callable[[], float] = time.monotonic) -> None:
        self._ledger = ledger
        self._clock = clock
        self._settings = settings
        self.packing = packing.Packing(ledger)
        self._placements = fit_cache.PlacementCache()
        self._shapes = fit_cache.FitCache(ledger, self._placements)
        self._never_fits = never_fits.Cache()

    def gpu_policy(self, request: requests.PodRequest) -> policies.GpuPolicy:
        """Return by which policy the pod prefers some of a node's GPUs."""
        return request.gpu_policy_or(self._settings.gpu_policy)

    def node_policy(self, request: requests.PodRequest) -> policies.NodePolicy:
        """Return by which policy the pod prefers some nodes."""
        return request.node_policy or self._settings.node_policy

    def everywhere(self, request: requests.PodRequest) -> fit_cache.NodesFit:
        """Return where the GPUs fit, on all nodes at once: reservations count as allocated; quotas, gangs do not."""
        return self._shapes.fit(request, self.gpu_policy(request))

    def never_fits(self, request: requests.PodRequest) -> tuple[never_fits.Obstacle, ...]:
        """Return what of a request no node can ever serve; empty where one may."""
        return self._never_fits.obstacles(self._ledger.settle(), request)

    @property
    def last_cache_use(self) -> str:
        """How the last answer of `everywhere` came about, for logs."""
        return self._shapes.last_use

    def fit(self, request: requests.PodRequest, node: placement.NodeState) -> fit_cache.PlacementAnswer:
        """Return the GPUs of a node in that state that serve the request, or why none do; quota and gang ignored."""
        return self._placements.fit(request, node, self.gpu_policy(request))

    def gang_rejection(self, pod: pending.AnyPod) -> rejections.Rejection | None:
        """Return why the pod's gang must not start now, whatever is free; None for a pod without a gang."""
        return self._ledger.gangs.rejection(pod.uid, pod.namespace, pod.gang, self._clock()) if pod.gang else None

    def place(self, pod: PendingPod, node: placement.NodeState) -> fit_cache.PlacementAnswer:
        """Return the GPUs that the pod gets on a node in that state, or why there are none: first the quota's reason.

        Filter, which asks `forbidden` for many nodes at once, gives the reasons in the same order.
        """
        answer = self.fit(pod.request, node)
        if not isinstance(answer, placement.Placement):
            return answer
        policy = self.gpu_policy(pod.request)
        if policy.by_fragmentation:  # Which GPUs of the node are best is computed only where enough fit.
            policy = dataclasses.replace(policy, gains=self.packing.gpu_gains(pod, node.name))
            answer = self._placements.fit(pod.request, node, policy)
            if not isinstance(answer, placement.Placement):
                return answer
        if self._ledger.quotas.is_limited(pod.namespace):
            excess = self._ledger.quotas.excess(pod.namespace, quotas.amounts(pod.request.kinds, answer.shares))
            if excess is not None:
                return excess
        return self.gang_rejection(pod) or answer

    def score(self, pod: PendingPod, node: placement.NodeState, placed: placement.Placement) -> float:
        """Return how good a node is for a pod, from 0 to 1, by the pod's node policy."""
        return placement.node_score(pod.request, node, placed, self.node_policy(pod.request))

    def forbidden(self, pod: PendingPod, names: Sequence[str]) -> dict[str, rejections.Rejection]:
        """Return what `place` says beyond the GPUs of nodes on which these fit: first the quota's reason."""
        rejected = self.over_quota(pod, names)
        gang_rejection = self.gang_rejection(pod)
        if gang_rejection is not None:
            for name in names:
                rejected.setdefault(name, gang_rejection)
        return rejected

    def may_forbid(self, pod: PendingPod) -> bool:
        """Return whether a quota or a gang can keep the pod off a node where its GPUs fit."""
        return pod.gang is not None or self._ledger.quotas.is_limited(pod.namespace)

    def place_on(self, pod: PendingPod, name: identifiers.NodeName, *, nominations: bool) -> fit_cache.PlacementAnswer:
        """Return the same for a node as the pod must see it now; `Ledger.view_for` says what counts as allocated."""
        return self.place(pod, self._ledger.view_for(name, pod.uid, pod.priority, nominations=nominations))

    def unavailable(self, name: identifiers.NodeName) -> rejections.Rejection | None:
        """Return why kube-scheduler does not offer a node to ordinary pods, or None."""
        reason = self._ledger.unavailable(name)
        if reason is Reason.NONE:
            return None
        known = self._ledger.node_facts(name)
        if reason is Reason.DEVICE_CLASS and known is not None:
            detail = f"{self._ledger.device_class}; the node's allocatable has no {', '.join(known.lacks)}"
            return rejections.Rejection(reason, detail=detail)
        return rejections.Rejection(reason)

    def reservation(
        self, pod: PendingPod, name: identifiers.NodeName, placed: placement.Placement, expires_at: float
    ) -> facts.Reservation:
        """Return a nomination: a note that the pod will probably go there."""
        allocated = allocations.by_gpu(pod.request.kinds, placed.shares)
        return facts.Reservation(pod.uid, name, allocated, priority=pod.priority, expires_at=expires_at)

    def over_quota(self, pod: PendingPod, names: Iterable[str]) -> dict[str, rejections.Rejection]:
        """Return the nodes on which the pod's GPUs would take its namespace over its quota, each with the reason."""
        request, namespace_quotas = pod.request, self._ledger.quotas
        if not namespace_quotas.is_limited(pod.namespace):
            return {}
        divided = request.selectors.mode == gpus.MIG_MODE  # Then what counts is the size of the instances.
        if not divided and all(ask.memory_mib for ask in request.containers if ask):
            excess = namespace_quotas.excess(pod.namespace, quotas.asked(request, 0))
            return dict.fromkeys(names, excess) if excess else {}
        over = {}
        by_memory: dict[int, rejections.Rejection | None] = {}
        for name in names:
            # A share in percent counts for as much as the GPU is large.
            sizes = self._ledger.gpu_memories(identifiers.NodeName(name))
            if len(sizes) == 1 and not divided:
                (size,) = sizes
                if size not in by_memory:
                    by_memory[size] = namespace_quotas.excess(pod.namespace, quotas.asked(request, size))
                excess = by_memory[size]
            else:
                answer = self.place_on(pod, identifiers.NodeName(name), nominations=True)
                excess = answer if isinstance(answer, rejections.Rejection) else None
            if excess:
                over[name] = excess
        return over
