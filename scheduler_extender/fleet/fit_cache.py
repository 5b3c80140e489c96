"""Caches where each shape of pod fits, and recomputes only nodes that changed.

In a queue many pods request the same, and between two of them one or two nodes change. Those few are recomputed by the
scalar rules, which is quicker than an array operation over all nodes; a new shape, or many changes, uses the arrays.
A property test holds the answer equal to a fresh `fit.fit_all`.
"""

import collections
from dataclasses import dataclass

import numpy as np

from gpu_sharing.core import gpus, identifiers, placement, policies, rejections, requests
from gpu_sharing.core.rejections import Reason
from scheduler_extender.fleet import fit
from scheduler_extender.fleet.ledger import Ledger

_MOST_NODES = 20_000
_MOST_ANSWERS = 4
"""Of one node: while a pod's bind is under way, the next ones are filtered already."""

PlacementAnswer = placement.Placement | rejections.Rejection
_MOST_SHAPES = 32
_FEW_COLUMNS = 8


class PlacementCache:
    """`core.placement.fit` with a short memory for each node."""

    def __init__(self) -> None:
        self._last: dict[
            identifiers.NodeName,
            collections.deque[tuple[placement.NodeState, requests.PodRequest, policies.GpuPolicy, PlacementAnswer]],
        ] = {}

    def fit(
        self, request: requests.PodRequest, node: placement.NodeState, policy: policies.GpuPolicy
    ) -> PlacementAnswer:
        """Return `core.placement.fit`, from the cache where it has it."""
        last = self._last.get(node.name)
        if last is None:
            if len(self._last) >= _MOST_NODES:
                self._last.clear()
            last = self._last[node.name] = collections.deque(maxlen=_MOST_ANSWERS)
        for state, asked, preferred, answer in last:
            if state == node and asked == request and preferred == policy:
                return answer
        answer = placement.fit(request, node, policy)
        last.appendleft((node, request, policy, answer))
        return answer


@dataclass(slots=True)
class NodesFit:
    """Where one shape fits, kept current by `Shapes.fit`."""

    fitting: fit.Fitting
    refused: dict[str, int]
    """Every known node that does not take the shape, by name, with its `Reason`."""
    columns: int
    seen: int
    """How much of the journal of changes it reflects."""


class FitCache:
    """The answers for the shapes of recent requests."""

    def __init__(self, ledger: Ledger, placements: PlacementCache) -> None:
        self._ledger = ledger
        self._placements = placements
        self.last_use = ""
        """How the last answer came about: `computed`, `updated N nodes` or `cached`; for logs."""
        self._answers: collections.OrderedDict[tuple[requests.PodRequest, policies.GpuPolicy], NodesFit] = (
            collections.OrderedDict()
        )

    def fit(self, request: requests.PodRequest, policy: policies.GpuPolicy) -> NodesFit:
        """Where the shape fits now."""
        arrays = self._ledger.settle()
        key = (request, policy)
        answer = self._answers.get(key)
        changed = self._ledger.changed_since(answer.seen) if answer and answer.columns == arrays.columns else None
        if answer is None or changed is None or len(changed) > _FEW_COLUMNS:
            self.last_use = "computed"
            answer = self._answers[key] = self._computed(request, policy)
            if len(self._answers) > _MOST_SHAPES:
                self._answers.popitem(last=False)
            return answer
        for column in changed:
            self._recompute(answer, request, policy, column)
        self.last_use = f"updated {len(changed)} nodes" if changed else "cached"
        answer.seen = self._ledger.changes
        self._answers.move_to_end(key)
        return answer

    def _computed(self, request: requests.PodRequest, policy: policies.GpuPolicy) -> NodesFit:
        arrays = self._ledger.arrays
        if request.selectors.mode == gpus.MIG_MODE:
            return self._with_instances(request, policy)
        fitting = fit.fit_all(arrays, request, policy)
        unfit = np.flatnonzero(~fitting.fits).tolist()
        codes = fitting.reasons[unfit].tolist()
        names = arrays.names
        refused: dict[str, int] = {
            names[column]: code for column, code in zip(unfit, codes, strict=True) if names[column]
        }
        return NodesFit(fitting, refused, arrays.columns, self._ledger.changes)

    def _with_instances(self, request: requests.PodRequest, policy: policies.GpuPolicy) -> NodesFit:
        """The arrays do not describe MIG: nodes with GPUs in MIG mode are computed one by one."""
        arrays = self._ledger.arrays
        count = arrays.columns
        some = arrays.exists[:, :count].any(0)
        reasons = np.where(some, np.int8(Reason.MODE), np.int8(Reason.TOO_FEW_GPUS))
        np.copyto(reasons, arrays.standing[:count], where=arrays.standing[:count] != 0)
        fitting = fit.Fitting(np.zeros(count, np.bool_), reasons, np.zeros(count, np.int64))
        refused = {str(name): int(reason) for name, reason in zip(arrays.names, reasons, strict=True) if name}
        answer = NodesFit(fitting, refused, count, self._ledger.changes)
        divided = arrays.exists[:, :count] & (arrays.mode_id[:, :count] == arrays.modes.number(gpus.MIG_MODE))
        for column in np.flatnonzero(divided.any(0)).tolist():
            self._recompute(answer, request, policy, column)
        return answer

    def _recompute(
        self, answer: NodesFit, request: requests.PodRequest, policy: policies.GpuPolicy, column: int
    ) -> None:
        name = self._ledger.arrays.names[column]
        state = self._ledger.settled(name)
        fitted = self._placements.fit(request, state, policy)
        fitting = answer.fitting
        if isinstance(fitted, placement.Placement):
            fitting.fits[column], fitting.reasons[column] = True, Reason.NONE
            answer.refused.pop(name, None)
            if not isinstance(fitting.memory_mib, int):
                fitting.memory_mib[column] = placement.staying_memory_mib(request, fitted)
        else:
            fitting.fits[column], fitting.reasons[column] = False, fitted.reason
            answer.refused[name] = int(fitted.reason)
