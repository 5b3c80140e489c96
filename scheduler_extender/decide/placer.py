"""Places one pod: the policies and the quota that hold for it, on top of `core.placement`.

Everybody who asks whether a pod fits (filter, bind, wake-ups, explanations) asks here, so that none of them can be of
another mind.
"""

import time
from collections.abc import Callable, Iterable, Sequence

from gpu_sharing.core import allocations, gpus, identifiers, placement, policies, quotas, rejections, requests
from gpu_sharing.core.rejections import Reason
from scheduler_extender.cluster import from_objects
from scheduler_extender.fleet import facts, fit_cache
from scheduler_extender.fleet.ledger import Ledger
from scheduler_extender.settings import Settings


class Placer:
    """Answers about one pod at a time, from the ledger as they are."""

    def __init__(self, ledger: Ledger, settings: Settings, clock: Callable[[], float] = time.monotonic) -> None:
        self._ledger = ledger
        self._clock = clock
        self._settings = settings
        self._placements = fit_cache.PlacementCache()
        self._shapes = fit_cache.FitCache(ledger, self._placements)

    def gpu_policy(self, request: requests.PodRequest) -> policies.Policy:
        """Which of a node's GPUs the pod prefers."""
        return request.gpu_policy_or(self._settings.gpu_policy)

    def node_policy(self, request: requests.PodRequest) -> policies.Policy:
        """Which nodes the pod prefers."""
        return request.node_policy or self._settings.node_policy

    def everywhere(self, request: requests.PodRequest) -> fit_cache.NodesFit:
        """Where the GPUs fit, on all nodes at once and whoever asks: reservations count as taken, quotas do not."""
        return self._shapes.fit(request, self.gpu_policy(request))

    def fit(self, request: requests.PodRequest, node: placement.NodeState) -> fit_cache.PlacementAnswer:
        """The GPUs that such a pod gets on a node in that state, or why there are none, whoever it is."""
        return self._placements.fit(request, node, self.gpu_policy(request))

    def gang_rejection(self, pod: from_objects.PendingPod) -> rejections.Rejection | None:
        """Why the pod must not start now, whatever its GPUs; or None."""
        return self._ledger.gangs.gang_rejection(pod.uid, pod.namespace, pod.gang, self._clock()) if pod.gang else None

    def place(self, pod: from_objects.PendingPod, node: placement.NodeState) -> fit_cache.PlacementAnswer:
        """The GPUs that the pod gets on a node in that state, or why there are none."""
        request = pod.request
        assert isinstance(request, requests.PodRequest)
        answer = self.fit(request, node)
        if not isinstance(answer, placement.Placement):
            return answer
        if self._ledger.quotas.is_limited(pod.namespace):
            excess = self._ledger.quotas.excess(pod.namespace, quotas.amounts(request.kinds, answer.shares))
            if excess is not None:
                return excess
        return self.gang_rejection(pod) or answer

    def forbidden(self, pod: from_objects.PendingPod, names: Sequence[str]) -> dict[str, rejections.Rejection]:
        """What `place` says beyond the GPUs, of nodes on which these fit: first the quota, then the gang."""
        found = self.over_quota(pod, names)
        gang_rejection = self.gang_rejection(pod)
        if gang_rejection is not None:
            for name in names:
                found.setdefault(name, gang_rejection)
        return found

    def may_forbid(self, pod: from_objects.PendingPod) -> bool:
        """Whether anything but its GPUs can keep the pod off a node; of most pods not."""
        return pod.gang is not None or self._ledger.quotas.is_limited(pod.namespace)

    def place_on(
        self, pod: from_objects.PendingPod, name: identifiers.NodeName, *, nominations: bool
    ) -> fit_cache.PlacementAnswer:
        """The same on a node as the pod must see it now; `Ledger.view_for` says what counts as taken."""
        return self.place(pod, self._ledger.view_for(name, pod.uid, pod.priority, nominations=nominations))

    def unavailable(self, name: identifiers.NodeName) -> rejections.Rejection | None:
        """Why a node takes no new pods that do not tolerate it, or None; kube-scheduler does not offer it then."""
        reason = self._ledger.unavailable(name)
        if reason is Reason.NONE:
            return None
        known = self._ledger.node_facts(name)
        if reason is Reason.DEVICE_CLASS and known is not None:
            detail = f"{self._ledger.device_class}; the node's allocatable has no {', '.join(known.lacks)}"
            return rejections.Rejection(reason, detail=detail)
        return rejections.Rejection(reason)

    def reservation(
        self, pod: from_objects.PendingPod, name: identifiers.NodeName, placed: placement.Placement, expires_at: float
    ) -> facts.Reservation:
        """A note that the pod will probably go there."""
        assert isinstance(pod.request, requests.PodRequest)
        allocated = allocations.by_gpu(pod.request.kinds, placed.shares)
        return facts.Reservation(pod.uid, name, allocated, pod.priority, expires_at=expires_at)

    def over_quota(self, pod: from_objects.PendingPod, names: Iterable[str]) -> dict[str, rejections.Rejection]:
        """Those of some nodes on which the pod's GPUs fit but would take its namespace over its quota."""
        request, budgets = pod.request, self._ledger.quotas
        assert isinstance(request, requests.PodRequest)
        if not budgets.is_limited(pod.namespace):
            return {}
        divided = request.selectors.mode == gpus.MIG_MODE  # Then what counts is the size of the instances.
        if not divided and all(ask.memory_mib for ask in request.containers if ask):
            found = budgets.excess(pod.namespace, quotas.asked(request, 0))
            return dict.fromkeys(names, found) if found else {}
        over = {}
        by_memory: dict[int, rejections.Rejection | None] = {}
        for name in names:
            # A share in percent counts for as much as the GPU is large.
            sizes = self._ledger.gpu_memories(identifiers.NodeName(name))
            if len(sizes) == 1 and not divided:
                (size,) = sizes
                if size not in by_memory:
                    by_memory[size] = budgets.excess(pod.namespace, quotas.asked(request, size))
                found = by_memory[size]
            else:
                answer = self.place_on(pod, identifiers.NodeName(name), nominations=True)
                found = answer if isinstance(answer, rejections.Rejection) else None
            if found:
                over[name] = found
        return over
