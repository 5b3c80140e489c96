"""Remembers the last placements on each node, because one pod asks for its own three times.

Filter looks at the node that changed, prioritize nominates, bind chooses: mostly the same request on the same state,
which is quicker to compare than to place. `core.placement.fit` is pure, so a remembered answer is the answer.
"""

import collections

from gpu_sharing.core import identifiers, placement, policies, rejections, requests

_MOST_NODES = 20_000
_MOST_ANSWERS = 4
"""Of one node: while a pod's bind is under way, the next ones are filtered already."""

Answer = placement.Placement | rejections.Rejection


class Memo:
    """`core.placement.fit` with a short memory for each node."""

    def __init__(self) -> None:
        self._last: dict[
            identifiers.NodeName,
            collections.deque[tuple[placement.NodeState, requests.PodRequest, policies.Policy, Answer]],
        ] = {}

    def fit(self, request: requests.PodRequest, node: placement.NodeState, policy: policies.Policy) -> Answer:
        """What `core.placement.fit` says."""
        last = self._last.get(node.name)
        if last is None:
            if len(self._last) >= _MOST_NODES:
                self._last.clear()
            last = self._last[node.name] = collections.deque(maxlen=_MOST_ANSWERS)
        for state, asked, liking, answer in last:
            if state == node and asked == request and liking == policy:
                return answer
        answer = placement.fit(request, node, policy)
        last.appendleft((node, request, policy, answer))
        return answer
