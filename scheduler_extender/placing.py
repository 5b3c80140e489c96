"""Places one pod: the policies and the quota that hold for it, on top of `core.placement`.

Everybody who asks whether a pod fits (filter, bind, wake-ups, explanations) asks here, so that none of them can be of
another mind.
"""

import time
from collections.abc import Callable, Iterable, Sequence

from gpu_sharing.core import gpus, identifiers, placement, policies, quotas, rejections, requests, reservations
from gpu_sharing.core.rejections import Reason
from scheduler_extender import facts, settings
from scheduler_extender.fleet import ledger, memo, shapes


class Placer:
    """Answers about one pod at a time, from the books as they are."""

    def __init__(
        self, books: ledger.Ledger, options: settings.Settings, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._books = books
        self._clock = clock
        self._options = options
        self._placements = memo.Memo()
        self._shapes = shapes.Shapes(books, self._placements)

    def gpu_policy(self, request: requests.PodRequest) -> policies.Policy:
        """Which of a node's GPUs the pod prefers."""
        return request.gpu_policy_or(self._options.gpu_policy)

    def node_policy(self, request: requests.PodRequest) -> policies.Policy:
        """Which nodes the pod prefers."""
        return request.node_policy or self._options.node_policy

    def everywhere(self, request: requests.PodRequest) -> shapes.Answer:
        """Where the GPUs fit, on all nodes at once and whoever asks: claims count as taken, quotas do not."""
        return self._shapes.fit(request, self.gpu_policy(request))

    def fit(self, request: requests.PodRequest, node: placement.NodeState) -> memo.Answer:
        """The GPUs that such a pod gets on a node in that state, or why there are none, whoever it is."""
        return self._placements.fit(request, node, self.gpu_policy(request))

    def excuse(self, pod: facts.Waiting) -> rejections.Rejection | None:
        """Why the pod must not start now, whatever its GPUs; or None."""
        return self._books.rolls.excuse(pod.uid, pod.namespace, pod.gang, self._clock()) if pod.gang else None

    def place(self, pod: facts.Waiting, node: placement.NodeState) -> memo.Answer:
        """The GPUs that the pod gets on a node in that state, or why there are none."""
        request = pod.request
        assert isinstance(request, requests.PodRequest)
        answer = self.fit(request, node)
        if not isinstance(answer, placement.Placement):
            return answer
        if self._books.budgets.is_limited(pod.namespace):
            excess = self._books.budgets.excess(pod.namespace, quotas.amounts(request.kinds, answer.shares))
            if excess is not None:
                return excess
        return self.excuse(pod) or answer

    def forbidden(self, pod: facts.Waiting, names: Sequence[str]) -> dict[str, rejections.Rejection]:
        """What `place` says beyond the GPUs, of nodes on which these fit: first the quota, then the gang."""
        found = self.over_quota(pod, names)
        excuse = self.excuse(pod)
        if excuse is not None:
            for name in names:
                found.setdefault(name, excuse)
        return found

    def may_forbid(self, pod: facts.Waiting) -> bool:
        """Whether anything but its GPUs can keep the pod off a node; of most pods not."""
        return pod.gang is not None or self._books.budgets.is_limited(pod.namespace)

    def place_on(self, pod: facts.Waiting, name: identifiers.NodeName, *, nominations: bool) -> memo.Answer:
        """The same on a node as the pod must see it now; `Ledger.view_for` says what counts as taken."""
        return self.place(pod, self._books.view_for(name, pod.uid, pod.priority, nominations=nominations))

    def unavailable(self, name: identifiers.NodeName) -> rejections.Rejection | None:
        """Why a node takes no new pods that do not tolerate it, or None; kube-scheduler does not offer it then."""
        reason = self._books.unavailable(name)
        if reason is Reason.NONE:
            return None
        known = self._books.node_facts(name)
        if reason is Reason.DEVICE_CLASS and known is not None:
            detail = f"{self._books.device_class}; the node's allocatable has no {', '.join(known.lacks)}"
            return rejections.Rejection(reason, detail=detail)
        return rejections.Rejection(reason)

    def claim(
        self, pod: facts.Waiting, name: identifiers.NodeName, placed: placement.Placement, expires_at: float
    ) -> ledger.Claim:
        """A note that the pod will probably go there."""
        assert isinstance(pod.request, requests.PodRequest)
        bookings = reservations.booked(pod.request.kinds, placed.shares)
        return ledger.Claim(pod.uid, name, bookings, pod.priority, expires_at=expires_at)

    def over_quota(self, pod: facts.Waiting, names: Iterable[str]) -> dict[str, rejections.Rejection]:
        """Those of some nodes on which the pod's GPUs fit but would take its namespace over its quota."""
        request, budgets = pod.request, self._books.budgets
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
            sizes = self._books.gpu_memories(identifiers.NodeName(name))
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
